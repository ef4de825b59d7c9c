"""`eval`: measure a trained model."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vit21k.cli import console
from vit21k.cli.options import (
    DEFAULT_MANIFESTS,
    USE_PANEL,
    AsJson,
    CropMode,
    CropPct,
    Device,
    DeviceBatchSize,
    ImageRoot,
    Interpolation,
    Manifests,
    Mean,
    ModelSettings,
    NumWorkers,
    RunPath,
    Std,
    WhichWeights,
    choice_of,
    device_or_best,
    load_classifier,
    precision_on,
    preprocessing,
    require_torch,
    workers_or_cores,
)
from vit21k.errors import EXIT_BAD_DATA, CheckpointError, ManifestError, one_line

if TYPE_CHECKING:
    from vit21k.checkpoint.model_folder import ModelCard
    from vit21k.data.dataset import ImageDataset
    from vit21k.data.loader import Batch, EvalLoader
    from vit21k.distributed import World
    from vit21k.inference.evaluate import Plan, Study
    from vit21k.manifest.classes import ClassList
    from vit21k.manifest.io import Manifest
    from vit21k.models.vit import ImageClassifier


def show(
    found: "Study",
    about: Mapping[str, str],
    prefix: str,
    classes: "ClassList",
    *,
    as_json: bool,
) -> None:
    """Print the metrics, each after *prefix*, and the most confused pairs, then the counts."""
    metrics = {f"{prefix}/{name}": value for name, value in found.metrics.items()}
    metrics |= {f"real/{name}": value for name, value in found.real.items()}
    confused = [
        {
            "label": classes.wnids[pair.label],
            "predicted": classes.wnids[pair.predicted],
            "num_images": pair.num_images,
        }
        for pair in found.confused
    ]
    if as_json:
        extra = {"confused": confused} if confused else {}
        console.print_json({**about, **metrics, **extra})
    else:
        console.print_table(["metric", "value"], [[k, _in_words(v)] for k, v in metrics.items()])
    if confused and not as_json:
        console.print_lines("")
        rows = [[str(cell) for cell in pair.values()] for pair in confused]
        console.print_table(["label", "taken for", "images"], rows)
    _tell_counts(found, about, len(classes))


def _tell_counts(found: "Study", about: Mapping[str, str], num_classes: int) -> None:
    num_skipped = found.metrics.get("num_skipped", 0)
    console.done(
        f"eval: {found.metrics['num_images']:,} images of `{about['manifest']}`, "
        f"model `{about['model']}`; {num_classes:,} classes, "
        f"{found.metrics['num_empty_classes']:,} of them without images here and skipped of the "
        "means over classes"
        + (f"; {num_skipped:,} images could not be decoded" if num_skipped else "")
    )


def _in_words(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("eval", rich_help_panel=USE_PANEL)(eval_command)


def eval_command(
    run: RunPath,
    manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A manifest of images; not --split.")
    ] = None,
    manifests: Manifests = DEFAULT_MANIFESTS,
    split: Annotated[Literal["train", "val", "images"], typer.Option(help="Which one.")] = "val",
    root: ImageRoot = None,
    threshold: Annotated[
        float,
        typer.Option(min=0, max=1, help="For precision, recall and F1: what counts as predicted."),
    ] = 0.5,
    per_class: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a row for each class: .parquet or .csv."),
    ] = None,
    confusion: Annotated[
        int, typer.Option(min=0, help="How many of the most confused pairs of classes to show.")
    ] = 0,
    tta: Annotated[
        Literal["none", "hflip"],
        typer.Option(help="hflip: mean of the logits of each image and its mirror image."),
    ] = "none",
    real: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="real.json: ReaL labels of ImageNet-1k's val as well."),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    crop_pct: CropPct = None,
    crop_mode: CropMode = None,
    interpolation: Interpolation = None,
    settings: ModelSettings = None,
    weights: WhichWeights = None,
    device: Device = None,
    device_batch_size: DeviceBatchSize = 64,
    num_workers: NumWorkers = None,
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="Of the matrix products.")
    ] = "fp32",
    on_bad_image: Annotated[
        Literal["fail", "skip"],
        typer.Option(help="skip: leave images out that cannot be decoded, and count them."),
    ] = "fail",
    as_json: AsJson = False,
) -> None:
    """Measure a model on a split, over exactly every image: loss, prec@1, top-5, mAP, F1.

    prec@1: the top class is one of the image's labels; top5: one of the five is.
    mAP and the macro means skip classes without images here, and their number is shown;
    mAP_error bounds what the binning of scores can do to mAP.
    On a dummy split, whose images are also in train, they are `dummy_val/...`.
    With `--on-bad-image skip` num_skipped is what num_images lacks; the exit code is 3 if any.

    [bold]Examples[/bold]

      vit21k eval runs/pretrain_l16_in21k --per-class classes.csv --confusion 20

      vit21k eval runs/cifar10_cpu --manifest test_manifests/images.parquet --json

      vit21k eval runs/finetune_l16_384_in1k --real real.json --tta hflip

      torchrun --standalone --nproc-per-node=8 -m vit21k eval runs/pretrain_l16_in21k
    """
    require_torch("eval")
    how = preprocessing(mean, std, crop_pct, crop_mode, interpolation)
    from vit21k.distributed import explaining_lost_peers, init_world
    from vit21k.inference.metrics import check_table_path, write_class_table
    from vit21k.training.context import metric_prefix

    if per_class is not None:
        check_table_path(per_class)
    source = _open_images(manifest, manifests, split)
    plan = _plan(threshold, confusion, real, hflip=tta == "hflip", precision=precision)
    with closing(init_world(device_or_best(device))) as world, explaining_lost_peers(world):
        model, card = load_classifier(run, device, how, choice_of(settings, weights))
        if world.rank == 0:
            precision_on(model, precision)  # warns
        _check_classes(card, source, plan)
        images = _images(source, root)
        loader = _loader(card, images, world, device_batch_size, num_workers, on_bad_image)
        found = _study(model, card, images, loader, plan, world)
        for path, reason in loader.skipped.items():  # this process's own
            console.warn(f"`{one_line(path)}`: {one_line(reason)}")
        if world.rank:
            return
    if per_class is not None:
        write_class_table(per_class, found.table, card.classes)
    about = {"model": str(card.path), "manifest": str(source.path)}
    if on_bad_image == "skip":
        found.metrics["num_skipped"] = len(images) - found.metrics["num_images"]
    show(found, about, metric_prefix(source), card.classes, as_json=as_json)
    if found.metrics.get("num_skipped"):
        raise typer.Exit(EXIT_BAD_DATA)


def _plan(
    threshold: float,
    confusion: int,
    real: Path | None,
    *,
    hflip: bool,
    precision: Literal["fp32", "bf16"],
) -> "Plan":
    from vit21k.inference.evaluate import Plan
    from vit21k.inference.real_labels import read_real_labels

    return Plan(
        threshold=threshold,
        num_confused=confusion,
        real_labels=None if real is None else read_real_labels(real),
        hflip=hflip,
        precision=precision,
    )


def _open_images(manifest: Path | None, manifests: Path, split: str) -> "Manifest":
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import IMAGE_KINDS, KINDS

    if manifest is not None:
        source = open_manifest(manifest, *IMAGE_KINDS)
    else:
        source = open_manifest(manifests, KINDS[split])
    if not source.num_rows:
        raise ManifestError(f"`{source.path}` holds no images")
    return source


def _check_classes(card: "ModelCard", source: "Manifest", plan: "Plan") -> None:
    """Refuse to measure a model on labels of another class list."""
    from vit21k.inference.real_labels import check_classes

    if plan.real_labels is not None:
        check_classes(card.classes)
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


def _images(source: "Manifest", root: Path | None) -> "ImageDataset":
    from vit21k.data.dataset import ImageDataset

    return ImageDataset.from_manifest(source, root, mapped=True, note=console.note)


def _loader(
    card: "ModelCard",
    images: "ImageDataset",
    world: "World",
    device_batch_size: int,
    num_workers: int | None,
    on_bad_image: Literal["fail", "skip"],
) -> "EvalLoader":
    from vit21k.data.loader import EvalLoader
    from vit21k.inference.predict import eval_transform

    return EvalLoader(
        images,
        eval_transform(card.eval_settings),
        device_batch_size=device_batch_size,
        num_workers=workers_or_cores(num_workers),
        rank=world.rank,
        world_size=world.world_size,
        on_bad_image=on_bad_image,
    )


def _study(
    model: "ImageClassifier",
    card: "ModelCard",
    images: "ImageDataset",
    loader: "EvalLoader",
    plan: "Plan",
    world: "World",
) -> "Study":
    from vit21k.inference.evaluate import study

    with loader, console.progress("eval", unit="images") as progress:
        progress.total = len(images) // world.world_size
        counted = _counted(loader, progress if world.rank == 0 else None)
        return study(model, card, images, counted, plan, world=world)


def _counted(loader: "EvalLoader", progress: console.Progress | None) -> "Iterator[Batch]":
    for batch in loader:
        yield batch
        if progress:
            progress.advance(len(batch.rows_B))
