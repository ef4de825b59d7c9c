"""Run, checkpoint, model folder, file or address -> model and card."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vit21k.checkpoint.foreign import (
    NO_CHOICE,
    OpenedWeights,
    WeightsChoice,
    check_own,
    open_foreign,
    weights_in,
)
from vit21k.checkpoint.model_folder import (
    CONFIG,
    WEIGHTS,
    ModelCard,
    read_json,
    read_model_card,
    read_tensors,
)
from vit21k.checkpoint.preprocessing import AS_FILES_SAY, Preprocessing, override
from vit21k.checkpoint.store import EMA, POINTERS, STATE, find_latest, follow, load_checkpoint
from vit21k.convert.arrays import Arrays, Which
from vit21k.convert.download import fetch, is_address
from vit21k.convert.formats import to_ours
from vit21k.errors import CheckpointError, UsageError
from vit21k.models.registry import build_model
from vit21k.models.vit import ImageClassifier

_MOST_NAMES = 8


class Located(NamedTuple):
    """Where a model lies."""

    folder: Path
    """Holds ``config.json`` and the weights."""
    warnings: tuple[str, ...] = ()
    """Newer checkpoints of the run that are damaged, each in a sentence."""
    weights: str = WEIGHTS
    """Name of the file of weights: the model's own, or their average."""


def load_model(
    path: str | os.PathLike[str],
    *,
    device: str = "cpu",
    preprocessing: Preprocessing = AS_FILES_SAY,
    weights: Which | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> tuple[ImageClassifier, ModelCard]:
    """Load a trained model, ready to be used.

    Args:
        path: A run (its newest checkpoint is taken), a checkpoint, a model folder; a file in one
            of them (``ema.safetensors``: the averaged weights), or what names one
            (``checkpoints/best``, ``checkpoints/best-ema``); or weights of another program, see
            `models.variants.FORMATS`; or an address, see `weights.addresses.fetch`.
        device: Where to put it, as torch names it.
        preprocessing: How images are prepared for it, in place of what its files say.
        weights: "raw" or "ema": the weights of the last step, or their average, where both are.
        model_args: What weights of another program do not say of their model: ``num_heads``, ....

    Returns:
        The model in eval mode, and what is known of it.

    Raises:
        CheckpointError: There is no model, it is damaged, or it is of no kind that vit21k has.
        UsageError: Something that decides the logits is said nowhere.
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
    """Return weights and what is known of them.

    Args:
        path: What `load_model` takes.
        preprocessing: How images are prepared, in place of what its files say.
        choice: What weights may not say themselves.

    Raises:
        CheckpointError: There is no model, it is damaged, or it is of no kind that vit21k has.
        UsageError: Something that decides the logits is said nowhere.
        OSError: The address cannot be read.
    """
    path = fetch(os.fspath(path)) if is_address(os.fspath(path)) else Path(path)
    if not _is_ours(path):
        opened = open_foreign(path, preprocessing, choice)
        skipped = f"tensors that no model here has were skipped: {_listed(opened.dropped)}"
        warnings = (*opened.card.warnings, *([skipped] if opened.dropped else []))
        return opened._replace(card=replace(opened.card, warnings=warnings))
    folder, warnings, weights = locate_model(path, choice.which)
    if choice.which is None and path.is_dir() and (folder / EMA).is_file():
        warnings = (*warnings, "these are the raw weights; `--weights ema` uses their average")
    card = override(replace(read_model_card(folder), warnings=warnings), preprocessing)
    check_own(card, choice.args)
    tensors = read_tensors(folder / weights)
    if "pos_embed" not in tensors:  # what `vit21k export` wrote for another program
        arrays = Arrays(container="safetensors", tensors=tensors)
        format_, converted = to_ours(arrays, {})
        return OpenedWeights(card, converted.tensors, format_)
    return OpenedWeights(card, tensors, "vit21k")


def _listed(names: tuple[str, ...]) -> str:
    first = ", ".join(f"{name:.60}" for name in names[:_MOST_NAMES])
    more = len(names) - _MOST_NAMES
    return first + (f" and {more:,} more" if more > 0 else "")


def _is_ours(path: Path) -> bool:
    """Return whether *path* is a run, a checkpoint or a model folder that vit21k wrote.

    Raises:
        CheckpointError: There is nothing.
    """
    if not path.exists():
        raise CheckpointError(
            f"no run or model at `{path}`",
            hint="give the folder of a run (`runs/...`), of a checkpoint, or of a model, "
            "a file of weights, or an address",
        )
    folder = path.parent if path.is_file() else path
    if _is_pointer(path):
        return True
    if path.is_file() and path.name not in (WEIGHTS, EMA):
        return False
    if (folder / "checkpoints").is_dir() or (folder / STATE).is_file():
        return True
    try:
        config = read_json(folder / CONFIG)
    except (FileNotFoundError, CheckpointError):
        return False
    named_so = not path.is_dir() or weights_in(path).name == WEIGHTS
    return isinstance(config, dict) and "vit21k" in config and named_so


def locate_model(path: Path, which: Which | None = None) -> Located:
    """Return the model folder that *path* means; if it is a checkpoint, its files are verified.

    Args:
        path: A run, a checkpoint, a model folder, or a file in one of them.
        which: The raw weights or their average; None: the raw ones, unless *path* names the other.

    Raises:
        CheckpointError: There is none, or the checkpoint is damaged.
        UsageError: There is no average, or *path* names the other weights.
    """
    if _is_pointer(path):
        named = follow(path)
        if named is None or not named.exists():
            raise CheckpointError(
                f"`{path}` names no checkpoint",
                hint="give the folder of the run, or of a checkpoint",
            )
        path = named
    weights = EMA if which == "ema" else WEIGHTS
    if path.name in (WEIGHTS, EMA) and path.is_file():
        if which is not None and path.name != weights:
            raise UsageError(f"`{path}` holds the other weights than `--weights {which}`")
        path, weights = path.parent, path.name
    if (path / "checkpoints").is_dir():
        return _newest(path, weights)
    _check_average(path, weights)
    if (path / STATE).is_file():
        load_checkpoint(path, only=(CONFIG, weights))
    return Located(path, weights=weights)


def _is_pointer(path: Path) -> bool:
    """Return whether *path* is a file of a run that names one of its checkpoints."""
    return path.name in POINTERS and path.parent.name == "checkpoints" and path.is_file()


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


def _check_average(folder: Path, weights: str) -> None:
    if weights == EMA and not (folder / EMA).is_file():
        raise UsageError(f"`{folder}` has no averaged weights (EMA)", hint="use `--weights raw`")


def _newest(run_dir: Path, weights: str) -> Located:
    found = find_latest(run_dir, only=(CONFIG, WEIGHTS))
    if found.checkpoint is None:
        raise CheckpointError(
            f"the run `{run_dir}` has no checkpoint yet",
            hint="the first one is written after run.save_every_steps of its recipe",
        )
    folder, warnings = found.checkpoint.path, tuple(found.warnings)
    _check_average(folder, weights)
    if weights == EMA:
        load_checkpoint(folder, only=(CONFIG, EMA))
    return Located(folder, warnings, weights)
