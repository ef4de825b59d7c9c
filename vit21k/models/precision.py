"""The arithmetic of matrix products: float32, or bfloat16 with float32 weights."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]


def autocast(device: str | torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context in which a model computes.

    "bf16" runs matrix products and attention in bfloat16; weights, layer norms and losses stay
    float32.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
