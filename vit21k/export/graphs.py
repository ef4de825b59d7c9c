"""A model -> its graph: torch.export and ONNX, for any number of images at a time."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit21k.checkpoint.foreign import OpenedWeights
from vit21k.errors import MissingExtraError
from vit21k.models.registry import build_model
from vit21k.models.vit import ImageClassifier

INPUT, OUTPUT = "pixel_values", "logits"
# A file of the ONNX format has at most 2 GB; the weights of larger models are in a second file.
_LARGEST_ONNX = 1_800_000_000
_NEEDED = ("onnx", "onnxscript")


def write_torch_export(folder: Path, opened: OpenedWeights) -> None:
    """Write ``model.pt2`` into *folder*; `torch.export.load` reads it without vit21k."""
    model, images, batch = _ready(opened)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "model.pt2")


def write_onnx(folder: Path, opened: OpenedWeights) -> None:
    """Write ``model.onnx`` into *folder*: input `pixel_values`, normalised; output `logits`.

    Raises:
        MissingExtraError: onnx and onnxscript are not installed.
    """
    for name in _NEEDED:
        try:
            import_module(name)
        except ImportError as error:
            raise MissingExtraError(
                f"exporting to ONNX needs {name}, which is not installed",
                hint="install it with: pip install 'vit21k[train,export]'",
            ) from error
    model, images, batch = _ready(opened)
    num_bytes = sum(tensor.nbytes for tensor in opened.tensors.values())
    with _silence():
        torch.onnx.export(
            model,
            (images,),
            folder / "model.onnx",
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: batch},),
            external_data=num_bytes > _LARGEST_ONNX,
            verbose=False,
        )


def _ready(opened: OpenedWeights) -> tuple[ImageClassifier, Tensor, Any]:
    """Return the model, example images, and the symbol of the dimension that may vary."""
    args = opened.card.args
    with torch.device("meta"):
        model = build_model(args)
    model.load_state_dict(opened.tensors, assign=True)
    # Two images: torch treats 1 as a constant.
    images = torch.zeros(2, args["in_chans"], args["img_size"], args["img_size"])
    return model.eval().requires_grad_(requires_grad=False), images, torch.export.Dim("batch")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress what the exporter prints, logs and warns about."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
