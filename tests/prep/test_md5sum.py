"""`prep.md5sum`: what md5sum printed comes over line by line, or not at all."""

import hashlib
import io
import subprocess
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import MakeTree
from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.errors import DataError, ImageTreeError, UsageError
from vit21k.manifest.io import open_manifest, read_manifest
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.prep import plsc
from vit21k.prep.plsc import import_md5sum, read_md5sum
from vit21k.prep.verify import verify

MD5 = "0cc175b9c0f1b6a831c399e269772661"
GOOD_LINE = f"{MD5}  n1/x.jpg\n"


def _read(text: str | bytes, strip_prefix: str = "") -> list[dict[str, object]]:
    content = text if isinstance(text, bytes) else text.encode()
    tables = list(read_md5sum(io.BytesIO(content), "md5sum.txt", strip_prefix=strip_prefix))
    return pa.concat_tables(tables).to_pylist() if tables else []


def _paths(text: str | bytes, strip_prefix: str = "") -> list[object]:
    return [row["path"] for row in _read(text, strip_prefix)]


def test_a_line_is_a_row() -> None:
    assert _read(f"{MD5}  images/n1/x.jpg\n") == [
        {
            "path": "images/n1/x.jpg",
            "wnid": "n1",
            "digest": bytes.fromhex(MD5),
        }
    ]


NAMES = st.text(
    alphabet=st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12
).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=2, max_size=4).map("/".join)


def _line(path: str) -> str:
    """Return what GNU md5sum 9 prints, from its manual."""
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    mark = "\\" if escaped != path else ""
    return f"{mark}{hashlib.md5(path.encode()).hexdigest()}  {escaped}\n"


@settings(max_examples=200)
@given(st.lists(PATHS, max_size=8))
def test_any_name_survives_the_escapes(paths: list[str]) -> None:
    rows = _read("".join(map(_line, paths)))

    assert [row["path"] for row in rows] == paths
    assert [row["wnid"] for row in rows] == [path.split("/")[-2] for path in paths]
    assert [row["digest"] for row in rows] == [hashlib.md5(p.encode()).digest() for p in paths]


@settings(max_examples=100)
@given(st.lists(PATHS, min_size=1, max_size=8))
def test_any_name_survives_between_nuls(paths: list[str]) -> None:
    text = "".join(f"{hashlib.md5(p.encode()).hexdigest()} *{p}\0" for p in paths)

    assert _paths(text) == paths


@settings(max_examples=50)
@given(st.lists(PATHS, min_size=1, max_size=20), st.integers(300, 900))
def test_where_the_blocks_end_does_not_matter(paths: list[str], block_bytes: int) -> None:
    text = "".join(map(_line, paths))
    whole = _read(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plsc, "_BLOCK_BYTES", block_bytes)
        in_pieces = _read(text)

    assert in_pieces == whole


@pytest.mark.parametrize("options", [[], ["-b"], ["-z"]])
def test_what_md5sum_prints_is_read(make_tree: MakeTree, options: list[str]) -> None:
    names = [
        "a b.jpg",
        "a\tb.jpg",
        "a\nb.jpg",
        "a\\b.jpg",
        "a\\nb.jpg",
        "-x.jpg",
        "é.jpg",
        "ab.jpg",
    ]
    root = make_tree({f"n1/{name}": name.encode() for name in names})
    command = ["md5sum", *options, "--", *(f"n1/{name}" for name in names)]
    printed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout

    rows = _read(printed)

    assert [row["path"] for row in rows] == [f"n1/{name}" for name in names]
    assert [row["digest"] for row in rows] == [hashlib.md5(n.encode()).digest() for n in names]


def test_a_carriage_return_in_a_name_comes_back_from_its_escape() -> None:
    assert _paths(f"\\{MD5}  n1/a\\rb.jpg\n") == ["n1/a\rb.jpg"]


def test_hex_digits_may_be_upper_case() -> None:
    assert _read(f"{MD5.upper()}  n1/x.jpg\n") == _read(GOOD_LINE)


