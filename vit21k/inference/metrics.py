"""Metrics of a split and of each class, from logits and sparse labels; ReaL accuracy.

Source of ReaL, the reassessed labels of ImageNet-1k's validation images: Beyer et al., "Are we done
with ImageNet?", arXiv:2006.07159; `real.json` of google-research/reassessed-imagenet, which timm
ships too.
"""

import json
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from vit21k.atomic import atomic_file
from vit21k.data.dataset import ImageDataset
from vit21k.data.loader import Batch
from vit21k.distributed import World
from vit21k.errors import DataError, UsageError
from vit21k.losses.hierarchical import Levels, semantic_hits
from vit21k.manifest.classes import ClassList
from vit21k.models.vit import Activation, probabilities

_TOP = 5
_LOSS_SUM, _TOP1_HITS, _TOP5_HITS, _NUM_IMAGES = range(4)


class ClassificationMetrics:
    """Sums over the images so far.  They stay on the device of the logits: no update waits."""

    def __init__(self) -> None:
        self._totals = torch.zeros(4, dtype=torch.float64)

    @property
    def num_images(self) -> int:
        """How many images were added."""
        return int(self._totals[_NUM_IMAGES])

    def update(
        self,
        logits_BK: Tensor,
        label_rows_L: Tensor,
        label_ids_L: Tensor,
        loss_sum: Tensor | float,
    ) -> None:
        """Add a batch.

        Args:
            logits_BK: Scores; only their order within an image matters.
            label_rows_L: Row in the batch of each label.
            label_ids_L: Class index of each label.  An image without labels is never correct.
            loss_sum: Loss, summed over the images of the batch.
        """
        top_ids_BT = logits_BK.topk(min(_TOP, logits_BK.shape[1]), dim=1).indices
        is_hit_LT = top_ids_BT[label_rows_L] == label_ids_L[:, None]
        hits_BT = torch.zeros_like(top_ids_BT).index_add_(0, label_rows_L, is_hit_LT.long())
        batch = self._totals.to(logits_BK.device)
        batch[_LOSS_SUM] += loss_sum
        batch[_TOP1_HITS] += (hits_BT[:, 0] > 0).sum()
        batch[_TOP5_HITS] += (hits_BT > 0).any(dim=1).sum()
        batch[_NUM_IMAGES] += len(logits_BK)
        self._totals = batch

    def compute(self) -> dict[str, float | int]:
        """Return "loss", "prec@1", "top5" (fractions, 0 to 1) and "num_images".

        "prec@1", as in big_vision: the top class is one of the labels.  "top5": any of the top
        five is; with fewer than five classes all of them count.

        Raises:
            ValueError: No image was added.
        """
        loss_sum, top1_hits, top5_hits, num_images = self._totals.tolist()
        if not num_images:
            raise ValueError("metrics of no images")
        return {
            "loss": loss_sum / num_images,
            "prec@1": top1_hits / num_images,
            "top5": top5_hits / num_images,
            "num_images": int(num_images),
        }

    def totals(self) -> Tensor:
        """Return a copy of the sums, float64 (4,), to be summed over ranks."""
        return self._totals.clone()

    def set_totals(self, totals: Tensor) -> None:
        """Replace the sums by *totals*, such as the sum of all ranks' `totals()`."""
        self._totals = totals.to(torch.float64).clone()


_CLASSES_AT_ONCE = 256
"""Classes processed at a time: temporary memory stays under 20 MB."""


class AveragePrecision(NamedTuple):
    """Average precision of each class, float64; NaN for a class without images.

    Attributes:
        value_K: Average precision of the binned scores: images in one bin are ties.
        low_K: Lower bound of the average precision of the exact scores.
        high_K: Upper bound of it.
    """

    value_K: Tensor
    low_K: Tensor
    high_K: Tensor


def average_precision(hits_KH: Tensor, all_KH: Tensor) -> AveragePrecision:
    """Return the average precision of each class.

    As in scikit-learn: the mean, over the images of a class, of the precision among all images
    with at least their score; without interpolation.

    Args:
        hits_KH: Number of images of each class with a score in each bin.
        all_KH: Number of all images with a score in each bin.
    """
    K = len(hits_KH)
    # Written in place: small results allocated between large temporary ones fragment the heap, by
    # up to half a gigabyte.
    ap = AveragePrecision(*torch.empty(3, K, dtype=torch.float64))
    for start in range(0, K, _CLASSES_AT_ONCE):
        part = slice(start, start + _CLASSES_AT_ONCE)
        values = _of_classes(hits_KH[part].cpu().double(), all_KH[part].cpu().double())
        for whole_K, value_K in zip(ap, values, strict=True):
            whole_K[part] = value_K
    return ap


