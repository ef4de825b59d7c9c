"""Logits and sparse labels -> which classes are taken for which.

Dimensions: B images, K classes, L labels in the batch, P pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vit21k.data.batch_decoder import Batch
from vit21k.distributed import World

_MOST_WAITING = 1 << 20


class ConfusedPair(NamedTuple):
    """Pictures that carry *label*, and whose top class is *predicted*, none of their labels."""

    label: int
    predicted: int
    num_images: int


class Confusion:
    """Counts of confused pairs: only of those that occur, 21,841 classes have 477 million.

    A picture with several labels, none of them on top, counts once for each of them.
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
        """Replace the counts by the sums of all processes; all must call it."""
        self._merge()
        keys = _gather(self._keys_P, world)
        counts = _gather(self._counts_P, world)
        self._keys_P, self._counts_P = _sums(keys, counts)

    def top(self, num_pairs: int) -> list[ConfusedPair]:
        """Return the most frequent pairs, most pictures first, ties by class index."""
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
    distinct, places = keys.unique(return_inverse=True)
    return distinct, torch.zeros_like(distinct).index_add_(0, places, counts)


def _gather(values: Tensor, world: World) -> Tensor:
    """Return the values of all processes, one after another; each may have another number."""
    sizes = torch.zeros(world.world_size, dtype=torch.int64)
    sizes[world.rank] = len(values)
    sizes = world.all_reduce_sum(sizes)
    everything = torch.zeros(int(sizes.sum()), dtype=values.dtype)
    start = int(sizes[: world.rank].sum())
    everything[start : start + len(values)] = values
    return world.all_reduce_sum(everything)
