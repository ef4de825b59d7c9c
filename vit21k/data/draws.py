"""(seed, position) -> uniform random numbers, without a state.

The augmentation of an image hangs on how many images the run has seen before it, and on nothing
else: not on threads, processes, or where the run was resumed.
"""

import numpy as np
from numpy.typing import NDArray

from vit21k.data.mix64 import GOLDEN_GAMMA, derive_key, mix64

_STREAM = 0x64726177  # keeps the draws apart from the order, which hangs on the same seed


def uniform_draws(seed: int, positions: NDArray[np.int64], num_draws: int) -> NDArray[np.float64]:
    """Return (B, num_draws) numbers, 0 <= x < 1: a pure function of (seed, position, column).

    Each position has the SplitMix64 stream that starts at a hash of seed and position.

    Args:
        seed: Seed of the run.
        positions: Count of images before each image, since the start of the run; B of them.
        num_draws: Columns; more of them leave the first ones as they are.
    """
    start_B = mix64(mix64(positions.astype(np.uint64)) + np.uint64(derive_key(_STREAM, seed)))
    columns = np.arange(1, num_draws + 1, dtype=np.uint64) * GOLDEN_GAMMA
    bits = mix64(start_B[:, None] + columns[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
