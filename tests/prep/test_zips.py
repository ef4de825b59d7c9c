"""`hash` on zips as others publish them: with splits in them, and lists of labels next to them."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import MakeTree
from tar_files import tar_of
from zip_files import Entry, zip_of

from vit21k.errors import LayoutError, ManifestError
from vit21k.manifest.io import read_manifest
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.prep.hash_tree import hash_tree

TRAIN = {"n01440764/a.JPEG": b"a", "n01443537/b.JPEG": b"b", "n01440764/c.JPEG": b"c"}
VAL = {"ILSVRC2012_val_1.JPEG": b"d", "ILSVRC2012_val_2.JPEG": b"e"}
MAPS = {
    "train_map.txt": b"n01440764/a.JPEG\t1\nn01443537/b.JPEG\t0\nn01440764/c.JPEG\t1\n",
    "val_map.txt": b"ILSVRC2012_val_1.JPEG\t0\nILSVRC2012_val_2.JPEG\t1\n",
}


def _zip(files: Mapping[str, bytes]) -> bytes:
    return zip_of(*(Entry(name.encode(), content) for name, content in files.items()))


def _rows(root: Path, tmp_path: Path, **options: object) -> dict[str, tuple[str, str | None]]:
    """Return class and split of each image, by its path."""
    hash_tree(root, tmp_path / "m", **options)  # type: ignore[arg-type]
    rows = read_manifest(tmp_path / "m", DIGESTS).to_pylist()
    return {row["path"]: (row["wnid"], row["source_split"]) for row in rows}


@pytest.fixture
def swin(make_tree: MakeTree) -> Path:
    """Return a folder as Swin Transformer reads it."""
    return make_tree({"train.zip": _zip(TRAIN), "val.zip": _zip(VAL), **MAPS})


def test_the_classes_of_swins_zips(swin: Path, tmp_path: Path) -> None:
    assert _rows(swin, tmp_path) == {
        "train/n01440764/a.JPEG": ("n01440764", "train"),
        "train/n01440764/c.JPEG": ("n01440764", "train"),
        "train/n01443537/b.JPEG": ("n01443537", "train"),
        "val/ILSVRC2012_val_1.JPEG": ("n01443537", "validation"),
        "val/ILSVRC2012_val_2.JPEG": ("n01440764", "validation"),
    }


def test_one_of_swins_zips_by_itself(swin: Path, tmp_path: Path) -> None:
    rows = _rows(swin / "val.zip", tmp_path)
    assert [wnid for wnid, _ in rows.values()] == ["n01443537", "n01440764"]


def test_class_names_come_from_the_user_where_no_folder_says_them(
    swin: Path, tmp_path: Path
) -> None:
    (swin / "train.zip").unlink()
    (swin / "train_map.txt").unlink()
    with pytest.raises(LayoutError, match="class index 0 is not known") as caught:
        _rows(swin, tmp_path)
    assert "--classes" in (caught.value.hint or "")
    rows = _rows(swin, tmp_path, class_names=["cat", "dog"])
    assert [wnid for wnid, _ in rows.values()] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (b"n01440764/a.JPEG\t1\nn01443537/b.JPEG\t1\n", LayoutError, "class index 1 is"),
        (b"n01440764/a.JPEG\t1\nn01440764/c.JPEG\t0\n", LayoutError, "of one folder"),
        (b"n01440764/a.JPEG\tcat\n", ManifestError, "not a list of paths and class indices"),
        (b"a\tb\tc\n", ManifestError, "not a list of paths and class indices"),
    ],
)
def test_a_contradictory_list_is_refused(
    text: bytes, error: type[Exception], words: str, swin: Path, tmp_path: Path
) -> None:
    (swin / "train_map.txt").write_bytes(text)
    with pytest.raises(error, match=words):
        _rows(swin, tmp_path)


def test_without_lists_split_zips_are_refused_if_one_is_flat(swin: Path, tmp_path: Path) -> None:
    for path in swin.glob("*.txt"):
        path.unlink()
    with pytest.raises(LayoutError, match="a published split and no class"):
        _rows(swin, tmp_path)


def test_folders_can_be_taken_in_place_of_the_list(swin: Path, tmp_path: Path) -> None:
    (swin / "train_map.txt").write_bytes(MAPS["train_map.txt"].swapcase())
    rows = _rows(swin / "train.zip", tmp_path, label_from="folder")
    assert set(rows) == set(TRAIN)


def test_an_image_that_is_not_in_the_list_is_a_problem(swin: Path, tmp_path: Path) -> None:
    (swin / "val_map.txt").write_bytes(b"ILSVRC2012_val_1.JPEG\t0\ngone.JPEG\t1\n")
    assert len(_rows(swin, tmp_path)) == 4
    problems = read_manifest(tmp_path / "m", PROBLEMS).to_pylist()
    kinds = {row["path"]: row["kind"] for row in problems if row["kind"] != "other_suffix"}
    assert kinds == {"val/ILSVRC2012_val_2.JPEG": "label_missing", "val/gone.JPEG": "file_missing"}


INSIDE = {
    "ILSVRC/train/n01440764/a.JPEG": b"a",
    "ILSVRC/val/n01440764/b.JPEG": b"b",
    "ILSVRC/test/n01440764/c.JPEG": b"c",
    "ILSVRC/README": b"r",
}


@pytest.mark.parametrize("is_one_file", [True, False])
def test_splits_in_a_zip(is_one_file: bool, make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"challenge.zip": _zip(INSIDE)})
    rows = _rows(root / "challenge.zip" if is_one_file else root, tmp_path)
    assert sorted(rows.values()) == [
        ("n01440764", "test"),
        ("n01440764", "train"),
        ("n01440764", "validation"),
    ]


@pytest.mark.parametrize("is_one_file", [True, False])
def test_splits_in_the_resized_imagenet21k(
    is_one_file: bool, make_tree: MakeTree, tmp_path: Path
) -> None:
    names = ["imagenet21k_train", "imagenet21k_val", "imagenet21k_small_classes"]
    files = {f"imagenet21k_resized/{name}/n01440764/a.JPEG": name.encode() for name in names}
    archive = "imagenet21k_resized.tar.gz"
    root = make_tree({archive: tar_of(files, compressed=True)})
    rows = _rows(root / archive if is_one_file else root, tmp_path)
    assert [split for _, split in rows.values()] == [None, "train", "validation"]


def test_zips_next_to_webdataset_shards_are_not_shards(make_tree: MakeTree, tmp_path: Path) -> None:
    shard = tar_of({"0.jpg": b"a", "0.cls": b"0"})
    root = make_tree({"shard-000.tar": shard, "n01440764.zip": _zip({"a.jpg": b"b"})})
    rows = _rows(root, tmp_path, class_names=["cat"])
    assert list(rows.values()) == [("cat", None)]
    problems = read_manifest(tmp_path / "m", PROBLEMS).to_pylist()
    assert [(row["path"], row["kind"]) for row in problems] == [("n01440764.zip", "other_suffix")]


@pytest.mark.parametrize(
    ("name", "command"),
    [("n1.7z", "7z x"), ("n1.zip.001", "cat"), ("n1.tar.zst", "zstd -d"), ("n1.rar", "unrar")],
)
def test_other_archives_are_refused_by_name(
    name: str, command: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree({name: b"content"})
    for source in (root, root / name):
        with pytest.raises(LayoutError) as caught:
            _rows(source, tmp_path)
        assert command in (caught.value.hint or "")
    root = make_tree({f"n1/{name}": b"content", "n1/a.jpg": b"image"})
    assert len(_rows(root, tmp_path)) == 1
    problem = read_manifest(tmp_path / "m", PROBLEMS).to_pylist()[0]
    assert problem["kind"] == "archive_not_supported"
    assert command in problem["detail"]


def test_a_missing_part_is_a_problem(make_tree: MakeTree, tmp_path: Path) -> None:
    content = tar_of({"a.jpg": b"a" * 600, "b.jpg": b"b" * 600})
    parts = [content[at : at + 700] for at in range(0, len(content), 700)]
    files = {f"n1.tar.a{letter}": part for letter, part in zip("abcdefghijkl", parts, strict=False)}
    del files["n1.tar.ab"]
    root = make_tree({**files, "n2/a.jpg": b"image"})
    assert [wnid for wnid, _ in _rows(root, tmp_path).values()] == ["n2"]
    problems = read_manifest(tmp_path / "m", PROBLEMS).to_pylist()
    missing = [row["path"] for row in problems if "`n1.tar.aa` is missing" in row["detail"]]
    assert missing == [name for name in sorted(files) if name != "n1.tar.aa"]
    assert {row["kind"] for row in problems} == {"archive_truncated"}
