"""Counter-based random values: keyed hash, uniforms, and permutations by position."""

import numpy as np
from numpy.typing import NDArray

UInt64s = NDArray[np.uint64]

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""Increment of SplitMix64."""

MASK64 = (1 << 64) - 1


def mix64(values: UInt64s) -> UInt64s:
    """Scramble each value; a bijection of the 64-bit integers."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scrambled: UInt64s = values ^ (values >> np.uint64(31))
    return scrambled


def derive_key(*parts: int) -> int:
    """Return a 64-bit key that depends on every one of *parts* and on their order."""
    return int(derive_keys(*(np.array([part & MASK64], dtype=np.uint64) for part in parts))[0])


def derive_keys(*parts: UInt64s) -> UInt64s:
    """Return `derive_key` of each row of arrays that broadcast."""
    keys = np.zeros(1, dtype=np.uint64)
    for part in parts:
        keys = mix64(keys * np.uint64(3) + GOLDEN_GAMMA + part)
    return keys


_STREAM = 0x64726177  # separates them from the order, which has the same seed


def uniform_values(
    seed: int, positions: NDArray[np.int64], num_uniforms: int
) -> NDArray[np.float64]:
    """Return (B, num_uniforms) uniforms, 0 <= x < 1: a pure function of (seed, position, column).

    Each position has the SplitMix64 stream that starts at a hash of seed and position.

    Args:
        seed: Seed of the run.
        positions: Count of images before each image, since the start of the run; B of them.
        num_uniforms: Columns; more of them leave the first ones as they are.
    """
    start_B = mix64(mix64(positions.astype(np.uint64)) + np.uint64(derive_key(_STREAM, seed)))
    columns = np.arange(1, num_uniforms + 1, dtype=np.uint64) * GOLDEN_GAMMA
    bits = mix64(start_B[:, None] + columns[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


_NUM_ROUNDS = 6
_MASK = (1 << 64) - 1


def permute(positions: NDArray[np.int64], num_items: int, key: int) -> NDArray[np.int64]:
    """Return the item at each position; a bijection of `range(num_items)` for every key.

    Args:
        positions: Each from 0 to *num_items* - 1.
        num_items: Number of items, 1 or more.
        key: Selects the permutation.

    Raises:
        ValueError: A position is out of range.
    """
    if positions.size and (positions.min() < 0 or positions.max() >= num_items):
        raise ValueError(f"positions must be from 0 to {num_items - 1}")
    keys = np.array([key & _MASK], dtype=np.uint64)
    return permute_each(positions, np.array([num_items]), keys)


def permute_each(
    positions_B: NDArray[np.int64], num_items_B: NDArray[np.int64], keys_B: UInt64s
) -> NDArray[np.int64]:
    """Return `permute` of each position, with its own number of items and key.

    Numbers and keys broadcast to the positions, which the caller keeps in range.
    """
    sizes_B = num_items_B.astype(np.uint64)
    # a * b is at least the number of items; roots are exact below 2**52.
    a_B = np.sqrt(num_items_B - 1).astype(np.uint64) + np.uint64(1)
    b_B = (sizes_B + a_B - np.uint64(1)) // a_B
    keys = [derive_keys(keys_B, np.array([index], np.uint64)) for index in range(_NUM_ROUNDS)]

    items_B = _scramble(positions_B.astype(np.uint64), a_B, b_B, keys)
    while (outside_B := items_B >= sizes_B).any():
        items_B = np.where(outside_B, _scramble(items_B, a_B, b_B, keys), items_B)
    return items_B.astype(np.int64)


def _scramble(values_B: UInt64s, a_B: UInt64s, b_B: UInt64s, keys: list[UInt64s]) -> UInt64s:
    """Permute ``range(a * b)``; a round shifts one half by a hash of the other."""
    left_B, right_B = values_B // b_B, values_B % b_B
    for index, key_B in enumerate(keys):
        if index % 2 == 0:
            left_B = (left_B + mix64(right_B + key_B) % a_B) % a_B
        else:
            right_B = (right_B + mix64(left_B + key_B) % b_B) % b_B
    scrambled_B: UInt64s = left_B * b_B + right_B
    return scrambled_B
