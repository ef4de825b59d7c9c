"""Weights and model card -> a folder in the format of another library."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vit21k.atomic import atomic_folder
from vit21k.checkpoint.foreign import NO_CHOICE, OpenedWeights, WeightsChoice
from vit21k.checkpoint.load import open_weights
from vit21k.checkpoint.model_folder import CONFIG, WEIGHTS, ModelCard, model_config, write_tensors
from vit21k.checkpoint.preprocessing import AS_FILES_SAY, Preprocessing
from vit21k.errors import UsageError
from vit21k.model_export.graphs import write_onnx, write_torch_export
from vit21k.model_export.limits import Target, check_limits, preprocessing_notes
from vit21k.model_export.readme import readme
from vit21k.model_export.transformers_folder import preprocessor, whole_config
from vit21k.weights.google import to_google
from vit21k.weights.torchvision_vit import to_torchvision
from vit21k.weights.transformers_vit import to_transformers


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What `export_model` wrote.

    Attributes:
        card: Of the model.
        folder: The folder.
        files: Its files and their bytes.
        notes: What the library will compute otherwise, and what had to be guessed.
    """

    card: ModelCard
    folder: Path
    files: Mapping[str, int]
    notes: tuple[str, ...]


def export_model(
    source: str | Path,
    folder: Path,
    *,
    to: Target,
    preprocessing: Preprocessing = AS_FILES_SAY,
    choice: WeightsChoice = NO_CHOICE,
) -> ExportReport:
    """Write the model at *source* as *to* into *folder*.

    Beside the weights lie ``config.json``, with classes and preparation of pictures in timm's words
    and ours, so that `load_model` reads every format but ONNX and torch.export back as it was; and
    a ``README.md`` that shows how to load it.

    Args:
        source: What `load_model` takes.
        folder: Made; it must not be there yet.
        to: The format.
        preprocessing: How images are prepared, in place of what the files at *source* say.
        choice: What the weights at *source* may not say themselves.

    Raises:
        UsageError: *folder* is there, or the format cannot hold the model.
        CheckpointError: There is no model at *source*.
        MissingExtraError: ONNX is wanted, and its packages are not installed.
        OSError: The disk is full or failing.
    """
    if folder.exists():
        raise UsageError(f"`{folder}` is already there", hint="name another with --out")
    opened = open_weights(source, preprocessing, choice)
    card = opened.card
    limits = check_limits(to, card.name, card.args)
    notes = (*card.warnings, *limits, *preprocessing_notes(to, card.eval_settings))
    with atomic_folder(folder) as partial:
        _WRITERS[to](partial, opened)
        if not (partial / CONFIG).exists():
            write_json(partial / CONFIG, config_of(card))
        (partial / "README.md").write_text(readme(card, to, notes), encoding="utf-8")
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    return ExportReport(card=card, folder=folder, files=files, notes=notes)


def config_of(card: ModelCard) -> dict[str, Any]:
    """Return the ``config.json`` of a model folder for *card*."""
    return model_config(card.name, card.args, card.classes, card.eval_settings, card.loss_kind)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write *content* as JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_ours(folder: Path, opened: OpenedWeights) -> None:
    write_tensors(folder / WEIGHTS, opened.tensors)


def _write_torchvision(folder: Path, opened: OpenedWeights) -> None:
    write_tensors(folder / WEIGHTS, to_torchvision(opened.tensors))


def _write_transformers(folder: Path, opened: OpenedWeights) -> None:
    write_tensors(folder / WEIGHTS, to_transformers(opened.tensors))
    write_json(folder / CONFIG, whole_config(opened.card, config_of(opened.card)))
    write_json(folder / "preprocessor_config.json", preprocessor(opened.card.eval_settings))


def _write_npz(folder: Path, opened: OpenedWeights) -> None:
    arrays = to_google(opened.tensors, opened.card.args["num_heads"])
    contents: dict[str, Any] = {
        name: np.ascontiguousarray(arrays[name].numpy()) for name in sorted(arrays)
    }
    np.savez(folder / "model.npz", **contents)


_WRITERS: Mapping[Target, Callable[[Path, OpenedWeights], None]] = {
    "timm": _write_ours,
    "safetensors": _write_ours,
    "torchvision": _write_torchvision,
    "transformers": _write_transformers,
    "npz": _write_npz,
    "torch-export": write_torch_export,
    "onnx": write_onnx,
}
