"""`eval`: measure a trained model."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vit21k.cli import console
from vit21k.cli.next_steps import predict_command_for, print_next
from vit21k.cli.options import (
    DEFAULT_MANIFESTS,
    AsJson,
    Device,
    DeviceBatchSize,
    ImageRoot,
    Manifests,
    ModelOptions,
    NumWorkers,
    RunPath,
    device_or_best,
    precision_on,
    require_torch,
    workers_or_cores,
)
from vit21k.errors import EXIT_BAD_DATA, CheckpointError, ManifestError, one_line

if TYPE_CHECKING:
    from vit21k.checkpoint.model_folder import ModelCard
    from vit21k.data.loader import Batch, EvalLoader
    from vit21k.distributed import World
    from vit21k.inference.evaluate import EvalOptions, EvalResult
    from vit21k.manifest.io import Manifest
    from vit21k.models.vit import ImageClassifier
    from vit21k.sources.read import Root


def eval_command(
    run: RunPath,
    manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A manifest of images, instead of --split.")
    ] = None,
    manifests: Manifests = DEFAULT_MANIFESTS,
    split: Annotated[Literal["train", "val", "images"], typer.Option(help="Which split.")] = "val",
    root: ImageRoot = None,
    threshold: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Probability from which a class counts: precision, recall, F1."
        ),
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
        typer.Option(metavar="FILE", help="real.json: also use ReaL labels of ImageNet-1k's val."),
    ] = None,
    *,
    model_options: ModelOptions,
    device: Device = None,
    device_batch_size: DeviceBatchSize = 64,
    num_workers: NumWorkers = None,
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="Precision of the matrix products.")
    ] = "fp32",
    on_bad_image: Annotated[
        Literal["fail", "skip"],
        typer.Option(help="skip: images that cannot be decoded are skipped and counted."),
    ] = "fail",
    as_json: AsJson = False,
) -> None:
    """Measure a model on a split, exactly once per image: loss, prec@1, top-5, mAP, F1.

    prec@1: the top class is one of the image's labels; top5: one of the five is.  mAP and the macro
    means skip classes without images, whose number is shown; mAP_error bounds the effect of binning
    scores on mAP.  On a dummy split, with images that are also in train, the names are
    `dummy_val/...`.  With `--on-bad-image skip`, num_skipped images are missing from num_images;
    the exit code is then 3.

    [bold]Examples[/bold]

      vit21k eval runs/pretrain_l16_in21k --per-class classes.csv --confusion 20

      vit21k eval runs/cifar10_cpu --manifest test_manifests/images.parquet --json

      vit21k eval runs/finetune_l16_384_in1k --real real.json --tta hflip

      torchrun --standalone --nproc-per-node=8 -m vit21k eval runs/pretrain_l16_in21k
    """
    require_torch("eval")
    from vit21k.distributed import explaining_lost_peers, init_world
    from vit21k.inference.evaluate import EvalOptions
    from vit21k.inference.metrics import check_table_path, read_real_labels, write_class_table

    if per_class is not None:
        check_table_path(per_class)
    source = _open_images(manifest, manifests, split)
    options = EvalOptions(
        threshold=threshold,
        num_confused=confusion,
        real_labels=None if real is None else read_real_labels(real),
        hflip=tta == "hflip",
        precision=precision,
    )
    loading: dict[str, Any] = {"on_bad_image": on_bad_image, "device_batch_size": device_batch_size}
    loading["num_workers"] = workers_or_cores(num_workers)
    with closing(init_world(device_or_best(device))) as world, explaining_lost_peers(world):
        model, card = model_options.load_classifier(run, device)
        if world.rank == 0:
            precision_on(model, precision)  # warns
        _check_classes(card, source, is_real=real is not None)
        found = _evaluate(model, card, source, root, options, world, loading)
        if world.rank:
            return
    if per_class is not None:
        write_class_table(per_class, found.table, card.classes)
    _report(found, card, source, as_json=as_json)
    print_next(predict_command_for(str(run), source, root))
    if found.metrics.get("num_skipped"):
        raise typer.Exit(EXIT_BAD_DATA)


def _evaluate(
    model: "ImageClassifier",
    card: "ModelCard",
    source: "Manifest",
    root: "Root | None",
    options: "EvalOptions",
    world: "World",
    loading: dict[str, Any],
) -> "EvalResult":
    """Evaluate *model* on this process's share of the images; warn about skipped ones."""
    from vit21k.data.dataset import ImageDataset
    from vit21k.data.loader import EvalLoader
    from vit21k.inference.evaluate import evaluate_model
    from vit21k.inference.predict import eval_transform

    images = ImageDataset.from_manifest(source, root, mapped=True, note=console.note)
    loader = EvalLoader(
        images,
        eval_transform(card.eval_settings),
        rank=world.rank,
        world_size=world.world_size,
        **loading,
    )
    total = len(images) // world.world_size
    with loader, console.progress("eval", unit="images", total=total) as progress:
        batches = _counted(loader, progress if world.rank == 0 else None)
        found = evaluate_model(model, card, images, batches, options, world=world)
    for path, reason in loader.skipped.items():
        console.warn(f"`{one_line(path)}`: {one_line(reason)}")
    if loading["on_bad_image"] == "skip":
        found.metrics["num_skipped"] = len(images) - found.metrics["num_images"]
    return found


