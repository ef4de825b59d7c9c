"""The state of a run -> a checkpoint, written while training goes on.

The step waits only until the state is copied to the memory of the host (and, if the last checkpoint
is still being written, for that); the rest is done by a thread of the first process.

Sharded weights (FSDP) are put together one tensor at a time and held by the first process alone, so
a checkpoint is the same whatever wrote it, and can be gone on from by any number of processes.  The
largest model here has 0.6 G parameters, 10 GB of state with its average: that fits.
torch.distributed.checkpoint would let each process write its shards, but its index is a pickle,
which runs code when it is read; nothing that vit21k reads does.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit21k.checkpoint.background import BackgroundWriter
from vit21k.checkpoint.optimizer_state import optimizers_to_tensors
from vit21k.checkpoint.store import save_checkpoint
from vit21k.distributed import World, local_part, whole
from vit21k.errors import NonFiniteLossError
from vit21k.training.learner import Learner
from vit21k.training.loop import DIVERGED_HINT, Progress
from vit21k.training.meters import norm_of

_MOST_GROWTH = 100.0
"""Of the norm of all weights from one checkpoint to the next.  Weights that are trained move by
about the learning rate at an update; a norm a hundred times as large is no training any more."""


@dataclass(frozen=True, kw_only=True)
class Saver:
    """Saves checkpoints of a run; every process has one and calls it at the same steps.

    Attributes:
        run_dir: The run.
        learner: What is saved.
        identity: What else ``state.json`` keeps: which run this is.
        model_config: From `model_config`.
        keep_last: How many checkpoints stay; at least two before the last step, because the
            newest is not known to be good before the loss of the next step.
        total_steps: Of the run.
        world: The processes.
        writer: Where writing happens; waited for at the end of the run.
    """

    run_dir: Path
    learner: Learner
    identity: Mapping[str, Any]
    model_config: Mapping[str, Any]
    keep_last: int
    total_steps: int
    world: World
    writer: BackgroundWriter

    def save(self, progress: Progress, best: Sequence[str]) -> None:
        """Copy the state of the run, and have it written.

        Raises:
            NonFiniteLossError: The weights or the optimizer's state are not finite, or have
                exploded; nothing is written.
            OSError: The checkpoint before this one could not be written.
        """
        self.writer.wait()
        self._check(progress)
        is_last = progress.step == self.total_steps
        model, optimizers, ema = self.learner.model, self.learner.optimizers, self.learner.ema
        model_state = self._copies(model.state_dict())
        ema_state = None if ema is None else self._copies(ema.tensors())
        optimizer_state = self._copies(optimizers_to_tensors(model, optimizers))
        if self.world.rank != 0:
            return
        self.writer.submit(
            partial(
                save_checkpoint,
                self.run_dir,
                progress.step,
                model_state=model_state,
                model_config=self.model_config,
                optimizer_state=optimizer_state,
                state={
                    **self.identity,
                    "progress": asdict(progress),
                    "scaler": self.learner.scaler.state(),
                },
                keep_last=self.keep_last if is_last else max(2, self.keep_last),
                ema_state=ema_state,
                best=tuple(best),
            )
        )

    def _check(self, progress: Progress) -> None:
        """Raise if the state is of no use; note its norm, for the next time."""
        model, before = self.learner.model, progress.weight_norm
        norm = norm_of(model)
        moments = optimizers_to_tensors(model, self.learner.optimizers).values()
        has_bad_moments = not _are_finite(moments)
        if self.learner.is_sharded:
            has_bad_moments = self.world.is_any(has_bad_moments)
        problem = None
        if not math.isfinite(norm):
            problem = f"the norm of the weights is {norm}"
        elif before is not None and norm > _MOST_GROWTH * before:
            problem = (
                f"the norm of the weights is {norm:.3g}, it was {before:.3g} at the checkpoint "
                "before"
            )
        elif has_bad_moments:
            problem = "the optimizer's state has values that are not finite"
        if problem:
            raise NonFiniteLossError(f"{problem}, at step {progress.step}", hint=DIVERGED_HINT)
        progress.weight_norm = norm

    def _copies(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies in the memory of the host on the first process, nothing on the others."""
        copies = {}
        for name, tensor in tensors.items():
            full = whole(tensor.detach())
            if self.world.rank == 0:
                copies[name] = full.to("cpu", copy=True)
        return copies


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether the parts of *tensors* that this process holds are finite."""
    # A sum keeps infinities and what is no number; one wait for each device.
    sums: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        total = local_part(tensor.detach()).sum(dtype=torch.float32)
        sums.setdefault(total.device, []).append(total)
    return all(bool(torch.stack(totals).isfinite().all()) for totals in sums.values())