def _of_classes(hits_KH: Tensor, all_KH: Tensor) -> AveragePrecision:
    hits_KH, all_KH = hits_KH.flip(1), all_KH.flip(1)  # best scores first
    true_KH, taken_KH = hits_KH.cumsum(1), all_KH.cumsum(1)
    false_KH = taken_KH - true_KH
    false_before_KH = false_KH - (all_KH - hits_KH)
    num_K = hits_KH.sum(1)
    value_K = (hits_KH * _share(true_KH, taken_KH)).sum(1)
    # At best all images of the class come before all others of the bin.
    high_K = (hits_KH * _share(true_KH, true_KH + false_before_KH)).sum(1)
    # At worst all others come first.  With t true and f false images before it, the i-th image of
    # the bin then has the precision (t + i) / (t + f + i); digamma sums 1 / (t + f + i).
    harmonic_KH = torch.digamma(taken_KH + 1) - torch.digamma(taken_KH - hits_KH + 1)
    low_K = (hits_KH - false_KH * harmonic_KH).sum(1)
    return AveragePrecision(value_K / num_K, low_K / num_K, high_K / num_K)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole; 0 where both are 0."""
    return part / whole.clamp(min=1)


NUM_BINS = 768
"""Bins per class: 24 per unit of log-odds.  21,841 classes take 134 MB."""

_MAX_LOG_ODDS = 16.0  # a probability of 1 - 1e-7
_VALUES_AT_ONCE = 1 << 19
_CLASSES_IN_A_SUM = 1024


class ClassTable(NamedTuple):
    """The metrics of each class; NaN where undefined, without images or predictions.

    Attributes:
        num_images: Images with the label.
        num_predicted: Images whose probability of it is at or above the threshold.
        num_found: Images with both.
        num_top: Images with the label that have it as their top class.
        precision: num_found / num_predicted.
        recall: num_found / num_images.
        f1: Their harmonic mean; 0 if no image of the class is found.
        average_precision: Area under the precision-recall curve, from binned scores.
        average_precision_low: Lower bound of that of exact scores.
        average_precision_high: Upper bound of it.
    """

    num_images: Tensor
    num_predicted: Tensor
    num_found: Tensor
    num_top: Tensor
    precision: Tensor
    recall: Tensor
    f1: Tensor
    average_precision: Tensor
    average_precision_low: Tensor
    average_precision_high: Tensor


class ClassCounts:
    """Counts of each class over the images so far: integers, so that sums are exact.

    Args:
        num_classes: Number of classes.
        activation: Turns logits into probabilities.
        threshold: A probability at or above it counts as a prediction.
        device: Device of the logits.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        activation: Activation,
        threshold: float,
        device: str | torch.device = "cpu",
    ) -> None:
        self._activation = activation
        self._threshold = threshold
        shape = (num_classes, NUM_BINS)
        self._all_KH = torch.zeros(shape, dtype=torch.int32, device=device)
        self._hits_KH = torch.zeros(shape, dtype=torch.int32, device=device)
        self._images_K, self._predicted_K, self._found_K, self._top_K = (
            torch.zeros(num_classes, dtype=torch.int64, device=device) for _ in range(4)
        )

    def update(self, logits_BK: Tensor, batch: Batch) -> None:
        """Add a batch.

        Args:
            logits_BK: float32.
            batch: The labels, on the device of *logits_BK*.
        """
        rows_L, ids_L = batch.label_rows_L, batch.label_ids_L
        num_rows = max(1, _VALUES_AT_ONCE // logits_BK.shape[1])  # bounds temporary memory
        for start in range(0, len(logits_BK), num_rows):
            is_here_L = (rows_L >= start) & (rows_L < start + num_rows)
            self._add(
                logits_BK[start : start + num_rows], rows_L[is_here_L] - start, ids_L[is_here_L]
            )

    def _add(self, logits_BK: Tensor, rows_L: Tensor, ids_L: Tensor) -> None:
        K = logits_BK.shape[1]
        bins_BK = self._bins(logits_BK)
        cells_BK = bins_BK + torch.arange(K, device=bins_BK.device) * NUM_BINS
        _count(self._all_KH.view(-1), cells_BK.view(-1))
        _count(self._hits_KH.view(-1), cells_BK[rows_L, ids_L])
        self._images_K.scatter_add_(0, ids_L, torch.ones_like(ids_L))
        is_predicted_BK = probabilities(logits_BK, self._activation) >= self._threshold
        self._predicted_K += is_predicted_BK.sum(0)
        self._found_K.scatter_add_(0, ids_L, is_predicted_BK[rows_L, ids_L].long())
        self._top_K.scatter_add_(0, ids_L, (logits_BK.argmax(1)[rows_L] == ids_L).long())

    def _bins(self, logits_BK: Tensor) -> Tensor:
        """Return the bin of each score, int64; NaN is in the lowest."""
        odds_BK = log_odds(logits_BK, self._activation).nan_to_num(nan=-_MAX_LOG_ODDS)
        bins_BK = (odds_BK + _MAX_LOG_ODDS) * (NUM_BINS / (2 * _MAX_LOG_ODDS))
        return bins_BK.clamp(0, NUM_BINS - 1).long()

    def reduce(self, world: World) -> None:
        """Sum over all processes; all of them call it."""
        for counts in (self._images_K, self._predicted_K, self._found_K, self._top_K):
            counts.copy_(world.all_reduce_sum(counts))
        for histogram in (self._all_KH, self._hits_KH):
            for part in histogram.split(_CLASSES_IN_A_SUM):  # bounds temporary memory
                part.copy_(world.all_reduce_sum(part))

    def table(self) -> ClassTable:
        """Return the metrics of each class, on the CPU."""
        images_K, predicted_K, found_K = (
            counts.cpu() for counts in (self._images_K, self._predicted_K, self._found_K)
        )
        ap = average_precision(self._hits_KH, self._all_KH)
        return ClassTable(
            num_images=images_K,
            num_predicted=predicted_K,
            num_found=found_K,
            num_top=self._top_K.cpu(),
            precision=found_K.double() / predicted_K,
            recall=found_K.double() / images_K,
            f1=2 * found_K.double() / (images_K + predicted_K),
            average_precision=ap.value_K,
            average_precision_low=ap.low_K,
            average_precision_high=ap.high_K,
        )


def summary(table: ClassTable) -> dict[str, float | int]:
    """Return the metrics over all classes.

    Classes without images are excluded from "mAP" and from the macro means, and counted in
    "num_empty_classes".  A class without predictions has precision 0 in the macro mean.  "micro"
    weights every prediction equally, including those of empty classes.  "mAP_error" bounds the
    effect of binning scores on "mAP".
    """
    present_K = table.num_images > 0
    num_present = int(present_K.sum())
    found, predicted, images = (
        int(counts.sum()) for counts in (table.num_found, table.num_predicted, table.num_images)
    )
    means = {
        name: values[present_K].nan_to_num(0.0).sum().item() / max(num_present, 1)
        for name, values in table._asdict().items()
        if values.is_floating_point()
    }
    mean_ap = means["average_precision"]
    return {
        "mAP": mean_ap,
        "mAP_error": max(
            means["average_precision_high"] - mean_ap, mean_ap - means["average_precision_low"]
        ),
        "num_empty_classes": len(present_K) - num_present,
        "micro_precision": found / max(predicted, 1),
        "micro_recall": found / max(images, 1),
        "micro_f1": 2 * found / max(predicted + images, 1),
        "macro_precision": means["precision"],
        "macro_recall": means["recall"],
        "macro_f1": means["f1"],
    }


def log_odds(logits_BK: Tensor, activation: Activation) -> Tensor:
    """Return log(p / (1 - p)) of the probabilities p of *logits_BK*."""
    if activation == "sigmoid":
        return logits_BK
    log_p_BK = logits_BK.log_softmax(dim=1)
    return log_p_BK - torch.log1p(-log_p_BK.exp())


def _count(counts: Tensor, cells: Tensor) -> None:
    """Add 1 to *counts* (int32) at each of *cells*, as often as it occurs."""
    counts.scatter_add_(0, cells, torch.ones_like(cells, dtype=torch.int32))


_MOST_WAITING = 1 << 20


class ConfusedPair(NamedTuple):
    """Images with *label* whose top class is *predicted*, which is none of their labels."""

    label: int
    predicted: int
    num_images: int


class Confusion:
    """Counts of confused pairs, stored sparsely: 21,841 classes have 477 million pairs.

    An image with several labels, none of which is the top class, counts once for each of them.
    """

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._keys_P, self._counts_P = torch.zeros(2, 0, dtype=torch.int64)
        self._waiting: list[Tensor] = []

    def update(self, logits_BK: Tensor, batch: Batch) -> None:
        """Add a batch, whose labels are on the device of *logits_BK*."""
        rows_L, ids_L = batch.label_rows_L, batch.label_ids_L
        top_B = logits_BK.argmax(dim=1)
        hits_B = torch.zeros_like(top_B).index_add_(0, rows_L, (top_B[rows_L] == ids_L).long())
        is_wrong_L = hits_B[rows_L] == 0
        keys = ids_L[is_wrong_L] * self._num_classes + top_B[rows_L[is_wrong_L]]
        self._waiting.append(keys.cpu())
        if sum(map(len, self._waiting)) > _MOST_WAITING:
            self._merge()

    def reduce(self, world: World) -> None:
        """Sum over all processes; all of them call it."""
        self._merge()
        keys = _gather(self._keys_P, world)
        counts = _gather(self._counts_P, world)
        self._keys_P, self._counts_P = _sums(keys, counts)

    def top(self, num_pairs: int) -> list[ConfusedPair]:
        """Return the most frequent pairs, most images first, ties by class index."""
        self._merge()
        order = self._counts_P.argsort(descending=True, stable=True)[:num_pairs]
        return [
            ConfusedPair(key // self._num_classes, key % self._num_classes, count)
            for key, count in zip(
                self._keys_P[order].tolist(), self._counts_P[order].tolist(), strict=True
            )
        ]

    def _merge(self) -> None:
        keys = torch.cat([self._keys_P, *self._waiting])
        counts = torch.ones_like(keys)
        counts[: len(self._counts_P)] = self._counts_P
        self._keys_P, self._counts_P = _sums(keys, counts)
        self._waiting.clear()


def _sums(keys: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct *keys* in ascending order, and the sum of the counts of each."""
    distinct, index = keys.unique(return_inverse=True)
    return distinct, torch.zeros_like(distinct).index_add_(0, index, counts)


def _gather(values: Tensor, world: World) -> Tensor:
    """Return the values of all processes, concatenated; their numbers may differ."""
    sizes = torch.zeros(world.world_size, dtype=torch.int64)
    sizes[world.rank] = len(values)
    sizes = world.all_reduce_sum(sizes)
    everything = torch.zeros(int(sizes.sum()), dtype=values.dtype)
    start = int(sizes[: world.rank].sum())
    everything[start : start + len(values)] = values
    return world.all_reduce_sum(everything)


SUFFIXES = (".parquet", ".csv")


def check_table_path(path: Path) -> None:
    """Check the suffix of *path*.

    Raises:
        UsageError: It is none of `SUFFIXES`.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"`{path}` must end in {' or '.join(SUFFIXES)}")


def write_class_table(path: Path, table: ClassTable, classes: ClassList) -> None:
    """Write a row for each class, atomically: index, wnid, name, and the fields of `ClassTable`.

    Undefined metrics are null.

    Raises:
        OSError: The disk is full or failing; *path* is unchanged.
    """
    import pandas as pd  # noqa: PLC0415 - takes a third of a second

    columns = {name: values.numpy() for name, values in table._asdict().items()}
    rows = pd.DataFrame({"wnid": classes.wnids, "name": classes.names, **columns})
    rows = rows.rename_axis("class_index").reset_index()
    with atomic_file(path) as file:
        if path.suffix == ".csv":
            rows.to_csv(file, index=False)
        else:
            rows.to_parquet(file, index=False, compression="zstd")


class SemanticAccuracy:
    """Fraction of correct predictions over all images and the levels of their labels.

    Attributes:
        name: Name of the metric.
    """

    name = "semantic_prec@1"

    def __init__(self, levels: Levels) -> None:
        self._levels = levels
        self._totals = torch.zeros(2, dtype=torch.float64)

    def update(self, logits_BK: Tensor, batch: Batch) -> None:
        """Add a batch, whose labels are on the device of *logits_BK*."""
        hits = semantic_hits(logits_BK, batch.label_rows_L, batch.label_ids_L, self._levels)
        self._totals += torch.stack(hits).cpu()

    def reduce(self, world: World) -> None:
        """Sum over all processes; all of them call it."""
        self._totals = world.all_reduce_sum(self._totals)

    def value(self) -> float:
        """Return the fraction; 0 if no image has a label."""
        right, of = self._totals.tolist()
        return right / of if of else 0.0


NUM_IMAGES = 50_000
NUM_CLASSES = 1000
_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})")

