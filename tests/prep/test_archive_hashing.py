"""`hash` on archives: the manifests are those of the tree that unpacking them would have made."""

import errno
import gzip
import io
import os
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_FILES, MakeTree
from tar_files import END, header, padded, tar_of, tar_of_tars
from zip_files import Entry, zip_of

from vit21k.data.dataset import ImageDataset
from vit21k.errors import TemporaryFolderError
from vit21k.manifest.io import open_manifest, read_manifest
from vit21k.manifest.schema import COPIES, DIGESTS, IMAGES, PROBLEMS, TRAIN, VAL
from vit21k.prep import hash_archives
from vit21k.prep.hash_chunks import ChunkHasher
from vit21k.prep.hash_tree import HashSummary, hash_tree
from vit21k.prep.plsc import export_lists
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val
from vit21k.sources.folders import walk

FOLDERS = {
    wnid: {
        name.rpartition("/")[2]: content
        for name, content in TINY_FILES.items()
        if name.startswith(wnid)
    }
    for wnid in ("n01440764", "n01443537", "n02512053")
}
COLUMNS = ["path", "wnid", "num_bytes", "digest", "content_digest", "format"]
LISTS = ["image_all_list.txt", "image_dummy_val_list.txt"]


def _hash(root: Path, manifests: Path, **options: object) -> HashSummary:
    return hash_tree(root, manifests, **options)  # type: ignore[arg-type]


def _problems(manifests: Path) -> list[tuple[str, str]]:
    rows = read_manifest(manifests, PROBLEMS).to_pylist()
    return [(row["path"], row["kind"]) for row in rows]


def _paths(manifests: Path) -> list[str]:
    paths: list[str] = read_manifest(manifests, DIGESTS)["path"].to_pylist()
    return paths


def _lists(manifests: Path) -> list[bytes]:
    relabel(manifests)
    make_val(manifests, per_class=1)
    export_lists(manifests, manifests)
    return [(manifests / name).read_bytes() for name in LISTS]


def _laid_out(kind: str, folder: Path) -> Path:
    """Return an image root that holds the tiny tree in archives."""
    root = folder / kind
    root.mkdir()
    if kind in {"class tars", "class zips"}:
        for number, (wnid, files) in enumerate(FOLDERS.items()):
            content = tar_of(files) if kind == "class tars" else _zip_of(files, number % 2)
            (root / f"{wnid}.{kind[6:-1]}").write_bytes(content)
        return root
    if kind == "a mix":
        for wnid, files in list(FOLDERS.items())[1:]:
            (root / f"{wnid}.tar.gz").write_bytes(tar_of(files, compressed=True))
        (root / "n01440764").mkdir()
        for name, content in FOLDERS["n01440764"].items():
            (root / "n01440764" / name).write_bytes(content)
        return root
    path = root / (
        "whole.zip" if "zip of" in kind else "whole.tgz" if "gzip" in kind else "whole.tar"
    )
    content = _whole(kind)
    if "in parts" not in kind:
        path.write_bytes(content)
        return path
    for number, start in enumerate(range(0, len(content), 700)):
        (root / f"{path.name}.{number:03}").write_bytes(content[start : start + 700])
    return root / f"{path.name}.000"


def _whole(kind: str) -> bytes:
    """Return the tiny tree in one archive, in another order than that of the paths."""
    files = dict(reversed(TINY_FILES.items()))
    if kind == "a zip of folders":
        return _zip_of(files, 1)
    if kind == "a tar of folders":
        return tar_of(files)
    return tar_of_tars(dict(reversed(FOLDERS.items())), compressed="gzip" in kind)


def _zip_of(files: Mapping[str, bytes], parity: int) -> bytes:
    """Return a zip in which every other file is compressed."""
    pairs = enumerate(files.items())
    entries = [Entry(n.encode(), c, 8 if i % 2 == parity else 0) for i, (n, c) in pairs]
    return zip_of(*entries)


