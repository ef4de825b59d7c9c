"""Run, checkpoint or model folder -> model and card."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vit21k.checkpoint.model_folder import (
    CONFIG,
    WEIGHTS,
    ModelCard,
    read_model_card,
    read_tensors,
)
from vit21k.checkpoint.state_file import STATE
from vit21k.checkpoint.store import find_latest, load_checkpoint
from vit21k.errors import CheckpointError
from vit21k.models.vit import VisionTransformer


class Located(NamedTuple):
    """Where a model lies."""

    folder: Path
    """Holds ``config.json`` and ``model.safetensors``."""
    warnings: tuple[str, ...] = ()
    """Newer checkpoints of the run that are damaged, each in a sentence."""


def load_model(
    path: str | os.PathLike[str], *, device: str = "cpu"
) -> tuple[VisionTransformer, ModelCard]:
    """Load a trained model, ready to be used.

    Args:
        path: A run (its newest checkpoint is taken), a checkpoint, a model folder, or the
            ``model.safetensors`` in one.
        device: Where to put it, as torch names it.

    Returns:
        The model in eval mode, and what is known of it.

    Raises:
        CheckpointError: There is no model, or it is damaged.
    """
    folder, warnings = locate_model(Path(path))
    card = replace(read_model_card(folder), warnings=warnings)
    with torch.device("meta"):  # no time is lost on first weights
        model = VisionTransformer(**card.args)
    tensors = read_tensors(folder / WEIGHTS)
    check_fit(tensors, model.state_dict(), folder / WEIGHTS)
    model.load_state_dict(tensors, assign=True)
    return model.to(device).eval(), card


def locate_model(path: Path) -> Located:
    """Return the model folder that *path* means; if it is a checkpoint, its files are verified.

    Raises:
        CheckpointError: There is none, or the checkpoint is damaged.
    """
    if path.name == WEIGHTS and path.is_file():
        path = path.parent
    if not path.is_dir():
        raise CheckpointError(
            f"no run or model at `{path}`",
            hint="give the folder of a run (`runs/...`), of a checkpoint, or of a model",
        )
    if (path / "checkpoints").is_dir():
        return _newest(path)
    if (path / STATE).is_file():
        return Located(load_checkpoint(path, only=(CONFIG, WEIGHTS)).path)
    return Located(path)


def check_fit(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Check that *found* has the names and shapes of *wanted*.

    Raises:
        CheckpointError: It has not; the message names the first difference of each kind.
    """
    problems = []
    if missing := sorted(wanted.keys() - found.keys()):
        problems.append(f"{len(missing)} tensors are missing, `{missing[0]}` first")
    if unknown := sorted(found.keys() - wanted.keys()):
        problems.append(f"{len(unknown)} are unknown, `{unknown[0]}` first")
    for name in sorted(found.keys() & wanted.keys()):
        if found[name].shape != wanted[name].shape:
            here, there = tuple(found[name].shape), tuple(wanted[name].shape)
            problems.append(f"`{name}` has shape {here}, the model {there}")
            break
    if problems:
        raise CheckpointError(f"`{path}` does not fit the model: {'; '.join(problems)}")


def _newest(run_dir: Path) -> Located:
    found = find_latest(run_dir, only=(CONFIG, WEIGHTS))
    if found.checkpoint is None:
        raise CheckpointError(
            f"the run `{run_dir}` has no checkpoint yet",
            hint="the first one is written after run.save_every_steps of its recipe",
        )
    return Located(found.checkpoint.path, tuple(found.warnings))
