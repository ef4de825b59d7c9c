"""Position in an epoch -> item, without an index array: a keyed permutation.

Any position is found in constant time and memory, so that a run of 14 million images starts, and
resumes, at any step at once.

Source: Feistel network with cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002).  The two halves are numbers below a and b with a * b just above the number of
items, so that nearly no position has to walk.
"""

import numpy as np
from numpy.typing import NDArray

from vit21k.data.mix64 import UInt64s, derive_keys, mix64

_NUM_ROUNDS = 6
_MASK = (1 << 64) - 1


def permute(positions: NDArray[np.int64], num_items: int, key: int) -> NDArray[np.int64]:
    """Return the item at each position; a bijection of `range(num_items)` for every key.

    Args:
        positions: Each from 0 to *num_items* - 1.
        num_items: How many items there are, 1 or more.
        key: Which permutation.

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
    """Return what `permute` returns, each position with a number of items and a key of its own.

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
