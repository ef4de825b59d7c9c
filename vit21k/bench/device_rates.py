"""How fast a device multiplies matrices, and how fast images get there."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vit21k.device import device_name, wait_for
from vit21k.models.precision import Precision, autocast

# A layer of a large ViT's MLP on a batch, per kind of device: enough to fill it.
_ROWS = {"cpu": 1024, "cuda": 16_384}
_WIDTH, _HIDDEN = 1024, 4096
_COPIED_IMAGES, _IMG_SIZE = 256, 224
_LARGEST_ROUNDS = 200


@dataclass(frozen=True, kw_only=True)
class DeviceRates:
    """What a device does in a second.

    Attributes:
        name: What it is called.
        matmul_flops: Floating-point operations in matrix products, by precision.
        copied_bytes: From host memory to the device; on a CPU, from memory to memory.
    """

    name: str
    matmul_flops: dict[Precision, float]
    copied_bytes: float


def measure_device(
    device: torch.device, *, precisions: tuple[Precision, ...] = ("fp32", "bf16"), seconds: float
) -> DeviceRates:
    """Return the rates of *device*, in about *seconds*."""
    share = seconds / (len(precisions) + 1)
    flops = {precision: matmul_flops(device, precision, seconds=share) for precision in precisions}
    return DeviceRates(
        name=_in_words(device),
        matmul_flops=flops,
        copied_bytes=copied_bytes_a_second(device, seconds=share),
    )


def _in_words(device: torch.device) -> str:
    name = device_name(device)
    return name if device.type == "cuda" else f"{name}, {torch.get_num_threads()} threads"


def matmul_flops(device: torch.device, precision: Precision, *, seconds: float) -> float:
    """Return the floating-point operations a second of a linear layer's product."""
    rows = _ROWS.get(device.type, _ROWS["cpu"])
    x_ND = torch.randn(rows, _WIDTH, device=device)
    weight_HD = torch.randn(_HIDDEN, _WIDTH, device=device)
    with autocast(device, precision), torch.no_grad():
        dtype = torch.nn.functional.linear(x_ND[:1], weight_HD).dtype
        x_ND, weight_HD = x_ND.to(dtype), weight_HD.to(dtype)
        took = best_seconds(lambda: x_ND @ weight_HD.T, device, seconds=seconds)
    return 2.0 * rows * _WIDTH * _HIDDEN / took


def copied_bytes_a_second(device: torch.device, *, seconds: float) -> float:
    """Return how many bytes of uint8 images a second get to *device*."""
    images = torch.zeros(_COPIED_IMAGES, 3, _IMG_SIZE, _IMG_SIZE, dtype=torch.uint8)
    if device.type == "cuda":
        images = images.pin_memory()
        return images.nbytes / best_seconds(
            lambda: images.to(device, non_blocking=True), device, seconds=seconds
        )
    return images.nbytes / best_seconds(images.clone, device, seconds=seconds)


def best_seconds(work: Callable[[], object], device: torch.device, *, seconds: float) -> float:
    """Return the shortest time of *work* over about *seconds*, the first call left out."""
    work()
    wait_for(device)
    best, ends_at = float("inf"), time.perf_counter() + seconds
    for _ in range(_LARGEST_ROUNDS):
        started_at = time.perf_counter()
        work()
        wait_for(device)
        best = min(best, time.perf_counter() - started_at)
        if time.perf_counter() > ends_at:
            break
    return best
