"""A keyed hash of 64-bit integers: where all randomness of order and augmentation comes from.

Source: the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014; variant 13 of Stafford's).
"""

import numpy as np
from numpy.typing import NDArray

UInt64s = NDArray[np.uint64]

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
"""What SplitMix64 adds from one output to the next."""

MASK64 = (1 << 64) - 1


def mix64(values: UInt64s) -> UInt64s:
    """Scramble each value; a bijection of the 64-bit integers."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scrambled: UInt64s = values ^ (values >> np.uint64(31))
    return scrambled


def derive_key(*parts: int) -> int:
    """Return a 64-bit key that hangs on every one of *parts* and on their order."""
    return int(derive_keys(*(np.array([part & MASK64], dtype=np.uint64) for part in parts))[0])


def derive_keys(*parts: UInt64s) -> UInt64s:
    """Return what `derive_key` returns, for each row of arrays that broadcast."""
    keys = np.zeros(1, dtype=np.uint64)
    for part in parts:
        keys = mix64(keys * np.uint64(3) + GOLDEN_GAMMA + part)
    return keys
