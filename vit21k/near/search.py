"""All pairs of near hashes among millions: bands that came through unchanged meet by sorting.

Two hashes that differ in few of their lowest 63 bits agree in whole bands of 9.  A *table* takes
three of the seven bands as a key; whoever shares a key is compared in full.  With all 35 tables any
two hashes meet that agree in three bands: always, when they differ in 4 of the 63 bits or fewer,
and mostly when in 12.  Small sets are not searched but compared, every row with every row.

Performance: a table is made by sorting ``key << 32 | row``; nothing is made per row in Python.
Memory: the hashes (32 bytes a row), for each thread a table of each side with its temporaries, and
the pairs found.

Dimensions: A, B rows of the two sides, K keys, P pairs.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vit21k.machine import num_threads
from vit21k.near.bits import NUM_BANDS, distance, keys

TABLES = tuple(combinations(range(NUM_BANDS), 3))

MAX_BUCKET_PAIRS = 4_000_000
"""A key that more pairs share says nothing: they are counted, and not compared under it."""

FEW_PAIRS = 10_000_000
"""Up to so many are all compared, in about a tenth of a second: no table can miss one then."""

_SLICE_PAIRS = 1 << 18
_WAITING_PAIRS = 1 << 21
_ROW_BITS = np.uint64(32)
_ROW = np.uint64(0xFFFF_FFFF)


_Meetings = Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Rows of both sides that are to be compared, in parts."""


class HashPairs(NamedTuple):
    """Pairs of rows with near hashes, each once.

    Attributes:
        one_P, other_P: Rows of the first and the second side.
        distance_P: In how many of the 256 bits they differ.
    """

    one_P: NDArray[np.int64]
    other_P: NDArray[np.int64]
    distance_P: NDArray[np.uint16]

    def where(self, is_kept_P: NDArray[np.bool_]) -> Self:
        """Return those pairs that are marked."""
        one_P, other_P, distance_P = self
        return type(self)(one_P[is_kept_P], other_P[is_kept_P], distance_P[is_kept_P])


@dataclass
class SearchCounts:
    """What a search did.

    Attributes:
        num_compared: Pairs whose hashes were compared in full; a pair counts in each table.
        num_crowded: Keys left out because more than `MAX_BUCKET_PAIRS` pairs share them.
    """

    num_compared: int = 0
    num_crowded: int = 0


@dataclass
class NearSearch:
    """Finds rows whose hashes differ in at most *max_distance* bits.

    Attributes:
        one_A4: Hashes of the first side.
        max_distance: In bits.
        within: The second side holds the same rows in the same order, seen through a view: a row
            is no pair of itself, and a pair is the same either way.
        counts: Of all `probe` calls.
        num_threads: Tables made and compared at a time; NumPy lets go of the interpreter's lock.
    """

    one_A4: NDArray[np.uint64]
    max_distance: int
    within: bool = False
    counts: SearchCounts = field(default_factory=SearchCounts)
    num_threads: int = field(default_factory=lambda: min(4, num_threads()))

    def probe(self, other_B4: NDArray[np.uint64]) -> HashPairs:
        """Return the pairs of the first side and *other_B4*."""
        if not len(self.one_A4) or not len(other_B4):
            return merge_pairs([])
        if len(self.one_A4) * len(other_B4) <= FEW_PAIRS:
            return self._compare(_all_pairs(len(self.one_A4), len(other_B4)), other_B4, self.counts)
        merged = MergedPairs()
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="search") as pool:
            for part in pool.map(lambda table: self._table(table, other_B4), TABLES):
                self.counts.num_compared += part.counts.num_compared
                self.counts.num_crowded += part.counts.num_crowded
                merged.add(part.pairs)
        return merged.result()

    def _table(self, table: tuple[int, ...], other_B4: NDArray[np.uint64]) -> "_TableResult":
        one_A, other_B = _table_of(self.one_A4, table), _table_of(other_B4, table)
        counts = SearchCounts()
        meetings = _meetings(one_A, other_B, counts)
        return _TableResult(self._compare(meetings, other_B4, counts), counts)

    def _compare(
        self, meetings: _Meetings, other_B4: NDArray[np.uint64], counts: SearchCounts
    ) -> HashPairs:
        """Return those of *meetings* whose hashes are near."""
        found = []
        for rows_P, others_P in meetings:
            counts.num_compared += len(rows_P)
            distance_P = distance(self.one_A4[rows_P], other_B4[others_P])
            near_P = distance_P <= self.max_distance
            if self.within:
                near_P &= rows_P != others_P
            one_P, other_P = rows_P[near_P], others_P[near_P]
            if self.within:
                one_P, other_P = np.minimum(one_P, other_P), np.maximum(one_P, other_P)
            found.append(merge_pairs([HashPairs(one_P, other_P, distance_P[near_P])]))
        return merge_pairs(found)


