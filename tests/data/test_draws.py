import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit21k.data.rng import mix64, uniform_values


def test_the_hash_is_splitmix64():
    """First outputs of the reference implementation (xoshiro's splitmix64.c) for seed 1234567."""
    gamma = np.uint64(0x9E3779B97F4A7C15)
    states = np.uint64(1234567) + np.arange(1, 4, dtype=np.uint64) * gamma

    assert mix64(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@given(
    seed=st.integers(0, 2**63),
    positions=st.lists(st.integers(0, 2**62), min_size=1, max_size=5),
    num_uniforms=st.integers(1, 30),
)
@settings(max_examples=60)
def test_a_number_depends_on_seed_position_and_column_alone(seed, positions, num_uniforms):
    uniforms = uniform_values(seed, np.array(positions), num_uniforms)

    for row, position in zip(uniforms, positions, strict=True):
        alone = uniform_values(seed, np.array([position]), 30)[0]
        assert row.tolist() == alone[:num_uniforms].tolist()


def test_numbers_are_uniform_from_0_to_below_1():
    uniforms = uniform_values(5, np.arange(20_000), 8)

    assert uniforms.dtype == np.float64
    assert 0.0 <= uniforms.min() < 1e-4
    assert 1 - 1e-4 < uniforms.max() < 1.0
    counts, _ = np.histogram(uniforms, bins=100, range=(0, 1))
    chi_square = ((counts - 1600) ** 2 / 1600).sum()
    assert abs(chi_square - 99) < 6 * (2 * 99) ** 0.5


@pytest.mark.parametrize("lag", [1, 2, 7])
def test_columns_neighbours_and_seeds_are_independent(lag):
    uniforms = uniform_values(0, np.arange(20_000), 8)
    other = uniform_values(lag, np.arange(20_000), 8)

    for left, right in [
        (uniforms[:, 0], uniforms[:, lag]),
        (uniforms[:-lag, 0], uniforms[lag:, 0]),
        (uniforms[:, 0], other[:, 0]),
    ]:
        assert abs(np.corrcoef(left, right)[0, 1]) < 0.03