@pytest.mark.parametrize("prefix", ["/data/in21k", "/data/in21k/", "/data/in21k//"])
def test_a_prefix_is_taken_off_with_the_slash(prefix: str) -> None:
    assert _paths(f"{MD5}  /data/in21k/images/n1/x.jpg\n", prefix) == ["images/n1/x.jpg"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("", "is not a line of md5sum"),
        ("hello", "is not a line of md5sum"),
        (f"{MD5}", "is not a line of md5sum"),
        (f"{MD5}  ", "is not a line of md5sum"),
        (f"{MD5} n1/x.jpg", "is not a line of md5sum"),
        (f"{MD5}\tn1/x.jpg", "is not a line of md5sum"),
        (f"{MD5[:-1]}g  n1/x.jpg", "is not a line of md5sum"),
        (f"{MD5[:-1]}  n1/x.jpg", "is not a line of md5sum"),
        (f"{MD5}{MD5[:8]}  n1/x.jpg", "is not a line of md5sum"),
        (f"MD5 (n1/x.jpg) = {MD5}", "is not a line of md5sum"),
        ("md5sum: n1/x.jpg: Permission denied", "is not a line of md5sum"),
        (f"\\{MD5}  n1/a\\tb.jpg", "backslash before what md5sum does not escape"),
        (f"\\{MD5}  n1/ab.jpg\\", "backslash before what md5sum does not escape"),
        (f"{MD5}  x.jpg", "a path without a folder"),
        (f"{MD5}  ./x.jpg", "a path without a folder"),
        (f"{MD5}  /n1/x.jpg", "an absolute path"),
        (f"{MD5}  n1//x.jpg", "a path with an empty component"),
        (f"{MD5}  images//n1/x.jpg", "a path with an empty component"),
        (f"{MD5}  n1/./x.jpg", "a path with a part `.`"),
        (f"{MD5}  ./", "a path without a folder"),
        (f"{MD5}  ./../n1/x.jpg", "a path that leads upwards"),
        (f"{MD5}  n1/", "a path with an empty component"),
        (f"{MD5}  ../n1/x.jpg", "a path that leads upwards"),
        (f"{MD5}  a/../n1/x.jpg", "a path that leads upwards"),
        (f"{MD5}  n1/x.jpg\r", "ends in a carriage return"),
    ],
)
def test_a_malformed_line_is_refused_by_its_number(line: str, why: str) -> None:
    with pytest.raises(DataError) as caught:
        _read(GOOD_LINE * 3 + line + "\n" + GOOD_LINE)

    assert caught.value.message.startswith("`md5sum.txt`, line 4 ")
    assert why in caught.value.message
    assert caught.value.hint


def test_line_numbers_continue_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plsc, "_BLOCK_BYTES", 100)

    with pytest.raises(DataError, match="line 1,001 is not a line of md5sum"):
        _read(GOOD_LINE * 1000 + "x\n")


def test_dots_within_names_are_names() -> None:
    paths = ["n1/..x.jpg", "n1../x.jpg", "a../..b/x.jpg", "a/.../x.jpg", ".n1/x.jpg"]

    assert _paths("".join(f"{MD5}  {path}\n" for path in paths)) == paths


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("./n1/x.jpg", ""),
        ("././n1/x.jpg", ""),
        ("./images/n1/x.jpg", "images"),
        ("./images/n1/x.jpg", "./images/"),
        ("images/n1/x.jpg", "./images"),
        ("./images/./n1/x.jpg", "images"),
        ("./n1/x.jpg", "."),
    ],
)
def test_a_dot_at_the_front_is_taken_off(path: str, prefix: str) -> None:
    assert _paths(f"{MD5}  {path}\n", prefix) == ["n1/x.jpg"]


