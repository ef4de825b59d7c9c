"""`features`: what a model makes of pictures, as numbers for other programs."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.device_options import Device, NumWorkers, workers_or_cores
from vit21k.cli.model_options import (
    PANEL,
    CropMode,
    CropPct,
    DeviceBatchSize,
    Interpolation,
    Mean,
    ModelSettings,
    Precision,
    RunPath,
    Std,
    WhichWeights,
    choice_of,
    load,
    precision_on,
    preprocessing,
)
from vit21k.cli.options import AsJson, ImageRoot
from vit21k.cli.picture_options import (
    PictureList,
    PictureManifest,
    PicturePaths,
    open_rows,
    warn_of_skipped,
)
from vit21k.cli.requires import require_torch
from vit21k.one_line import one_line

if TYPE_CHECKING:
    from vit21k.checkpoint.model_folder import ModelCard
    from vit21k.data.rows import PictureRows
    from vit21k.hashing.folder import Skipped
    from vit21k.inference.features import FeaturePlan, FeatureReport
    from vit21k.models.base import ImageClassifier


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("features", rich_help_panel=PANEL)(features_command)


def features_command(
    run: RunPath,
    paths: PicturePaths = None,
    manifest: PictureManifest = None,
    from_file: PictureList = None,
    root: ImageRoot = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR|FILE.parquet", help="A folder of shards, or one file, made from them."
        ),
    ] = Path("features"),
    kind: Annotated[
        Literal["pooled", "tokens"],
        typer.Option(help="pooled: what the head reads; tokens: all of the last block's."),
    ] = "pooled",
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option(help="Of the numbers in the file.")
    ] = "float32",
    shard_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures of a shard; default: 64 MB of them, at most 4,096."),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    crop_pct: CropPct = None,
    crop_mode: CropMode = None,
    interpolation: Interpolation = None,
    settings: ModelSettings = None,
    weights: WhichWeights = None,
    device: Device = None,
    device_batch_size: DeviceBatchSize = 32,
    num_workers: NumWorkers = None,
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Write the embeddings of pictures to Parquet: path, label ids, features.

    A run that was stopped or killed goes on at its first missing shard when the same command is
    given again, and ends with the same bytes as if it had not been stopped.  Pictures that cannot
    be read have no row; they are named on stderr, and the exit code is 3 then.

    [bold]Examples[/bold]

      vit21k features runs/l16_in21k --manifest data_manifests/val.parquet --out features

      vit21k features runs/tiny holiday/ --out holiday.parquet --dtype float16

      vit21k features runs/tiny cat.jpg --kind tokens --out cat.parquet
    """
    require_torch("features")
    how = preprocessing(mean, std, crop_pct, crop_mode, interpolation)
    from vit21k.inference.feature_shards import merge_shards
    from vit21k.inference.features import FeaturePlan
    from vit21k.lock import locked

    skipped: list[Skipped] = []
    pictures = open_rows(paths, manifest, from_file, root, skipped)
    model, card = load(run, device, how, choice_of(settings, weights))
    plan = FeaturePlan(
        kind=kind,
        dtype=dtype,
        device_batch_size=device_batch_size,
        precision=precision_on(model, precision),
        shard_rows=shard_rows,
    )
    is_file = out.suffix == ".parquet"
    folder = out.with_name(f".{out.name}.shards") if is_file else out
    with locked(folder, command="features"):
        report = _extract(model, card, pictures, folder, plan, num_workers)
        if is_file:
            merge_shards(report.shards, out)
    if is_file:
        shutil.rmtree(folder)
    _tell(report, skipped, out, as_json=as_json)


def _extract(
    model: "ImageClassifier",
    card: "ModelCard",
    pictures: "PictureRows",
    folder: Path,
    plan: "FeaturePlan",
    num_workers: int | None,
) -> "FeatureReport":
    from vit21k.inference.features import extract_features

    with console.progress("features", unit="pictures") as progress:
        progress.total = len(pictures)
        return extract_features(
            model,
            card,
            pictures,
            folder,
            plan,
            num_workers=workers_or_cores(num_workers),
            advance=progress.advance,
        )


def _tell(report: "FeatureReport", skipped: "list[Skipped]", out: Path, *, as_json: bool) -> None:
    for path, reason in report.problems:
        console.warn(f"`{one_line(path)}`: {one_line(reason)}")
    num_bad = len(report.problems)
    counts = {
        "num_pictures": report.num_pictures,
        "num_written": report.num_pictures - num_bad,
        "num_problems": num_bad,
        "num_resumed": report.num_resumed,
    }
    if as_json:
        console.print_json(
            {"out": str(out), **counts, "skipped": [one._asdict() for one in skipped]}
        )
    may_miss_images = warn_of_skipped(skipped)
    resumed = f" ({report.num_resumed:,} of them before)" if report.num_resumed else ""
    console.done(
        f"features: {report.num_pictures:,} pictures{resumed}: {counts['num_written']:,} written, "
        f"{num_bad:,} could not be read"
        + (f", {len(skipped):,} entries not looked at" if skipped else "")
        + f"; `{out}`"
    )
    if num_bad or may_miss_images:
        raise typer.Exit(errors.EXIT_BAD_DATA)
