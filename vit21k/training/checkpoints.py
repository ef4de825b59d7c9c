"""Checkpoints of a run: saving, the best one, and the one to start from."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vit21k.checkpoint.model_folder import WEIGHTS
from vit21k.checkpoint.store import (
    BEST,
    BEST_EMA,
    BackgroundWriter,
    Checkpoint,
    find_latest,
    in_order,
    load_checkpoint,
    optimizers_to_tensors,
    save_checkpoint,
    step_of,
    tensors_to_optimizers,
)
from vit21k.distributed import World, local_part, unsharded
from vit21k.errors import CheckpointError, NonFiniteLossError, UsageError
from vit21k.training.context import Fork, Progress, RunContext, TrainState, recipe_identity
from vit21k.training.log import norm_of

if TYPE_CHECKING:
    from vit21k.checkpoint.initialise import InitSource

DIVERGED_HINT = "lower the learning rate, lengthen the warm-up, or clip the gradient"


def note_best(
    best: dict[str, float], metrics: Mapping[str, float], *, metric: str | None, val_name: str
) -> list[str]:
    """Update the values in *best* that have improved; return the names of their checkpoints.

    Args:
        best: The best values so far, of the weights and of their average, by name of the
            checkpoint; changed in place.
        metrics: Of an evaluation, by full name.
        metric: Name without the split: "prec@1", "top5", "loss"; None: there is no best one.
        val_name: Of the split, as in `SplitData`.
    """
    improved = []
    for pointer, split in ((BEST, val_name), (BEST_EMA, f"{val_name}_ema")):
        value = None if metric is None else metrics.get(f"{split}/{metric}")
        if value is None or not math.isfinite(value):
            continue
        before = best.get(pointer)
        if before is None or (value < before if metric == "loss" else value > before):
            best[pointer] = value
            improved.append(pointer)
    return improved


_MAX_GROWTH = 100.0
"""Of the norm of all weights from one checkpoint to the next.  An update moves weights by about the
learning rate; a norm a hundred times as large is a divergence."""


@dataclass(frozen=True, kw_only=True)
class Saver:
    """Saves checkpoints of a run; every process has one and calls it at the same steps.

    Attributes:
        run_dir: The run.
        state: The train state.
        identity: What else ``state.json`` has: which run this is.
        model_config: From `model_config`.
        keep_last: Checkpoints that stay; at least two before the last step, because the newest is
            not known to be good before the loss of the next step.
        total_steps: Of the run.
        world: The processes.
        writer: Thread that writes.
    """

    run_dir: Path
    state: TrainState
    identity: Mapping[str, Any]
    model_config: Mapping[str, Any]
    keep_last: int
    total_steps: int
    world: World
    writer: BackgroundWriter

    def save(self, progress: Progress, best: Sequence[str] = ()) -> None:
        """Copy the state of the run, and submit it to the writer; *best* pointers will name it.

        Raises:
            NonFiniteLossError: The weights or the optimizer's state are not finite, or have
                exploded; nothing is written.
            OSError: The checkpoint before this one could not be written.
        """
        self.writer.wait()
        self._check(progress)
        is_last = progress.step == self.total_steps
        model, optimizers, ema = self.state.model, self.state.optimizers, self.state.ema
        model_state = self._copies(model.state_dict())
        ema_state = None if ema is None else self._copies(ema.tensors())
        optimizer_state = self._copies(optimizers_to_tensors(model, optimizers))
        if self.world.rank != 0:
            return
        scaler = self.state.scaler.state()
        self.writer.submit(
            partial(
                save_checkpoint,
                self.run_dir,
                progress.step,
                model_state=model_state,
                model_config=self.model_config,
                optimizer_state=optimizer_state,
                state={**self.identity, "progress": asdict(progress), "scaler": scaler},
                keep_last=self.keep_last if is_last else max(2, self.keep_last),
                ema_state=ema_state,
                best=tuple(best),
            )
        )

    def _check(self, progress: Progress) -> None:
        """Raise if the state is useless; note its norm for the next time."""
        model, before = self.state.model, progress.weight_norm
        norm = norm_of(model)
        moments = optimizers_to_tensors(model, self.state.optimizers).values()
        has_bad_moments = not _are_finite(moments)
        if self.state.is_sharded:
            has_bad_moments = self.world.is_any(has_bad_moments)
        problem = None
        if not math.isfinite(norm):
            problem = f"the norm of the weights is {norm}"
        elif before is not None and norm > _MAX_GROWTH * before:
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
        """Return copies in host memory on the first process, nothing on the others."""
        copies = {}
        for name, tensor in tensors.items():
            full = unsharded(tensor.detach())
            if self.world.rank == 0:
                copies[name] = full.to("cpu", copy=True)
        return copies


def _are_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether this process's parts of *tensors* are finite."""
    # A sum keeps infinities and NaN; the host waits once for each device.
    sums: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        total = local_part(tensor.detach()).sum(dtype=torch.float32)
        sums.setdefault(total.device, []).append(total)
    return all(bool(torch.stack(totals).isfinite().all()) for totals in sums.values())


