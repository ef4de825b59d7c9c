"""Logits and sparse labels -> what every class needs for its metrics, as counts.

Dimensions: B images, K classes, H bins, L labels in the batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vit21k.data.batch_decoder import Batch
from vit21k.distributed import World
from vit21k.inference.average_precision import average_precision
from vit21k.inference.scores import Activation, probabilities

NUM_BINS = 768
"""Bins of a class: 24 for each unit of log-odds.  21,841 classes take 134 MB in all."""

_MOST_LOG_ODDS = 16.0  # a probability of 1 - 1e-7
_VALUES_AT_ONCE = 1 << 19
_CLASSES_IN_A_SUM = 1024


class ClassTable(NamedTuple):
    """The metrics of each class; NaN where there is none, for want of pictures or predictions.

    Attributes:
        num_images: Pictures that carry the label.
        num_predicted: Pictures whose probability of it is at or above the threshold.
        num_found: Pictures of which both is true.
        num_top: Pictures that carry the label and have it as their top class.
        precision: num_found / num_predicted.
        recall: num_found / num_images.
        f1: Their harmonic mean; 0 if pictures of the class are there and none is found.
        average_precision: Area under precision over recall, from binned scores.
        average_precision_low: What it is at least, ...
        average_precision_high: ... and at most, if scores are not binned.
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
    """Counts of each class over the images seen so far: integers, so that sums are exact.

    Args:
        num_classes: How many classes.
        activation: What turns logits into probabilities.
        threshold: A probability at or above it is a prediction.
        device: Where the logits are.
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
            batch: Its labels, which are on the device of *logits_BK*.
        """
        rows_L, ids_L = batch.label_rows_L, batch.label_ids_L
        num_rows = max(1, _VALUES_AT_ONCE // logits_BK.shape[1])  # bounds what is made on the way
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
        """Return the bin of each score, int64; of a logit that is no number, the lowest."""
        odds_BK = log_odds(logits_BK, self._activation).nan_to_num(nan=-_MOST_LOG_ODDS)
        place_BK = (odds_BK + _MOST_LOG_ODDS) * (NUM_BINS / (2 * _MOST_LOG_ODDS))
        return place_BK.clamp(0, NUM_BINS - 1).long()

    def reduce(self, world: World) -> None:
        """Replace the counts by the sums of all processes; all must call it."""
        for counts in (self._images_K, self._predicted_K, self._found_K, self._top_K):
            counts.copy_(world.all_reduce_sum(counts))
        for histogram in (self._all_KH, self._hits_KH):
            for part in histogram.split(_CLASSES_IN_A_SUM):  # little memory beside it
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

    Classes without pictures are left out of "mAP" and of the macro means, and counted in
    "num_empty_classes".  A class of which nothing is predicted has precision 0 in the macro mean.
    "micro" counts every prediction alike, those of empty classes included.  "mAP_error" bounds
    what the binning of scores can do to "mAP".
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
    """Return log(p / (1 - p)) of the probabilities p that *logits_BK* mean."""
    if activation == "sigmoid":
        return logits_BK
    log_p_BK = logits_BK.log_softmax(dim=1)
    return log_p_BK - torch.log1p(-log_p_BK.exp())


def _count(counts: Tensor, cells: Tensor) -> None:
    """Add 1 to *counts* (int32) at each of *cells*, as often as it occurs."""
    counts.scatter_add_(0, cells, torch.ones_like(cells, dtype=torch.int32))
