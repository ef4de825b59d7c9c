import subprocess
import sys

import numpy as np
import pytest
import torch

metrics = pytest.importorskip("sklearn.metrics")

from vit21k.data.loader import Batch
from vit21k.distributed import World
from vit21k.inference.metrics import NUM_BINS, ClassCounts, log_odds, summary
from vit21k.models.vit import probabilities

NUM_IMAGES, NUM_CLASSES = 400, 60
EMPTY = 7  # a class without images


def split(seed=0, *, scale=2.0):
    """Logits that know something, and one to three labels of each image, dense."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((NUM_IMAGES, NUM_CLASSES), dtype=int)
    classes = [number for number in range(NUM_CLASSES) if number != EMPTY]
    for row in labels:
        row[rng.choice(classes, rng.integers(1, 4), replace=False)] = 1
    logits = rng.normal(-2, scale, labels.shape) + 3 * labels
    return torch.from_numpy(logits).float(), labels


def in_steps(logits):
    """Scores in the middle of bins, so that nothing is lost by binning."""
    per_unit = NUM_BINS / 32
    return (logits.clamp(-15, 15) * per_unit).floor().add(0.5) / per_unit


def counted(logits, labels, *, size=64, activation="sigmoid", threshold=0.5, rows=slice(None)):
    counts = ClassCounts(labels.shape[1], activation=activation, threshold=threshold)
    logits, labels = logits[rows], labels[rows]
    for start in range(0, len(logits), size):
        batch_rows, ids = np.nonzero(labels[start : start + size])
        nothing = torch.zeros(0, dtype=torch.int64)
        batch = Batch(nothing, torch.from_numpy(batch_rows), torch.from_numpy(ids), nothing)
        counts.update(logits[start : start + size], batch)
    return counts


@pytest.mark.parametrize("size", [1, 64, 1000])
def test_map_is_sklearns_where_scores_are_on_the_grid(size):
    logits, labels = split()
    logits = in_steps(logits)
    present = labels.any(0)

    table = counted(logits, labels, size=size).table()

    wanted = metrics.average_precision_score(labels[:, present], logits[:, present], average=None)
    assert table.average_precision[present].tolist() == pytest.approx(wanted.tolist(), rel=1e-12)
    assert summary(table)["mAP"] == pytest.approx(wanted.mean())


@pytest.mark.parametrize("scale", [0.05, 0.5, 2.0])
def test_map_of_any_scores_is_sklearns_within_the_reported_error(scale):
    logits, labels = split(scale=scale)
    present = labels.any(0)

    found = summary(counted(logits, labels).table())

    wanted = metrics.average_precision_score(labels[:, present], logits[:, present])
    assert abs(found["mAP"] - wanted) <= found["mAP_error"]
    assert found["mAP_error"] < 0.25 * scale**-0.5


def test_map_is_torchmetrics():
    classification = pytest.importorskip("torchmetrics.classification")
    logits, labels = split()
    present = labels.any(0)
    torchmetrics = classification.MultilabelAveragePrecision(int(present.sum()), average="macro")

    found = summary(counted(in_steps(logits), labels).table())

    # In float64: float32 makes ties of probabilities near 1.
    wanted = torchmetrics(
        in_steps(logits)[:, present].double().sigmoid(), torch.from_numpy(labels)[:, present]
    )
    assert found["mAP"] == pytest.approx(wanted.item(), abs=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("threshold", [0.02, 0.5])
def test_precision_recall_and_f1_are_sklearns(activation, threshold):
    logits, labels = split()
    present = labels.any(0)

    table = counted(logits, labels, activation=activation, threshold=threshold).table()

    predicted = (probabilities(logits, activation) >= threshold).numpy().astype(int)
    found = summary(table)
    for average, keep in (("micro", slice(None)), ("macro", present)):
        wanted = metrics.precision_recall_fscore_support(
            labels[:, keep], predicted[:, keep], average=average, zero_division=0
        )
        names = [f"{average}_precision", f"{average}_recall", f"{average}_f1"]
        assert [found[name] for name in names] == pytest.approx(list(wanted[:3]))
    assert table.num_images.tolist() == labels.sum(0).tolist()
    assert table.num_predicted.tolist() == predicted.sum(0).tolist()
    assert table.num_found.tolist() == (predicted * labels).sum(0).tolist()


def test_a_class_without_images_is_excluded_from_the_means_and_counted():
    logits, labels = split()
    kept = [number for number in range(NUM_CLASSES) if number != EMPTY]

    table = counted(logits, labels).table()

    found, without = summary(table), summary(counted(logits[:, kept], labels[:, kept]).table())
    assert (found["num_empty_classes"], without["num_empty_classes"]) == (1, 0)
    assert table.average_precision[EMPTY].isnan()
    for name in ("mAP", "mAP_error", "macro_precision", "macro_recall", "macro_f1"):
        assert found[name] == pytest.approx(without[name])
    assert found["micro_precision"] < without["micro_precision"]  # its predictions are wrong


def test_a_class_of_which_nothing_is_predicted_has_no_precision_and_f1_0():
    labels = np.eye(3, dtype=int)
    logits = torch.tensor([[1.0, -1, -1], [-1, -1, -1], [-1, -1, 1]])

    table = counted(logits, labels).table()

    assert table.precision.isnan().tolist() == [False, True, False]
    assert table.f1.tolist() == [1, 0, 1]
    assert summary(table)["macro_precision"] == pytest.approx(2 / 3)


def test_top_counts_images_whose_label_is_the_top_class():
    logits, labels = split()

    table = counted(logits, labels).table()

    is_top = labels[np.arange(NUM_IMAGES), logits.argmax(1)].astype(bool)
    wanted = np.bincount(logits.argmax(1)[is_top], minlength=NUM_CLASSES)
    assert table.num_top.tolist() == wanted.tolist()


def test_sums_over_processes_are_the_counts_of_all():
    logits, labels = split()
    whole = counted(logits, labels)
    first, second = (counted(logits, labels, rows=r) for r in (slice(90), slice(90, None)))

    sent = []

    class Recorder(World):
        def all_reduce_sum(self, tensor):
            sent.append(tensor.clone())
            return tensor

    class Adder(World):
        def all_reduce_sum(self, tensor):
            return tensor + sent.pop(0)

    second.reduce(Recorder())
    first.reduce(Adder())

    for ours, wanted in zip(first.table(), whole.table(), strict=True):
        assert ours.nan_to_num(-1).equal(wanted.nan_to_num(-1))


def test_log_odds_of_softmax_are_those_of_its_probabilities():
    logits, _ = split()

    odds = log_odds(logits.double(), "softmax")

    p = logits.double().softmax(1)
    assert torch.allclose(odds, (p / (1 - p)).log())


def test_logits_that_are_no_numbers_count_as_the_least():
    labels = np.array([[1, 0], [0, 1]])
    logits = torch.tensor([[float("nan"), 0.0], [float("inf"), -float("inf")]])

    table = counted(logits, labels).table()

    assert table.average_precision.tolist() == pytest.approx([0.5, 0.5])


_PEAK = """
import torch
from pathlib import Path
from vit21k.data.loader import Batch
from vit21k.inference.metrics import ClassCounts, summary

def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])

K, B = 21_841, 64
rows, ids = torch.arange(B), torch.arange(B) * 331 % K
batch = Batch(rows, rows, ids, rows)
small = ClassCounts(10, activation="softmax", threshold=0.5)
small.update(torch.randn(64, 10), Batch(rows, rows, ids % 10, rows))
summary(small.table())
logits = torch.randn(B, K)
before = peak()
counts = ClassCounts(K, activation="softmax", threshold=0.5)
for _ in range(4):
    counts.update(logits, batch)
summary(counts.table())
print(peak() - before)
"""


@pytest.mark.slow
def test_21841_classes_take_less_than_200_mb():
    result = subprocess.run(
        [sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True
    )

    assert 120e6 < int(result.stdout) < 200e6
