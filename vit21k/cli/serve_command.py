"""`serve`: predictions over HTTP."""

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
    Precision,
    RunPath,
    Std,
    WhichWeights,
    choice_of,
    load_classifier,
    precision_on,
    preprocessing,
)
from vit21k.cli.requires import require_serving, require_torch
from vit21k.errors import UsageError

if TYPE_CHECKING:
    from vit21k.checkpoint.foreign import WeightsChoice
    from vit21k.checkpoint.model_folder import ModelCard
    from vit21k.checkpoint.preprocessing import Preprocessing
    from vit21k.serving.batcher import Score


def register(app: typer.Typer) -> None:
    """Add the command to *app*."""
    app.command("serve", rich_help_panel=PANEL)(serve_command)


def serve_command(
    run: RunPath,
    host: Annotated[
        str, typer.Option(help="0.0.0.0 answers other machines too: there is no password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8000,
    max_batch_size: Annotated[
        int, typer.Option(min=1, help="The most pictures in one forward pass.")
    ] = 32,
    max_wait_ms: Annotated[
        float, typer.Option(min=0, help="How long a picture waits for others to join it.")
    ] = 5,
    max_body_mb: Annotated[
        float, typer.Option(min=0.001, help="The largest file that is taken.")
    ] = 10,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="The most pixels of a picture.")
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
    """Answer predictions over HTTP, with a page to drop a picture on.

    POST /predict with a picture's file as the body (curl --data-binary @cat.jpg URL) gives
    {"top": [...]}, GET /health how it goes, and / is the page.  Pictures that come at the same
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
            raise UsageError("an ONNX file is computed as it is: leave out --set and --weights")
        return open_graph(graph, how)
    model, card = load_classifier(run, device, how, choice)
    return score_with(model, card, precision_on(model, precision)), card
