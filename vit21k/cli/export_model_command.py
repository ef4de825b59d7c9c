"""`export`: a trained model for another library."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from vit21k.cli import console
from vit21k.cli.model_options import (
    PANEL,
    CropMode,
    CropPct,
    Interpolation,
    Mean,
    ModelSettings,
    Std,
    WhichWeights,
    choice_of,
    preprocessing,
)
from vit21k.cli.options import AsJson
from vit21k.cli.remote_weights import local_copy
from vit21k.cli.requires import require_torch

Target = Literal[
    "timm", "transformers", "torchvision", "npz", "safetensors", "torch-export", "onnx"
]


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("export", rich_help_panel=PANEL)(export_command)


def export_command(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE|ADDRESS",
            help="A run, a checkpoint, a model folder, weights of another program, or an address.",
        ),
    ],
    to: Annotated[Target, typer.Option("--to", help="The format.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A new folder; default: exports/<run>-<to>."),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    crop_pct: CropPct = None,
    crop_mode: CropMode = None,
    interpolation: Interpolation = None,
    settings: ModelSettings = None,
    weights: WhichWeights = None,
    as_json: AsJson = False,
) -> None:
    """Write a model for another library: weights, classes, preparation of pictures, README.

    timm, transformers and torchvision load their folder themselves; npz is for Google's code; onnx
    and torch-export hold the whole computation, for any number of images at a time.  What a format
    cannot hold is refused; what its library computes otherwise in the last digits is said.

    [bold]Examples[/bold]

      vit21k export runs/finetune_l16_384_in1k --to transformers

      vit21k export ViT-L_16.npz --to timm --out vit_l16
    """
    require_torch("export")
    from vit21k.model_export.export import export_model

    how = preprocessing(mean, std, crop_pct, crop_mode, interpolation)
    folder = out or Path("exports") / f"{Path(run.rstrip('/')).stem or 'model'}-{to}"
    choice = choice_of(settings, weights)
    report = export_model(local_copy(run), folder, to=to, preprocessing=how, choice=choice)
    for note in report.notes:
        console.warn(note)
    num_bytes = sum(report.files.values())
    if as_json:
        console.print_json(
            {
                "folder": str(folder),
                "name": report.card.name,
                "to": to,
                "files": report.files,
                "notes": report.notes,
            }
        )
    console.done(
        f"export: {report.card.name}, {len(report.card.classes):,} classes -> `{folder}`: "
        f"{len(report.files)} files, {num_bytes / 1e6:,.1f} MB; `{folder}/README.md` says how to "
        "load it"
    )
