"""`review`, `labels apply`: decide by eye, and make new manifests of what was decided."""

import secrets
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.data_commands import PANEL
from vit21k.cli.options import DEFAULT_MANIFESTS, AsJson, ImageRoot, Manifests, for_manifests
from vit21k.cli.requires import require_serving
from vit21k.one_line import one_line

_NUM_NAMED = 5

DecisionsFile = Annotated[
    Path | None,
    typer.Option(
        "--decisions",
        metavar="FILE",
        help="Where decisions are kept; default: decisions.jsonl beside the manifests.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add `review` to *app*."""
    app.command("review", rich_help_panel=PANEL)(review_command)


def register_labels(labels: typer.Typer) -> None:
    """Add `apply` to the `labels` commands."""
    labels.command("apply")(apply_command)


def review_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    decisions: DecisionsFile = None,
    root: ImageRoot = None,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="To listen on; 0: any that is free.")
    ] = 0,
) -> None:
    """Go through leaks, near-duplicates and doubtful merges in a browser, by keyboard.

    The page is served to this machine alone, at an address with a token. Each decision is on disk
    before the page goes on; Ctrl-C ends it, and the same command goes on where it stopped.

    [bold]Examples[/bold]

      vit21k review

      vit21k review --port 8021 --decisions mine.jsonl
    """
    require_serving("review")
    from vit21k.hashing.places import refuse_inside
    from vit21k.manifest.reader import open_manifest
    from vit21k.manifest.schema import IMAGES
    from vit21k.review.decisions import FILE_NAME, DecisionLog
    from vit21k.review.queue import open_queue
    from vit21k.review.server import HOST, LIMITS, review_app
    from vit21k.review.session import ReviewSession
    from vit21k.serving.server import address_of, bind, serve

    queue = open_queue(manifests, root=root)
    path = decisions or manifests / FILE_NAME
    refuse_inside(path.parent, open_manifest(manifests, IMAGES).header.root, option="--decisions")
    log = DecisionLog(path)
    try:
        listening = bind(HOST, port)
        token = secrets.token_urlsafe(24)

        def show_address() -> None:
            items = ", ".join(f"{count:,} x {kind}" for kind, count in queue.counts().items())
            console.note(f"{len(queue):,} items: {items}")
            console.print_lines(f"{address_of(listening)}/{token}/")
            sys.stdout.flush()
            console.note("open that address in a browser on this machine; Ctrl-C ends it")

        app = review_app(ReviewSession(queue, log), token, listening.getsockname()[1])
        serve(app, LIMITS, listening, started=show_address)
    finally:
        log.close()
    decided = log.counts()
    kinds = ", ".join(f"{count:,} x {kind}" for kind, count in sorted(decided.items()))
    console.done(
        f"review: {len(queue):,} items; {len(log.standing):,} decisions stand on "
        f"{decided.total():,} items" + (f": {kinds}" if kinds else "")
    )
    console.note(f"next: `{for_manifests('vit21k labels apply --out DIR', manifests)}`")


def apply_command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the new manifests go.")],
    manifests: Manifests = DEFAULT_MANIFESTS,
    decisions: DecisionsFile = None,
    as_json: AsJson = False,
) -> None:
    """Make new manifests of what was decided: images, decisions.jsonl -> images, changes.parquet.

    The last decision on each item counts. Dropped labels go, near-duplicates become one image
    with the labels of both, and leaks and images without any label left are removed.

    [bold]Examples[/bold]

      vit21k labels apply --out reviewed_manifests
    """
    from vit21k.review.apply import apply_decisions
    from vit21k.review.decisions import FILE_NAME

    summary = apply_decisions(manifests, decisions or manifests / FILE_NAME, out)
    if as_json:
        console.print_json(asdict(summary))
    for path, problem in summary.not_applied[:_NUM_NAMED]:
        console.warn(f"not applied to `{path}`: {problem}")
    if (more := len(summary.not_applied) - _NUM_NAMED) > 0:
        console.warn(f"and {more:,} more; all are in `--json`")
    if summary.unlabelled:
        named = ", ".join(f"`{one_line(path)}`" for path in summary.unlabelled[:_NUM_NAMED])
        console.warn(
            f"{len(summary.unlabelled):,} images are removed, as all of their labels were dropped: "
            f"{named}{' ...' if len(summary.unlabelled) > _NUM_NAMED else ''}"
        )
    console.done(
        f"apply: {summary.num_decisions:,} decisions: {summary.num_applied:,} applied, "
        f"{summary.num_confirmed:,} confirm what is there, "
        f"{len(summary.not_applied):,} not applied; {summary.num_before:,} pictures became "
        f"{summary.num_images:,}, "
        f"{summary.num_changed:,} of the old ones changed"
    )
    console.note(f"next: `vit21k make-val --manifests {out}`")
    if summary.not_applied:
        raise typer.Exit(errors.EXIT_BAD_DATA)
