"""Digests -> which files are copies of one another: NumPy on the keys alone.

At 14.2 million files most digests occur once.  They are told from the others by their first 64
bits: sorting those takes a fraction of a second, and only files whose first half occurs twice (one
in eight in ImageNet-21K) are then compared in full.  No Python object is made per row.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_FILTER_BITS = 24
_SLICE_ROWS = 1 << 20


class CopyGroups(NamedTuple):
    """Files that share their content with another one.

    Attributes:
        rows_M: Their row numbers: group by group, ascending in each.
        starts_G: Where each group begins in *rows_M*.
    """

    rows_M: NDArray[np.int64]
    starts_G: NDArray[np.int64]

    @property
    def sizes_G(self) -> NDArray[np.int64]:
        """Number of files of each group; at least 2."""
        return np.diff(self.starts_G, append=len(self.rows_M))


def find_copies(digests_N2: NDArray[np.uint64]) -> CopyGroups:
    """Group the rows whose digests are equal.

    Args:
        digests_N2: The digests of 16 bytes, each as two numbers.

    Returns:
        The groups of two rows or more, by their first row.
    """
    rows = _rows_with_repeated_half(digests_N2[:, 0])
    halves = digests_N2[rows]
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: rows stay ascending in a group
    rows, halves = rows[order], halves[order]

    is_start = np.ones(len(rows), dtype=bool)
    is_start[1:] = (halves[1:] != halves[:-1]).any(axis=1)
    is_lone = is_start & np.append(is_start[1:], True)
    rows, is_start = rows[~is_lone], is_start[~is_lone]
    return by_first_row(rows, np.flatnonzero(is_start))


def by_first_row(rows_M: NDArray[np.int64], starts_G: NDArray[np.int64]) -> CopyGroups:
    """Return groups, each of which is together already, by their first row."""
    sizes_G = np.diff(starts_G, append=len(rows_M))
    first_row_M = np.repeat(rows_M[starts_G], sizes_G)
    order = np.argsort(first_row_M, kind="stable")
    sizes_G = sizes_G[np.argsort(rows_M[starts_G])]
    return CopyGroups(rows_M[order], np.cumsum(sizes_G) - sizes_G)


def _rows_with_repeated_half(half_N: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the rows whose value occurs more than once, ascending."""
    ordered = np.sort(half_N)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    del ordered
    repeated = repeated[np.append(True, repeated[1:] != repeated[:-1])[: len(repeated)]]
    is_possible = np.zeros(1 << _FILTER_BITS, dtype=bool)
    is_possible[_slot(repeated)] = True
    found = []
    for start in range(0, len(half_N), _SLICE_ROWS):
        half = half_N[start : start + _SLICE_ROWS]
        rows = np.flatnonzero(is_possible[_slot(half)])
        found.append(start + rows[_is_in(half[rows], repeated)])
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _slot(half: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return half >> np.uint64(64 - _FILTER_BITS)


def _is_in(values: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    place = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    found: NDArray[np.bool_] = ordered[place] == values
    return found