def test_what_find_printed_is_found_again(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"n1/x.jpg": b"x", "n2/y.jpg": b"y"})
    command = ["find", ".", "-type", "f", "-exec", "md5sum", "{}", "+"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout
    (tmp_path / "all.txt").write_bytes(listed)

    import_md5sum(tmp_path / "all.txt", tmp_path / "m", root=root)

    assert b"  ./n1/x.jpg" in listed
    assert verify(tmp_path / "m").num_same == 2


OTHER_MD5 = MD5[::-1]
REPEATED = {
    "the same line": (f"{MD5}  n2/x.jpg", "the digest and path of line 2", "awk"),
    "another digest": (f"{OTHER_MD5}  n2/x.jpg", "the path, with another digest, of", "changed"),
    "a dot": (f"{MD5}  ./n2/x.jpg", "the digest and path of line 2", "awk"),
}


@pytest.mark.parametrize("block_bytes", [1 << 22, 100])
@pytest.mark.parametrize("what", REPEATED)
def test_a_path_that_comes_twice_is_refused_by_both_numbers(
    what: str, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plsc, "_BLOCK_BYTES", block_bytes)
    line, why, hint = REPEATED[what]
    lines = [f"{MD5}  n{number}/x.jpg" for number in range(1, 6)]
    (tmp_path / "all.txt").write_text("\n".join([*lines, line, lines[0], ""]))

    with pytest.raises(DataError) as caught:
        import_md5sum(tmp_path / "all.txt", tmp_path / "m")

    assert f"line 6 has {why}" in caught.value.message
    assert "'n2/x.jpg'; so have 1 more lines" in caught.value.message
    assert hint in (caught.value.hint or "")
    assert not list((tmp_path / "m").glob("*.parquet"))


def test_a_name_that_is_not_utf8_is_refused_by_its_number() -> None:
    with pytest.raises(DataError, match="line 2 has a path that is not UTF-8"):
        _read(GOOD_LINE.encode() + MD5.encode() + b"  n1/caf\xe9.jpg\n")


@pytest.mark.parametrize("prefix", ["/data", "/other", "n", "n1/x"])
def test_a_prefix_that_does_not_match_is_refused_by_line(prefix: str) -> None:
    with pytest.raises(DataError, match="line 2 does not begin with"):
        _read(f"{MD5}  {prefix}/n1/x.jpg\n{GOOD_LINE}", prefix)


def test_a_prefix_is_whole_folders() -> None:
    with pytest.raises(DataError, match="line 1 does not begin with `/data/image/`"):
        _read(f"{MD5}  /data/imagenet/n1/x.jpg\n", "/data/image")


def test_a_list_that_was_cut_short_is_refused() -> None:
    with pytest.raises(DataError, match="cut short"):
        _read((GOOD_LINE * 3)[:-1])


@pytest.mark.parametrize("block_bytes", [len(GOOD_LINE), 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        GOOD_LINE + f"{MD5}  n1/\0.jpg\n",
        GOOD_LINE + f"\\{MD5}  n1/\0\\\\.jpg\n",
        GOOD_LINE + f"{MD5}  n1/x.jpg\0{MD5}  n1/y.j",  # of `md5sum -z`, and cut short
    ],
)
def test_a_nul_in_a_list_of_lines_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str, block_bytes: int
) -> None:
    monkeypatch.setattr(plsc, "_BLOCK_BYTES", block_bytes)

    with pytest.raises(DataError, match=r"holds a NUL|cut short|not a list of lines"):
        _read(text)


def test_a_file_without_lines_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plsc, "_BLOCK_BYTES", 100)

    with pytest.raises(DataError, match="is not a list of lines"):
        _read("x" * 1000)


def test_an_imported_manifest_keeps_the_order_of_the_lines(tmp_path: Path) -> None:
    lines = tmp_path / "md5sum.txt"
    lines.write_text(
        f"{MD5}  n2/b.jpg\n{MD5}  n1/a.jpg\nd41d8cd98f00b204e9800998ecf8427e  n1/c.jpg\n"
    )

    summary = import_md5sum(lines, tmp_path / "m")

    digests = open_manifest(tmp_path / "m", DIGESTS)
    assert digests.read()["path"].to_pylist() == ["n2/b.jpg", "n1/a.jpg", "n1/c.jpg"]
    assert (digests.header.algorithm, digests.header.root) == ("md5", "")
    assert read_manifest(tmp_path / "m", PROBLEMS).num_rows == 0
    assert (summary.num_files, summary.num_empty) == (3, 1)


def test_the_image_root_is_kept_where_it_is_given(tiny_tree: Path, tmp_path: Path) -> None:
    lines = tmp_path / "md5sum.txt"
    lines.write_text(GOOD_LINE)

    import_md5sum(lines, tmp_path / "m", root=tiny_tree)

    assert open_manifest(tmp_path / "m", DIGESTS).header.root == str(tiny_tree)
    with pytest.raises(UsageError, match="is inside the image root"):
        import_md5sum(lines, tiny_tree / "m", root=tiny_tree)
    with pytest.raises(ImageTreeError, match="does not exist"):
        import_md5sum(lines, tmp_path / "m", root=tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", GOOD_LINE + "x\n"])
def test_nothing_is_written_of_a_list_with_a_malformed_line(tmp_path: Path, content: str) -> None:
    lines = tmp_path / "md5sum.txt"
    lines.write_text(GOOD_LINE)
    import_md5sum(lines, tmp_path / "m")
    before = (tmp_path / "m" / "digests.parquet").read_bytes()
    lines.write_text(content)

    with pytest.raises(DataError):
        import_md5sum(lines, tmp_path / "m")

    assert (tmp_path / "m" / "digests.parquet").read_bytes() == before


def test_a_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        import_md5sum(tmp_path / "nowhere.txt", tmp_path / "m")
    with pytest.raises(DataError, match="no such file"):
        import_md5sum(tmp_path, tmp_path / "m")
