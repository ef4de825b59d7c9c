"""The search for near hashes, against comparing each with each."""

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from vit21k.near import search
from vit21k.near.fingerprint import NUM_BANDS, distance, keys
from vit21k.near.search import NearSearch, SearchCounts, merge_pairs

MAX_DISTANCE = 40


@pytest.fixture(autouse=True)
def search_in_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "FEW_PAIRS", 0)


def random_hashes(size: int, seed: int = 0) -> NDArray[np.uint64]:
    return np.random.default_rng(seed).integers(0, 2**64, (size, 4), dtype=np.uint64)


def with_flipped_bits(words: NDArray[np.uint64], num_bits: int, seed: int) -> NDArray[np.uint64]:
    rng = np.random.default_rng(seed)
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    for row in bits:
        row[rng.choice(256, num_bits, replace=False)] ^= 1
    return np.packbits(bits, axis=1, bitorder="little").view(np.uint64)


def by_brute_force(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> set[tuple[int, int]]:
    """All pairs that are near and share three bands."""
    band = [np.stack([keys(words, (b,)) for b in range(NUM_BANDS)], 1) for words in (one, other)]
    return {
        (i, j)
        for i in range(len(one))
        for j in range(len(other))
        if distance(one[i : i + 1], other[j : j + 1])[0] <= MAX_DISTANCE
        and (band[0][i] == band[1][j]).sum() >= 3
    }


def test_finds_what_comparing_each_with_each_finds() -> None:
    one = random_hashes(60)
    other = np.concatenate([with_flipped_bits(one, bits, bits) for bits in (0, 5, 20, 41)])

    found = NearSearch(one, MAX_DISTANCE).probe(other)

    pairs = set(zip(found.one_P.tolist(), found.other_P.tolist(), strict=True))
    assert pairs == by_brute_force(one, other)
    assert len(pairs) > 120
    assert found.distance_P.tolist() == distance(one[found.one_P], other[found.other_P]).tolist()


@pytest.mark.parametrize("within", [False, True])
def test_small_sets_are_compared_row_by_row_so_that_nothing_is_missed(
    monkeypatch: pytest.MonkeyPatch, within: bool
) -> None:
    monkeypatch.setattr(search, "FEW_PAIRS", 100_000)
    monkeypatch.setattr(search, "_SLICE_PAIRS", 100)
    one = random_hashes(60)
    other = np.concatenate(
        [with_flipped_bits(one[:25], 40, 1), with_flipped_bits(one[25:50], 41, 2)]
    )
    hashes = (np.concatenate([one, other]),) * 2 if within else (one, other)
    counts = SearchCounts()

    found = NearSearch(hashes[0], MAX_DISTANCE, within=within, counts=counts).probe(hashes[1])

    assert found.one_P.tolist() == list(range(25))
    assert found.other_P.tolist() == list(range(60, 85) if within else range(25))
    assert counts.num_compared == len(hashes[0]) * len(hashes[1])


def test_four_flipped_bits_are_always_found() -> None:
    one = random_hashes(2_000)

    found = NearSearch(one, MAX_DISTANCE).probe(with_flipped_bits(one, 4, 1))

    assert found.one_P.tolist() == list(range(2_000))


def test_within_one_set_no_row_pairs_with_itself_and_each_pair_comes_once() -> None:
    hashes = random_hashes(50)
    hashes = np.concatenate([hashes, with_flipped_bits(hashes[:10], 4, 2)])

    found = NearSearch(hashes, MAX_DISTANCE, within=True).probe(hashes)

    assert found.one_P.tolist() == list(range(10))
    assert found.other_P.tolist() == list(range(50, 60))


def test_equal_hashes_all_pair() -> None:
    size = 40
    hashes = np.repeat(random_hashes(1), size, axis=0)

    found = NearSearch(hashes, 0, within=True).probe(hashes)

    pairs = list(zip(found.one_P.tolist(), found.other_P.tolist(), strict=True))
    assert pairs == list(combinations(range(size), 2))


def test_a_key_that_too_many_share_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_BUCKET_PAIRS", 99)
    hashes = np.repeat(random_hashes(1), 10, axis=0)
    counts = SearchCounts()

    found = NearSearch(hashes, 0, within=True, counts=counts).probe(hashes)

    assert not len(found.one_P)
    assert counts.num_overfull == len(search.TABLES)
    assert not counts.num_compared


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0)])
def test_an_empty_side_has_no_pairs(sizes: tuple[int, int]) -> None:
    found = NearSearch(random_hashes(sizes[0]), 10).probe(random_hashes(sizes[1]))

    assert not len(found.one_P)


def test_pairs_are_compared_a_bounded_number_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = np.concatenate([np.repeat(random_hashes(5), 12, axis=0), random_hashes(40, seed=9)])
    whole = NearSearch(hashes, 0, within=True).probe(hashes)
    monkeypatch.setattr(search, "_SLICE_PAIRS", 7)

    sliced = NearSearch(hashes, 0, within=True).probe(hashes)

    assert sliced.one_P.tolist() == whole.one_P.tolist()
    assert sliced.other_P.tolist() == whole.other_P.tolist()


def test_a_pair_found_twice_keeps_its_least_distance() -> None:
    part = NearSearch(random_hashes(3), 256).probe(random_hashes(3))
    far, near = (
        part._replace(one_P=np.array([1]), other_P=np.array([2]), distance_P=np.array([bits]))
        for bits in (9, 4)
    )

    assert merge_pairs([far, near]).distance_P.tolist() == [4]
