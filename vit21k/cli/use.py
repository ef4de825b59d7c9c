"""`predict`, `features`, `explain`, `export`, `serve`, `models`: use a trained model."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.options import (
    AsJson,
    Device,
    DeviceBatchSize,
    ImageOptions,
    ModelOptions,
    NumWorkers,
    Precision,
    RunPath,
    local_copy,
    precision_on,
    require_serving,
    require_torch,
    warn_of_skipped,
    workers_or_cores,
)
from vit21k.errors import UsageError, one_line, printable

if TYPE_CHECKING:
    from vit21k.checkpoint.model_folder import ModelCard
    from vit21k.data.dataset import ImageRows
    from vit21k.inference.features import FeatureOptions, FeatureReport
    from vit21k.inference.predict import Prediction
    from vit21k.models.vit import ImageClassifier
    from vit21k.serving.batcher import Score
    from vit21k.sources.folders import Skipped

_TOP = 5


def predict_command(
    run: RunPath,
    images: ImageOptions,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1, help="Maximum number of classes per image; default: 5, or by --threshold."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="All classes with at least this probability."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.parquet", help="Write a row per image to this file; print none."
        ),
    ] = None,
    *,
    model_options: ModelOptions,
    device: Device = None,
    device_batch_size: DeviceBatchSize = 32,
    num_workers: NumWorkers = None,
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Predict the classes of images: class index, class folder, name, probability.

    Images that cannot be read are listed on stderr, and the exit code is then 3.

    [bold]Examples[/bold]

      vit21k predict runs/finetune_l16_384_in1k cat.jpg

      vit21k predict runs/tiny holiday/ images.tar --top-k 1 --json

      vit21k predict runs/l16_in21k --manifest images.parquet --threshold 0.5 --out p.parquet

      vit21k predict runs/tiny - < cat.jpg
    """
    require_torch("predict")
    from vit21k.inference.predict import predict, write_predictions

    if out is not None and out.suffix != ".parquet":
        raise UsageError(f"`{out}` must end in .parquet")
    skipped: list[Skipped] = []
    rows = images.open(skipped)
    model, card = model_options.load_classifier(run, device)
    problems: list[Path] = []
    found = predict(
        model,
        card,
        rows,
        top_k=_TOP if top_k is None and threshold is None else top_k,
        threshold=threshold or 0.0,
        device_batch_size=device_batch_size,
        num_workers=workers_or_cores(num_workers),
        precision=precision_on(model, precision),
    )
    if out is not None:
        with console.progress("predict", unit="images", total=len(rows)) as progress:
            write_predictions(out, _reported(found, problems, progress))
        if as_json:
            counts = {"num_images": len(rows), "num_problems": len(problems)}
            _print_counts(out, counts, skipped)
    elif as_json:
        console.print_json([_as_json(each) for each in _reported(found, problems)])
    else:
        _print(_reported(found, problems))
    _finish(
        f"predict: {len(rows):,} images: {len(rows) - len(problems):,} predicted, "
        f"{len(problems):,} could not be read",
        skipped,
        out,
        has_problems=bool(problems),
    )


def _print_counts(out: Path, counts: dict[str, int], skipped: "list[Skipped]") -> None:
    listed = [one._asdict() for one in skipped]
    console.print_json({"out": str(out), **counts, "skipped": listed})


def _finish(
    summary: str, skipped: "list[Skipped]", out: Path | None, *, has_problems: bool
) -> None:
    """Print *summary*; exit with 3 if images are missing from the result."""
    may_miss_images = warn_of_skipped(skipped)
    console.done(
        summary
        + (f", {len(skipped):,} entries skipped" if skipped else "")
        + (f"; `{out}`" if out else "")
    )
    if has_problems or may_miss_images:
        raise typer.Exit(errors.EXIT_BAD_DATA)


