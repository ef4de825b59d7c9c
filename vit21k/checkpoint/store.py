"""Checkpoints of a run: written whole or not at all, hashed, found again.

``<run>/checkpoints/step-00000100/`` holds

- ``config.json`` and ``model.safetensors``: the model, as timm reads it (see `model_folder`);
- ``ema.safetensors``, if the run averages its weights: the model with the averages;
- ``optimizer.safetensors``: the optimizers' tensors (see `optimizer_state`);
- ``state.json``: step, what the caller wants to know again, and a digest of every other file.

``<run>/checkpoints/latest`` names the newest one and is moved last; ``best`` and ``best-ema``, if
the run watches a metric, name the best ones (see `run_folder`).  Nothing is ever unpickled.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vit21k.atomic import atomic_folder, write_atomic
from vit21k.checkpoint.model_folder import (
    WEIGHTS,
    read_tensors,
    write_model_folder,
    write_tensors,
)
from vit21k.checkpoint.run_folder import (
    BEST_EMA,
    LATEST,
    candidates,
    free_path,
    in_order,
    prune,
    step_of,
    sweep,
)
from vit21k.checkpoint.state_file import digest_of, plain, read_state, write_state
from vit21k.errors import CheckpointError

EMA = "ema.safetensors"
OPTIMIZER = "optimizer.safetensors"
_OWN_KEYS = ("version", "files")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Attributes:
        path: Its folder.
        state: Content of its ``state.json``: "step" and what the caller saved.
    """

    path: Path
    state: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer updates made."""
        return int(self.state["step"])

    def model_tensors(self) -> dict[str, Tensor]:
        """Return the model's `state_dict`, on the CPU."""
        return read_tensors(self.path / WEIGHTS)

    def ema_tensors(self) -> dict[str, Tensor] | None:
        """Return the model's `state_dict` with averaged weights; None if there are none."""
        path = self.path / EMA
        return read_tensors(path) if path.exists() else None

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Return what `optimizers_to_tensors` returned, on the CPU."""
        return read_tensors(self.path / OPTIMIZER)


class Found(NamedTuple):
    """What `find_latest` found."""

    checkpoint: Checkpoint | None
    """The newest that is whole; None: the run has none yet."""
    warnings: list[str]
    """Newer ones that are damaged, each in a sentence."""


def save_checkpoint(  # noqa: PLR0913 (each is a plain value)
    run_dir: Path,
    step: int,
    *,
    model_state: Mapping[str, Tensor],
    model_config: Mapping[str, Any],
    optimizer_state: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep_last: int,
    ema_state: Mapping[str, Tensor] | None = None,
    best: Collection[str] = (),
) -> Path:
    """Write a checkpoint, make it the latest, and remove old ones.

    A kill at any moment leaves the previous latest checkpoint or this one.  A checkpoint of the
    same step that is whole and equal is kept as it is.  One process calls this, under the run's
    lock.

    Args:
        run_dir: The run.
        step: Optimizer updates made.
        model_state: The model's `state_dict`.
        model_config: From `model_config`.
        optimizer_state: From `optimizers_to_tensors`.
        state: Whatever else a resume needs, as JSON values.
        keep_last: How many checkpoints stay, this one included; of later steps than this one,
            which another try of the run left, none is removed.
        ema_state: The model's `state_dict` with averaged weights, if there are any.
        best: Pointers of the best checkpoints that shall name this one.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: The disk is full or failing; the previous checkpoint is unchanged.
    """
    folder = run_dir / "checkpoints"
    sweep(folder)
    state = plain({**state, "step": step})
    path = _equal_checkpoint(folder, model_state, optimizer_state, ema_state, state)
    if path is None:
        path = free_path(folder, step)
        with atomic_folder(path) as partial:
            write_model_folder(partial, model_state, model_config)
            write_tensors(partial / OPTIMIZER, optimizer_state)
            if ema_state is not None:
                write_tensors(partial / EMA, ema_state)
            write_state(partial, state)
    for name in best:
        inside = f"{path.name}/{EMA}" if name == BEST_EMA else path.name
        write_atomic(folder / name, f"{inside}\n".encode())
    write_atomic(folder / LATEST, f"{path.name}\n".encode())
    prune(folder, path, keep_last)
    return path


def find_latest(run_dir: Path, *, only: Collection[str] | None = None) -> Found:
    """Return the newest checkpoint of *run_dir* that is whole.

    Args:
        run_dir: The run.
        only: The files that must be whole; None: all of them.

    Raises:
        CheckpointError: There are checkpoints, and all are damaged.
    """
    warnings: list[str] = []
    for path in candidates(run_dir / "checkpoints"):
        try:
            return Found(load_checkpoint(path, only=only), warnings)
        except CheckpointError as error:
            warnings.append(error.message)
    if warnings:
        raise CheckpointError(
            f"`{run_dir}` has no checkpoint that can be used: {'; '.join(warnings)}",
            hint="restore one from a copy, or start over with `vit21k train --fresh`",
        )
    return Found(None, [])


def load_checkpoint(
    path: Path, *, verify: bool = True, only: Collection[str] | None = None
) -> Checkpoint:
    """Open the checkpoint in the folder *path*.

    Args:
        path: ``<run>/checkpoints/step-...``.
        verify: Compare files with their digests.
        only: The files to compare; None: all of them.

    Raises:
        CheckpointError: It is missing, damaged, or of a later version; the hint names others.
    """
    try:
        state = read_state(path)
        for name, digest in state["files"].items() if verify else ():
            if only is None or name in only:
                _verify(path / name, digest)
    except CheckpointError as error:
        others = [other.name for other in in_order(path.parent) if other.name != path.name]
        hint = f"others of this run: {', '.join(others)}" if others else error.hint
        raise CheckpointError(error.message, hint=hint) from error
    return Checkpoint(path, state)


def _verify(path: Path, digest: str) -> None:
    if not path.is_file():
        raise CheckpointError(f"checkpoint `{path.parent}` is damaged: `{path.name}` is missing")
    if digest_of(path) != digest:
        raise CheckpointError(
            f"checkpoint `{path.parent}` is damaged: `{path.name}` is not what was written"
        )


def _equal_checkpoint(
    folder: Path,
    model_state: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Tensor],
    ema_state: Mapping[str, Tensor] | None,
    state: Mapping[str, Any],
) -> Path | None:
    """Return a checkpoint that is whole and holds just this, if there is one."""
    for path in in_order(folder):
        if step_of(path) != state["step"]:
            continue
        try:
            found = load_checkpoint(path)
        except CheckpointError:
            continue
        if (
            state == {key: found.state[key] for key in found.state if key not in _OWN_KEYS}
            and _are_equal(found.model_tensors(), model_state)
            and _are_equal(found.optimizer_tensors(), optimizer_state)
            and _are_equal(found.ema_tensors() or {}, ema_state or {})
        ):
            return path
    return None


def _are_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.equal(found[name], wanted[name].detach().cpu()) for name in found
    )
