"""The seed of dropout and of stochastic depth: a function of where the run is."""

import numpy as np
import torch

from vit21k.data.mix64 import MASK64, mix64


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed what a model on *device* draws from: as `torch.manual_seed`, to the bit.

    That one takes 0.4 ms a step where there is no GPU, to note the seed for devices that may come.
    """
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed of its own for every step and process."""
    place = seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB
    return int(mix64(np.array([place & MASK64], dtype=np.uint64))[0]) >> 1
