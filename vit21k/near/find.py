"""Two sets of fingerprints -> their pairs, at three levels: same bytes, same pixels, near.

Dimensions: A, B pictures of the two sides, P pairs.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vit21k.near.bits import hash_bits
from vit21k.near.fingerprint import is_flat
from vit21k.near.picture_set import PictureSet
from vit21k.near.search import HashPairs, MergedPairs, NearSearch, SearchCounts, merge_pairs
from vit21k.near.similarity import similarity
from vit21k.near.views import View, crops, mirrored

MAX_DISTANCE = 64
"""Bits of 256.  Of 500 ImageNet pictures, no two come closer than 73, through any view."""

MIN_SIMILARITY = 0.65
"""Of 500 ImageNet pictures, no two are more alike than 0.53."""

_PAIRS_AT_A_TIME = 1 << 16

_CROPS = crops((0.96,), (0.0, 0.5, 1.0))
PROBES = (*_CROPS, *mirrored(_CROPS))
"""The views through which one side is looked at; the other stays as it is."""


class Level(StrEnum):
    """How far two pictures are the same; the first that is true counts."""

    EXACT = "exact"
    PIXEL = "pixel"
    NEAR = "near"


class Pairs(NamedTuple):
    """Pairs of pictures, the most alike first.

    Attributes:
        one_P, other_P: Rows of the first and the second set.
        level_P: Index into `Level`'s members.
        distance_P: In how many of 256 bits their hashes differ; 0 above `Level.NEAR`.
        similarity_P: Of their thumbnails' detail; 1 above `Level.NEAR`.
    """

    one_P: NDArray[np.int64]
    other_P: NDArray[np.int64]
    level_P: NDArray[np.int64]
    distance_P: NDArray[np.int64]
    similarity_P: NDArray[np.float32]

    def where(self, is_kept_P: NDArray[np.bool_]) -> Self:
        """Return those pairs that are marked."""
        one_P, other_P, level_P, distance_P, similarity_P = self
        return type(self)(
            one_P[is_kept_P],
            other_P[is_kept_P],
            level_P[is_kept_P],
            distance_P[is_kept_P],
            similarity_P[is_kept_P],
        )


def find_pairs(
    one: PictureSet,
    other: PictureSet | None = None,
    *,
    max_distance: int = MAX_DISTANCE,
    min_similarity: float = MIN_SIMILARITY,
    on_view: Callable[[], None] = lambda: None,
) -> tuple[Pairs, SearchCounts]:
    """Return the pairs of two sets, or within one.

    Args:
        one: A set.
        other: Another; None: pairs within *one*, each once.
        max_distance: How many of 256 bits the hashes of a near pair may differ in, at the view
            that fits best.
        min_similarity: How alike its thumbnails must be at least.
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
    alike_P = _alike(one, others, near)
    is_near_P = alike_P >= min_similarity
    pairs = _by_level(exact, pixel, near.where(is_near_P), alike_P[is_near_P])
    # within one set: none of a picture and itself, and each one way round
    return pairs if other else pairs.where(pairs.one_P < pairs.other_P), counts


def _alike(one: PictureSet, other: PictureSet, pairs: HashPairs) -> NDArray[np.float32]:
    """Return how alike the thumbnails of each pair are; few are held at a time."""
    parts = [
        similarity(
            one.thumbs_NTT[pairs.one_P[start : start + _PAIRS_AT_A_TIME]],
            other.thumbs_NTT[pairs.other_P[start : start + _PAIRS_AT_A_TIME]],
        )
        for start in range(0, len(pairs.one_P), _PAIRS_AT_A_TIME)
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.float32)


def num_views(*, within: bool) -> int:
    """Return how many views `find_pairs` searches."""
    return len(PROBES) if within else 2 * len(PROBES) - 1


def near_hashes(
    one_ATT: NDArray[np.uint8],
    other_BTT: NDArray[np.uint8] | None,
    *,
    max_distance: int = MAX_DISTANCE,
    on_view: Callable[[], None] = lambda: None,
) -> tuple[HashPairs, SearchCounts]:
    """Return the pairs of thumbnails whose hashes are near through any view; flat ones have none.

    Either of a pair may be the crop, so that both sides are looked at through the views.
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
    """Return the pairs that *search* finds of the named rows' thumbnails through all *views*."""
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
    place_P = np.repeat(begin_A, size_A) + np.arange(len(one_P)) - before_P
    return one_P, order_B[place_P]


def _by_level(
    exact: tuple[NDArray[np.int64], NDArray[np.int64]],
    pixel: tuple[NDArray[np.int64], NDArray[np.int64]],
    near: HashPairs,
    alike_P: NDArray[np.float32],
) -> Pairs:
    """Return all pairs, each once at its first level; by level, then the most alike first."""
    sizes = [len(exact[0]), len(pixel[0]), len(near.one_P)]
    same = sizes[0] + sizes[1]
    one = np.concatenate([exact[0], pixel[0], near.one_P])
    other = np.concatenate([exact[1], pixel[1], near.other_P])
    level = np.repeat(np.arange(len(sizes)), sizes)
    distances = np.concatenate([np.zeros(same, dtype=np.int64), near.distance_P])
    alike = np.concatenate([np.ones(same, dtype=np.float32), alike_P])
    _, first = np.unique(np.stack([one, other]), axis=1, return_index=True)
    first = first[np.lexsort((other[first], one[first], -alike[first], level[first]))]
    return Pairs(one[first], other[first], level[first], distances[first], alike[first])
