"""`predict`, `features`, `explain`, `export`, `serve`, `models`: use a trained model."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.options import (
    USE_PANEL,
    AsJson,
    CropMode,
    CropPct,
    Device,
    DeviceBatchSize,
    ImageList,
    ImageManifest,
    ImagePaths,
    ImageRoot,
    Interpolation,
    Mean,
    ModelSettings,
    NumWorkers,
    Precision,
    RunPath,
    Std,
    WhichWeights,
    choice_of,
    load,
    load_classifier,
    local_copy,
    open_rows,
    precision_on,
    preprocessing,
    require_serving,
    require_torch,
    warn_of_skipped,
    workers_or_cores,
)
from vit21k.errors import UsageError, one_line, printable

if TYPE_CHECKING:
    from vit21k.checkpoint.foreign import WeightsChoice
    from vit21k.checkpoint.model_folder import ModelCard
    from vit21k.checkpoint.preprocessing import Preprocessing
    from vit21k.data.dataset import ImageRows
    from vit21k.inference.explain import Explanation
    from vit21k.inference.features import FeaturePlan, FeatureReport
    from vit21k.inference.predict import Prediction
    from vit21k.models.vit import ImageClassifier
    from vit21k.serving.batcher import Score
    from vit21k.sources.folders import Skipped

_TOP = 5


def register_predict(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("predict", rich_help_panel=USE_PANEL)(predict_command)


def predict_command(
    run: RunPath,
    paths: ImagePaths = None,
    manifest: ImageManifest = None,
    from_file: ImageList = None,
    root: ImageRoot = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="The most classes of an image; default: 5, or --threshold."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="All classes that are this probable, or more."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.parquet", help="Write a row for each image, and print none."),
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
    """Name what is in images: class index, class folder, name, probability.

    An image that cannot be read is named on stderr, the others are still done;
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
    images = open_rows(paths, manifest, from_file, root, skipped)
    model, card = load_classifier(run, device, how, choice_of(settings, weights))
    problems: list[Path] = []
    found = predict(
        model,
        card,
        images,
        top_k=_TOP if top_k is None and threshold is None else top_k,
        threshold=threshold or 0.0,
        device_batch_size=device_batch_size,
        num_workers=workers_or_cores(num_workers),
        precision=precision_on(model, precision),
    )
    with console.progress("predict", unit="images") as progress:
        progress.total = len(images) if out is not None else None
        predictions = _watched(found, problems, progress if out is not None else None)
        _give(predictions, out, as_json=as_json)
    if out is not None and as_json:
        counts = {"num_images": len(images), "num_problems": len(problems)}
        console.print_json(
            {"out": str(out), **counts, "skipped": [one._asdict() for one in skipped]}
        )
    _finish(len(images), len(problems), skipped, out)


def _finish(num_images: int, num_problems: int, skipped: "list[Skipped]", out: Path | None) -> None:
    """Report what was predicted, and exit with 3 if images are missing from it."""
    may_miss_images = warn_of_skipped(skipped)
    console.done(
        f"predict: {num_images:,} images: {num_images - num_problems:,} predicted, "
        f"{num_problems:,} could not be read"
        + (f", {len(skipped):,} entries not looked at" if skipped else "")
        + (f"; `{out}`" if out else "")
    )
    if num_problems or may_miss_images:
        raise typer.Exit(errors.EXIT_BAD_DATA)


def _give(predictions: "Iterable[Prediction]", out: Path | None, *, as_json: bool) -> None:
    """Write *predictions* to *out*, or print them: as one JSON list, or as they come."""
    from vit21k.inference.predict import write_predictions

    if out is not None:
        write_predictions(out, predictions)
    elif as_json:
        console.print_json([_as_dict(prediction) for prediction in predictions])
    else:
        _show(predictions)


def _watched(
    predictions: "Iterable[Prediction]", problems: list[Path], progress: console.Progress | None
) -> "Iterator[Prediction]":
    """Pass *predictions* on; name and note the images that could not be read."""
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


