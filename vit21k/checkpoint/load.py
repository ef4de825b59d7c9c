"""Run, checkpoint, model folder, file or address -> model and card."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vit21k.checkpoint.foreign import (
    NO_CHOICE,
    OpenedWeights,
    WeightsChoice,
    open_weight_file,
    weights_in,
)
from vit21k.checkpoint.model_folder import CONFIG, WEIGHTS, ModelCard, check_fit
from vit21k.checkpoint.preprocessing import AS_FILES_SAY, Preprocessing
from vit21k.checkpoint.store import EMA, POINTERS, STATE, find_latest, follow, load_checkpoint
from vit21k.convert.arrays import Which
from vit21k.convert.download import fetch, is_address
from vit21k.errors import CheckpointError, UsageError
from vit21k.models.registry import build_model
from vit21k.models.vit import ImageClassifier


def load_model(
    path: str | os.PathLike[str],
    *,
    device: str = "cpu",
    preprocessing: Preprocessing = AS_FILES_SAY,
    weights: Which | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> tuple[ImageClassifier, ModelCard]:
    """Load a trained model for inference.

    Args:
        path: A run (its newest checkpoint), a checkpoint, a model folder; a file in one of them
            (``ema.safetensors``: the averaged weights), or a file that names one
            (``checkpoints/best``, ``checkpoints/best-ema``); weights of another program, see
            `models.registry.FORMATS`; or an address, see `convert.download.fetch`.
        device: As torch names it.
        preprocessing: How images are prepared for it, in place of what its files say.
        weights: "raw" or "ema": the weights of the last step, or their average, where both exist.
        model_args: Arguments of the model that weights of another program do not show:
            ``num_heads``, ....

    Returns:
        The model in eval mode, and its card.

    Raises:
        CheckpointError: There is no model, it is damaged, or of no kind that vit21k has.
        UsageError: Nothing decides an argument that changes the logits.
        OSError: The address cannot be read.
    """
    opened = open_weights(path, preprocessing, WeightsChoice(which=weights, args=model_args or {}))
    with torch.device("meta"):  # no time is lost on first weights
        model = build_model(opened.card.args)
    check_fit(opened.tensors, model.state_dict(), opened.card.path)
    model.load_state_dict(opened.tensors, assign=True)
    return model.to(device).eval(), opened.card


def open_weights(
    path: str | os.PathLike[str],
    preprocessing: Preprocessing = AS_FILES_SAY,
    choice: WeightsChoice = NO_CHOICE,
) -> OpenedWeights:
    """Return weights and their card; arguments and errors are those of `load_model`."""
    path = fetch(os.fspath(path)) if is_address(os.fspath(path)) else Path(path)
    if not path.exists():
        raise CheckpointError(
            f"no run or model at `{path}`",
            hint="give the folder of a run, of a checkpoint, or of a model, "
            "a file of weights, or an address",
        )
    if not _is_in_run(path):
        file = weights_in(path) if path.is_dir() else path
        return open_weight_file(path, file, preprocessing, choice)
    file, warnings = _find_in_run(path, choice.which)
    if choice.which is None and path.is_dir() and file.with_name(EMA).is_file():
        warnings = [*warnings, "these are the raw weights; `--weights ema` uses their average"]
    opened = open_weight_file(file.parent, file, preprocessing, replace(choice, which=None))
    warnings = [*warnings, *opened.card.warnings]
    return opened._replace(card=replace(opened.card, warnings=tuple(warnings)))


def _is_in_run(path: Path) -> bool:
    """Return whether *path* is a run, a checkpoint, a file of one, or names one."""
    if path.is_file() and path.name not in (WEIGHTS, EMA):
        return path.name in POINTERS and path.parent.name == "checkpoints"
    folder = path.parent if path.is_file() else path
    return (folder / "checkpoints").is_dir() or (folder / STATE).is_file()


def _find_in_run(path: Path, which: Which | None) -> tuple[Path, list[str]]:
    """Return the file of weights that *path* means, after verification, and warnings.

    Args:
        path: A run, a checkpoint, a file of one, or a file that names one.
        which: The raw weights or their average; None: the raw ones, unless *path* names the others.

    Raises:
        CheckpointError: There is none, or the checkpoint is damaged.
        UsageError: There is no average, or *path* names the other weights.
    """
    path = _followed(path)
    weights = EMA if which == "ema" else WEIGHTS
    if path.is_file():
        if which is not None and path.name != weights:
            raise UsageError(f"`{path}` holds the other weights than `--weights {which}`")
        path, weights = path.parent, path.name
    warnings: list[str] = []
    verified: tuple[str, ...] = ()
    if (path / "checkpoints").is_dir():
        verified = (CONFIG, WEIGHTS)
        found, warnings = find_latest(path, only=verified)
        if found is None:
            raise CheckpointError(
                f"the run `{path}` has no checkpoint yet",
                hint="the first one is written after run.save_every_steps of its recipe",
            )
        path = found.path
    if weights == EMA and not (path / EMA).is_file():
        raise UsageError(f"`{path}` has no averaged weights (EMA)", hint="use `--weights raw`")
    if weights not in verified:
        load_checkpoint(path, only=(CONFIG, weights))
    return path / weights, warnings


def _followed(path: Path) -> Path:
    """Return *path*, or the checkpoint that it names."""
    if not path.is_file() or path.name not in POINTERS:
        return path
    named = follow(path)
    if named is None or not named.exists():
        raise CheckpointError(
            f"`{path}` names no checkpoint", hint="give the folder of the run, or of a checkpoint"
        )
    return named
