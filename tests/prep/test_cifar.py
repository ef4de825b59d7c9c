"""CIFAR's archive: every pixel and label as torchvision has them; a pickle cannot run code."""

import io
import os
import pickle

import numpy as np
import pytest
from cifar_archives import cifar10_files, cifar100_files, pixels, write_archive
from PIL import Image

from vit21k.errors import DataError
from vit21k.prep.cifar import read_cifar


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def test_images_are_numbered_through_the_batches_and_keep_every_pixel(tmp_path):
    archive = write_archive(tmp_path / "c.tar.gz", cifar10_files())

    images = list(read_cifar(archive, "cifar10"))

    assert [original.path for original in images[:4]] == [
        "train/airplane/00000.png",
        "train/automobile/00001.png",
        "train/bird/00002.png",
        "train/automobile/00003.png",
    ]
    assert images[-1].path == "test/automobile/00002.png"
    assert len(images) == 18
    expected = pixels(1, 3)[0].reshape(3, 32, 32).transpose(1, 2, 0)
    assert (decoded(images[3].content) == expected).all()


def test_the_numbers_are_torchvisions(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda _self: True)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)
    files = cifar10_files()
    (tmp_path / "cifar-10-batches-py").mkdir()
    for name, content in files.items():
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(content)

    ours = list(read_cifar(write_archive(tmp_path / "c.tar.gz", files), "cifar10"))

    for split, is_train in (("train", True), ("test", False)):
        theirs = datasets.CIFAR10(tmp_path, train=is_train)
        mine = [original for original in ours if original.path.startswith(split)]
        assert len(theirs) == len(mine)
        for index, (image, label) in enumerate(theirs):
            assert mine[index].path == f"{split}/{theirs.classes[label]}/{index:05}.png"
            assert (decoded(mine[index].content) == np.asarray(image)).all()


def test_cifar100_takes_the_fine_labels(tmp_path):
    archive = write_archive(tmp_path / "c.tar.gz", cifar100_files(), "cifar-100-python")

    paths = [original.path for original in read_cifar(archive, "cifar100")]

    assert paths[3:5] == ["train/airplane/00003.png", "test/airplane/00000.png"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/vit21k-was-here",)


def test_a_pickle_that_names_a_function_is_refused_and_not_run(tmp_path, monkeypatch):
    files = {**cifar10_files(), "data_batch_1": pickle.dumps({"data": Evil()}, protocol=2)}
    called = []
    monkeypatch.setattr(os, "system", called.append)

    with pytest.raises(DataError, match=r"posix\.system`, which is not allowed|nt\.system"):
        list(read_cifar(write_archive(tmp_path / "c.tar.gz", files), "cifar10"))

    assert called == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_batch": None}, "has no `test_batch`"),
        ({"test_batch": b"not a pickle"}, "cannot be read"),
        ({"test_batch": pickle.dumps({"labels": [0]}, protocol=2)}, "`data` is missing"),
        (
            {"test_batch": pickle.dumps({"labels": [0], "data": pixels(0, 2)}, protocol=2)},
            "another shape",
        ),
    ],
)
def test_what_is_not_whole_is_refused(tmp_path, change, message):
    files = {k: v for k, v in {**cifar10_files(), **change}.items() if v is not None}

    with pytest.raises(DataError, match=message):
        list(read_cifar(write_archive(tmp_path / "c.tar.gz", files), "cifar10"))


class AnyShape:
    def __reduce__(self):
        return np.ndarray, ((1 << 40,),)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}r\xff\xff\xff\xff.",  # LONG_BINPUT 4294967295: 64 GB of memo
        b"}p4294967295\n.",
        pickle.dumps({"data": AnyShape(), "labels": []}, protocol=2),
    ],
)
def test_a_pickle_that_asks_for_more_memory_than_it_has_bytes_is_refused(tmp_path, content):
    archive = write_archive(tmp_path / "c.tar.gz", {**cifar10_files(), "data_batch_1": content})

    with pytest.raises(DataError, match="cannot be read"):
        list(read_cifar(archive, "cifar10"))


def test_a_label_without_a_class_is_refused(tmp_path):
    files = cifar10_files()
    files["batches.meta"] = pickle.dumps({"label_names": ["airplane"]}, protocol=2)
    archive = write_archive(tmp_path / "x.tar.gz", files)

    with pytest.raises(DataError, match="has no class 1"):
        list(read_cifar(archive, "cifar10"))


def test_an_archive_that_was_cut_off_is_refused(tmp_path):
    archive = write_archive(tmp_path / "c.tar.gz", cifar10_files())
    archive.write_bytes(archive.read_bytes()[:3000])

    with pytest.raises(DataError, match="not a complete tar archive"):
        list(read_cifar(archive, "cifar10"))
