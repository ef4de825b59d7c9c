"""What the commands that use a trained model share: which one, and how it is loaded."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vit21k.cli import console
from vit21k.cli.device_options import device_or_best
from vit21k.cli.remote_weights import local_copy

if TYPE_CHECKING:
    from vit21k.checkpoint.model_folder import ModelCard
    from vit21k.models.base import ImageClassifier

PANEL = "Use a trained model"

RunPath = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run (its newest checkpoint), a checkpoint, a model folder, weights of another "
        "program, or an address.",
    ),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16"],
    typer.Option(help="Of the matrix products; auto: bf16 on a GPU that has it."),
]
DeviceBatchSize = Annotated[int, typer.Option(min=1, help="The most images in one forward pass.")]


def load(run: str, device: str | None) -> "tuple[ImageClassifier, ModelCard]":
    """Load the model of *run*; warn of what is wrong with newer checkpoints."""
    from vit21k.checkpoint.load import load_model

    model, card = load_model(local_copy(run), device=device_or_best(device))
    for warning in card.warnings:
        console.warn(warning)
    return model, card


def precision_on(model: "ImageClassifier", precision: str) -> 'Literal["fp32", "bf16"]':
    """Return what "auto" means where *model* is; "fp32" and "bf16" mean themselves."""
    from vit21k.models.precision import best_precision, is_emulated

    device = model.pos_embed.device
    if precision == "auto":
        return best_precision(device) if device.type == "cuda" else "fp32"
    if precision == "bf16" and is_emulated(device, "bf16"):
        console.warn(f"--precision bf16 is emulated on this {device.type}; fp32 is faster")
    return "bf16" if precision == "bf16" else "fp32"
