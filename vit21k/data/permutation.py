"""Position in an epoch -> item, without an index array: a keyed permutation.

Any position is found in constant time and memory, so that a run of 14 million images starts, and
resumes, at any step at once.

Source: Feistel network with cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", 2002).  The two halves are numbers below a and b with a * b just above the number of
items, so that nearly no position has to walk.
"""

from math import isqrt

import numpy as np
from numpy.typing import NDArray

from vit21k.data.mix64 import UInt64s, derive_key, mix64

_NUM_ROUNDS = 6


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
    left_size = isqrt(num_items - 1) + 1  # so that the product is at least num_items
    right_size = -(-num_items // left_size)
    keys = [np.uint64(derive_key(key, index)) for index in range(_NUM_ROUNDS)]

    items = _scramble(positions.astype(np.uint64), left_size, right_size, keys)
    while (outside := items >= num_items).any():
        items[outside] = _scramble(items[outside], left_size, right_size, keys)
    return items.astype(np.int64)


def _scramble(values: UInt64s, left_size: int, right_size: int, keys: list[np.uint64]) -> UInt64s:
    """Permute `range(left_size * right_size)`; a round shifts one half by a hash of the other."""
    a, b = np.uint64(left_size), np.uint64(right_size)
    left, right = values // b, values % b
    for index, key in enumerate(keys):
        if index % 2 == 0:
            left = (left + mix64(right + key) % a) % a
        else:
            right = (right + mix64(left + key) % b) % b
    scrambled: UInt64s = left * b + right
    return scrambled