RealLabels = list[list[int]]
"""Class indices of each validation image, in file name order; some have none."""


def read_real_labels(path: Path) -> RealLabels:
    """Read `real.json`.

    Raises:
        DataError: It is not that file.
        OSError: It cannot be read.
    """
    try:
        labels: RealLabels = json.loads(path.read_bytes())
        whole = len(labels) == NUM_IMAGES and all(
            0 <= label < NUM_CLASSES for of_image in labels for label in of_image
        )
    except (ValueError, TypeError) as error:
        raise DataError(f"`{path}` is not a list of lists of class indices: {error}") from error
    if not whole:
        raise DataError(
            f"`{path}` is not ReaL's list of labels: {NUM_IMAGES:,} lists of indices below "
            f"{NUM_CLASSES:,}",
            hint="it is `real.json` of github.com/google-research/reassessed-imagenet",
        )
    return labels


def check_classes(classes: ClassList) -> None:
    """Check that *classes* may be ImageNet-1k's, in the order of ReaL's indices.

    Raises:
        DataError: They are not.
    """
    if len(classes) != NUM_CLASSES or list(classes.wnids) != sorted(classes.wnids):
        raise DataError(
            f"ReaL's labels are for the {NUM_CLASSES:,} classes of ImageNet-1k in the order of "
            f"their folders; this model has {len(classes):,} classes"
        )


