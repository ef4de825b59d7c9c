import importlib.resources
import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from vit21k.data.dataset import ImageDataset
from vit21k.data.loader import Batch
from vit21k.distributed import World
from vit21k.errors import DataError
from vit21k.inference.metrics import NUM_IMAGES, RealMetrics, check_classes, read_real_labels
from vit21k.manifest.classes import ClassList


@pytest.fixture(scope="module")
def timms_labels():
    pytest.importorskip("timm")
    path = importlib.resources.files("timm.data") / "_info" / "imagenet_real_labels.json"
    with importlib.resources.as_file(path) as file:
        return read_real_labels(file)


def images(tmp_path, names):
    labels = pa.array([[0]] * len(names), pa.list_(pa.int64()))
    return ImageDataset.from_arrow(tmp_path, pa.array(names, pa.string()), labels)


def batch_of(rows):
    nothing = torch.zeros(0, dtype=torch.int64)
    return Batch(nothing, nothing, nothing, torch.tensor(rows))


def val_name(number):
    return f"n01440764/ILSVRC2012_val_{number:08d}.JPEG"


def test_the_published_file_has_the_published_counts(timms_labels):
    lengths = [len(labels) for labels in timms_labels]

    assert sum(length > 0 for length in lengths) == 46_837
    assert lengths.count(0) == 3_163
    assert sum(lengths) == 57_553


def test_it_agrees_with_timms_evaluator(tmp_path, timms_labels):
    timm_labels = pytest.importorskip("timm.data.real_labels")
    numbers = list(range(1, NUM_IMAGES + 1, 100))
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(len(numbers), 1000))).float()
    for row, number in enumerate(numbers[::2]):
        logits[2 * row, timms_labels[number - 1][:1]] = 10.0
    found = RealMetrics(timms_labels, images(tmp_path, [val_name(n) for n in numbers]))

    for start in range(0, len(numbers), 64):
        rows = list(range(start, min(start + 64, len(numbers))))
        found.update(logits[rows], batch_of(rows))

    oracle = timm_labels.RealLabelsImagenet.__new__(timm_labels.RealLabelsImagenet)
    oracle.filenames = [val_name(number) for number in numbers]
    oracle.real_labels = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": x for i, x in enumerate(timms_labels)}
    oracle.topk, oracle.is_correct, oracle.sample_idx = (1, 5), {1: [], 5: []}, 0
    oracle.add_result(logits)
    empty = sum(not timms_labels[number - 1] for number in numbers)
    assert found.compute() == {
        "prec@1": pytest.approx(np.mean(oracle.is_correct[1])),
        "top5": pytest.approx(np.mean(oracle.is_correct[5])),
        "num_images": len(numbers) - empty,
        "num_without_labels": empty,
    }
    assert empty > 10


def test_images_without_labels_are_excluded_and_counted_in_every_process(tmp_path):
    found = RealMetrics([[], [1], []], images(tmp_path, [val_name(n) for n in (1, 2, 3)]))
    found.update(torch.tensor([[1.0, 0], [0, 1.0]]), batch_of([0, 1]))
    found.update(torch.tensor([[1.0, 0]]), batch_of([2]))

    class Twice(World):
        def all_reduce_sum(self, tensor):
            return 2 * tensor

    found.reduce(Twice())

    assert found.compute() == {
        "prec@1": 1.0,
        "top5": 1.0,
        "num_images": 2,
        "num_without_labels": 4,
    }


def test_no_labels_at_all_is_an_error(tmp_path):
    found = RealMetrics([[]], images(tmp_path, [val_name(1)]))
    found.update(torch.zeros(1, 2), batch_of([0]))

    with pytest.raises(DataError, match="none of these images"):
        found.compute()


@pytest.mark.parametrize("name", ["n01440764/a.JPEG", val_name(0), val_name(4)])
def test_an_image_without_a_number_in_the_list_is_refused(tmp_path, name):
    found = RealMetrics([[0], [1], []], images(tmp_path, [name]))

    with pytest.raises(DataError, match="has no ReaL labels"):
        found.update(torch.zeros(1, 2), batch_of([0]))


@pytest.mark.parametrize(
    "content",
    [b"{", b"3", b"[]", b"[[0]]", json.dumps([[1000]] * NUM_IMAGES).encode(), b"[" * 99, b"\xff"],
)
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "real.json"
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"real\.json"):
        read_real_labels(path)


def test_only_a_sorted_list_of_1000_classes_can_be_imagenet_1ks():
    wnids = [f"n{number:08d}" for number in range(1000)]
    check_classes(ClassList(tuple(wnids)))

    for other in (wnids[:-1], wnids[::-1]):
        with pytest.raises(DataError, match="ImageNet-1k"):
            check_classes(ClassList(tuple(other)))
