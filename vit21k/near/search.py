"""Find all pairs of near hashes among millions, and compare their thumbnails."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import combinations
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vit21k.machine import num_threads
from vit21k.near.fingerprint import (
    AS_IS,
    NUM_BANDS,
    THUMB_SIDE,
    FingerprintSet,
    View,
    crops,
    distance,
    hash_bits,
    is_flat,
    keys,
    matrices,
    mirrored,
)

VIEWS = crops((0.97, 0.94, 0.91), (0.0, 0.5, 1.0))
"""The windows; their offsets are symmetric, so that mirroring adds none."""

_BATCH_ROWS = 512
_BLUR_DEVIATION = 2.0  # pixels: of the blur that is subtracted
_MARGIN = 2  # pixels at the border, where the blur is inexact


def similarity(one_PTT: NDArray[np.uint8], other_PTT: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the similarity of each pair of images: 1 equal, about 0 unrelated.

    It is symmetric: either image may be a crop of the other.
    """
    best_P = np.full(len(one_PTT), -1, dtype=np.float32)
    for start in range(0, len(one_PTT), _BATCH_ROWS):
        batch = slice(start, start + _BATCH_ROWS)
        one_BTT, other_BTT = _sharpened(one_PTT[batch]), _sharpened(other_PTT[batch])
        best_P[batch] = np.maximum(_best(one_BTT, other_BTT), _best(other_BTT, one_BTT))
    return best_P


def _best(seen_PTT: NDArray[np.float32], still_PTT: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the highest correlation of *still_PTT*, also mirrored, with a view of *seen_PTT*."""
    still_PD = _unit(still_PTT, AS_IS)
    mirrored_PD = _unit(np.ascontiguousarray(still_PTT[:, :, ::-1]), AS_IS)
    best_P = np.full(len(seen_PTT), -1, dtype=np.float32)
    for view in VIEWS:
        seen_PD = _unit(seen_PTT, view)
        for plain_PD in (still_PD, mirrored_PD):
            np.maximum(best_P, np.einsum("pd,pd->p", seen_PD, plain_PD), out=best_P)
    return best_P


def _sharpened(thumbs_PTT: NDArray[np.uint8]) -> NDArray[np.float32]:
    thumbs = thumbs_PTT.astype(np.float32)
    fine_PTT: NDArray[np.float32] = thumbs - _through(thumbs, _BLUR, _BLUR)
    return fine_PTT


def _unit(fine_PTT: NDArray[np.float32], view: View) -> NDArray[np.float32]:
    """Return the sharpened thumbnails in *view*, with zero mean and unit length."""
    rows, cols = matrices(view)
    inner = slice(_MARGIN, THUMB_SIDE - _MARGIN)
    detail_PD = _through(fine_PTT, rows[inner], cols[inner]).reshape(len(fine_PTT), -1)
    detail_PD -= detail_PD.mean(axis=1, keepdims=True)
    length_P = np.sqrt(np.einsum("pd,pd->p", detail_PD, detail_PD))
    detail_PD /= np.maximum(length_P, 1e-3)[:, None]
    return detail_PD


def _through(
    thumbs_PTT: NDArray[np.float32], rows: NDArray[np.float32], cols: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return ``rows @ thumb @ cols.T`` of each, as two products of large matrices."""
    size = len(thumbs_PTT)
    across = (thumbs_PTT.reshape(-1, THUMB_SIDE) @ cols.T).reshape(size, THUMB_SIDE, -1)
    transposed = np.ascontiguousarray(across.swapaxes(1, 2)).reshape(-1, THUMB_SIDE)
    seen = (transposed @ rows.T).reshape(size, len(cols), len(rows))
    seen_PTT: NDArray[np.float32] = np.ascontiguousarray(seen.swapaxes(1, 2))
    return seen_PTT


def _blur() -> NDArray[np.float32]:
    """Return a Gaussian blur along one side, T x T."""
    offset = np.subtract.outer(np.arange(THUMB_SIDE), np.arange(THUMB_SIDE))
    weight = np.exp(-0.5 * (offset / _BLUR_DEVIATION) ** 2)
    matrix: NDArray[np.float32] = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


_BLUR = _blur()


TABLES = tuple(combinations(range(NUM_BANDS), 3))

MAX_BUCKET_PAIRS = 4_000_000
"""A key shared by more pairs is not selective: it is counted and skipped."""

FEW_PAIRS = 10_000_000
"""Up to this many, all pairs are compared, in about a tenth of a second."""

_SLICE_PAIRS = 1 << 18
_WAITING_PAIRS = 1 << 21
_ROW_BITS = np.uint64(32)
_ROW = np.uint64(0xFFFF_FFFF)


_Candidates = Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]
"""Rows of both sides to compare, in parts."""


