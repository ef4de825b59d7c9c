"""Digests -> which files are copies of one another: NumPy on the keys alone.

One sort of one number a file does it.  The number holds the first bits of the digest and, in the
bits that are left, the row: equal digests come to lie side by side, their rows in order.  At 14.2
million files there are 40 bits for the digest, so that nearly all neighbours with the same bits are
copies (one file in eight in ImageNet-21K); of those alone the whole digests are then compared.  No
Python object is made per row.

Legend: N files, B files in a part, M files that share their content, G groups of those.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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


def find_copies(parts: Iterable[NDArray[np.uint64]], num_rows: int) -> CopyGroups:
    """Group the rows whose digests are equal.

    Args:
        parts: The digests of 16 bytes, some rows at a time, each as two numbers; gone through
            twice, so that they need not be held.
        num_rows: How many there are.

    Returns:
        The groups of two rows or more, by their first row.
    """
    rows, is_first = _rows_in_runs(parts, num_rows)
    digests = _digests_of(rows, parts)
    differs = _differs_from_last(digests)
    if (is_astray := differs & ~is_first).any():
        mixed = _of_runs_with(is_astray, is_first)
        order = mixed[np.lexsort((digests[mixed, 1], digests[mixed, 0]))]
        rows[mixed], digests[mixed] = rows[order], digests[order]
        differs = _differs_from_last(digests)
    is_lone = differs & np.append(differs[1:], True)
    rows, differs = rows[~is_lone], differs[~is_lone]
    return by_first_row(rows, np.flatnonzero(differs))


def by_first_row(rows_M: NDArray[np.int64], starts_G: NDArray[np.int64]) -> CopyGroups:
    """Return groups, each of which is together already, by their first row."""
    order_G = np.argsort(rows_M[starts_G])
    sizes_G = np.diff(starts_G, append=len(rows_M))[order_G]
    new_starts_G = np.cumsum(sizes_G) - sizes_G
    place_M = np.arange(len(rows_M)) + np.repeat(starts_G[order_G] - new_starts_G, sizes_G)
    return CopyGroups(rows_M[place_M], new_starts_G)


def _rows_in_runs(
    parts: Iterable[NDArray[np.uint64]], num_rows: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the rows whose first bits occur more than once, and which begin a run of the same.

    Runs are in the order of their bits; rows ascend in each.
    """
    row_bits = np.uint64((1 << num_rows.bit_length()) - 1)
    key_N = np.empty(num_rows, dtype=np.uint64)
    row = 0
    for digests_B2 in parts:
        stop = row + len(digests_B2)
        key_N[row:stop] = (digests_B2[:, 0] & ~row_bits) | np.arange(row, stop, dtype=np.uint64)
        row = stop
    key_N.sort()
    is_same = np.zeros(num_rows + 1, dtype=bool)  # as the one before it
    for start in range(1, num_rows, _SLICE_ROWS):
        keys = key_N[start - 1 : start + _SLICE_ROWS]
        is_same[start : start + len(keys) - 1] = (keys[1:] ^ keys[:-1]) <= row_bits
    places = np.flatnonzero(is_same[:-1] | is_same[1:])
    return (key_N[places] & row_bits).astype(np.int64), ~is_same[places]


def _digests_of(rows: NDArray[np.int64], parts: Iterable[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Return the whole digests of some rows."""
    digests = np.empty((len(rows), 2), dtype=np.uint64)
    order = np.argsort(rows)
    ascending = rows[order]
    start = 0
    for digests_B2 in parts:
        first, last = np.searchsorted(ascending, (start, start + len(digests_B2)))
        digests[order[first:last]] = digests_B2[ascending[first:last] - start]
        start += len(digests_B2)
    return digests


def _of_runs_with(is_marked: NDArray[np.bool_], is_first: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the places in all runs that have a mark in them."""
    run = np.cumsum(is_first) - 1
    has_mark = np.zeros(int(is_first.sum()), dtype=bool)
    has_mark[run[is_marked]] = True
    return np.flatnonzero(has_mark[run])


def _differs_from_last(digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
    differs = np.ones(len(digests), dtype=bool)
    differs[1:] = (digests[1:, 0] != digests[:-1, 0]) | (digests[1:, 1] != digests[:-1, 1])
    return differs
