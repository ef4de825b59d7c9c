"""The checkpoint a run goes on from, if it is a checkpoint of this very run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vit21k.checkpoint.optimizer_state import tensors_to_optimizers
from vit21k.checkpoint.store import Checkpoint, find_latest
from vit21k.errors import CheckpointError
from vit21k.training.learner import Learner
from vit21k.training.loop import Progress


def find_resumable(
    run_dir: Path,
    *,
    recipe: Mapping[str, Any],
    train_manifest: str,
    objective: Mapping[str, str | None],
    warn: Callable[[str], None],
) -> Checkpoint | None:
    """Return the newest intact checkpoint in *run_dir*; None if there is none yet.

    Args:
        run_dir: The run.
        recipe: The fields that identify it, as JSON values.
        train_manifest: Fingerprint of what it trains on.
        objective: Fingerprints of what its loss needs beside the recipe, by name.
        warn: Hears of newer checkpoints that are damaged.

    Raises:
        CheckpointError: All are damaged, or they are of another recipe or other data.
    """
    checkpoint, warnings = find_latest(run_dir)
    for warning in warnings:
        warn(warning)
    if checkpoint is None:
        return None
    if different := list(_differences(checkpoint.state["recipe"], recipe)):
        raise CheckpointError(
            f"`{run_dir}` holds a run of another recipe: {'; '.join(different)}",
            hint="give another --run-dir, or start over with --fresh",
        )
    if checkpoint.state["train_manifest"] != train_manifest:
        raise CheckpointError(
            f"`{run_dir}` holds a run on another train.parquet",
            hint="give its --manifests, another --run-dir, or start over with --fresh",
        )
    for name, fingerprint in objective.items():
        if checkpoint.state.get("objective", {}).get(name) != fingerprint:
            raise CheckpointError(
                f"`{run_dir}` holds a run with another {name}",
                hint=f"give its {name}, another --run-dir, or start over with --fresh",
            )
    return checkpoint


def restore(checkpoint: Checkpoint, learner: Learner) -> Progress:
    """Put everything but the weights, which its model has, back to where the checkpoint was.

    Raises:
        CheckpointError: Its state is that of other parameters, or lacks the averages.
    """
    tensors_to_optimizers(checkpoint.optimizer_tensors(), learner.model, learner.optimizers)
    if learner.ema is not None:
        averages = checkpoint.ema_tensors()
        if averages is None:
            raise CheckpointError(f"`{checkpoint.path}` has no averaged weights")
        learner.ema.load(averages)
    learner.scaler.load_state(checkpoint.state.get("scaler", learner.scaler.state()))
    return Progress(**checkpoint.state["progress"])


def _differences(its: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return a phrase for every field that differs, by its dotted name."""
    phrases = []
    for name in sorted({*its, *ours}):
        old, new = its.get(name), ours.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            phrases += _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            phrases.append(f"{prefix}{name} is {old}, not {new}")
    return phrases