LAYOUTS = [
    "class tars",
    "a tar of tars",
    "a gzip'd tar of tars",
    "a tar of folders",
    "a mix",
    "class zips",
    "a zip of folders",
    "a tar of tars in parts",
    "a gzip'd tar of tars in parts",
]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_manifests_and_lists_are_those_of_the_unpacked_tree(
    kind: str, tiny_tree: Path, tmp_path: Path
) -> None:
    _hash(tiny_tree, tmp_path / "unpacked")

    summary = _hash(_laid_out(kind, tmp_path), tmp_path / "packed", num_workers=3)

    expected = read_manifest(tmp_path / "unpacked", DIGESTS, COLUMNS)
    assert read_manifest(tmp_path / "packed", DIGESTS, COLUMNS).equals(expected)
    assert summary.num_files == len(TINY_FILES)
    assert not summary.problems
    assert _lists(tmp_path / "packed") == _lists(tmp_path / "unpacked")


@pytest.mark.parametrize(
    "kind", ["class tars", "a tar of tars", "a gzip'd tar of tars", "class zips"]
)
def test_the_number_of_workers_changes_no_byte(kind: str, tmp_path: Path) -> None:
    root = _laid_out(kind, tmp_path)
    for num_workers in (1, 2, 8):
        _hash(root, tmp_path / str(num_workers), num_workers=num_workers)

    first, *others = ((tmp_path / str(n) / "digests.parquet").read_bytes() for n in (1, 2, 8))
    assert all(other == first for other in others)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_images_in_archives_are_read_at_their_offset(kind: str, tmp_path: Path) -> None:
    _hash(_laid_out(kind, tmp_path), tmp_path / "m")
    relabel(tmp_path / "m")
    make_val(tmp_path / "m", per_class=1)

    for manifest in (IMAGES, TRAIN, VAL):
        images = ImageDataset.from_manifest(open_manifest(tmp_path / "m", manifest))
        for row in range(len(images)):
            assert images.read_bytes(row) == TINY_FILES[images.path(row)]
    copies = read_manifest(tmp_path / "m", COPIES)
    assert kind == "a mix" or copies["container"].null_count == copies["offset"].null_count == 0


def test_rows_have_the_offsets_of_members(tmp_path: Path) -> None:
    root = _laid_out("a tar of tars", tmp_path)

    _hash(root, tmp_path / "m")

    content = root.read_bytes()
    for row in read_manifest(tmp_path / "m", DIGESTS).to_pylist():
        found = content[row["offset"] : row["offset"] + row["num_bytes"]]
        assert row["container"] == "whole.tar"
        assert found == TINY_FILES[row["path"]]


def test_files_next_to_archives_have_no_archive(tmp_path: Path) -> None:
    _hash(_laid_out("a mix", tmp_path), tmp_path / "m")

    rows = read_manifest(tmp_path / "m", DIGESTS).to_pylist()
    assert [row["container"] for row in rows[:3]] == [None] * 3
    assert {row["container"] for row in rows[3:]} == {"n01443537.tar.gz", "n02512053.tar.gz"}
    assert [row["storage"] for row in rows] == [None] * 3 + ["gzip"] * (len(rows) - 3)


def test_an_archive_below_the_root_stands_for_a_folder(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"train/whole.tar": tar_of_tars(FOLDERS), "train/n0/x.jpg": b"x"})

    _hash(root, tmp_path / "m")

    expected = ["train/n0/x.jpg", *(f"train/whole/{name}" for name in TINY_FILES)]
    assert _paths(tmp_path / "m") == sorted(expected)


def test_an_archive_next_to_its_folder_is_skipped(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"n1/x.jpg": b"x", "n1.tar": tar_of({"x.jpg": b"x"}), "n2/y.jpg": b"y"})

    summary = _hash(root, tmp_path / "m")

    assert _paths(tmp_path / "m") == ["n1/x.jpg", "n2/y.jpg"]
    assert _problems(tmp_path / "m") == [("n1.tar", "already_unpacked")]
    assert not summary.num_bad


@pytest.mark.parametrize("unpacked", [{}, {"x.jpg": b"x"}, {"x.jpg": b"x", "y.jpg": b"other"}])
def test_an_archive_next_to_a_folder_that_lacks_some_of_it_is_a_problem(
    unpacked: dict[str, bytes], make_tree: MakeTree, tmp_path: Path
) -> None:
    files = {"x.jpg": b"x", "y.jpg": b"y", "README": b"read me"}
    tree = {f"n1/{name}": content for name, content in unpacked.items()}
    root = make_tree({**tree, "n1.tar": tar_of(files), "n2/z.jpg": b"z"})
    (root / "n1").mkdir(exist_ok=True)

    summary = _hash(root, tmp_path / "m")

    [problem] = read_manifest(tmp_path / "m", PROBLEMS).to_pylist()
    assert (problem["path"], problem["kind"]) == ("n1.tar", "archive_differs")
    num_missing = 1 if "x.jpg" in unpacked else 2
    assert f"{num_missing} of its 2 images are not in `n1/`" in problem["detail"]
    assert "n1/y.jpg" in problem["detail"]
    assert summary.num_bad == 1


