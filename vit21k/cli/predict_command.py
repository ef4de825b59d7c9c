"""`predict`: name what is in pictures."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    load_classifier,
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
from vit21k.errors import UsageError
from vit21k.one_line import one_line, printable

if TYPE_CHECKING:
    from vit21k.hashing.folder import Skipped
    from vit21k.inference.predict import Prediction

_TOP = 5


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("predict", rich_help_panel=PANEL)(predict_command)


def predict_command(
    run: RunPath,
    paths: PicturePaths = None,
    manifest: PictureManifest = None,
    from_file: PictureList = None,
    root: ImageRoot = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="The most classes of a picture; default: 5, or --threshold."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="All classes that are this probable, or more."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.parquet", help="Write a row for each picture, and print none."),
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
    """Name what is in pictures: class index, class folder, name, probability.

    A picture that cannot be read is named on stderr, the others are still done;
    the exit code is 3 then.

    [bold]Examples[/bold]

      vit21k predict runs/finetune_l16_384_in1k cat.jpg

      vit21k predict runs/tiny holiday/ photos.tar --top-k 1 --json

      vit21k predict runs/l16_in21k --manifest images.parquet --threshold 0.5 --out p.parquet

      vit21k predict runs/tiny - < cat.jpg
    """
    require_torch("predict")
    how = preprocessing(mean, std, crop_pct, crop_mode, interpolation)
    from vit21k.inference.predict import predict

    if out is not None and out.suffix != ".parquet":
        raise UsageError(f"`{out}` must end in .parquet")
    skipped: list[Skipped] = []
    pictures = open_rows(paths, manifest, from_file, root, skipped)
    model, card = load_classifier(run, device, how, choice_of(settings, weights))
    problems: list[Path] = []
    found = predict(
        model,
        card,
        pictures,
        top_k=_TOP if top_k is None and threshold is None else top_k,
        threshold=threshold or 0.0,
        device_batch_size=device_batch_size,
        num_workers=workers_or_cores(num_workers),
        precision=precision_on(model, precision),
    )
    with console.progress("predict", unit="pictures") as progress:
        progress.total = len(pictures) if out is not None else None
        predictions = _watched(found, problems, progress if out is not None else None)
        _give(predictions, out, as_json=as_json)
    if out is not None and as_json:
        counts = {"num_pictures": len(pictures), "num_problems": len(problems)}
        console.print_json(
            {"out": str(out), **counts, "skipped": [one._asdict() for one in skipped]}
        )
    _finish(len(pictures), len(problems), skipped, out)


def _finish(
    num_pictures: int, num_problems: int, skipped: "list[Skipped]", out: Path | None
) -> None:
    """Report what was predicted, and exit with 3 if images are missing from it."""
    may_miss_images = warn_of_skipped(skipped)
    console.done(
        f"predict: {num_pictures:,} pictures: {num_pictures - num_problems:,} predicted, "
        f"{num_problems:,} could not be read"
        + (f", {len(skipped):,} entries not looked at" if skipped else "")
        + (f"; `{out}`" if out else "")
    )
    if num_problems or may_miss_images:
        raise typer.Exit(errors.EXIT_BAD_DATA)


def _give(predictions: "Iterable[Prediction]", out: Path | None, *, as_json: bool) -> None:
    """Write *predictions* to *out*, or print them: as one JSON list, or as they come."""
    from vit21k.inference.prediction_file import write_predictions

    if out is not None:
        write_predictions(out, predictions)
    elif as_json:
        console.print_json([_as_dict(prediction) for prediction in predictions])
    else:
        _show(predictions)


def _watched(
    predictions: "Iterable[Prediction]", problems: list[Path], progress: console.Progress | None
) -> "Iterator[Prediction]":
    """Pass *predictions* on; name and note the pictures that could not be read."""
    for prediction in predictions:
        if prediction.problem:
            console.warn(
                f"`{one_line(printable(prediction.path))}`: {one_line(prediction.problem)}"
            )
            problems.append(prediction.path)
        if progress:
            progress.advance(num_problems=int(prediction.problem is not None))
        yield prediction


def _show(predictions: "Iterable[Prediction]") -> None:
    """Print predictions as they come."""
    for prediction in predictions:
        if prediction.problem:
            continue
        console.print_lines(one_line(printable(prediction.path)))
        for score in prediction.top:
            name = f"  {score.name}" if score.name else ""
            console.print_lines(
                f"  {score.probability:7.4f}  {score.class_index:>6}  {score.wnid}{name}"
            )


def _as_dict(prediction: "Prediction") -> dict[str, object]:

    return {
        "path": printable(prediction.path),
        "top": [score._asdict() for score in prediction.top],
        "problem": prediction.problem,
    }
