"""The expected cost of a run on this machine: operations, memory, time; and results of trials."""

import json
import statistics
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit21k.atomic import write_atomic
from vit21k.data.loader import Batch
from vit21k.device import device_name, seconds_of
from vit21k.machine import memory_bytes
from vit21k.models.cost import num_params, train_flops_per_image


def dummy_batch(num_images: int, img_size: int) -> Batch:
    """Return images of a constant value, each of class 0."""
    return Batch(
        images_BCHW=torch.full((num_images, 3, img_size, img_size), 128, dtype=torch.uint8),
        label_rows_L=torch.arange(num_images),
        label_ids_L=torch.zeros(num_images, dtype=torch.int64),
        rows_B=torch.arange(num_images),
        positions_B=torch.arange(num_images),
    )


class TrialCache:
    """Results of trials of a run, for one device and one set of shapes."""

    def __init__(self, path: Path | None, facts: Mapping[str, Any], device: torch.device) -> None:
        """Read the results in *path*; those of a damaged file are ignored.

        Args:
            path: JSON; None: results are not stored.
            facts: JSON values that a choice depends on, besides device and torch.
            device: Of the trials.
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

    def get(self, name: str) -> Any:
        """Return the choice *name*; None: there was no trial."""
        return self._found.get(name, {}).get("choice")

    def set(self, name: str, choice: str, measured: Mapping[Any, str]) -> None:
        """Store a choice and the measurements it is based on."""
        self._found[name] = {"choice": choice, "measured": dict(measured)}
        self._is_new = True

    def shown(self, name: str) -> str:
        """Return the measurements of a choice in one line."""
        return ", ".join(f"{what} {value}" for what, value in self._found[name]["measured"].items())

    def save(self) -> None:
        """Write the file if there is a new result."""
        if self._path is not None and self._is_new:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"key": self._key, "found": self._found}, indent=2)
            write_atomic(self._path, content.encode())


_MEMORY_SHARE = 0.5
# Enough for the vector units of a CPU, few enough for a large model to take seconds.
_TRIAL_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The expected cost of a run.

    Attributes:
        args: Arguments of the model.
        num_images: Images still to train on.
        images_per_second: Measured on this machine.
    """

    args: Mapping[str, Any]
    num_images: int
    images_per_second: float

    @property
    def num_params(self) -> int:
        """Parameters of the model."""
        return num_params(self.args)

    @property
    def flops(self) -> float:
        """Floating-point operations still to do."""
        return float(train_flops_per_image(self.args) * self.num_images)

    @property
    def seconds(self) -> float:
        """Time at the measured rate."""
        return self.num_images / self.images_per_second


def measure_images_per_second(
    model: nn.Module, loss_of: Callable[[nn.Module, Batch], Tensor], *, img_size: int
) -> float:
    """Return the rate of one forward and backward pass; see `step_seconds`."""
    batch = dummy_batch(_TRIAL_IMAGES, img_size)
    return _TRIAL_IMAGES / step_seconds(model, loss_of, batch, num_untimed=1, num_rounds=1)


def step_seconds(
    model: nn.Module,
    loss_of: Callable[[nn.Module, Batch], Tensor],
    batch: Batch,
    *,
    num_untimed: int = 2,
    num_rounds: int = 5,
) -> float:
    """Return the median time of a forward and backward pass.

    Args:
        model: On its device; unchanged afterwards.
        loss_of: Mean loss over a micro-batch.
        batch: The micro-batch.
        num_untimed: Passes before the first that is timed.
        num_rounds: Passes that are timed.
    """

    def one_pass() -> None:
        loss_of(model, batch).backward()
        model.zero_grad(set_to_none=True)

    device = next(model.parameters()).device
    times = [seconds_of(one_pass, device) for _ in range(num_untimed + num_rounds)]
    return statistics.median(times[num_untimed:])


def fit_device_batch_size(
    args: Mapping[str, Any],
    wanted: int,
    *,
    device: torch.device,
    bytes_per_param: int,
    activation_bytes: int,
) -> int:
    """Return how many images fit into one forward and backward pass: 1 to *wanted*.

    On an accelerator that is *wanted*.  On a CPU, where a recipe for an accelerator would exhaust
    the memory of the machine, half of the free memory is used.

    Args:
        args: Of the model.
        wanted: The recipe's number.
        device: Of the model.
        bytes_per_param: Of weights, gradients, optimizer and average.
        activation_bytes: Stored by a training step for one image.
    """
    if device.type != "cpu":
        return wanted
    free = _MEMORY_SHARE * memory_bytes()[1] - bytes_per_param * num_params(args)
    return max(1, min(wanted, int(free // activation_bytes)))
