"""When the loss is no number any more: which pictures it was computed from, and what to do."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit21k.atomic import write_atomic
from vit21k.checkpoint.background import BackgroundWriter
from vit21k.checkpoint.run_folder import newest, step_of, take_back
from vit21k.data.loader import Batch
from vit21k.errors import NonFiniteLossError
from vit21k.training.loop import Progress
from vit21k.training.setup import Setup

_NUM_NAMED = 3

LossOf = Callable[[nn.Module, Batch], Tensor]


@dataclass
class LossWatch:
    """Stands before the loss and remembers the micro-batches of the step that is being made.

    It keeps their losses on their device and looks at none of them, so that no step waits for it.

    Attributes:
        path_of: Path of a picture, by row of the manifest.
        run_dir: Where the list of pictures is written.
        rank: Number of this process; each lists its own pictures.
    """

    path_of: Callable[[int], str]
    run_dir: Path
    rank: int = 0
    _step: int = field(default=0, init=False)
    _seen: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False)

    def start_step(self, step: int) -> None:
        """Forget the micro-batches of the step before; *step* updates are made."""
        self._step = step
        self._seen.clear()

    def watch(self, loss_of: LossOf) -> LossOf:
        """Return *loss_of*, whose results are noted."""

        def watched(model: nn.Module, batch: Batch) -> Tensor:
            loss = loss_of(model, batch)
            self._seen.append((batch.rows_B, loss.detach()))
            return loss

        return watched

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Add to a `NonFiniteLossError` of the block which pictures were in the step."""
        try:
            yield
        except NonFiniteLossError as error:
            raise self._explained(error) from error

    def _explained(self, error: NonFiniteLossError) -> NonFiniteLossError:
        bad = [rows_B for rows_B, loss in self._seen if not bool(torch.isfinite(loss).all())]
        paths = [self.path_of(int(row)) for rows_B in bad for row in rows_B]
        if not paths:
            return error
        path = self.run_dir / f"non-finite-step-{self._step + 1}-rank-{self.rank}.txt"
        write_atomic(path, "".join(f"{name}\n" for name in paths).encode())
        named = ", ".join(f"`{name}`" for name in paths[:_NUM_NAMED])
        more = f" and {len(paths) - _NUM_NAMED:,} more" if len(paths) > _NUM_NAMED else ""
        return NonFiniteLossError(
            f"{error.message}\n{len(bad)} of this process's {len(self._seen)} micro-batches had "
            f"such a loss; their {len(paths):,} pictures are listed in `{path}`: {named}{more}",
            hint=f"look at grad_norm in `{self.run_dir / 'metrics.jsonl'}` and at the images"
            + (_ALL_HINT if len(bad) == len(self._seen) > 1 else "")
            + f"; {error.hint}",
        )


@contextmanager
def explaining_divergence(
    setup: Setup, progress: Progress, writer: BackgroundWriter, origin: Mapping[str, Any] | None
) -> Iterator[None]:
    """Leave the last good checkpoint as the latest, and say how to continue from it.

    A checkpoint of the weights that the loss came from is none: it is taken back.

    Raises:
        NonFiniteLossError: Instead of that of the block.
    """
    try:
        yield
    except NonFiniteLossError as error:
        folder = setup.place.run_dir / "checkpoints"
        writer.wait()
        if setup.world.rank == 0:
            take_back(folder, progress.step)
        setup.world.barrier()
        good = newest(folder)
        last = "there is no good checkpoint"
        if good is not None:
            last = f"the last good checkpoint is that of step {step_of(good):,}"
        command = _advice(setup, origin, None if good is None else step_of(good))
        raise NonFiniteLossError(
            f"{error.message}; {last}", hint=f"{error.hint}; in a new run:\n  {command}"
        ) from error


def _advice(setup: Setup, origin: Mapping[str, Any] | None, step: int | None) -> str:
    """Return a command that trains on from the last good state, more carefully."""
    place, optim, schedule = setup.place, setup.recipe.optim, setup.recipe.schedule
    words = ["vit21k", "train", "--recipe", str(place.run_dir / "recipe.yaml")]
    words += ["--manifests", str(place.manifests)]
    words += [] if place.root is None else ["--root", str(place.root)]
    if step is not None:
        words += ["--resume-from", f"{place.run_dir}:{step}"]
    elif origin is not None and origin["kind"] == "fork":
        words += ["--resume-from", f"{origin['source']}:{origin['step']}"]
    elif origin is not None:
        words += ["--init", origin["source"]]
        words += [] if origin["head"] == "same-classes" else ["--head", origin["head"]]
    lr = optim.lr / 2
    changes = {"optim.lr": lr}
    for name in ("end_lr", "warmup_start_lr"):
        if getattr(schedule, name) > lr:
            changes[f"schedule.{name}"] = getattr(schedule, name) / 2
    if optim.grad_clip_norm is None:
        changes["optim.grad_clip_norm"] = 1.0
    for name, value in changes.items():
        words += ["--set", f"{name}={value}"]
    return shlex.join([*words, "--run-dir", str(_free_run(place.run_dir))])


def _free_run(run_dir: Path) -> Path:
    """Return the name of a run that is not there."""
    number = 2
    while (path := run_dir.with_name(f"{run_dir.name}-{number}")).exists():
        number += 1
    return path


_ALL_HINT = " (all micro-batches are concerned: rather the weights than a picture)"
