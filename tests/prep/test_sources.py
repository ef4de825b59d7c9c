"""Zips, Hugging Face datasets and class folders -> trees and manifests."""

import io
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vit21k.errors import DataError, UsageError
from vit21k.manifest.io import open_manifest, read_manifest
from vit21k.manifest.schema import CLASSES, TRAIN, VAL
from vit21k.prep.cifar import NamedImage
from vit21k.prep.hugging_face import HuggingFaceImages, is_hugging_face
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
    with pytest.raises(DataError, match="not a whole zip"):
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

    with pytest.raises(UsageError, match="not of this source"):
        write_tree(IMAGES, tmp_path, {"md5": "b"})


def make_tree(root, layout):
    for seed, (name, count) in enumerate(layout.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(image(100 * seed + number))


def test_class_folders_are_held_out_of_by_a_share_of_the_smallest(tmp_path):
    make_tree(tmp_path / "photos", {"red fox": 10, "café": 25})

    labels = {"red fox": "a red fox", "café": "café"}

    prepared = prepare(tmp_path / "photos", tmp_path / "m", labels=labels)

    assert (prepared.num_train, prepared.num_val, prepared.num_classes) == (31, 4, 2)
    assert prepared.split == "2 of each class, held out"
    assert read_manifest(tmp_path / "m", CLASSES, ["name"])["name"].to_pylist() == [
        "a red fox",
        "café",
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


def tree_of(dataset):
    return dict(HuggingFaceImages(dataset).images())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A dataset that the real library has saved, in one split and in two."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("hf")
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["a/b", ".dog", "owl"])}
    )
    contents = [image(seed, "JPEG" if seed % 2 else "PNG") for seed in range(5)]
    rows = {
        "img": [{"bytes": content, "path": None} for content in contents],
        "label": [0, 1, 2, 0, -1],
    }
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(folder / "one")
    datasets.DatasetDict(train=data, validation=data.select([3, 2])).save_to_disk(folder / "two")
    data.to_parquet(folder / "all.parquet")
    return folder, contents


@pytest.mark.parametrize("name", ["one", "all.parquet"])
def test_what_the_library_saves_becomes_files_byte_for_byte(saved, name):
    folder, contents = saved
    dataset = HuggingFaceImages(folder / name)

    images = dict(dataset.images())

    assert is_hugging_face(folder / name)
    assert dataset.names == {"a_b": "a/b", "_.dog": ".dog", "owl": "owl"}
    assert dataset.num_unlabelled == 1
    assert images == {
        "a_b/00000000.png": contents[0],
        "_.dog/00000001.jpg": contents[1],
        "owl/00000002.png": contents[2],
        "a_b/00000003.jpg": contents[3],
    }


def test_the_splits_of_a_dataset_are_those_of_the_tree(saved):
    folder, contents = saved

    images = tree_of(folder / "two")

    assert images["train/owl/00000002.png"] == contents[2]
    assert images["validation/a_b/00000005.jpg"] == contents[3]
    assert len(images) == 6


def test_parquet_files_of_the_hub_name_their_splits_and_may_hold_many_labels(tmp_path):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for split in ("train", "test"):
        table = pa.table(
            {
                "image": pa.array([{"bytes": image(1), "path": "x.png"}], struct),
                "labels": [["cat", "dog"]],
            }
        )
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")

    assert sorted(tree_of(tmp_path)) == [
        "test/cat/00000000.png",
        "test/dog/00000000.png",
        "train/cat/00000001.png",
        "train/dog/00000001.png",
    ]


def test_a_file_of_no_known_split_beside_others_is_refused(tmp_path):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {"image": pa.array([{"bytes": image(1), "path": "x.png"}], struct), "label": ["cat"]}
    )
    for name in ("train-0.parquet", "holdout-0.parquet"):
        pq.write_table(table, tmp_path / name)

    with pytest.raises(DataError, match=r"holdout-0\.parquet` is of no split that is known"):
        HuggingFaceImages(tmp_path)
    (tmp_path / "default").mkdir()
    (tmp_path / "holdout-0.parquet").rename(tmp_path / "default" / "0.parquet")
    assert HuggingFaceImages(tmp_path).skipped == [tmp_path / "default" / "0.parquet"]


def test_an_image_file_that_is_not_there_is_no_empty_image(tmp_path):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": "x.png"}], struct)
    pq.write_table(pa.table({"image": images, "label": ["cat"]}), tmp_path / "a.parquet")

    with pytest.raises(DataError, match=r"x\.png`, which the dataset names, is not there"):
        list(HuggingFaceImages(tmp_path).images())


def test_a_dataset_without_images_or_labels_is_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "a.parquet")
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array([None], struct)}), tmp_path / "b.parquet")

    with pytest.raises(DataError, match="no column of images"):
        HuggingFaceImages(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column of labels"):
        HuggingFaceImages(tmp_path / "b.parquet")


def test_class_folders_are_no_dataset(tmp_path):
    make_tree(tmp_path / "photos", {"a": 1})

    assert not is_hugging_face(tmp_path / "photos")