@pytest.mark.parametrize("compressed", [False, True])
def test_a_tar_of_tars_next_to_its_folder_is_compared_in_depth(
    compressed: bool, tiny_tree: Path, tmp_path: Path
) -> None:
    unpacked = tmp_path / "d" / "whole"
    shutil.copytree(tiny_tree, unpacked)
    name = "whole.tgz" if compressed else "whole.tar"
    (tmp_path / "d" / name).write_bytes(tar_of_tars(FOLDERS, compressed=compressed))
    _hash(tmp_path / "d", tmp_path / "m")
    assert _problems(tmp_path / "m") == [(name, "already_unpacked")]

    next(unpacked.rglob("*.JPEG")).unlink()
    _hash(tmp_path / "d", tmp_path / "m")

    assert _problems(tmp_path / "m") == [(name, "archive_differs")]


def test_an_archive_of_a_folder_is_compared_with_that_folder(tmp_path: Path) -> None:
    folder = tmp_path / "d" / "n1"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"a")
    subprocess.run(
        ["tar", "-C", tmp_path / "d", "-cf", tmp_path / "d" / "n1.tar", "n1"], check=True
    )

    _hash(tmp_path / "d", tmp_path / "m")

    assert _problems(tmp_path / "m") == [("n1.tar", "already_unpacked")]


def test_a_truncated_archive_next_to_its_folder_is_a_problem(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree({"n1/a.jpg": b"a", "n1.tar": tar_of({"a.jpg": b"a"})[:1024]})

    _hash(root, tmp_path / "m")

    [problem] = read_manifest(tmp_path / "m", PROBLEMS).to_pylist()
    assert (problem["kind"], "end mark" in problem["detail"]) == ("archive_differs", True)


@pytest.mark.parametrize("is_same", [True, False])
def test_of_two_archives_of_one_name_one_is_read(
    is_same: bool, make_tree: MakeTree, tmp_path: Path
) -> None:
    files = {"x.jpg": b"x"} if is_same else {"y.jpg": b"y", "x.jpg": bytes(20_000)}
    tars = {"n1.tar": tar_of({"x.jpg": b"x"}), "n1.tgz": tar_of(files, compressed=True)}

    summary = _hash(make_tree(tars), tmp_path / "m")

    assert _paths(tmp_path / "m") == ["n1/x.jpg"]
    kind = "already_unpacked" if is_same else "archive_differs"
    assert _problems(tmp_path / "m") == [("n1.tgz", kind)]
    assert bool(summary.num_bad) is not is_same


def test_the_last_of_equally_named_members_counts(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"n1.tar": tar_of([("a.jpg", b"old"), ("b.jpg", b"b"), ("a.jpg", b"newer")])})

    _hash(root, tmp_path / "m")

    rows = read_manifest(tmp_path / "m", DIGESTS).to_pylist()
    assert [(row["path"], row["num_bytes"]) for row in rows] == [("n1/a.jpg", 5), ("n1/b.jpg", 1)]
    assert _problems(tmp_path / "m") == [("n1/a.jpg", "duplicate_member")]


def test_the_last_of_equally_named_class_tars_counts(tmp_path: Path) -> None:
    inner = [("n1.tar", tar_of({"a.jpg": b"old"})), ("n1.tar", tar_of({"b.jpg": b"new"}))]
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "whole.tar").write_bytes(tar_of(inner))

    _hash(tmp_path / "d" / "whole.tar", tmp_path / "m")

    assert _paths(tmp_path / "m") == ["n1/b.jpg"]
    assert _problems(tmp_path / "m") == [("n1.tar", "duplicate_member")]


HTML = b"<html>404 Not Found</html>"
SUPERSEDED = {
    "an empty file": (("a.jpg", b""), "empty"),
    "a page of HTML": (("a.jpg", HTML), "not_an_image"),
    "under another spelling": (("./a.jpg", b""), "empty"),
}


