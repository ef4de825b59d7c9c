"""Class-balanced sampling: every class as often as every other, each one's pictures in turn.

A round visits every class that has pictures once, in an order of its own, and takes one picture of
each.  A class goes through all its pictures, in an order of its own, before one comes again.  Which
picture is where is a pure function of (seed, place in the run), without a state.

Dimensions: B places of the run, K classes, M memberships: a picture is in each of its classes.
"""

from typing import Self

import numpy as np
from numpy.typing import NDArray

from vit21k.data.mix64 import derive_keys
from vit21k.data.permutation import permute_each
from vit21k.data.rows import PictureRows
from vit21k.errors import UsageError

_ROUNDS, _MEMBERS = np.array([0x726F756E], np.uint64), np.array([0x6D656D62], np.uint64)
_CHUNK_ROWS = 1 << 20


class ClassRows:
    """The pictures of each class, as two flat arrays.

    A picture with 14.2 million others costs 4 bytes for each of its labels: 60 MB in all, and
    3 s to sort when a run starts.

    Args:
        rows_M: int32; the rows of the first class, then those of the second, and so on.
        starts_K1: int64; where each class starts, and the end; no class is empty.
    """

    def __init__(self, rows_M: NDArray[np.int32], starts_K1: NDArray[np.int64]) -> None:
        self._rows_M = rows_M
        self._starts_K = starts_K1[:-1]
        self._sizes_K = np.diff(starts_K1)

    @classmethod
    def from_pictures(cls, pictures: PictureRows) -> Self:
        """Sort the rows of *pictures* by class; classes without a picture are left out.

        Raises:
            UsageError: No picture has a label.
        """
        chunks = [
            _labels(pictures, start, min(start + _CHUNK_ROWS, len(pictures)))
            for start in range(0, len(pictures), _CHUNK_ROWS)
        ]
        if not sum(len(rows) for rows, _ in chunks):
            raise UsageError("no picture has a label, so classes cannot be balanced")
        ids_M = np.concatenate([ids for _, ids in chunks])
        order_M = np.argsort(ids_M, kind="stable")
        rows_M = np.concatenate([rows for rows, _ in chunks])[order_M]
        sizes = np.bincount(ids_M)
        return cls(rows_M, np.concatenate([[0], np.cumsum(sizes[sizes > 0])]))

    @property
    def num_classes(self) -> int:
        """How many classes have a picture."""
        return len(self._sizes_K)

    def rows(self, places_B: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """Return the row at each of the *places_B*, counted from the start of the run."""
        seeds = np.array([seed], dtype=np.int64).astype(np.uint64)
        round_B, in_round_B = np.divmod(places_B, self.num_classes)
        round_keys_B = derive_keys(_ROUNDS, seeds, round_B.astype(np.uint64))
        class_B = permute_each(in_round_B, np.array([self.num_classes]), round_keys_B)
        # A class is visited once a round, so the round is also the number of its visits.
        size_B = self._sizes_K[class_B]
        cycle_B, in_cycle_B = np.divmod(round_B, size_B)
        cycle_keys_B = derive_keys(
            _MEMBERS, seeds, class_B.astype(np.uint64), cycle_B.astype(np.uint64)
        )
        member_B = permute_each(in_cycle_B, size_B, cycle_keys_B)
        return self._rows_M[self._starts_K[class_B] + member_B].astype(np.int64)


def _labels(
    pictures: PictureRows, start: int, stop: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the row and the class of every label of some rows."""
    places, ids = pictures.labels_of(np.arange(start, stop, dtype=np.int64))
    return (places + start).astype(np.int32), ids.astype(np.int32)
