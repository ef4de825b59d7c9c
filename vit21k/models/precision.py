"""The arithmetic of matrix products: float32, or bfloat16 or float16 with float32 weights."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: Mapping[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""What matrix products are computed in."""


def autocast(device: str | torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context in which a model computes.

    "bf16" and "fp16" run matrix products and attention in 16 bits; weights and losses stay
    float32.  The small gradients of "fp16" need `training.loss_scaler`.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=DTYPES[precision])
