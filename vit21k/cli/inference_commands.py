"""`eval`, `predict`, `models`: use a trained model."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.device_options import Device, NumWorkers, device_or_best, workers_or_cores
from vit21k.cli.options import DEFAULT_MANIFESTS, AsJson, ImageRoot, Manifests
from vit21k.cli.requires import require_torch
from vit21k.errors import CheckpointError, ManifestError, UsageError

if TYPE_CHECKING:
    from vit21k.checkpoint.model_folder import ModelCard
    from vit21k.data.batch_decoder import Batch
    from vit21k.data.loader import EvalLoader
    from vit21k.inference.predict import Prediction
    from vit21k.manifest.io import Manifest
    from vit21k.models.vit import VisionTransformer

_PANEL = "Use a trained model"

RunPath = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="A run (its newest checkpoint), a checkpoint, or a model folder."
    ),
]
DeviceBatchSize = Annotated[int, typer.Option(min=1, help="The most images in one forward pass.")]


def register(app: typer.Typer) -> None:
    """Add the inference commands to *app*."""
    app.command("eval", rich_help_panel=_PANEL)(eval_command)
    app.command("predict", rich_help_panel=_PANEL)(predict_command)
    app.command("models", rich_help_panel=_PANEL)(models_command)


def eval_command(
    run: RunPath,
    manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A manifest of pictures; not --split.")
    ] = None,
    manifests: Manifests = DEFAULT_MANIFESTS,
    split: Annotated[Literal["train", "val", "images"], typer.Option(help="Which one.")] = "val",
    root: ImageRoot = None,
    device: Device = None,
    device_batch_size: DeviceBatchSize = 64,
    num_workers: NumWorkers = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model on a split: loss, prec@1, top-5, over exactly every image.

    prec@1: the top class is one of the image's labels; top5: one of the five is.
    On a dummy split, whose images are also in train, they are `dummy_val/...`.

    [bold]Examples[/bold]

      vit21k eval runs/pretrain_l16_in21k

      vit21k eval runs/cifar10_cpu --manifest test_manifests/images.parquet --json
    """
    require_torch("eval")
    source = _open_pictures(manifest, manifests, split)
    model, card = _load(run, device)
    _check_classes(card, source)
    metrics = _evaluate(model, card, source, root, device_batch_size, num_workers)
    if as_json:
        console.print_json({"model": str(card.path), "manifest": str(source.path), **metrics})
    else:
        console.print_table(["metric", "value"], [[k, _in_words(v)] for k, v in metrics.items()])
    num_images = next(value for name, value in metrics.items() if name.endswith("/num_images"))
    console.done(f"eval: {num_images:,} images of `{source.path}`, model `{card.path}`")


def predict_command(
    run: RunPath,
    paths: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Pictures, and folders of pictures.")
    ],
    top_k: Annotated[int, typer.Option(min=1, help="Classes for each picture.")] = 5,
    device: Device = None,
    device_batch_size: DeviceBatchSize = 32,
    num_workers: NumWorkers = None,
    as_json: AsJson = False,
) -> None:
    """Name what is in pictures: class index, class folder, name, probability.

    A picture that cannot be read is named on stderr, the others are still done;
    the exit code is 3 then.

    [bold]Examples[/bold]

      vit21k predict runs/finetune_l16_384_in1k cat.jpg

      vit21k predict runs/tiny holiday/ --top-k 1 --json
    """
    require_torch("predict")
    from vit21k.inference.predict import find_pictures, predict

    pictures = find_pictures(paths)
    if not pictures:
        raise UsageError(f"no pictures in {', '.join(f'`{path}`' for path in paths)}")
    model, card = _load(run, device)
    predictions = predict(
        model,
        card,
        pictures,
        top_k=top_k,
        device_batch_size=device_batch_size,
        num_workers=workers_or_cores(num_workers),
    )
    num_problems = _show_json(predictions) if as_json else _show(predictions)
    console.done(
        f"predict: {len(pictures):,} pictures: {len(pictures) - num_problems:,} predicted, "
        f"{num_problems:,} could not be read"
    )
    if num_problems:
        raise typer.Exit(errors.EXIT_BAD_DATA)


