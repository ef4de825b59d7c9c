"""A device: its name, how to wait for it, and the precision of its matrix products."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from vit21k import machine


def device_name(device: torch.device) -> str:
    """Return what *device* is called: a GPU's model, else its kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def wait_for(device: torch.device) -> None:
    """Wait until *device* has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: Mapping[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""What matrix products are computed in."""


def is_emulated(device: str | torch.device, precision: Precision) -> bool:
    """Return whether *device* lacks instructions for products in *precision*: they are slow."""
    kind = torch.device(device).type
    if precision == "fp32" or kind not in ("cpu", "cuda"):
        return False
    if kind == "cpu":
        return not (torch.backends.mkldnn.is_available() and machine.cpu_multiplies(precision))
    return precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False)


def best_precision(device: str | torch.device) -> Literal["fp32", "bf16"]:
    """Return "bf16" where it is computed in hardware, else "fp32"."""
    return "fp32" if is_emulated(device, "bf16") else "bf16"


def autocast(device: str | torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return the context in which a model computes.

    "bf16" and "fp16" run matrix products and attention in 16 bits; weights and losses stay
    float32.  The small gradients of "fp16" need `training.loss_scaler`.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=DTYPES[precision])
