"""`leaks`, `labels near-duplicates`, `report`, `review`, `labels apply`."""

import secrets
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.options import (
    DEFAULT_MANIFESTS,
    PREPARE_PANEL,
    AsJson,
    ImageRoot,
    Manifests,
    for_manifests,
    require_serving,
)
from vit21k.errors import UsageError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from vit21k.near.leaks import PairSummary

_NUM_NAMED = 5

NumWorkers = Annotated[
    int, typer.Option(min=1, help="Images read and decoded at a time; about the number of cores.")
]
Sheets = Annotated[
    Path | None,
    typer.Option("--sheets", metavar="DIR", help="Write contact sheets of the pairs here, PNG."),
]
MaxPairs = Annotated[
    int, typer.Option(min=1, help="Pairs on the contact sheets at most, the surest first.")
]


def register_leaks(app: typer.Typer) -> None:
    """Add `leaks` to *app*."""
    app.command("leaks", rich_help_panel=PREPARE_PANEL)(leaks_command)


def register_near_duplicates(labels: typer.Typer) -> None:
    """Add `near-duplicates` to the `labels` commands."""
    labels.command("near-duplicates")(near_duplicates_command)


def leaks_command(
    against: Annotated[
        Path,
        typer.Option(
            "--against",
            metavar="DIR|MANIFEST",
            help="The evaluation set: a folder of images, or manifests of one.",
        ),
    ],
    manifests: Manifests = DEFAULT_MANIFESTS,
    root: ImageRoot = None,
    remove: Annotated[
        Literal["exact", "pixel", "near"] | None,
        typer.Option(help="Write a train manifest without what leaks, at this level or surer."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the cleaned train manifest goes, with --remove."),
    ] = None,
    sheets: Sheets = None,
    max_pairs: MaxPairs = 480,
    num_workers: NumWorkers = 4,
    as_json: AsJson = False,
) -> None:
    """Find training images that are in an evaluation set: images, train -> leaks.parquet.

    At three levels: exact, the same bytes; pixel, the same pixels after decoding; near, the same
    image encoded anew, resized, cropped by up to 5 %, in grey, or mirrored.

    Every image is decoded once; what it is compared by is kept in fingerprints.parquet.

    [bold]Examples[/bold]

      vit21k leaks --against /data/imagenet1k/val --sheets leak_sheets

      vit21k leaks --against cifar_manifests/val.parquet

      vit21k leaks --against /data/imagenet1k/val --remove near --out clean_manifests
    """
    from vit21k.near.leaks import find_leaks
    from vit21k.near.search import num_views

    _check_remove(remove, out)
    with (
        console.progress("leaks: images", unit="images") as progress,
        console.progress("leaks: evaluation set", unit="images") as others,
        console.progress("leaks: search", unit="views") as views,
    ):
        views.total = num_views(within=False)
        summary = find_leaks(
            manifests,
            against,
            root=root,
            num_workers=num_workers,
            on_images=_counting(progress),
            on_others=_counting(others),
            on_view=views.advance,
        )
    result = asdict(summary)
    result["other_skipped"] = [one._asdict() for one in summary.other_skipped]
    if remove and out:
        result["removed"] = _remove(manifests, remove, out)
    if sheets:
        result["sheets"] = _sheets(manifests, "leaks", sheets, root, max_pairs)
    if as_json:
        console.print_json(result)
    _report_leaks(summary, is_removed=remove is not None)
    if not summary.is_complete:
        raise typer.Exit(errors.EXIT_BAD_DATA)


def _check_remove(remove: str | None, out: Path | None) -> None:
    if (remove is None) != (out is None):
        raise UsageError(
            "`--remove` and `--out` go together",
            hint="for example: `--remove near --out clean_manifests`",
        )


def _report_leaks(summary: "PairSummary", *, is_removed: bool) -> None:
    _warn(summary)
    num_skipped = len(summary.other_skipped)
    found, others_found = sum(summary.num_found.values()), sum(summary.num_others_found.values())
    console.done(
        f"leaks: {summary.num_images:,} training images: {found:,} in the evaluation set "
        f"({_levels(summary.num_found)}), "
        f"{summary.num_images - found - len(summary.unread):,} not"
        f"{_not_read(len(summary.unread))}; "
        f"{others_found:,} of its {summary.num_others:,} images are in train"
        f"{_not_read(len(summary.other_unread))}"
        + (f"; {num_skipped:,} entries not looked at" if num_skipped else "")
    )
    if not is_removed and found:
        console.note(
            "next: look at them with `--sheets DIR` or `vit21k review`; "
            "`--remove near --out DIR` leaves them out"
        )


def near_duplicates_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    root: ImageRoot = None,
    sheets: Sheets = None,
    max_pairs: MaxPairs = 480,
    num_workers: NumWorkers = 4,
    as_json: AsJson = False,
) -> None:
    """Find images that occur twice but for their bytes: images -> near_duplicates.parquet.

    [bold]Examples[/bold]

      vit21k labels near-duplicates

      vit21k labels near-duplicates --sheets near_duplicate_sheets
    """
    from vit21k.near.leaks import find_near_duplicates
    from vit21k.near.search import num_views

    with (
        console.progress("near-duplicates: images", unit="images") as progress,
        console.progress("near-duplicates: search", unit="views") as views,
    ):
        views.total = num_views(within=True)
        summary = find_near_duplicates(
            manifests,
            root=root,
            num_workers=num_workers,
            on_images=_counting(progress),
            on_view=views.advance,
        )
    result = asdict(summary)
    if sheets:
        result["sheets"] = _sheets(manifests, "near_duplicates", sheets, root, max_pairs)
    if as_json:
        console.print_json(result)
    _warn(summary)
    found = sum(summary.num_found.values())
    console.done(
        f"near-duplicates: {summary.num_images:,} images: {found:,} occur again "
        f"({_levels(summary.num_found)}) in {sum(summary.num_pairs.values()):,} pairs, "
        f"{summary.num_images - found - len(summary.unread):,} do not"
        f"{_not_read(len(summary.unread))}"
    )
    if found:
        console.note("next: look at them with `--sheets DIR` or `vit21k review`")
    if not summary.is_complete:
        raise typer.Exit(errors.EXIT_BAD_DATA)