class HashPairs(NamedTuple):
    """Pairs of rows with near hashes, each once.

    Attributes:
        one_P, other_P: Rows of the first and the second side.
        distance_P: Hamming distance, of 256 bits.
    """

    one_P: NDArray[np.int64]
    other_P: NDArray[np.int64]
    distance_P: NDArray[np.uint16]

    def where(self, is_kept_P: NDArray[np.bool_]) -> Self:
        """Return the selected pairs."""
        return type(self)._make(column[is_kept_P] for column in self)


@dataclass
class SearchCounts:
    """Counts of a search.

    Attributes:
        num_compared: Pairs whose hashes were compared in full; a pair counts in each table.
        num_overfull: Keys skipped because more than `MAX_BUCKET_PAIRS` pairs share them.
    """

    num_compared: int = 0
    num_overfull: int = 0


@dataclass
class NearSearch:
    """Finds rows whose hashes differ in at most *max_distance* bits.

    Attributes:
        one_A4: Hashes of the first side.
        max_distance: In bits.
        within: The second side has the same rows, in a view: a row is not paired with itself, and
            each pair is reported once.
        counts: Counts of all `probe` calls.
        num_threads: Tables built and compared in parallel; NumPy releases the GIL.
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
                self.counts.num_overfull += part.counts.num_overfull
                merged.add(part.pairs)
        return merged.result()

    def _table(self, table: tuple[int, ...], other_B4: NDArray[np.uint64]) -> "_TableResult":
        one_A, other_B = _table_of(self.one_A4, table), _table_of(other_B4, table)
        counts = SearchCounts()
        candidates = _candidates(one_A, other_B, counts)
        return _TableResult(self._compare(candidates, other_B4, counts), counts)

    def _compare(
        self, candidates: _Candidates, other_B4: NDArray[np.uint64], counts: SearchCounts
    ) -> HashPairs:
        """Return those of *candidates* whose hashes are near."""
        found = []
        for rows_P, others_P in candidates:
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
    """Result of a table."""

    pairs: HashPairs
    counts: SearchCounts


class MergedPairs:
    """Merges parts with many repeated pairs, in bounded memory."""

    def __init__(self) -> None:
        self._parts = [merge_pairs([])]
        self._num_waiting = 0

    def add(self, pairs: HashPairs) -> None:
        """Add a part."""
        self._parts.append(pairs)
        self._num_waiting += len(pairs.one_P)
        if self._num_waiting > max(len(self._parts[0].one_P), _WAITING_PAIRS):
            self._parts = [self.result()]
            self._num_waiting = 0

    def result(self) -> HashPairs:
        """Return all pairs, each once with its smallest distance, ordered by row."""
        return merge_pairs(self._parts)


def merge_pairs(parts: list[HashPairs]) -> HashPairs:
    """Return the pairs of all *parts*, each once with its smallest distance, ordered by row."""
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


def _all_pairs(num_rows: int, num_others: int) -> _Candidates:
    """Yield every pair of rows, a bounded number at a time."""
    others = np.arange(num_others)
    step = max(1, _SLICE_PAIRS // num_others)
    for start in range(0, num_rows, step):
        rows = np.arange(start, min(start + step, num_rows))
        yield np.repeat(rows, num_others), np.tile(others, len(rows))


def _candidates(
    one_A: NDArray[np.uint64], other_B: NDArray[np.uint64], counts: SearchCounts
) -> _Candidates:
    """Yield the pairs of rows that share a key, a bounded number at a time."""
    start_K, size_K, other_start_K, other_size_K = _shared_keys(one_A, other_B)
    pairs_K = size_K * other_size_K
    is_kept_K = pairs_K <= MAX_BUCKET_PAIRS
    counts.num_overfull += int((~is_kept_K).sum())
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
    """Return start and number of the rows of each common key, on both sides."""
    key_B = other_B >> _ROW_BITS
    start_K = np.flatnonzero(np.append(True, key_B[1:] != key_B[:-1]))
    size_K = np.diff(start_K, append=len(key_B))
    key_K = key_B[start_K]
    del key_B
    key_A = one_A >> _ROW_BITS
    begin_K = np.searchsorted(key_A, key_K, side="left")
    is_shared_K = key_A[np.minimum(begin_K, len(key_A) - 1)] == key_K
    start_K, size_K, begin_K = start_K[is_shared_K], size_K[is_shared_K], begin_K[is_shared_K]
    end_K = np.searchsorted(key_A, key_K[is_shared_K], side="right")
    return begin_K, end_K - begin_K, start_K, size_K


MAX_DISTANCE = 64
"""Bits of 256.  Among 500 ImageNet images, the smallest distance in any view is 73."""

MIN_SIMILARITY = 0.65
"""Among 500 ImageNet images, the highest similarity is 0.53."""

_PAIRS_AT_A_TIME = 1 << 16

_CROPS = crops((0.96,), (0.0, 0.5, 1.0))
PROBES = (*_CROPS, *mirrored(_CROPS))
"""The views of one side; the other is unchanged."""


class MatchLevel(StrEnum):
    """How two images match; the first that holds counts."""

    EXACT = "exact"
    PIXEL = "pixel"
    NEAR = "near"


class Pairs(NamedTuple):
    """Pairs of images, the most similar first.

    Attributes:
        one_P, other_P: Rows of the first and the second set.
        level_P: Index into `MatchLevel`'s members.
        distance_P: Hamming distance of their hashes, of 256 bits; 0 above `MatchLevel.NEAR`.
        similarity_P: Similarity of their thumbnails; 1 above `MatchLevel.NEAR`.
    """

    one_P: NDArray[np.int64]
    other_P: NDArray[np.int64]
    level_P: NDArray[np.int64]
    distance_P: NDArray[np.int64]
    similarity_P: NDArray[np.float32]

    def where(self, is_kept_P: NDArray[np.bool_]) -> Self:
        """Return the selected pairs."""
        return type(self)._make(column[is_kept_P] for column in self)


def find_pairs(
    one: FingerprintSet,
    other: FingerprintSet | None = None,
    *,
    max_distance: int = MAX_DISTANCE,
    min_similarity: float = MIN_SIMILARITY,
    on_view: Callable[[], None] = lambda: None,
) -> tuple[Pairs, SearchCounts]:
    """Return the pairs of two sets, or within one.

    Args:
        one: A set.
        other: Another; None: pairs within *one*, each once.
        max_distance: Maximum Hamming distance of a near pair in its best view, of 256 bits.
        min_similarity: Minimum similarity of its thumbnails.
        on_view: Called after each of the views is searched; `num_views` of them.
    """
    others = other or one
    exact = _equal(one.digest_N, others.digest_N)
    pixel = _equal(one.pixel_digest_N, others.pixel_digest_N)
    near, counts = near_hashes(
        one.thumbs_NTT,
        others.thumbs_NTT if other else None,
        max_distance=max_distance,
        on_view=on_view,
    )
    similarity_P = _similarities(one, others, near)
    is_near_P = similarity_P >= min_similarity
    pairs = _by_level(exact, pixel, near.where(is_near_P), similarity_P[is_near_P])
    # Within a set: no image with itself, and each pair once.
    return pairs if other else pairs.where(pairs.one_P < pairs.other_P), counts


def _similarities(
    one: FingerprintSet, other: FingerprintSet, pairs: HashPairs
) -> NDArray[np.float32]:
    """Return the similarity of the thumbnails of each pair, in batches."""
    parts = [
        similarity(
            one.thumbs_NTT[pairs.one_P[start : start + _PAIRS_AT_A_TIME]],
            other.thumbs_NTT[pairs.other_P[start : start + _PAIRS_AT_A_TIME]],
        )
        for start in range(0, len(pairs.one_P), _PAIRS_AT_A_TIME)
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)


def num_views(*, within: bool) -> int:
    """Return the number of views that `find_pairs` searches."""
    return len(PROBES) if within else 2 * len(PROBES) - 1


def near_hashes(
    one_ATT: NDArray[np.uint8],
    other_BTT: NDArray[np.uint8] | None,
    *,
    max_distance: int = MAX_DISTANCE,
    on_view: Callable[[], None] = lambda: None,
) -> tuple[HashPairs, SearchCounts]:
    """Return the pairs of thumbnails with near hashes in any view, without flat ones.

    Either of a pair may be the crop, so that both sides are searched in all views.
    """
    row_A = np.flatnonzero(~is_flat(one_ATT))
    still_A4 = hash_bits(one_ATT)[row_A]
    counts = SearchCounts()
    if other_BTT is None:
        search = NearSearch(still_A4, max_distance, within=True, counts=counts)
        pairs = _probe(search, one_ATT, row_A, PROBES, on_view)
        return pairs._replace(one_P=row_A[pairs.one_P], other_P=row_A[pairs.other_P]), counts
    row_B = np.flatnonzero(~is_flat(other_BTT))
    there = _probe(
        NearSearch(still_A4, max_distance, counts=counts), other_BTT, row_B, PROBES, on_view
    )
    back = _probe(
        NearSearch(hash_bits(other_BTT)[row_B], max_distance, counts=counts),
        one_ATT,
        row_A,
        PROBES[1:],
        on_view,
    )
    pairs = merge_pairs([there, HashPairs(back.other_P, back.one_P, back.distance_P)])
    return pairs._replace(one_P=row_A[pairs.one_P], other_P=row_B[pairs.other_P]), counts


def _probe(
    search: NearSearch,
    thumbs_NTT: NDArray[np.uint8],
    rows: NDArray[np.int64],
    views: tuple[View, ...],
    on_view: Callable[[], None],
) -> HashPairs:
    """Return the pairs that *search* finds for the given rows in all *views*."""
    merged = MergedPairs()
    for view in views:
        merged.add(search.probe(hash_bits(thumbs_NTT, view)[rows]))
        on_view()
    return merged.result()


def _equal(
    one_A: NDArray[np.bytes_], other_B: NDArray[np.bytes_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of all pairs with equal digests; an empty digest equals none."""
    order_B = np.argsort(other_B, kind="stable")
    sorted_B = other_B[order_B]
    begin_A = np.searchsorted(sorted_B, one_A, side="left")
    size_A = np.searchsorted(sorted_B, one_A, side="right") - begin_A
    size_A[one_A == b""] = 0
    one_P = np.repeat(np.arange(len(one_A)), size_A)
    before_P = np.repeat(np.cumsum(size_A) - size_A, size_A)
    index_P = np.repeat(begin_A, size_A) + np.arange(len(one_P)) - before_P
    return one_P, order_B[index_P]


def _by_level(
    exact: tuple[NDArray[np.int64], NDArray[np.int64]],
    pixel: tuple[NDArray[np.int64], NDArray[np.int64]],
    near: HashPairs,
    similarity_P: NDArray[np.float32],
) -> Pairs:
    """Return all pairs, each once at its first level, ordered by level and similarity."""
    sizes = [len(exact[0]), len(pixel[0]), len(near.one_P)]
    same = sizes[0] + sizes[1]
    one = np.concatenate([exact[0], pixel[0], near.one_P])
    other = np.concatenate([exact[1], pixel[1], near.other_P])
    level = np.repeat(np.arange(len(sizes)), sizes)
    distances = np.concatenate([np.zeros(same, dtype=np.int64), near.distance_P])
    similar = np.concatenate([np.ones(same, dtype=np.float32), similarity_P])
    _, first = np.unique(np.stack([one, other]), axis=1, return_index=True)
    first = first[np.lexsort((other[first], one[first], -similar[first], level[first]))]
    return Pairs(one[first], other[first], level[first], distances[first], similar[first])
