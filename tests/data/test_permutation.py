import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.data.rng import permute

keys = st.integers(-(2**63), 2**64 - 1)


@given(num_items=st.integers(1, 400), key=keys)
@settings(max_examples=150)
def test_every_item_comes_exactly_once(num_items, key):
    items = permute(np.arange(num_items), num_items, key)

    assert items.dtype == np.int64
    assert sorted(items.tolist()) == list(range(num_items))


@pytest.mark.parametrize("num_items", [65_535, 65_536, 65_537, 99_991])
def test_larger_numbers_are_permuted_too(num_items):
    items = permute(np.arange(num_items), num_items, key=7)

    assert np.array_equal(np.sort(items), np.arange(num_items))


@given(num_items=st.integers(1, 10**12), key=keys, data=st.data())
@settings(max_examples=50)
def test_a_position_alone_is_found_as_among_others(num_items, key, data):
    wanted = data.draw(st.lists(st.integers(0, num_items - 1), min_size=1, max_size=8))

    together = permute(np.array(wanted), num_items, key)
    alone = [int(permute(np.array([position]), num_items, key)[0]) for position in wanted]

    assert together.tolist() == alone
    assert all(0 <= item < num_items for item in alone)


def test_another_key_is_another_permutation():
    orders = [permute(np.arange(1000), 1000, key).tolist() for key in range(50)]

    assert len({tuple(order) for order in orders}) == 50


def test_no_item_prefers_a_position():
    """Chi-square over (position, item) counts: 80 +- 6 standard deviations of 64 x 64 cells."""
    counts = np.zeros((64, 64))
    for key in range(64 * 80):
        counts[np.arange(64), permute(np.arange(64), 64, key)] += 1
    chi_square = ((counts - 80) ** 2 / 80).sum()

    degrees = 63 * 63
    assert abs(chi_square - degrees) < 6 * (2 * degrees) ** 0.5


def test_neighbours_are_torn_apart():
    """Neighbours in a random order are a third of the range apart on average."""
    items = permute(np.arange(100_000), 100_000, key=3)
    apart = np.abs(np.diff(items)).mean()

    assert apart == pytest.approx(100_000 / 3, rel=0.02)
    assert abs(np.corrcoef(np.arange(100_000), items)[0, 1]) < 0.02


@pytest.mark.parametrize("position", [-1, 10])
def test_positions_outside_are_refused(position):
    with pytest.raises(ValueError, match="from 0 to 9"):
        permute(np.array([position]), 10, key=0)


def test_no_positions_are_no_items():
    assert permute(np.array([], dtype=np.int64), 10, key=0).tolist() == []
