"""`prep.lists`: byte for byte what PLSC's procedure makes of the same md5sum file."""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from conftest import MakeTree
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.plsc_lists import plsc_lists

from vit21k.errors import DataError, ManifestError, UsageError
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.plsc import export_lists, import_md5sum
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val

ALL, DUMMY_VAL = "image_all_list.txt", "image_dummy_val_list.txt"

# (content, folder, depth) of each file; few contents and folders, so that they collide.
files_strategy = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.sampled_from(["n00000001", "n00000002", "n1", "airplane", "Zebra", "ä"]),
        st.sampled_from(["", "images/", "a/b/"]),
    ),
    min_size=1,
    max_size=40,
)


def _md5sum(files: list[tuple[int, str, str]], prefix: str) -> str:
    return "".join(
        f"{hashlib.md5(bytes([content])).hexdigest()}  {prefix}{above}{folder}/{number}.JPEG\n"
        for number, (content, folder, above) in enumerate(files)
    )


def _export(md5sum: str, prefix: str, per_class: int | None = None) -> tuple[str, str]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "md5sum.txt").write_text(md5sum)
        import_md5sum(folder / "md5sum.txt", folder, strip_prefix=prefix, label_from="folder")
        relabel(folder)
        export_lists(folder, folder, per_class=per_class)
        return (folder / ALL).read_text(), (folder / DUMMY_VAL).read_text()


@settings(max_examples=40)
@given(files_strategy, st.integers(1, 4))
def test_lists_of_an_md5sum_file_are_plscs(
    files: list[tuple[int, str, str]], per_class: int
) -> None:
    md5sum = _md5sum(files, "/data/in21k/")

    assert _export(md5sum, "/data/in21k", per_class) == plsc_lists(
        md5sum, "/data/in21k/", per_class
    )


def test_twenty_of_each_class_are_taken_by_default() -> None:
    md5sum = _md5sum([(number, "n1", "") for number in range(30)], "")

    lists = _export(md5sum, "")

    assert lists == plsc_lists(md5sum)
    assert lists[1].count("\n") == 20


@settings(max_examples=12)
@given(files_strategy)
def test_lists_of_a_tree_are_plscs_of_its_sorted_paths(files: list[tuple[int, str, str]]) -> None:
    with TemporaryDirectory() as name:
        root, folder = Path(name) / "tree", Path(name) / "m"
        lines = []
        for number, (content, above, class_folder) in enumerate(
            (content, above, class_folder) for content, class_folder, above in files
        ):
            path = root / above / class_folder / f"{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes([content]))
            digest = hashlib.md5(bytes([content])).hexdigest()
            lines.append((str(path.relative_to(root)).encode(), digest))
        md5sum = "".join(f"{digest}  {path.decode()}\n" for path, digest in sorted(lines))

        hash_tree(root, folder, label_from="folder")
        relabel(folder)
        make_val(folder, per_class=2)
        export_lists(folder, folder)

        exported = (folder / ALL).read_text(), (folder / DUMMY_VAL).read_text()
        assert exported == plsc_lists(md5sum, per_class=2)


@pytest.fixture
def prepared(tiny_tree: Path, tmp_path: Path) -> Path:
    hash_tree(tiny_tree, tmp_path / "m")
    relabel(tmp_path / "m")
    return tmp_path / "m"


def test_a_dummy_split_is_exported_as_it_is(prepared: Path, tmp_path: Path) -> None:
    make_val(prepared, per_class=1, seed=1)

    num_lines = export_lists(prepared, tmp_path / "out")

    assert num_lines == {ALL: 4, DUMMY_VAL: 2}
    assert (tmp_path / "out" / ALL).read_text().count("\n") == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [ALL, DUMMY_VAL]


def test_a_holdout_has_other_names(prepared: Path, tmp_path: Path) -> None:
    make_val(prepared, per_class=1, holdout=True)

    num_lines = export_lists(prepared, tmp_path / "out")

    train, val = (
        (tmp_path / "out" / name).read_text().splitlines()
        for name in ("image_train_list.txt", "image_val_list.txt")
    )
    assert num_lines == {"image_train_list.txt": 2, "image_val_list.txt": 2}
    assert val == ["n01440764/n01440764_1.JPEG 0", "n01443537/n01443537_1.JPEG 1"]
    assert train == ["n01440764/n01440764_2.JPEG 0", "n01443537/n01443537_2.JPEG 1,2"]


def test_a_number_per_class_leaves_the_split_alone(prepared: Path, tmp_path: Path) -> None:
    make_val(prepared, per_class=1, holdout=True)

    assert export_lists(prepared, tmp_path / "out", per_class=2) == {ALL: 4, DUMMY_VAL: 3}


def test_lists_of_stale_manifests_are_refused(
    prepared: Path, tiny_tree: Path, tmp_path: Path
) -> None:
    make_val(prepared, per_class=1)
    (tiny_tree / "n01440764" / "new.JPEG").write_bytes(b"new")
    hash_tree(tiny_tree, prepared)

    with pytest.raises(ManifestError, match="stale"):
        export_lists(prepared, tmp_path / "out")


def _prepared_with(make_tree: MakeTree, folder: Path, name: str) -> Path:
    hash_tree(make_tree({f"n1/{name}": b"x", "n1/plain.jpg": b"y"}), folder)
    relabel(folder)
    return folder


@pytest.mark.parametrize("name", ["a b.jpg", "a\tb.jpg", "a\x0bb.jpg"])
def test_blanks_in_names_are_refused_unless_allowed(
    make_tree: MakeTree, tmp_path: Path, name: str
) -> None:
    folder = _prepared_with(make_tree, tmp_path / "m", name)

    with pytest.raises(DataError, match="has a blank in its name") as caught:
        export_lists(folder, folder)
    assert not (folder / ALL).exists()
    export_lists(folder, folder, allow_blanks=True)

    assert "--allow-blanks" in (caught.value.hint or "")
    assert f"n1/{name} 0\n" in (folder / ALL).read_text()


@pytest.mark.parametrize("name", ["a\nb.jpg", "a\rb.jpg"])
def test_line_breaks_in_names_are_always_refused(
    make_tree: MakeTree, tmp_path: Path, name: str
) -> None:
    folder = _prepared_with(make_tree, tmp_path / "m", name)

    with pytest.raises(DataError, match="has a line break in its name"):
        export_lists(folder, folder, allow_blanks=True)


def test_nothing_is_written_below_the_image_root(prepared: Path, tiny_tree: Path) -> None:
    with pytest.raises(UsageError, match="is inside the image root") as caught:
        export_lists(prepared, tiny_tree / "lists")

    assert "--out" in (caught.value.hint or "")
