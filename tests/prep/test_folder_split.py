"""Folders of the image root as the split: what is in both, in several classes, in neither."""

import pytest

from vit21k.errors import UsageError
from vit21k.manifest.io import open_manifest, read_manifest
from vit21k.manifest.schema import TRAIN, VAL
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import split_by_folders

FILES = {
    "train/cat/1.jpg": b"cat one",
    "train/cat/2.jpg": b"cat two",
    "train/dog/1.jpg": b"dog one",
    "train/dog/leak.jpg": b"in both",
    "train/dog/later.jpg": b"in train and test",
    "val/dog/leak.jpg": b"in both",
    "val/cat/3.jpg": b"cat three",
    "val/cat/both.jpg": b"cat and dog",
    "val/dog/both.jpg": b"cat and dog",
    "test/dog/later.jpg": b"in train and test",
    "test/dog/4.jpg": b"dog four",
    "training/dog/5.jpg": b"dog five",
}


@pytest.fixture
def manifests(make_tree, tmp_path):
    hash_tree(make_tree(FILES), tmp_path / "manifests", label_from="folder")
    relabel(tmp_path / "manifests")
    return tmp_path / "manifests"


def paths(manifests, kind):
    return sorted(read_manifest(manifests, kind, ["path"])["path"].to_pylist())


def test_each_image_is_where_its_folder_says_and_in_one_half_only(manifests):
    summary = split_by_folders(manifests, train="train", val="val", held_out=["test"])

    assert paths(manifests, TRAIN) == ["train/cat/1.jpg", "train/cat/2.jpg", "train/dog/1.jpg"]
    assert paths(manifests, VAL) == ["train/dog/leak.jpg", "val/cat/3.jpg"]
    assert (summary.num_train, summary.num_val) == (3, 2)
    assert summary.num_in_both == 2
    assert summary.num_several_labels == 1
    assert summary.num_elsewhere == 2
    assert open_manifest(manifests, VAL).header.options["split"] == "holdout"


def test_what_is_not_said_to_be_held_out_is_trained_on(manifests):
    split_by_folders(manifests, train="train", val="val")

    assert "test/dog/later.jpg" in paths(manifests, TRAIN)


def test_doing_it_again_writes_the_same_bytes(manifests):
    split_by_folders(manifests, train="train", val="val")
    before = [(manifests / f"{name}.parquet").read_bytes() for name in ("train", "val")]

    split_by_folders(manifests, train="train", val="val")

    assert [(manifests / f"{name}.parquet").read_bytes() for name in ("train", "val")] == before


def test_a_folder_without_images_is_refused(manifests):
    with pytest.raises(UsageError, match="no image lies below `dev`"):
        split_by_folders(manifests, train="train", val="dev")