# The keys that decide the first weights; the others of an origin are for people.
_ORIGIN_KEYS = ("kind", "weights", "head", "classes", "step")
# Fields of the recipe that a fork may change: how training continues, not the meaning of a step or
# a parameter.
_FORK_MAY_CHANGE = (
    "epochs",
    "total_steps",
    "seed",
    "precision",
    "optim.*",
    "schedule.*",
    "augment.*",
    "curriculum.*",
    "loss.smoothing",
    "model.*_drop_rate",
    "model.drop_path_rate",
)
_FORK_MAY_NOT = ("optim.kind", "optim.momentum_dtype")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a run and its resumption have in common; part of every checkpoint.

    Attributes:
        recipe: The fields that identify it, as JSON values.
        train_manifest: Fingerprint of the training images.
        val_manifest: Fingerprint of the evaluation images.
        objective: Fingerprints of what the loss needs besides the recipe, by name.
    """

    recipe: Mapping[str, Any]
    train_manifest: str
    val_manifest: str
    objective: Mapping[str, str | None]

    @classmethod
    def of(cls, run: RunContext) -> "Identity":
        """Return the identity of *run*."""
        return cls(
            recipe=recipe_identity(run.recipe),
            train_manifest=run.data.fingerprint,
            val_manifest=run.data.val_fingerprint,
            objective=dict(run.objective.fingerprints),
        )

    def check(self, state: Mapping[str, Any], run_dir: Path) -> None:
        """Check that *state*, of a checkpoint in *run_dir*, has this identity, except the recipe.

        Raises:
            CheckpointError: It has not.
        """
        for split in ("train", "val"):
            ours = getattr(self, f"{split}_manifest")
            if state.get(f"{split}_manifest", ours) != ours:
                raise CheckpointError(
                    f"`{run_dir}` holds a run on another {split}.parquet",
                    hint="give its --manifests, or another --run-dir for a new run",
                )
        for name, fingerprint in self.objective.items():
            if state.get("objective", {}).get(name) != fingerprint:
                raise CheckpointError(
                    f"`{run_dir}` holds a run with another {name}",
                    hint=f"give its {name}, or another --run-dir for a new run",
                )


class Begin(NamedTuple):
    """The checkpoint that a run starts from.

    Attributes:
        checkpoint: Of this run, or of the one that it is a fork of; None: there is none yet.
        is_fork: Whether *checkpoint* is another run's.
        origin: The first weights of the run, as far as *checkpoint* records them; None: from
            scratch.
    """

    checkpoint: Checkpoint | None = None
    is_fork: bool = False
    origin: Mapping[str, Any] | None = None


def find_begin(
    run: RunContext,
    identity: Identity,
    *,
    init: "str | InitSource | None",
    fork: Fork | None,
    fresh: bool,
) -> Begin:
    """Return the checkpoint that *run* starts from; write nothing.

    Args:
        run: Its reporter warns of damaged newer checkpoints, and of what cannot be checked.
        identity: Of the run.
        init: The weights that it must have started from; None: any.
        fork: The checkpoint of another run that it must have started from; None: any.
        fresh: Ignore the checkpoints of the run.

    Raises:
        UsageError: *fork* is this very run, or does not fit.
        CheckpointError: All checkpoints are damaged, or they are of another recipe, of other data,
            or of a run that started from other weights.
    """
    run_dir = run.options.run_dir
    if fork is not None and fork.run_dir.resolve() == run_dir.resolve():
        raise UsageError(
            f"--resume-from begins a new run, and `{run_dir}` is the one it resumes from",
            hint="name the new run with --run-dir",
        )
    found = None if fresh else _find_resumable(run, identity, init=init, fork=fork)
    if found is not None:
        return Begin(found, origin=found.state.get("origin"))
    if fork is None:
        return Begin()
    checkpoint = _open_fork(fork, identity)
    if checkpoint.step >= run.schedule.total_steps:
        raise UsageError(
            f"a fork from step {checkpoint.step:,} has nothing left to do: the run has "
            f"{run.schedule.total_steps:,} steps in all",
            hint=f"make it longer, for example with `--set total_steps={2 * checkpoint.step} "
            "--set epochs=null`",
        )
    return Begin(checkpoint, is_fork=True, origin=_fork_origin(fork, checkpoint))


def _find_resumable(
    run: RunContext, identity: Identity, *, init: "str | InitSource | None", fork: Fork | None
) -> Checkpoint | None:
    """Return the newest intact checkpoint of *run*; None if there is none yet."""
    run_dir = run.options.run_dir
    checkpoint, warnings = find_latest(run_dir)
    for warning in warnings:
        run.reporter.warn(warning)
    if checkpoint is None:
        return None
    different = list(_differences(_recipe_of(checkpoint), identity.recipe))
    if different:
        raise CheckpointError(
            f"`{run_dir}` holds a run of another recipe: {_describe(different)}",
            hint="give another --run-dir for a new run; to continue this one with other settings, "
            f"fork it: `--resume-from {run_dir} --run-dir NEW`; or start over with --fresh",
        )
    identity.check(checkpoint.state, run_dir)
    if init is not None or fork is not None:
        _check_origin(run, checkpoint, init=init, fork=fork)
    return checkpoint


def _open_fork(fork: Fork, identity: Identity) -> Checkpoint:
    """Return the checkpoint of *fork*, if a run of *identity* may start from it."""
    checkpoint = _checkpoint_of(fork)
    different = _differences(_recipe_of(checkpoint), identity.recipe)
    fixed = [one for one in different if not _may_change(one.name)]
    if fixed:
        raise UsageError(
            f"a fork of `{fork.run_dir}` cannot change this: {_describe(fixed)}",
            hint="begin a new run with its weights instead: `--init` in place of `--resume-from`",
        )
    identity.check(checkpoint.state, fork.run_dir)
    return checkpoint


def _fork_origin(fork: Fork, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what identifies the checkpoint that a run started from, and its own origin."""
    return {
        "kind": "fork",
        "source": str(fork.run_dir),
        "step": checkpoint.step,
        "weights": checkpoint.state["files"][WEIGHTS],
        "origin": checkpoint.state.get("origin"),
    }


