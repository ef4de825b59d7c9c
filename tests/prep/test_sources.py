"""Zips and class folders -> trees and manifests."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from vit21k.errors import DataError, UsageError
from vit21k.manifest.io import open_manifest, read_manifest
from vit21k.manifest.schema import CLASSES, TRAIN, VAL
from vit21k.prep.cifar import NamedImage
from vit21k.prep.import_tree import prepare, read_zip, write_tree


def image(seed, kind="PNG"):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def make_zip(path, members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def test_a_zip_is_read_byte_for_byte_and_nothing_outside_its_folders(tmp_path):
    members = {
        "cifar/train/cat/1.jpg": b"one",
        "cifar/test/cat/2.JPG": b"two",
        "cifar/test/cat/notes.txt": b"no",
        "cifar/extra/cat/3.jpg": b"no",
        "train/../4.jpg": b"no",
    }

    images = list(read_zip(make_zip(tmp_path / "c.zip", members)))

    assert images == [("train/cat/1.jpg", b"one"), ("test/cat/2.JPG", b"two")]


def test_a_zip_without_the_folders_or_cut_off_is_refused(tmp_path):
    whole = make_zip(tmp_path / "c.zip", {"train/cat/1.jpg": b"one"})

    with pytest.raises(DataError, match="has no images in"):
        list(read_zip(whole))
    whole.write_bytes(whole.read_bytes()[:-10])
    with pytest.raises(DataError, match="not a complete zip"):
        list(read_zip(whole))


IMAGES = [NamedImage("train/cat/1.png", b"1"), NamedImage("test/dog/2.png", b"2")]


def test_a_tree_is_written_once_and_is_whole_or_not_there(tmp_path):
    def dying():
        yield IMAGES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tree(dying(), tmp_path, {"md5": "a"})
    after_kill = (tmp_path / "images").exists()
    counts = write_tree(IMAGES, tmp_path, {"md5": "a"})
    again = write_tree(dying(), tmp_path, {"md5": "a"})

    assert not after_kill
    assert counts == again == {"train": 1, "test": 1}
    assert (tmp_path / "images/test/dog/2.png").read_bytes() == b"2"
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []


@pytest.mark.parametrize("name", ["../out.png", "train/../../out.png", "/out.png", "a//b", "a\0b"])
def test_no_image_is_written_outside_the_tree(tmp_path, name):
    images = [NamedImage("train/a/0.png", b"fine"), NamedImage(name, b"evil")]

    with pytest.raises(DataError, match="no path within a tree"):
        write_tree(images, tmp_path / "set", {})

    assert not (tmp_path / "set" / "images").exists()
    assert [path.name for path in tmp_path.rglob("*.png") if path.read_bytes() == b"evil"] == []


def test_a_tree_of_another_source_is_not_written_over(tmp_path):
    write_tree(IMAGES, tmp_path, {"md5": "a"})

    with pytest.raises(UsageError, match="is of another source"):
        write_tree(IMAGES, tmp_path, {"md5": "b"})


def make_tree(root, layout):
    for seed, (name, count) in enumerate(layout.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(image(100 * seed + number))


def test_class_folders_are_held_out_of_by_a_share_of_the_smallest(tmp_path):
    make_tree(tmp_path / "photos", {"red fox": 10, "café": 25})

    prepared = prepare(tmp_path / "photos", tmp_path / "m")

    assert (prepared.num_train, prepared.num_val, prepared.num_classes) == (31, 4, 2)
    assert prepared.split == "2 of each class, held out"
    assert read_manifest(tmp_path / "m", CLASSES, ["wnid"])["wnid"].to_pylist() == [
        "café",
        "red fox",
    ]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_folders_of_a_split_are_the_split(tmp_path, val):
    make_tree(tmp_path / "photos", {"train/a": 3, "train/b": 3, f"{val}/a": 1, f"{val}/b": 2})

    prepared = prepare(tmp_path / "photos", tmp_path / "m")

    assert (prepared.num_train, prepared.num_val) == (6, 3)
    split = "test" if val == "test" else "validation"
    assert prepared.split == f"the published {split} split"


def test_preparing_again_changes_no_byte(tmp_path):
    make_tree(tmp_path / "photos", {"a": 6, "b": 6})
    prepare(tmp_path / "photos", tmp_path / "m")
    before = [open_manifest(tmp_path / "m", kind).fingerprint for kind in (TRAIN, VAL)]

    prepare(tmp_path / "photos", tmp_path / "m")

    assert [open_manifest(tmp_path / "m", kind).fingerprint for kind in (TRAIN, VAL)] == before
