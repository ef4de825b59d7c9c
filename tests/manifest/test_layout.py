"""`manifest.layout`: a split, a shard or a folder within a class never becomes a class."""

import gzip
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import MakeTree
from tar_files import tar_of

from vit21k.errors import LayoutError
from vit21k.manifest.class_lists import class_folders
from vit21k.manifest.io import read_manifest
from vit21k.manifest.layout import Layout
from vit21k.manifest.schema import DIGESTS
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.import_tree import prepare
from vit21k.prep.plsc import import_md5sum
from vit21k.prep.shards import Shard

JPEG = b"\xff\xd8\xff"


def _files(*paths: str) -> dict[str, bytes]:
    return {path: JPEG + path.encode() for path in paths}


def _web_dataset(*suffixes: str) -> bytes:
    """Return a shard: samples whose files share a key, as the library webdataset writes them."""
    files = {f"{key:08}.{suffix}": b"%d" % key for key in range(3) for suffix in suffixes}
    return tar_of(files)


CLASS_TAR = tar_of(_files("n01440764_1.JPEG", "n01440764_2.JPEG"))
REFUSED: dict[str, tuple[Mapping[str, bytes], str]] = {
    "ILSVRC as it is unpacked": (
        _files("train/n01440764/1.jpg", "val/ILSVRC2012_val_1.JPEG", "test/t.JPEG"),
        "holds splits, not classes: `train/` and `test/`",
    ),
    "splits in class folders": (_files("dog/train/1.jpg", "dog/test/2.jpg"), "`train/` and `test/"),
    "splits beside classes": (
        _files("train/dog/1.jpg", "val/dog/2.jpg", "dog/3.jpg"),
        "holds splits, not classes: `train/` and `val/`",
    ),
    "the val images of ILSVRC": (
        _files("val/ILSVRC2012_val_00000001.JPEG", "val/ILSVRC2012_val_00000002.JPEG"),
        "has no class folders: its images are in `val`",
    ),
    "their tar": (
        {"ILSVRC2012_img_val.tar": tar_of(_files("ILSVRC2012_val_00000001.JPEG"))},
        "its images are in `ILSVRC2012_img_val`",
    ),
    "one folder": (_files("holiday/1.jpg", "holiday/2.jpg"), "in one folder, `holiday`"),
    "one folder of all images": (_files("images/1.jpg", "images/2.jpg"), "in `images`, which is"),
    "folders in class folders": (
        _files("dog/2021/1.jpg", "dog/2022/1.jpg", "cat/2021/1.jpg"),
        "images are in `cat/2021/` and in `dog/2021/`",
    ),
    "a folder in a wnid": (
        _files("n01440764/1.jpg", "n01440764/more/2.jpg", "n01443537/3.jpg"),
        "images are in `n01440764/` and in `n01440764/more/`",
    ),
    "a WebDataset with .json": (
        {"imagenet12k-train-0000.tar": _web_dataset("jpg", "json"), "_info.json": b"{}"},
        "is a WebDataset without a class",
    ),
    "a WebDataset with .cls, compressed": (
        {"a.tar.gz": gzip.compress(_web_dataset("cls", "jpg"))},
        "class indices without class names",
    ),
    "tars named like classes": (
        {f"{name}.tar": tar_of(_files("n02085620_1.jpg", "n02085782_2.jpg")) for name in "ab"},
        "may be the name of its tar, `a`, or the WordNet id",
    ),
    "an unpacked WebDataset": (
        _files("0000/1.jpg", "0000/2.jpg") | {"0000/1.cls": b"3"},
        "is a WebDataset",
    ),
    "shards of images alone": (
        {f"imagenet-{shard:06}.tar": tar_of(_files("1.jpg", "2.jpg")) for shard in range(2)},
        "`imagenet-000000`, `imagenet-000001` in .* are shards",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_tree_whose_folders_are_no_classes_is_refused(
    what: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    files, why = REFUSED[what]

    with pytest.raises(LayoutError, match=why) as raised:
        hash_tree(make_tree(files), tmp_path / "m")

    assert raised.value.exit_code == 2
    assert raised.value.hint
    assert not list((tmp_path / "m").glob("*.parquet"))


@pytest.mark.parametrize("what", REFUSED)
def test_who_says_where_labels_come_from_is_believed(
    what: str, make_tree: MakeTree, tmp_path: Path
) -> None:
    hash_tree(make_tree(REFUSED[what][0]), tmp_path / "m", label_from="folder")

    rows = read_manifest(tmp_path / "m", DIGESTS, ["path", "wnid"]).to_pylist()
    assert rows
    folders = [row["path"].split("/")[-2] for row in rows]
    assert [row["wnid"] for row in rows] == [one.partition(".tar")[0] for one in folders]


ACCEPTED: dict[str, tuple[Mapping[str, bytes], list[str]]] = {
    "one wnid": (_files("n01440764/1.jpg"), ["n01440764"]),
    "a class called train": (_files("bus/1.jpg", "train/1.jpg"), ["bus", "train"]),
    "a wrapper": (_files("images/cat/1.jpg", "images/dog/1.jpg"), ["cat", "dog"]),
    "train alone": (_files("train/cat/1.jpg", "train/dog/1.jpg"), ["cat", "dog"]),
    "an empty val": (_files("train/cat/1.jpg") | {"val/README": b""}, ["cat"]),
    "wnids on two disks": (_files("a/n01440764/1.jpg", "b/n01440764/2.jpg"), ["n01440764"]),
    "wnids below wnids": (
        _files("n02084071/1.jpg", "n02084071/n02085620/1.jpg"),
        ["n02084071", "n02085620"],
    ),
    "class tars": ({"n01440764.tar": CLASS_TAR}, ["n01440764"]),
    "class tars with notes": (
        {"n01440764.tar": tar_of({"1.jpg": JPEG, "1.json": b"{}", "1.txt": b"a fish"})},
        ["n01440764"],
    ),
    "captions beside images": (
        _files("cat/1.jpg", "dog/1.jpg") | {"cat/1.txt": b"a cat", "cat/1.json": b"{}"},
        ["cat", "dog"],
    ),
    "class tars with their folder": (
        {"cat.tar": tar_of(_files("cat/1.jpg")), "dog.tar": tar_of(_files("dog/1.jpg"))},
        ["cat", "dog"],
    ),
    "numbers": (_files(*(f"{number}/1.jpg" for number in (0, 1, 10))), ["0", "1", "10"]),
    "folders like shards": (_files("000/1.jpg", "001/1.jpg"), ["000", "001"]),
    "a tar of tars": (
        {"fall11_whole.tar": tar_of({"n01440764.tar": CLASS_TAR, "n01443537.tar": CLASS_TAR})},
        ["n01440764", "n01443537"],
    ),
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_ordinary_trees_are_hashed(what: str, make_tree: MakeTree, tmp_path: Path) -> None:
    files, classes = ACCEPTED[what]

    summary = hash_tree(make_tree(files), tmp_path / "m")

    assert sorted(summary.wnids) == classes


def test_a_shard_of_a_machine_is_not_judged_by_its_own_folders(
    make_tree: MakeTree, tmp_path: Path
) -> None:
    root = make_tree(_files("bus/1.jpg", "train/1.jpg"))
    shards = [Shard(number, 19) for number in range(1, 20)]

    found = [hash_tree(root, tmp_path, shard=s).wnids for s in shards if s.has(b"train/")]

    assert found == [{"train"}]


def test_what_is_refused_is_not_read_again(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree(REFUSED["folders in class folders"][0])
    with pytest.raises(LayoutError):
        hash_tree(root, tmp_path / "m")
    journal = tmp_path / "m" / ".hash-journal"

    assert journal.stat().st_size > 0
    assert b"label_from" not in journal.read_bytes()
    assert hash_tree(root, tmp_path / "m", label_from="top").wnids == {"cat", "dog"}


def test_the_top_folder_is_the_class_in_archives_too(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree({"dog.tar": tar_of(_files("2021/1.jpg", "2022/1.jpg")), "cat/1/2/3.jpg": JPEG})

    hash_tree(root, tmp_path / "m", label_from="top")
    again = hash_tree(root, tmp_path / "m", label_from="top")

    assert read_manifest(tmp_path / "m", DIGESTS)["wnid"].to_pylist() == ["cat", "dog", "dog"]
    assert again.wnids == {"cat", "dog"}


MD5 = "0cc175b9c0f1b6a831c399e269772661"


@pytest.mark.parametrize(
    "what", ["splits beside classes", "splits in class folders", "the val images of ILSVRC",
             "folders in class folders", "a folder in a wnid"]
)  # fmt: skip
def test_an_md5sum_file_is_judged_by_its_folders_too(what: str, tmp_path: Path) -> None:
    paths = sorted(REFUSED[what][0])
    (tmp_path / "all.txt").write_text("".join(f"{MD5}  ./{path}\n" for path in paths))

    with pytest.raises(LayoutError):
        import_md5sum(tmp_path / "all.txt", tmp_path / "m")
    import_md5sum(tmp_path / "all.txt", tmp_path / "m", label_from="top")

    wnids = read_manifest(tmp_path / "m", DIGESTS)["wnid"].to_pylist()
    assert wnids == [path.partition("/")[0] for path in paths]


@pytest.mark.parametrize("what", ["the val images of ILSVRC", "folders in class folders"])
def test_a_class_list_is_not_made_of_such_folders(what: str, make_tree: MakeTree) -> None:
    with pytest.raises(LayoutError):
        class_folders(make_tree(REFUSED[what][0]))


def test_a_class_list_may_be_made_of_splits(make_tree: MakeTree) -> None:
    assert class_folders(make_tree(_files("train/cat/1.jpg", "val/dog/1.jpg"))) == ["cat", "dog"]


@pytest.mark.parametrize(
    "files",
    [
        _files("train/1.jpg", "val/2.jpg"),
        _files("val/1.jpg", "val/2.jpg"),
        _files("train/dog/2021/1.jpg", "train/cat/2021/1.jpg", "val/dog/2021/1.jpg"),
        _files("pets/1.jpg", "pets/2.jpg"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(
    files: dict[str, bytes], make_tree: MakeTree, tmp_path: Path
) -> None:
    with pytest.raises(LayoutError):
        prepare(make_tree(files), tmp_path / "m")


def test_nothing_is_refused_of_nothing() -> None:
    Layout("/r").refuse()