def restore(checkpoint: Checkpoint, state: TrainState) -> Progress:
    """Restore the train state of *checkpoint*, except the weights, which its model has.

    Raises:
        CheckpointError: Its state is that of other parameters, or lacks the averages.
    """
    tensors_to_optimizers(checkpoint.optimizer_tensors(), state.model, state.optimizers)
    if state.ema is not None:
        averages = checkpoint.ema_tensors()
        if averages is None:
            raise CheckpointError(f"`{checkpoint.path}` has no averaged weights")
        state.ema.load(averages)
    state.scaler.load_state(checkpoint.state.get("scaler", state.scaler.state()))
    return Progress(**checkpoint.state["progress"])


def _check_origin(
    run: RunContext,
    checkpoint: Checkpoint,
    *,
    init: "str | InitSource | None",
    fork: Fork | None,
) -> None:
    """Check that the run started from the weights that were asked for."""
    run_dir, option = run.options.run_dir, "--init" if fork is None else "--resume-from"
    if "origin" not in checkpoint.state:
        run.reporter.warn(
            f"`{run_dir}` does not say which weights it began with; {option} is not compared"
        )
        return
    its = checkpoint.state["origin"]
    try:
        asked = _origin_asked(init, fork, run.args)
    except (CheckpointError, OSError) as error:
        run.reporter.warn(f"{error}; {option} is not compared with what `{run_dir}` began with")
        return
    if its is None or any(its.get(key) != asked.get(key) for key in _ORIGIN_KEYS):
        raise CheckpointError(
            f"`{run_dir}` holds a run that began with {_describe_origin(its)}, "
            f"not with {_describe_origin(asked)}",
            hint=f"name a new run with --run-dir; or remove {option} to resume this one",
        )


