"""What a run would take on this machine: arithmetic, memory, time."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit21k.atomic import write_atomic
from vit21k.data.loader import Batch
from vit21k.device import device_name, wait_for
from vit21k.machine import memory_bytes
from vit21k.models.cost import num_params, train_flops_per_image


def dummy_batch(num_images: int, img_size: int) -> Batch:
    """Return images of one colour, each of class 0."""
    return Batch(
        images_BCHW=torch.full((num_images, 3, img_size, img_size), 128, dtype=torch.uint8),
        label_rows_L=torch.arange(num_images),
        label_ids_L=torch.zeros(num_images, dtype=torch.int64),
        rows_B=torch.arange(num_images),
        positions_B=torch.arange(num_images),
    )


class TrialMemory:
    """What was found out by trial in this run, on this device and for these shapes."""

    def __init__(self, path: Path | None, facts: Mapping[str, Any], device: torch.device) -> None:
        """Read what is known; of a file that is damaged, nothing: trials can be made again.

        Args:
            path: Where it is kept; None: nowhere.
            facts: Plain values that a choice depends on, beside device and torch.
            device: Where the trials run.
        """
        self._key = {**facts, "device": device_name(device), "torch": torch.__version__}
        self._path = path
        self._found: dict[str, Any] = {}
        self._is_new = False
        if path is not None and path.is_file():
            with suppress(ValueError, LookupError, TypeError):
                saved = json.loads(path.read_bytes())
                if saved["key"] == self._key:
                    self._found = saved["found"]

    def recall(self, what: str) -> Any:
        """Return what was chosen before; None: nothing was."""
        return self._found.get(what, {}).get("choice")

    def remember(self, what: str, choice: str, measured: Mapping[Any, str]) -> None:
        """Note a choice and what it rests on."""
        self._found[what] = {"choice": choice, "measured": dict(measured)}
        self._is_new = True

    def shown(self, what: str) -> str:
        """Return what a choice rests on, in words."""
        measured = self._found[what]["measured"]
        return ", ".join(f"{name} {value}" for name, value in measured.items())

    def save(self) -> None:
        """Write it down, if there is anything new."""
        if self._path is not None and self._is_new:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"key": self._key, "found": self._found}, indent=2)
            write_atomic(self._path, content.encode())


_MEMORY_SHARE = 0.5
# Enough to fill the vector units of a CPU, few enough for a large model to take seconds.
_TRIAL_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a run would take.

    Attributes:
        num_params: Of the model.
        num_images: Images still to train on.
        flops: Floating-point operations still to do.
        images_per_second: Measured on this machine.
    """

    num_params: int
    num_images: int
    flops: float
    images_per_second: float

    @property
    def seconds(self) -> float:
        """Time left at the measured rate."""
        return self.num_images / self.images_per_second


def forecast(args: Mapping[str, Any], *, num_images: int, images_per_second: float) -> Forecast:
    """Return what training on *num_images* takes with the model of constructor arguments *args*."""
    return Forecast(
        num_params=num_params(args),
        num_images=num_images,
        flops=float(train_flops_per_image(args) * num_images),
        images_per_second=images_per_second,
    )


def measure_images_per_second(
    model: nn.Module, loss_of: Callable[[nn.Module, Batch], Tensor], *, img_size: int
) -> float:
    """Train on a few grey images, forget it, and return how many images a second that was.

    The first pass warms up and is not timed.

    Args:
        model: On its device; unchanged afterwards.
        loss_of: Mean loss over a micro-batch.
        img_size: Side of the model's input, in pixels.
    """
    batch = dummy_batch(_TRIAL_IMAGES, img_size)
    device = next(model.parameters()).device
    seconds = 0.0
    for _ in range(2):
        started_at = time.perf_counter()
        loss_of(model, batch).backward()
        model.zero_grad(set_to_none=True)
        wait_for(device)
        seconds = time.perf_counter() - started_at
    return _TRIAL_IMAGES / seconds


def fit_device_batch_size(
    args: Mapping[str, Any],
    wanted: int,
    *,
    device: torch.device,
    bytes_per_param: int,
    activation_bytes: int,
) -> int:
    """Return how many images fit into one forward and backward pass: 1 to *wanted*.

    On an accelerator the recipe is taken at its word.  On a CPU, where a recipe written for one
    would exhaust the memory of the whole machine, half of what is free is what may be used.

    Args:
        args: Of the model.
        wanted: By the recipe.
        device: Where.
        bytes_per_param: Weights, gradients, and what is kept beside them.
        activation_bytes: What a training step keeps of one image.
    """
    if device.type != "cpu":
        return wanted
    free = _MEMORY_SHARE * memory_bytes()[1] - bytes_per_param * num_params(args)
    fitting = int(free // activation_bytes)
    return max(1, min(wanted, fitting))
