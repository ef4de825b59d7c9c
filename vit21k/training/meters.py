"""What a run's lines say beside the loss: the weights' norm, MFU, waiting for pictures, memory."""

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from vit21k.data.loader import Batch
from vit21k.device import wait_for
from vit21k.distributed import whole
from vit21k.models.cost import FLOPS_PER_MAC

PEAK_SIDES = {"cpu": 512, "cuda": 8192}
"""Of the matrices that `measure_peak_flops` multiplies, by type of device."""

_TRIES = 10


@dataclass(kw_only=True)
class Meters:
    """Measures between two lines of the log.

    Attributes:
        model: Whose weights' norm is of interest.
        device: Whose memory is.
        flops_per_image: Floating-point operations of a training step for each image, forward and
            backward, recomputation not counted.
        peak_flops: What all devices of the run together could do in a second.
    """

    model: nn.Module
    device: torch.device
    flops_per_image: float
    peak_flops: float
    _waited: float = field(default=0.0, init=False)

    def waiting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield *batches*, and count how long each kept the step waiting."""
        while True:
            started_at = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - started_at
            if batch is None:
                return
            yield batch

    def read(self, *, num_images: int, seconds: float) -> dict[str, float]:
        """Return what the last *seconds* gave, and begin anew; every process must call it.

        Returns:
            ``weight_norm``: L2 norm of all parameters; ``mfu``: share of the peak that the model's
            own operations took, over all processes; ``data_wait``: share of the time this process
            waited for pictures; ``memory_bytes``: the most that was allocated on a CUDA device,
            elsewhere what the process holds now.
        """
        waited, self._waited = self._waited, 0.0
        rate = num_images / seconds
        return {
            "weight_norm": norm_of(self.model),
            "mfu": rate * self.flops_per_image / self.peak_flops,
            "data_wait": min(1.0, waited / seconds),
            "memory_bytes": memory_bytes(self.device),
        }


def norm_of(model: nn.Module) -> float:
    """Return the L2 norm of all parameters together, of all parts of them if they are sharded."""
    return float(whole(nn.utils.get_total_norm([param.detach() for param in model.parameters()])))


def memory_bytes(device: torch.device) -> int:
    """Return the most that was allocated on a CUDA device; elsewhere what this process holds."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:  # not Linux
        return 0
    return int(pages) * resource.getpagesize()


def measure_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return what a square matrix product reaches on *device*, in operations a second.

    The best of a few short ones: 512 on a CPU, a few milliseconds each; 8192 elsewhere.
    """
    side = PEAK_SIDES.get(device.type, PEAK_SIDES["cuda"])
    left = torch.randn(side, side, device=device, dtype=torch.float32).to(dtype)
    best = float("inf")
    for _ in range(_TRIES):
        started_at = time.perf_counter()
        torch.mm(left, left)
        wait_for(device)
        best = min(best, time.perf_counter() - started_at)
    return FLOPS_PER_MAC * side**3 / best