def _origin_asked(
    init: "str | InitSource | None", fork: Fork | None, args: Mapping[str, Any]
) -> Mapping[str, Any]:
    if init is not None:
        from vit21k.checkpoint.initialise import origin_of  # noqa: PLC0415 (reads every format)

        return origin_of(init, args)
    return {} if fork is None else _fork_origin(fork, _checkpoint_of(fork))


def _describe_origin(origin: Mapping[str, Any] | None) -> str:
    if origin is None:
        return "weights from scratch"
    if origin["kind"] == "fork":
        return f"step {origin['step']:,} of `{origin['source']}` ({origin['weights'][:12]})"
    head = "" if origin["head"] == "same-classes" else f", head {origin['head']}"
    return f"`{origin['source']}` ({origin['weights'][:12]}{head})"


def _checkpoint_of(fork: Fork) -> Checkpoint:
    """Return the checkpoint that *fork* names."""
    if fork.step is None:
        found = find_latest(fork.run_dir).checkpoint if fork.run_dir.is_dir() else None
        if found is None:
            raise CheckpointError(f"`{fork.run_dir}` holds no run with a checkpoint")
        return found
    paths = in_order(fork.run_dir / "checkpoints")
    for path in paths:
        if step_of(path) == fork.step:
            return load_checkpoint(path)
    steps = ", ".join(f"{step_of(path)}" for path in reversed(paths)) or "none"
    raise CheckpointError(
        f"`{fork.run_dir}` has no checkpoint of step {fork.step}", hint=f"it has those of {steps}"
    )


def _recipe_of(checkpoint: Checkpoint) -> Mapping[str, Any]:
    if "recipe" not in checkpoint.state:
        raise CheckpointError(f"`{checkpoint.path}` is not a checkpoint of a training run")
    recipe: Mapping[str, Any] = checkpoint.state["recipe"]
    return recipe


def _may_change(name: str) -> bool:
    return name not in _FORK_MAY_NOT and any(fnmatch(name, what) for what in _FORK_MAY_CHANGE)


class _Difference(NamedTuple):
    """A field of the recipe, by its dotted name, and its value in two runs."""

    name: str
    old: Any
    new: Any


def _differences(
    its: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = ""
) -> Iterator[_Difference]:
    for name in sorted({*its, *ours}):
        old, new = its.get(name), ours.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield _Difference(f"{prefix}{name}", old, new)


def _describe(differences: list[_Difference]) -> str:
    return "; ".join(f"{name} is {old}, not {new}" for name, old, new in differences)
