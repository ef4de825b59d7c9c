"""What a run is made from: its recipe, its place, its data, and who hears of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vit21k.checkpoint.initialise import InitReport
from vit21k.config.schema import Recipe
from vit21k.distributed import World
from vit21k.training.forecast import Forecast
from vit21k.training.objective import Objective
from vit21k.training.split_data import SplitData


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run happens.  Nothing of it changes what is learnt, but for rounding.

    Attributes:
        manifests: Folder of train.parquet and val.parquet.
        root: Image root, if the tree has moved since it was hashed.
        run_dir: What the run writes.
        device: As torch names it: "cpu", "cuda", ...
        num_workers: Threads that decode, for each process.
        device_batch_size: Pictures in one forward pass; None: as the recipe says, if they fit.
        recipe_name: What the recipe is called.
        log_to: Where the log goes beside metrics.jsonl: names of `log_sinks.SINKS`.
        peak_flops: What one device can do in a second, for MFU; None: it is measured.
    """

    manifests: Path
    root: Path | None
    run_dir: Path
    device: str
    num_workers: int
    device_batch_size: int | None
    recipe_name: str = ""
    log_to: tuple[str, ...] = ()
    peak_flops: float | None = None


@dataclass(frozen=True, kw_only=True)
class Fork:
    """A checkpoint of another run, which a new run begins with: weights, optimizer and step.

    Attributes:
        run_dir: The other run.
        step: Of the checkpoint; None: the newest.
    """

    run_dir: Path
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who hears what the run has to say; called on the first process only."""

    note: Callable[[str], None]
    warn: Callable[[str], None]
    forecast: Callable[[Forecast], None]
    initialised: Callable[[InitReport], None]
    line: Callable[[Mapping[str, Any]], None]
    micro_step: Callable[[int, int, int], None]
    """Hears of every micro-batch: updates made, images of this update so far, images of it."""


def _hear_nothing(*_message: object) -> None:
    pass


NOBODY = Listener(
    note=_hear_nothing,
    warn=_hear_nothing,
    forecast=_hear_nothing,
    initialised=_hear_nothing,
    line=_hear_nothing,
    micro_step=_hear_nothing,
)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What every part of a run is made from."""

    recipe: Recipe
    place: Place
    listener: Listener
    world: World
    data: SplitData
    args: Mapping[str, Any]
    objective: Objective = field(default_factory=Objective)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return torch.device(self.place.device)