@pytest.mark.parametrize("run_members", [1, 8192])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("what", SUPERSEDED)
def test_a_member_that_is_of_no_use_supersedes_an_earlier_one(
    what: str,
    compressed: bool,
    run_members: int,
    make_tree: MakeTree,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hash_archives, "RUN_MEMBERS", run_members)
    later, kind = SUPERSEDED[what]
    members = [("a.jpg", b"old"), ("sub/b.jpg", b"b"), ("c.jpg", b""), later, ("c.jpg", b"good")]
    name = "n1.tgz" if compressed else "n1.tar"
    root = make_tree({name: tar_of(members, compressed=compressed), "n2/x.jpg": b"x"})

    _hash(root, tmp_path / "m", label_from="folder")

    assert _paths(tmp_path / "m") == ["n1/c.jpg", "n1/sub/b.jpg", "n2/x.jpg"]
    assert _problems(tmp_path / "m") == [
        ("n1/a.jpg", "duplicate_member"),
        ("n1/a.jpg", kind),
        ("n1/c.jpg", "duplicate_member"),
    ]


def test_a_tar_that_gnu_tar_appended_to_is_its_unpacked_tree(tmp_path: Path) -> None:
    tree, unpacked = tmp_path / "t", tmp_path / "u" / "n01440764"
    tree.mkdir()
    unpacked.mkdir(parents=True)
    source = tmp_path / "s"
    source.mkdir()
    first = dict(zip(("a.JPEG", "b.JPEG", "d.JPEG"), TINY_FILES.values(), strict=False))
    second = {"a.JPEG": b"", "b.JPEG": HTML, "c.JPEG": b"\xff\xd8\xff new"}
    for flag, files in (("-cf", first), ("-rf", second)):
        for name, content in files.items():
            (source / name).write_bytes(content)
        command = ["tar", "-C", source, flag, tree / "n01440764.tar"]
        subprocess.run([*command, *(f"./{name}" for name in files)], check=True)
    (source / "d.JPEG").unlink()
    (source / "d.JPEG").symlink_to("c.JPEG")  # the last member of its name is a link
    subprocess.run(["tar", "-C", source, "-rf", tree / "n01440764.tar", "d.JPEG"], check=True)
    subprocess.run(["tar", "-C", unpacked, "-xf", tree / "n01440764.tar"], check=True)

    _hash(tree, tmp_path / "packed")
    _hash(unpacked.parent, tmp_path / "unpacked")

    expected = read_manifest(tmp_path / "unpacked", DIGESTS, COLUMNS)
    assert expected["path"].to_pylist() == ["n01440764/c.JPEG"]
    assert read_manifest(tmp_path / "packed", DIGESTS, COLUMNS).equals(expected)
    assert [kind for _, kind in _problems(tmp_path / "packed")] == [
        *("duplicate_member", "empty"),
        *("duplicate_member", "not_an_image"),
        *("duplicate_member", "member_is_link"),
    ]


@pytest.mark.parametrize("last", ["a tar", "a link"])
def test_the_last_class_tar_of_a_compressed_archive_counts(
    last: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    tars = [tar_of({name: b"x"}) for name in ("a.jpg", "b.jpg", "c.jpg")]
    names = [b"n1.tar", b"n2.tar", b"n1.tar"]
    parts = [header(n, len(t)) + padded(t) for n, t in zip(names, tars, strict=True)]
    parts[2] = header(b"n1.tar", kind=b"2") if last == "a link" else parts[2]
    make_tree({"whole.tar.gz": gzip.compress(b"".join(parts) + END)})

    _hash(tmp_path / "tree" / "whole.tar.gz", tmp_path / "m")

    expected = {"a tar": ["n1/c.jpg", "n2/b.jpg"], "a link": ["n2/b.jpg"]}
    assert _paths(tmp_path / "m") == expected[last]
    assert ("n1.tar", "duplicate_member") in _problems(tmp_path / "m")


def test_a_full_temporary_folder_is_no_damage_of_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def __init__(self, max_size: int) -> None:
            super().__init__()

        def write(self, _content: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hash_archives, "_HELD_ITEMS", 0)
    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", Full)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/small/tmp")

    with pytest.raises(TemporaryFolderError, match="/small/tmp`: No space left") as raised:
        _hash(_laid_out("a gzip'd tar of tars", tmp_path), tmp_path / "m")

    assert raised.value.exit_code == 74
    assert "TMPDIR=" in (raised.value.hint or "")
    assert not (tmp_path / "m" / "digests.parquet").exists()


