"""Compute probabilities with a model or with an ONNX export."""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vit21k.checkpoint.model_folder import ModelCard, read_model_card
from vit21k.checkpoint.preprocessing import AS_FILES_SAY, Preprocessing, override
from vit21k.data.transforms import normalise
from vit21k.device import Precision
from vit21k.errors import CheckpointError, MissingExtraError
from vit21k.inference.predict import class_scores
from vit21k.models.vit import ImageClassifier, probabilities
from vit21k.serving.batcher import Pixels, Score

GRAPH = "model.onnx"


def score_with(model: ImageClassifier, card: ModelCard, precision: Precision) -> Score:
    """Return a function that computes probabilities with *model*, returned on the CPU."""

    def score(images_BCHW: Pixels) -> torch.Tensor:
        return class_scores(model, card, torch.from_numpy(images_BCHW), precision).cpu()

    return score


def find_graph(path: Path) -> Path | None:
    """Return the ONNX file at *path* or in the folder *path*; None if there is none."""
    file = path / GRAPH if path.is_dir() else path
    return file if file.suffix == Path(GRAPH).suffix and file.is_file() else None


def open_graph(file: Path, preprocessing: Preprocessing = AS_FILES_SAY) -> tuple[Score, ModelCard]:
    """Open an export of `vit21k export --to onnx`, with its ``config.json`` next to it.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        CheckpointError: The file is damaged, or is not an image classifier.
    """
    card = override(read_model_card(file.parent), preprocessing)
    session = _session(file)
    (graph_input,) = session.get_inputs()

    def score(images_BCHW: Pixels) -> torch.Tensor:
        settings = card.eval_settings
        x_BCHW = normalise(torch.from_numpy(images_BCHW), settings.mean, settings.std)
        (logits_BK,) = session.run(None, {graph_input.name: x_BCHW.numpy()})
        return probabilities(torch.from_numpy(logits_BK), card.activation)

    size = card.eval_settings.img_size
    try:
        found = score(np.zeros((2, 3, size, size), dtype=np.uint8)).shape
    except Exception as error:  # onnxruntime's own kinds derive from Exception alone
        raise CheckpointError(f"`{file}` does not take images of {size} pixels: {error}") from error
    if found != (2, len(card.classes)):
        raise CheckpointError(f"`{file}` gives {tuple(found)} values, not 2 x {len(card.classes)}")
    return score, card


def _session(file: Path) -> Any:
    try:
        onnxruntime = import_module("onnxruntime")
    except ImportError as error:
        raise MissingExtraError(
            "serving an ONNX export needs onnxruntime, which is not installed",
            hint="install it with: pip install 'vit21k[train,serve,export]'",
        ) from error
    try:
        return onnxruntime.InferenceSession(file, providers=onnxruntime.get_available_providers())
    except Exception as error:
        raise CheckpointError(f"`{file}` is damaged: {error}") from error
