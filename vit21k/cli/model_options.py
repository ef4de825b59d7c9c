"""What the commands that use a trained model share: which one, and how it is loaded."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vit21k.cli import console
from vit21k.cli.device_options import device_or_best
from vit21k.cli.remote_weights import local_copy
from vit21k.errors import UsageError

if TYPE_CHECKING:
    from vit21k.checkpoint.foreign import WeightsChoice
    from vit21k.checkpoint.model_folder import ModelCard
    from vit21k.checkpoint.preprocessing import Preprocessing
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
Mean = Annotated[
    tuple[float, float, float] | None,
    typer.Option(
        metavar="R G B",
        help="Subtracted from the colours in 0..1; default: as the model's files say. A warning "
        "names what is assumed if they say nothing.",
    ),
]
Std = Annotated[
    tuple[float, float, float] | None,
    typer.Option(metavar="R G B", help="The colours are divided by it afterwards."),
]
CropPct = Annotated[
    float | None,
    typer.Option(
        min=0.04,
        max=1,
        help="Side of the crop as a fraction of the resized short side, as in timm.",
    ),
]
CropMode = Annotated[
    Literal["center", "squash"] | None,
    typer.Option(help="center: resize the short side, crop the middle; squash: resize both sides."),
]
Interpolation = Annotated[
    Literal["bicubic", "bilinear"] | None, typer.Option(help="Of the resizing.")
]
DeviceBatchSize = Annotated[int, typer.Option(min=1, help="The most images in one forward pass.")]
ModelSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="model.FIELD=VALUE",
        help="What the weights do not say of their model: model.num_heads=6; repeatable.",
    ),
]
WhichWeights = Annotated[
    Literal["raw", "ema"] | None,
    typer.Option(
        "--weights", help="The last step's weights or their moving average, where both are there."
    ),
]


def preprocessing(
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    crop_pct: float | None,
    crop_mode: Literal["center", "squash"] | None,
    interpolation: Literal["bicubic", "bilinear"] | None,
) -> "Preprocessing":
    """Return what the options say of how images are prepared.

    Raises:
        UsageError: A number is not finite, or a deviation is not positive.
    """
    import math

    from vit21k.checkpoint.preprocessing import Preprocessing

    if not all(map(math.isfinite, (*(mean or ()), *(std or ())))):
        raise UsageError("--mean and --std are three finite numbers each")
    if std is not None and min(std) <= 0:
        raise UsageError(f"--std divides, and {min(std):g} is not positive")
    return Preprocessing(
        mean=mean, std=std, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation
    )


def choice_of(settings: list[str] | None, weights: Literal["raw", "ema"] | None) -> "WeightsChoice":
    """Return what the options say of weights that do not say it themselves.

    Raises:
        UsageError: A setting is not ``model.FIELD=VALUE``.
    """
    from vit21k.checkpoint.foreign import WeightsChoice
    from vit21k.config.recipe import assign

    values: dict[str, Any] = {}
    for setting in settings or []:
        assign(values, setting)
    model = values.pop("model", {})
    if values or not isinstance(model, dict):
        raise UsageError(
            "--set takes model.FIELD=VALUE here, what the weights do not say of their model",
            hint="for example: --set model.num_heads=N",
        )
    return WeightsChoice(which=weights, args=model)


def load(
    run: str, device: str | None, how: "Preprocessing", choice: "WeightsChoice"
) -> "tuple[ImageClassifier, ModelCard]":
    """Load the model of *run*; warn of what is wrong or assumed."""
    from vit21k.checkpoint.load import load_model

    model, card = load_model(
        local_copy(run),
        device=device_or_best(device),
        preprocessing=how,
        weights=choice.which,
        model_args=choice.args,
    )
    for warning in card.warnings:
        console.warn(warning)
    return model, card


def load_classifier(
    run: str, device: str | None, how: "Preprocessing", choice: "WeightsChoice"
) -> "tuple[ImageClassifier, ModelCard]":
    """Load the model of *run*, as `load`, if it has a head.

    Raises:
        UsageError: It has none.
    """
    from vit21k.checkpoint.model_folder import check_head

    model, card = load(run, device, how, choice)
    check_head(card)
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