def _open_images(manifest: Path | None, manifests: Path, split: str) -> "Manifest":
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import IMAGE_KINDS, KINDS

    kinds = (KINDS[split],) if manifest is None else IMAGE_KINDS
    source = open_manifest(manifest or manifests, *kinds)
    if not source.num_rows:
        raise ManifestError(f"`{source.path}` has no images")
    return source


def _check_classes(card: "ModelCard", source: "Manifest", *, is_real: bool) -> None:
    """Refuse to evaluate a model on labels of another class list."""
    from vit21k.inference.metrics import check_classes

    if is_real:
        check_classes(card.classes)
    wanted = source.classes()
    if card.classes.fingerprint == wanted.fingerprint:
        return
    raise CheckpointError(
        f"the model in `{card.path}` has other classes than `{source.path}`: "
        f"{len(card.classes):,} classes, fingerprint {card.classes.fingerprint[:16]}, against "
        f"{len(wanted):,} classes, fingerprint {wanted.fingerprint[:16]}",
        hint="evaluate on manifests of the model's own class list, or fine-tune it on these: "
        f"`vit21k train --stage finetune --init {card.path}`",
    )


def _counted(loader: "EvalLoader", progress: console.ProgressLine | None) -> "Iterator[Batch]":
    for batch in loader:
        yield batch
        if progress:
            progress.advance(len(batch.rows_B))


def _report(found: "EvalResult", card: "ModelCard", source: "Manifest", *, as_json: bool) -> None:
    """Print the metrics and the most confused pairs, then the counts."""
    from vit21k.training.context import metric_prefix

    classes, prefix = card.classes, metric_prefix(source)
    metrics = {f"{prefix}/{name}": value for name, value in found.metrics.items()}
    metrics |= {f"real/{name}": value for name, value in found.real.items()}
    about = {"model": str(card.path), "manifest": str(source.path)}
    confused = [
        {
            "label": classes.wnids[pair.label],
            "predicted": classes.wnids[pair.predicted],
            "num_images": pair.num_images,
        }
        for pair in found.confused
    ]
    if as_json:
        console.print_json({**about, **metrics, **({"confused": confused} if confused else {})})
    else:
        console.print_table(
            ["metric", "value"], [[k, console.number(v)] for k, v in metrics.items()]
        )
        if confused:
            console.print_lines("")
            rows = [[str(cell) for cell in pair.values()] for pair in confused]
            console.print_table(["label", "predicted", "images"], rows)
    num_skipped = found.metrics.get("num_skipped", 0)
    console.done(
        f"eval: {found.metrics['num_images']:,} images of `{about['manifest']}`, "
        f"model `{about['model']}`; {len(classes):,} classes, "
        f"{found.metrics['num_empty_classes']:,} of them without images here and excluded from the "
        "means over classes"
        + (f"; {num_skipped:,} images could not be decoded" if num_skipped else "")
    )