def _reported(
    predictions: "Iterable[Prediction]",
    problems: list[Path],
    progress: console.ProgressLine | None = None,
) -> "Iterator[Prediction]":
    """Yield *predictions*; warn about images that could not be read, and add them to *problems*."""
    for prediction in predictions:
        if prediction.problem:
            path = one_line(printable(prediction.path))
            console.warn(f"`{path}`: {one_line(prediction.problem)}")
            problems.append(prediction.path)
        if progress:
            progress.advance(num_problems=int(prediction.problem is not None))
        yield prediction


def _print(predictions: "Iterable[Prediction]") -> None:
    for prediction in predictions:
        if prediction.problem:
            continue
        console.print_lines(one_line(printable(prediction.path)))
        for score in prediction.top:
            name = f"  {score.name}" if score.name else ""
            console.print_lines(
                f"  {score.probability:7.4f}  {score.class_index:>6}  {score.wnid}{name}"
            )


def _as_json(prediction: "Prediction") -> dict[str, object]:
    return {
        "path": printable(prediction.path),
        "top": [score._asdict() for score in prediction.top],
        "problem": prediction.problem,
    }


def features_command(
    run: RunPath,
    images: ImageOptions,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR|FILE.parquet", help="A folder of shards, or a single file."),
    ] = Path("features"),
    kind: Annotated[
        Literal["pooled", "tokens"],
        typer.Option(help="pooled: the input of the head; tokens: all tokens of the last block."),
    ] = "pooled",
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option(help="Type of the numbers in the file.")
    ] = "float32",
    shard_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Images per shard; default: 64 MB of them, at most 4,096."),
    ] = None,
    *,
    model_options: ModelOptions,
    device: Device = None,
    device_batch_size: DeviceBatchSize = 32,
    num_workers: NumWorkers = None,
    precision: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """Write the embeddings of images to Parquet: path, label ids, features.

    An interrupted run resumes from its first missing shard when the command is repeated; the
    result is byte-identical to that of an uninterrupted run.  Images that cannot be read have no
    row; they are listed on stderr, and the exit code is then 3.

    [bold]Examples[/bold]

      vit21k features runs/l16_in21k --manifest data_manifests/val.parquet --out features

      vit21k features runs/tiny holiday/ --out holiday.parquet --dtype float16

      vit21k features runs/tiny cat.jpg --kind tokens --out cat.parquet
    """
    require_torch("features")
    from vit21k.inference.features import FeatureOptions

    skipped: list[Skipped] = []
    rows = images.open(skipped)
    model, card = model_options.load(run, device)
    options = FeatureOptions(
        kind=kind,
        dtype=dtype,
        device_batch_size=device_batch_size,
        precision=precision_on(model, precision),
        shard_rows=shard_rows,
    )
    report = _extract(model, card, rows, out, options, num_workers)
    if as_json:
        _print_counts(out, report.counts, skipped)
    resumed = f" ({report.num_resumed:,} by an earlier run)" if report.num_resumed else ""
    _finish(
        f"features: {report.num_images:,} images{resumed}: "
        f"{report.counts['num_written']:,} written, {len(report.problems):,} could not be read",
        skipped,
        out,
        has_problems=bool(report.problems),
    )


def _extract(
    model: "ImageClassifier",
    card: "ModelCard",
    rows: "ImageRows",
    out: Path,
    options: "FeatureOptions",
    num_workers: int | None,
) -> "FeatureReport":
    """Write the features to *out*, a folder of shards or a file; warn about unread images."""
    from vit21k.inference.features import extract_features, join_shards
    from vit21k.lock import locked

    is_file = out.suffix == ".parquet"
    folder = out.with_name(f".{out.name}.shards") if is_file else out
    with locked(folder, command="features"):
        with console.progress("features", unit="images", total=len(rows)) as progress:
            report = extract_features(
                model,
                card,
                rows,
                folder,
                options,
                num_workers=workers_or_cores(num_workers),
                advance=progress.advance,
            )
        if is_file:
            join_shards(report.shards, out)
    if is_file:
        shutil.rmtree(folder)
    for path, reason in report.problems:
        console.warn(f"`{one_line(path)}`: {one_line(reason)}")
    return report