def _counting(progress: console.Progress) -> "Callable[[int, int], None]":
    def count(num_done: int, total: int) -> None:
        progress.total = total
        progress.advance(num_done)

    return count


def _levels(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {level}" for level, count in counts.items())


def _warn(summary: "PairSummary") -> None:
    if summary.num_problems:
        console.warn(
            f"{summary.num_problems:,} images cannot be decoded and were compared by their bytes "
            "only; column `problem` of fingerprints.parquet says why"
        )
    _warn_of(summary.unread, "`{}` could not be read and was not compared: {}")
    _warn_of(
        summary.other_unread,
        "`{}` of the evaluation set could not be read and was not compared: {}",
    )
    if summary.unread or summary.other_unread:
        console.note("next: the same command reads them again")
    _warn_of(
        summary.other_problems, "`{}` of the evaluation set was compared by its bytes only: {}"
    )
    if summary.other_skipped:
        from vit21k.sources.folders import in_words

        console.warn(f"of the evaluation set, {one_line(in_words(summary.other_skipped))}")
    if summary.num_overfull:
        console.warn(
            f"{summary.num_overfull:,} times too many images looked nearly the same to compare "
            "each with each; near pairs among them may be missing"
        )


def _warn_of(reasons: dict[str, str], words: str) -> None:
    """Warn of the first files in *reasons*, in *words* with room for path and reason."""
    for path, reason in list(reasons.items())[:_NUM_NAMED]:
        console.warn(words.format(one_line(path), one_line(reason)))
    if (more := len(reasons) - _NUM_NAMED) > 0:
        console.warn(f"and {more:,} more; all are in `--json`")


def _not_read(num_unread: int) -> str:
    return f", {num_unread:,} not read" if num_unread else ""


def _remove(manifests: Path, level: str, out: Path) -> dict[str, object]:
    from vit21k.near.leaks import remove_leaks
    from vit21k.near.search import Level

    summary = remove_leaks(manifests, Level(level), out)
    console.done(
        f"remove: {summary.num_before:,} training images: {summary.num_removed:,} removed, "
        f"{summary.num_left:,} in `{out / 'train.parquet'}`"
    )
    return {**asdict(summary), "num_left": summary.num_left, "out": str(out)}


def _sheets(
    manifests: Path, kind: str, folder: Path, root: Path | None, max_pairs: int
) -> list[str]:
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import KINDS
    from vit21k.manifest.writer import refuse_inside
    from vit21k.near.sheet import PairImages, sheet_pairs, write_sheets

    manifest = open_manifest(manifests, KINDS[kind])
    for image_root in (manifest.header.root, manifest.header.options.get("against", "")):
        refuse_inside(folder, image_root, option="--sheets")
    pairs = PairImages(manifest, root=root, max_pairs=max_pairs)
    unread: list[str] = []
    written = write_sheets(sheet_pairs(pairs), folder, on_unread=unread.append)
    if unread:
        console.warn(f"{len(unread):,} images on the sheets could not be read: {unread[0]}")
    console.note(
        f"{len(pairs):,} of {manifest.num_rows:,} pairs are on {len(written):,} contact sheets "
        f"in `{folder}`"
    )
    return [str(path) for path in written]


def register_report(app: typer.Typer) -> None:
    """Add `report` to *app*."""
    app.command("report", rich_help_panel=PREPARE_PANEL)(report_command)


def report_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page; default: report.html beside the manifests."),
    ] = None,
    root: ImageRoot = None,
    title: Annotated[str, typer.Option(help="Of the page.")] = "vit21k report",
    as_json: AsJson = False,
) -> None:
    """Show what was found, in numbers, charts and images: manifests -> report.html.

    One file of at most 5 MB that opens from disk, without network or scripts. It is made of what is
    there: leaks and near-duplicates are shown once they have been looked for.

    [bold]Examples[/bold]

      vit21k report

      vit21k report --manifests in21k_manifests --out in21k.html --title "ImageNet-21K, fall 2011"
    """
    from vit21k.report.page import write_report

    summary = write_report(manifests, out or manifests / "report.html", root=root, title=title)
    if as_json:
        console.print_json(asdict(summary))
    console.done(
        f"report: {summary.num_images:,} images, {summary.num_groups:,} under several classes "
        f"({summary.num_groups_shown:,} shown, "
        f"{summary.num_groups - summary.num_groups_shown:,} not), in `{summary.path}` "
        f"({summary.num_bytes / 1e6:.2f} MB)"
    )
    if not summary.do_counts_add_up:
        console.warn("the counts of the manifests do not add up; the page shows which")
    if summary.num_unread:
        console.warn(
            f"{summary.num_unread:,} images could not be read and are not shown: mount their disk, "
            "or say where the image tree is now with `--root`"
        )
    if summary.num_unread or not summary.do_counts_add_up:
        raise typer.Exit(errors.EXIT_BAD_DATA)
    review = for_manifests("vit21k review", manifests)
    console.note(f"next: open it in a browser; `{review}` goes through the doubtful ones")


DecisionsFile = Annotated[
    Path | None,
    typer.Option(
        "--decisions",
        metavar="FILE",
        help="Where decisions are kept; default: decisions.jsonl beside the manifests.",
    ),
]


def register_review(app: typer.Typer) -> None:
    """Add `review` to *app*."""
    app.command("review", rich_help_panel=PREPARE_PANEL)(review_command)


def register_labels_apply(labels: typer.Typer) -> None:
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
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import IMAGES
    from vit21k.manifest.writer import refuse_inside
    from vit21k.review.decisions import FILE_NAME, DecisionLog
    from vit21k.review.queue import open_queue
    from vit21k.review.server import HOST, LIMITS, ReviewSession, review_app
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
        f"{len(summary.not_applied):,} not applied; {summary.num_before:,} images became "
        f"{summary.num_images:,}, "
        f"{summary.num_changed:,} of the old ones changed"
    )
    console.note(f"next: `vit21k make-val --manifests {out}`")
    if summary.not_applied:
        raise typer.Exit(errors.EXIT_BAD_DATA)