def test_an_image_at_the_top_of_the_archive_that_is_the_root_has_its_name_as_class(
    tmp_path: Path,
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "n1.tar").write_bytes(tar_of({"a.jpg": b"a"}))

    _hash(tmp_path / "d" / "n1.tar", tmp_path / "m")

    assert _paths(tmp_path / "m") == ["n1/a.jpg"]


NESTED = tar_of({"n1.tar": tar_of({"a.jpg": b"a", "n2.tar": tar_of({"b.jpg": b"b"})})})
HOSTILE = {
    "a link": (header(b"a.jpg", kind=b"2") + END, ("n1/a.jpg", "member_is_link")),
    "a device": (header(b"a.jpg", kind=b"3") + END, ("n1/a.jpg", "not_a_regular_file")),
    "an absolute name": (tar_of({"/etc/a.jpg": b"a"}), ("n1//etc/a.jpg", "unsafe_name")),
    "a name that leads out": (tar_of({"../a.jpg": b"a"}), ("n1/../a.jpg", "unsafe_name")),
    "a size that lies": (
        header(b"a.jpg", 1 << 40) + padded(b"a") + END,
        ("n1/a.jpg", "archive_truncated"),
    ),
    "a file of gigabytes": (header(b"a.jpg", 1 << 29), ("n1/a.jpg", "archive_truncated")),
    "tars in tars in tars": (NESTED, ("n1/n1/n2.tar", "archive_too_deep")),
    "no tar at all": (b"<html>" * 1000, ("n1.tar", "archive_damaged")),
    "nothing": (b"", ("n1.tar", "archive_truncated")),
    "an empty member": (tar_of({"a.jpg": b""}), ("n1/a.jpg", "empty")),
    "a name of odd bytes": (header(b"\xff.jpg", 1) + padded(b"a") + END, None),
    "a damaged gzip file": (b"\x1f\x8b\x08" + bytes(100), ("n1.tar", "archive_damaged")),
    "a compressed tar in a tar": (
        tar_of({"n1.tar.gz": tar_of({"a.jpg": b"a"}, compressed=True)}),
        ("n1/n1.tar.gz", "archive_too_deep"),
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_archives_are_refused_by_name_and_the_others_read(
    what: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    content, problem = HOSTILE[what]
    root = make_tree({"n1.tar": content, "n0.tar": tar_of({"good.jpg": b"good"})})

    summary = _hash(root, tmp_path / "m")

    assert "n0/good.jpg" in _paths(tmp_path / "m")
    assert (problem or (r"n1/\xff.jpg", "name_not_utf8")) in _problems(tmp_path / "m")
    assert summary.num_bad
    assert {path.name for path in root.iterdir()} == {"n0.tar", "n1.tar"}


def test_a_bomb_is_refused_by_name(make_tree: MakeTree, tmp_path: Path) -> None:
    bomb = tar_of({"a.jpg": b"a", "b.txt": bytes(100 << 20)}, compressed=True)

    _hash(make_tree({"n1.tgz": bomb}), tmp_path / "m")

    assert _paths(tmp_path / "m") == ["n1/a.jpg"]
    assert ("n1.tgz", "archive_bomb") in _problems(tmp_path / "m")


def test_other_files_in_an_archive_are_skipped(make_tree: MakeTree, tmp_path: Path) -> None:
    files = {"a.jpg": b"a", "README.txt": b"hello", ".DS_Store": b"x", "._a.jpg": b"x"}

    summary = _hash(make_tree({"n1.tar": tar_of(files)}), tmp_path / "m")

    assert sorted(kind for _, kind in _problems(tmp_path / "m")) == [
        "hidden",
        "hidden",
        "other_suffix",
    ]
    assert summary.num_entries == 4
    assert not summary.num_bad


def test_an_archive_that_changes_while_it_is_read_gives_no_rows(
    make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree({"n1.tar": tar_of({"a.jpg": b"a"}), "n2.tar": tar_of({"b.jpg": b"b"})})
    read_members = hash_archives.read_members

    def grow(*args: object) -> object:
        with (root / "n1.tar").open("ab") as file:
            file.write(bytes(512))
        return read_members(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(hash_archives, "read_members", grow)
    _hash(root, tmp_path / "m", num_workers=1)

    assert ("n1.tar", "changed_while_read") in _problems(tmp_path / "m")
    assert "n1/a.jpg" not in _paths(tmp_path / "m")


@pytest.mark.parametrize("tar_format", ["v7", "ustar", "gnu", "pax"])
def test_archives_of_gnu_tar_give_the_tree_they_were_made_from(
    tar_format: str, tiny_tree: Path, tmp_path: Path
) -> None:
    _hash(tiny_tree, tmp_path / "unpacked")
    (tmp_path / "t").mkdir()
    for folder in tiny_tree.iterdir():
        target = tmp_path / "t" / f"{folder.name}.tar"
        command = ["tar", f"--format={tar_format}", "-C", folder, "-cf", target, "."]
        subprocess.run(command, check=True)

    _hash(tmp_path / "t", tmp_path / "packed")

    expected = read_manifest(tmp_path / "unpacked", DIGESTS, COLUMNS)
    assert read_manifest(tmp_path / "packed", DIGESTS, COLUMNS).equals(expected)


def test_a_large_member_is_one_like_any_other(make_tree: MakeTree, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(3 << 20)
    root = make_tree({"n1.tar": tar_of({"a.jpg": b"a", "b.jpg": content, "c.jpg": b"c"})})
    other = tmp_path / "u" / "n1"
    other.mkdir(parents=True)
    for name, data in {"a.jpg": b"a", "b.jpg": content, "c.jpg": b"c"}.items():
        (other / name).write_bytes(data)

    _hash(root, tmp_path / "packed")
    _hash(other.parent, tmp_path / "unpacked")

    expected = read_manifest(tmp_path / "unpacked", DIGESTS, COLUMNS)
    assert read_manifest(tmp_path / "packed", DIGESTS, COLUMNS).equals(expected)


def test_the_archives_are_left_as_they_were(tmp_path: Path) -> None:
    root = _laid_out("class tars", tmp_path)
    before = {path: path.stat() for path in root.iterdir()}

    _hash(root, tmp_path / "m")

    assert {path: (path.stat().st_mtime_ns, path.stat().st_ctime_ns) for path in before} == {
        path: (status.st_mtime_ns, status.st_ctime_ns) for path, status in before.items()
    }
    assert os.listdir(root)  # noqa: PTH208


@pytest.mark.parametrize("is_shuffled", [False, True])
def test_a_long_tar_that_comes_back_to_its_folders_is_put_in_order(
    is_shuffled: bool, make_tree: MakeTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_archives, "RUN_MEMBERS", 3)
    files = [(f"n{i % 4}/{'' if i % 3 else 'sub/'}{i // 4}.jpg", b"%d" % i) for i in range(60)]
    files += [(name, content + b"newer") for name, content in files[::7]]
    if not is_shuffled:
        files.sort(key=lambda file: file[0])
    expected = dict(files)

    _hash(make_tree({"t.tar": tar_of(files)}), tmp_path / "m", label_from="folder")

    rows = read_manifest(tmp_path / "m", DIGESTS).to_pylist()
    assert [row["path"] for row in rows] == sorted(f"t/{name}" for name in expected)
    content = (tmp_path / "tree" / "t.tar").read_bytes()
    for row in rows:
        found = content[row["offset"] : row["offset"] + row["num_bytes"]]
        assert found == expected[row["path"].removeprefix("t/")]
    assert [kind for _, kind in _problems(tmp_path / "m")] == ["duplicate_member"] * 9


def test_what_became_of_an_archive_can_be_sent_to_another_process(tmp_path: Path) -> None:
    root = _laid_out("a tar of folders", tmp_path).parent
    [chunk] = walk(os.fsencode(root) + b"/")

    done = pickle.loads(pickle.dumps(ChunkHasher(os.fsencode(root), algorithm="md5")(chunk)))

    assert [path for each in (done, *done.more) for path in each.paths] == [
        f"whole/{name}" for name in sorted(TINY_FILES)
    ]
