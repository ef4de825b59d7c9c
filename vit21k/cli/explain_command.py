"""`explain`: a picture of what a model looks at."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit21k.cli import console
from vit21k.cli.device_options import Device
from vit21k.cli.model_options import (
    PANEL,
    CropMode,
    CropPct,
    Interpolation,
    Mean,
    ModelSettings,
    RunPath,
    Std,
    WhichWeights,
    choice_of,
    load_classifier,
    preprocessing,
)
from vit21k.cli.options import AsJson
from vit21k.cli.requires import require_torch
from vit21k.errors import UsageError

if TYPE_CHECKING:
    from vit21k.checkpoint.model_folder import ModelCard
    from vit21k.inference.explain import Explanation
    from vit21k.models.base import ImageClassifier


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("explain", rich_help_panel=PANEL)(explain_command)


def explain_command(
    run: RunPath,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture.")],
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="The picture to write.")] = Path(
        "explain.png"
    ),
    mean: Mean = None,
    std: Std = None,
    crop_pct: CropPct = None,
    crop_mode: CropMode = None,
    interpolation: Interpolation = None,
    settings: ModelSettings = None,
    weights: WhichWeights = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Draw where a model looks in a picture, and what it has learnt of positions, as a PNG.

    Left: the picture as the model sees it.  Middle: attention rollout, which follows the attention
    through all blocks to what the head reads.  Right: for each patch, how much its position
    embedding is like that of every other one.

    [bold]Examples[/bold]

      vit21k explain runs/finetune_l16_384_in1k cat.jpg --out cat_attention.png
    """
    require_torch("explain")
    how = preprocessing(mean, std, crop_pct, crop_mode, interpolation)
    from vit21k.atomic import write_atomic
    from vit21k.inference.explain_picture import draw_explanation
    from vit21k.one_line import printable

    if out.suffix.lower() != ".png":
        raise UsageError(f"`{out}` must end in .png")
    model, card = load_classifier(run, device, how, choice_of(settings, weights))
    seen, rollout, similarity, best = _explain(model, card, image)
    title = f"{printable(Path(image.name))}: {best.name or best.wnid} {best.probability:.2f}"
    write_atomic(out, draw_explanation(seen, rollout, similarity, title))
    row, column = divmod(int(rollout.argmax()), rollout.shape[1])
    if as_json:
        about = {"image": printable(image), "out": str(out), "top": best._asdict()}
        console.print_json({**about, "rollout": rollout.tolist()})
    console.done(
        f"explain: `{out}`: {title}; of {rollout.size:,} patches, the one in row {row + 1}, "
        f"column {column + 1} counts most"
    )


def _explain(model: "ImageClassifier", card: "ModelCard", path: Path) -> "Explanation":
    from vit21k.errors import ImageError
    from vit21k.inference.explain import explain
    from vit21k.inference.files import Files
    from vit21k.one_line import printable

    try:
        return explain(model, card, Files([path]).read_bytes(0))
    except ImageError as error:
        raise ImageError(f"`{printable(path)}`: {error.message}") from error