class RealMetrics:
    """prec@1 and top-5 on the ReaL labels; images that have none are skipped and counted.

    Args:
        labels: From `read_real_labels`.
        images: The images that batches index: files named `ILSVRC2012_val_00000001.JPEG`, ...
    """

    def __init__(self, labels: RealLabels, images: ImageDataset) -> None:
        self._labels = labels
        self._images = images
        self._metrics = ClassificationMetrics()
        self._num_empty = torch.zeros(1, dtype=torch.int64)

    def update(self, logits_BK: Tensor, batch: Batch) -> None:
        """Add a batch.

        Raises:
            DataError: The name of an image has no index.
        """
        labels = [self._labels_of(row) for row in batch.rows_B.tolist()]
        kept = [row for row, of_image in enumerate(labels) if of_image]
        self._num_empty += len(labels) - len(kept)
        if not kept:
            return
        rows_L = [new_row for new_row, row in enumerate(kept) for _ in labels[row]]
        ids_L = [label for row in kept for label in labels[row]]
        device = logits_BK.device
        self._metrics.update(
            logits_BK[torch.tensor(kept, device=device)],
            torch.tensor(rows_L, device=device),
            torch.tensor(ids_L, device=device),
            0.0,
        )

    def reduce(self, world: World) -> None:
        """Sum over all processes; all of them call it."""
        self._metrics.set_totals(world.all_reduce_sum(self._metrics.totals().cpu()))
        self._num_empty = world.all_reduce_sum(self._num_empty)

    def compute(self) -> dict[str, float | int]:
        """Return "prec@1", "top5", "num_images" and "num_without_labels", which are skipped.

        Raises:
            DataError: No image has a label.
        """
        try:
            metrics = self._metrics.compute()
        except ValueError:
            raise DataError("none of these images has a ReaL label") from None
        del metrics["loss"]
        return {**metrics, "num_without_labels": int(self._num_empty)}

    def _labels_of(self, row: int) -> list[int]:
        path = self._images.path(row)
        match = _NUMBERED.fullmatch(PurePosixPath(path).stem)
        if match is None or not 1 <= int(match[1]) <= len(self._labels):
            raise DataError(
                f"`{path}` has no ReaL labels: its name is not that of an ImageNet-1k validation "
                "image, such as ILSVRC2012_val_00000001.JPEG"
            )
        return self._labels[int(match[1]) - 1]