def register_features(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("features", rich_help_panel=USE_PANEL)(features_command)


def features_command(
    run: RunPath,
    paths: ImagePaths = None,
    manifest: ImageManifest = None,
    from_file: ImageList = None,
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
        typer.Option(min=1, help="Images of a shard; default: 64 MB of them, at most 4,096."),
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
    """Write the embeddings of images to Parquet: path, label ids, features.

    A run that was stopped or killed goes on at its first missing shard when the same command is
    given again, and ends with the same bytes as if it had not been stopped.  Images that cannot
    be read have no row; they are named on stderr, and the exit code is 3 then.

    [bold]Examples[/bold]

      vit21k features runs/l16_in21k --manifest data_manifests/val.parquet --out features

      vit21k features runs/tiny holiday/ --out holiday.parquet --dtype float16

      vit21k features runs/tiny cat.jpg --kind tokens --out cat.parquet
    """
    require_torch("features")
    how = preprocessing(mean, std, crop_pct, crop_mode, interpolation)
    from vit21k.inference.features import FeaturePlan, merge_shards
    from vit21k.lock import locked

    skipped: list[Skipped] = []
    images = open_rows(paths, manifest, from_file, root, skipped)
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
        report = _extract(model, card, images, folder, plan, num_workers)
        if is_file:
            merge_shards(report.shards, out)
    if is_file:
        shutil.rmtree(folder)
    _tell(report, skipped, out, as_json=as_json)


def _extract(
    model: "ImageClassifier",
    card: "ModelCard",
    images: "ImageRows",
    folder: Path,
    plan: "FeaturePlan",
    num_workers: int | None,
) -> "FeatureReport":
    from vit21k.inference.features import extract_features

    with console.progress("features", unit="images") as progress:
        progress.total = len(images)
        return extract_features(
            model,
            card,
            images,
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
        "num_images": report.num_images,
        "num_written": report.num_images - num_bad,
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
        f"features: {report.num_images:,} images{resumed}: {counts['num_written']:,} written, "
        f"{num_bad:,} could not be read"
        + (f", {len(skipped):,} entries not looked at" if skipped else "")
        + f"; `{out}`"
    )
    if num_bad or may_miss_images:
        raise typer.Exit(errors.EXIT_BAD_DATA)


def register_explain(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("explain", rich_help_panel=USE_PANEL)(explain_command)


def explain_command(
    run: RunPath,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image.")],
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="The image to write.")] = Path(
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
    """Draw where a model looks in an image, and what it has learnt of positions, as a PNG.

    Left: the image as the model sees it.  Middle: attention rollout, which follows the attention
    through all blocks to what the head reads.  Right: for each patch, how much its position
    embedding is like that of every other one.

    [bold]Examples[/bold]

      vit21k explain runs/finetune_l16_384_in1k cat.jpg --out cat_attention.png
    """
    require_torch("explain")
    how = preprocessing(mean, std, crop_pct, crop_mode, interpolation)
    from vit21k.atomic import write_atomic
    from vit21k.errors import printable
    from vit21k.inference.explain import draw_explanation

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
    from vit21k.errors import ImageError, printable
    from vit21k.inference.explain import explain
    from vit21k.inference.files import Files

    try:
        return explain(model, card, Files([path]).read_bytes(0))
    except ImageError as error:
        raise ImageError(f"`{printable(path)}`: {error.message}") from error


Target = Literal[
    "timm", "transformers", "torchvision", "npz", "safetensors", "torch-export", "onnx"
]


def register_export(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("export", rich_help_panel=USE_PANEL)(export_command)


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
    """Write a model for another library: weights, classes, preparation of images, README.

    timm, transformers and torchvision load their folder themselves; npz is for Google's code; onnx
    and torch-export hold the whole computation, for any number of images at a time.  What a format
    cannot hold is refused; what its library computes otherwise in the last digits is said.

    [bold]Examples[/bold]

      vit21k export runs/finetune_l16_384_in1k --to transformers

      vit21k export ViT-L_16.npz --to timm --out vit_l16
    """
    require_torch("export")
    from vit21k.export.model import export_model

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


def register_serve(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("serve", rich_help_panel=USE_PANEL)(serve_command)


def serve_command(
    run: RunPath,
    host: Annotated[
        str, typer.Option(help="0.0.0.0 answers other machines too: there is no password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8000,
    max_batch_size: Annotated[
        int, typer.Option(min=1, help="The most images in one forward pass.")
    ] = 32,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, help="How long an image waits for others to join it.")
    ] = 5,
    max_body_mb: Annotated[
        float, typer.Option(min=0.001, help="The largest file that is taken.")
    ] = 10,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="The most pixels of an image.")
    ] = 25_000_000,
    max_in_flight: Annotated[
        int, typer.Option(min=1, help="Images worked on at a time; more are told to come back.")
    ] = 128,
    mean: Mean = None,
    std: Std = None,
    crop_pct: CropPct = None,
    crop_mode: CropMode = None,
    interpolation: Interpolation = None,
    settings: ModelSettings = None,
    weights: WhichWeights = None,
    device: Device = None,
    precision: Precision = "auto",
) -> None:
    """Answer predictions over HTTP, with a page to drop an image on.

    POST /predict with an image's file as the body (curl --data-binary @cat.jpg URL) gives
    {"top": [...]}, GET /health how it goes, and / is the page.  Images that come at the same
    time are computed together.  A bad one gets {"error": {"kind", "message"}} and harms no other.
    Ctrl-C ends it.

    [bold]Examples[/bold]

      vit21k serve runs/finetune_l16_384_in1k --port 8000

      vit21k serve exports/finetune_l16_384_in1k-onnx
    """
    require_torch("serve")
    require_serving("serve", install="pip install 'vit21k[train,serve]'")
    from vit21k.serving.app import Service
    from vit21k.serving.batcher import Batcher
    from vit21k.serving.limits import Limits, connections_that_fit
    from vit21k.serving.server import address_of, bind, is_loopback, serve

    how = preprocessing(mean, std, crop_pct, crop_mode, interpolation)
    listening = bind(host, port)
    try:
        score, card = _open(run, device, precision, how, choice_of(settings, weights))
    except BaseException:
        listening.close()
        raise
    limits = Limits(
        max_body_bytes=int(max_body_mb * 1e6),
        max_pixels=max_pixels,
        max_in_flight=max_in_flight,
        max_connections=connections_that_fit(),
    )
    wait_seconds = max_wait_ms / 1000
    batcher = Batcher(score, max_batch_size=max_batch_size, max_wait_seconds=wait_seconds)
    service = Service(card, batcher, limits)
    if not is_loopback(host):
        console.warn(f"anyone who can reach {host} can use this server")
    address = address_of(listening)
    serve(
        service.app(),
        limits,
        listening,
        started=lambda: console.done(f"serve: `{card.path}` at {address}; Ctrl-C ends it"),
    )
    counts = service.counts
    console.done(
        f"serve: {counts.num_predicted + counts.num_refused:,} requests: "
        f"{counts.num_predicted:,} predicted, {counts.num_refused:,} refused"
    )


def _open(
    run: str,
    device: str | None,
    precision: str,
    how: "Preprocessing",
    choice: "WeightsChoice",
) -> "tuple[Score, ModelCard]":
    """Return what computes, and the card: of a model, or of an ONNX export."""
    from vit21k.serving.graph import find_graph, open_graph, score_with

    if (graph := find_graph(Path(run))) is not None:
        if choice.which or choice.args:
            raise UsageError("an ONNX file is computed as it is: skip --set and --weights")
        return open_graph(graph, how)
    model, card = load_classifier(run, device, how, choice)
    return score_with(model, card, precision_on(model, precision)), card


def register_models(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("models", rich_help_panel=USE_PANEL)(models_command)


def models_command(
    img_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="PIXELS", help="Count at this size; default: the name's."),
    ] = None,
    formats: Annotated[
        bool, typer.Option("--formats", help="List the formats that weights are read from.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the architectures: parameters, multiplications of one image, memory, source, formats.

    With a head of 1,000 classes.  "MB kept" is what training keeps of one image in float32 until
    the backward pass.  "formats" are those in which weights of the model are read: `--init`,
    `predict`, `eval` and `export` take them.  `model.name` of a recipe takes these names; the
    fields beside it change their sizes.

    [bold]Examples[/bold]

      vit21k models

      vit21k models --img-size 384 --json

      vit21k models --formats
    """
    if formats:
        _list_formats(as_json=as_json)
        return
    rows = model_rows(img_size)
    if as_json:
        console.print_json(rows)
        return
    console.print_table(
        ["name", "M params", "GMACs", "MB kept", "pixels", "patch", "source", "formats"],
        [
            [
                row["name"],
                f"{row['num_params'] / 1e6:.2f}",
                f"{row['macs_per_image'] / 1e9:.2f}",
                f"{row['activation_bytes_per_image'] / 1e6:,.0f}",
                str(row["img_size"]),
                str(row["patch_size"]),
                row["source"],
                ", ".join(row["formats"]),
            ]
            for row in rows
        ],
    )


def model_rows(img_size: int | None = None) -> list[dict[str, Any]]:
    """Return every architecture with its arguments and what it costs, at *img_size* or its own."""
    from vit21k.models.cost import activation_bytes_per_image, macs_per_image, num_params
    from vit21k.models.registry import formats_of, list_models, model_args, source_of

    rows = []
    for name in list_models():
        args = model_args(name, **({} if img_size is None else {"img_size": img_size}))
        rows.append(
            {
                "name": name,
                **args,
                "num_params": num_params(args),
                "macs_per_image": macs_per_image(args),
                "activation_bytes_per_image": activation_bytes_per_image(args, 4),
                "source": source_of(name),
                "formats": formats_of(name),
            }
        )
    return rows


def _list_formats(*, as_json: bool) -> None:
    from vit21k.models.registry import FORMATS

    if as_json:
        console.print_json(FORMATS)
    else:
        console.print_table(["format", "what is read"], [[*row] for row in FORMATS.items()])