class _TableResult(NamedTuple):
    """What one table brought."""

    pairs: HashPairs
    counts: SearchCounts


class MergedPairs:
    """Pairs that come in parts, most of them again and again; few more are held than there are."""

    def __init__(self) -> None:
        self._parts = [merge_pairs([])]
        self._num_waiting = 0

    def add(self, pairs: HashPairs) -> None:
        """Take in a part."""
        self._parts.append(pairs)
        self._num_waiting += len(pairs.one_P)
        if self._num_waiting > max(len(self._parts[0].one_P), _WAITING_PAIRS):
            self._parts = [self.result()]
            self._num_waiting = 0

    def result(self) -> HashPairs:
        """Return all of them, each once, with its least distance; by row."""
        return merge_pairs(self._parts)


def merge_pairs(parts: list[HashPairs]) -> HashPairs:
    """Return the pairs of all *parts*, each once, with its least distance; by row."""
    if not parts:
        nothing = np.empty(0, dtype=np.int64)
        return HashPairs(nothing, nothing, np.empty(0, dtype=np.uint16))
    one, other, distances = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((distances, other, one))
    one, other, distances = one[order], other[order], distances[order]
    is_first = np.ones(len(one), dtype=bool)
    is_first[1:] = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    return HashPairs(one[is_first], other[is_first], distances[is_first])


def _table_of(words_N4: NDArray[np.uint64], table: tuple[int, ...]) -> NDArray[np.uint64]:
    """Return ``key << 32 | row`` of each row, ascending."""
    keyed_N = keys(words_N4, table)
    keyed_N <<= _ROW_BITS
    keyed_N |= np.arange(len(words_N4), dtype=np.uint64)
    keyed_N.sort()
    return keyed_N


def _all_pairs(num_rows: int, num_others: int) -> _Meetings:
    """Yield every pair of rows, a bounded number at a time."""
    others = np.arange(num_others)
    step = max(1, _SLICE_PAIRS // num_others)
    for start in range(0, num_rows, step):
        rows = np.arange(start, min(start + step, num_rows))
        yield np.repeat(rows, num_others), np.tile(others, len(rows))


def _meetings(
    one_A: NDArray[np.uint64], other_B: NDArray[np.uint64], counts: SearchCounts
) -> _Meetings:
    """Yield the pairs of rows that share a key, a bounded number at a time."""
    start_K, size_K, other_start_K, other_size_K = _shared_keys(one_A, other_B)
    pairs_K = size_K * other_size_K
    is_kept_K = pairs_K <= MAX_BUCKET_PAIRS
    counts.num_crowded += int((~is_kept_K).sum())
    runs = np.stack([start_K, other_start_K, other_size_K, pairs_K])[:, is_kept_K]
    slice_K = np.cumsum(runs[3]) // _SLICE_PAIRS
    for part in np.split(runs, np.flatnonzero(np.diff(slice_K)) + 1, axis=1):
        start_P, other_start_P, width_P, _ = np.repeat(part, part[3], axis=1)
        before_P = np.repeat(np.cumsum(part[3]) - part[3], part[3])
        down_P, across_P = np.divmod(np.arange(len(before_P)) - before_P, width_P)
        yield (
            (one_A[start_P + down_P] & _ROW).astype(np.int64),
            (other_B[other_start_P + across_P] & _ROW).astype(np.int64),
        )


def _shared_keys(
    one_A: NDArray[np.uint64], other_B: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], ...]:
    """Return, of each key on both sides, where its rows begin and how many they are, twice."""
    key_B = other_B >> _ROW_BITS
    start_K = np.flatnonzero(np.append(True, key_B[1:] != key_B[:-1]))
    size_K = np.diff(start_K, append=len(key_B))
    key_K = key_B[start_K]
    del key_B
    key_A = one_A >> _ROW_BITS
    begin_K = np.searchsorted(key_A, key_K, side="left")
    is_there_K = key_A[np.minimum(begin_K, len(key_A) - 1)] == key_K
    start_K, size_K, begin_K = start_K[is_there_K], size_K[is_there_K], begin_K[is_there_K]
    end_K = np.searchsorted(key_A, key_K[is_there_K], side="right")
    return begin_K, end_K - begin_K, start_K, size_K