def models_command(as_json: AsJson = False) -> None:
    """List the architectures: parameters, and multiplications of one image at its size.

    With a head of 1,000 classes.  `model.name` of a recipe takes these names; the
    fields beside it change their sizes.

    [bold]Examples[/bold]

      vit21k models

      vit21k models --json
    """
    from vit21k.models.cost import macs_per_image, num_params
    from vit21k.models.registry import list_models, model_args

    rows = [{"name": name, **model_args(name)} for name in list_models()]
    for row in rows:
        row |= {"num_params": num_params(row), "macs_per_image": macs_per_image(row)}
    if as_json:
        console.print_json(rows)
        return
    console.print_table(
        ["name", "M params", "GMACs", "pixels", "patch"],
        [
            [
                row["name"],
                f"{row['num_params'] / 1e6:.2f}",
                f"{row['macs_per_image'] / 1e9:.2f}",
                str(row["img_size"]),
                str(row["patch_size"]),
            ]
            for row in rows
        ],
    )


def _load(run: Path, device: str | None) -> "tuple[VisionTransformer, ModelCard]":
    from vit21k.checkpoint.load import load_model

    model, card = load_model(run, device=device_or_best(device))
    for warning in card.warnings:
        console.warn(warning)
    return model, card


def _open_pictures(manifest: Path | None, manifests: Path, split: str) -> "Manifest":
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import KINDS, PICTURE_KINDS

    if manifest is not None:
        source = open_manifest(manifest, *PICTURE_KINDS)
    else:
        source = open_manifest(manifests, KINDS[split])
    if not source.num_rows:
        raise ManifestError(f"`{source.path}` holds no pictures")
    return source


def _check_classes(card: "ModelCard", source: "Manifest") -> None:
    """Refuse to measure a model on labels of another class list."""
    wanted = source.classes()
    if card.classes.fingerprint == wanted.fingerprint:
        return
    raise CheckpointError(
        f"the model in `{card.path}` is for other classes than `{source.path}`: "
        f"{len(card.classes):,} classes, fingerprint {card.classes.fingerprint[:16]}, against "
        f"{len(wanted):,} classes, fingerprint {wanted.fingerprint[:16]}",
        hint="evaluate on manifests of the model's own class list, or fine-tune it on these: "
        f"`vit21k train --stage finetune --init {card.path}`",
    )


def _evaluate(
    model: "VisionTransformer",
    card: "ModelCard",
    source: "Manifest",
    root: Path | None,
    device_batch_size: int,
    num_workers: int | None,
) -> dict[str, float | int]:
    from vit21k.data.loader import EvalLoader
    from vit21k.data.pictures import Pictures
    from vit21k.inference.evaluate import evaluate
    from vit21k.inference.predict import eval_transform
    from vit21k.training.split_data import metric_prefix

    settings = card.eval_settings
    loader = EvalLoader(
        Pictures.from_manifest(source, root),
        eval_transform(settings),
        device_batch_size=device_batch_size,
        num_workers=workers_or_cores(num_workers),
    )
    with loader, console.progress("eval", unit="images") as progress:
        progress.total = source.num_rows
        metrics = evaluate(
            model,
            _counted(loader, progress),
            loss_kind=card.loss_kind,
            mean=settings.mean,
            std=settings.std,
            device=model.pos_embed.device,
        )
    prefix = metric_prefix(source)
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def _counted(loader: "EvalLoader", progress: console.Progress) -> "Iterator[Batch]":
    for batch in loader:
        yield batch
        progress.advance(len(batch.rows_B))


def _show(predictions: "Iterable[Prediction]") -> int:
    """Print predictions as they come; return how many pictures could not be read."""
    num_problems = 0
    for prediction in _warned(predictions):
        if prediction.problem:
            num_problems += 1
            continue
        console.print_lines(_printable(prediction.path))
        for score in prediction.top:
            name = f"  {score.name}" if score.name else ""
            console.print_lines(
                f"  {score.probability:7.4f}  {score.class_index:>6}  {score.wnid}{name}"
            )
    return num_problems


def _show_json(predictions: "Iterable[Prediction]") -> int:
    """Print predictions as one JSON list; return how many pictures could not be read."""
    found = list(_warned(predictions))
    rows = [
        {
            "path": _printable(prediction.path),
            "top": [score._asdict() for score in prediction.top],
            "problem": prediction.problem,
        }
        for prediction in found
    ]
    console.print_json(rows)
    return sum(prediction.problem is not None for prediction in found)


def _warned(predictions: "Iterable[Prediction]") -> "Iterator[Prediction]":
    """Pass *predictions* on; say on stderr which pictures could not be read."""
    for prediction in predictions:
        if prediction.problem:
            console.warn(f"`{_printable(prediction.path)}`: {prediction.problem}")
        yield prediction


def _printable(path: Path) -> str:
    r"""Return *path* with bytes that are not UTF-8 as `\\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _in_words(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