def explain_command(
    run: RunPath,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image.")],
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="The image to write.")] = Path(
        "explain.png"
    ),
    *,
    model_options: ModelOptions,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Draw the attention of a model on an image, and its position embeddings, as a PNG.

    Left: the preprocessed image.  Middle: attention rollout, which multiplies the attention of all
    blocks up to the input of the head.  Right: for each patch, the cosine similarity of its
    position embedding to every other one.

    [bold]Examples[/bold]

      vit21k explain runs/finetune_l16_384_in1k cat.jpg --out cat_attention.png
    """
    require_torch("explain")
    from vit21k.atomic import write_atomic
    from vit21k.inference.explain import draw_explanation, explain
    from vit21k.inference.files import Files

    if out.suffix.lower() != ".png":
        raise UsageError(f"`{out}` must end in .png")
    model, card = model_options.load_classifier(run, device)
    try:
        found = explain(model, card, Files([image]).read_bytes(0))
    except errors.ImageError as error:
        raise errors.ImageError(f"`{printable(image)}`: {error.message}") from error
    best, rollout = found.best, found.rollout
    title = f"{printable(Path(image.name))}: {best.name or best.wnid} {best.probability:.2f}"
    write_atomic(out, draw_explanation(*found[:3], title))
    row, column = divmod(int(rollout.argmax()), rollout.shape[1])
    if as_json:
        about = {"image": printable(image), "out": str(out), "top": best._asdict()}
        console.print_json({**about, "rollout": rollout.tolist()})
    console.done(
        f"explain: `{out}`: {title}; of {rollout.size:,} patches, the one in row {row + 1}, "
        f"column {column + 1} has the highest weight"
    )


def export_command(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE|ADDRESS",
            help="A run, a checkpoint, a model folder, weights of another library, or an address.",
        ),
    ],
    to: Annotated[
        Literal[
            "timm", "transformers", "torchvision", "npz", "safetensors", "torch-export", "onnx"
        ],
        typer.Option("--to", help="The format."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A new folder; default: exports/<run>-<to>."),
    ] = None,
    *,
    model_options: ModelOptions,
    as_json: AsJson = False,
) -> None:
    """Write a model for another library: weights, classes, preprocessing, README.

    timm, transformers and torchvision load their folder themselves; npz is for Google's code; onnx
    and torch-export contain the complete computation, for any batch size.  What a format cannot
    store is refused; where its library differs in the last digits, a warning says so.

    [bold]Examples[/bold]

      vit21k export runs/finetune_l16_384_in1k --to transformers

      vit21k export ViT-L_16.npz --to timm --out vit_l16
    """
    require_torch("export")
    from vit21k.export.model import export_model

    how, choice = model_options.preprocessing(), model_options.choice()
    folder = out or Path("exports") / f"{Path(run.rstrip('/')).stem or 'model'}-{to}"
    report = export_model(local_copy(run), folder, to=to, preprocessing=how, choice=choice)
    for note in report.notes:
        console.warn(note)
    if as_json:
        about = {"folder": str(folder), "name": report.card.name, "to": to}
        console.print_json({**about, "files": report.files, "notes": report.notes})
    console.done(
        f"export: {report.card.name}, {len(report.card.classes):,} classes -> `{folder}`: "
        f"{len(report.files)} files, {sum(report.files.values()) / 1e6:,.1f} MB; "
        f"`{folder}/README.md` shows how to load it"
    )


def serve_command(
    run: RunPath,
    host: Annotated[
        str, typer.Option(help="0.0.0.0 accepts other machines too; there is no password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    max_batch_size: Annotated[
        int, typer.Option(min=1, help="Maximum number of images in one forward pass.")
    ] = 32,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, help="Time an image waits for others, to form a batch.")
    ] = 5,
    max_body_mb: Annotated[
        float, typer.Option(min=0.001, help="Maximum size of a request body.")
    ] = 10,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Maximum number of pixels of an image.")
    ] = 25_000_000,
    max_in_flight: Annotated[
        int, typer.Option(min=1, help="Images processed at a time; more get 503 (retry later).")
    ] = 128,
    *,
    model_options: ModelOptions,
    device: Device = None,
    precision: Precision = "auto",
) -> None:
    """Serve predictions over HTTP, with a page to drop an image on.

    POST /predict with an image file as the body (curl --data-binary @cat.jpg URL) returns
    {"top": [...]}, GET /health the state, and / the page.  Concurrent requests are computed as one
    batch.  A bad image gets {"error": {"kind", "message"}} and does not affect others.
    Ctrl-C stops the server.

    [bold]Examples[/bold]

      vit21k serve runs/finetune_l16_384_in1k --port 8000

      vit21k serve exports/finetune_l16_384_in1k-onnx
    """
    require_torch("serve")
    require_serving("serve", install="pip install 'vit21k[train,serve]'")
    from vit21k.serving import server
    from vit21k.serving.app import Service
    from vit21k.serving.batcher import Batcher

    listening = server.bind(host, port)
    try:
        score, card = _open(run, model_options, device, precision)
    except BaseException:
        listening.close()
        raise
    limits = server.Limits(
        max_body_bytes=int(max_body_mb * 1e6),
        max_pixels=max_pixels,
        max_in_flight=max_in_flight,
        max_connections=server.connections_that_fit(),
    )
    wait_seconds = max_wait_ms / 1000
    batcher = Batcher(score, max_batch_size=max_batch_size, max_wait_seconds=wait_seconds)
    service = Service(card, batcher, limits)
    if not server.is_loopback(host):
        console.warn(f"anyone who can reach {host} can use this server")
    address = server.address_of(listening)
    server.serve(
        service.app(),
        limits,
        listening,
        started=lambda: console.done(f"serve: `{card.path}` at {address}; Ctrl-C stops it"),
    )
    counts = service.counts
    console.done(
        f"serve: {counts.num_predicted + counts.num_refused:,} requests: "
        f"{counts.num_predicted:,} predicted, {counts.num_refused:,} refused"
    )


def _open(
    run: str, model_options: ModelOptions, device: str | None, precision: str
) -> "tuple[Score, ModelCard]":
    """Return the function that computes probabilities, and the card, of a model or ONNX export."""
    from vit21k.serving.graph import find_graph, open_graph, score_with

    if (graph := find_graph(Path(run))) is not None:
        if model_options.weights or model_options.settings:
            raise UsageError("an ONNX file has fixed weights: skip --set and --weights")
        return open_graph(graph, model_options.preprocessing())
    model, card = model_options.load_classifier(run, device)
    return score_with(model, card, precision_on(model, precision)), card


def models_command(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[show PATH]", help="Show what a checkpoint is opened as."),
    ] = None,
    img_size: Annotated[
        int | None,
        typer.Option(min=1, metavar="PIXELS", help="Image size; default: that of the model."),
    ] = None,
    formats: Annotated[
        bool, typer.Option("--formats", help="List the weight formats instead.")
    ] = False,
    *,
    model_options: ModelOptions,
    as_json: AsJson = False,
) -> None:
    """List the architectures: parameters, GMACs per image, activation memory, source, formats.

    With a head of 1,000 classes.  "MB kept" is the memory of activations of one image in float32.
    "formats" are the weight formats that `--init`, `predict`, `eval` and `export` read for the
    model.  The names are values of `model.name` in a recipe; its other fields change the sizes.

    [bold]Examples[/bold]

      vit21k models

      vit21k models --img-size 384 --json

      vit21k models --formats

      vit21k models show hf://timm/vit_large_patch16_224.augreg_in21k
    """
    if words:
        if words[0] != "show" or len(words) != 2:
            raise UsageError(
                f"`models` has no command `{' '.join(words):.60}`",
                hint="use `vit21k models show PATH`",
            )
        require_torch("models show")
        from vit21k.cli.show_model import show_model

        show_model(words[1], model_options, as_json=as_json)
        return
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
    """Return every architecture with its arguments and costs, at *img_size* or its own."""
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
        console.print_table(["format", "reads"], [[*row] for row in FORMATS.items()])
