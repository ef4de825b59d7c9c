"""A device: its name, speed, and the precision of its matrix products."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from vit21k import machine


def device_name(device: torch.device) -> str:
    """Return the name of *device*: the model of a GPU, otherwise its type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def wait_for(device: torch.device) -> None:
    """Wait until *device* has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the time that *work* takes on *device*."""
    wait_for(device)
    started_at = time.perf_counter()
    work()
    wait_for(device)
    return time.perf_counter() - started_at


def best_seconds(work: Callable[[], object], device: torch.device, *, seconds: float) -> float:
    """Return the shortest time of *work* in about *seconds*; the first call is not counted."""
    work()
    times, ends_at = [seconds_of(work, device)], time.perf_counter() + seconds
    while len(times) < _MAX_ROUNDS and time.perf_counter() < ends_at:
        times.append(seconds_of(work, device))
    return min(times)


def matmul_flops(
    device: torch.device, precision: "Precision", *, shape: tuple[int, int, int], seconds: float
) -> float:
    """Return the floating-point operations per second of a matrix product, in about *seconds*.

    Args:
        device: Computes it.
        precision: Of both matrices.
        shape: Rows, length of the sums, columns.
        seconds: About how long to measure.
    """
    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device).to(DTYPES[precision])
    right = torch.randn(columns, inner, device=device).to(DTYPES[precision])
    best = best_seconds(lambda: left @ right.T, device, seconds=seconds)
    return 2.0 * rows * inner * columns / best


_MAX_ROUNDS = 200

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: Mapping[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Types of the values in matrix products."""


def is_emulated(device: str | torch.device, precision: Precision) -> bool:
    """Return whether *device* has no instructions for products in *precision*: they are slow."""
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
    """Return the context in which a model computes with *precision*.

    "bf16" and "fp16" compute matrix products and attention in 16 bits; weights and losses stay
    float32.  The small gradients of "fp16" need a `LossScaler`.
    """
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=DTYPES[precision])
