"""`leaks`, `labels near-duplicates`, `report`, `review`, `labels apply`."""

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.next_steps import print_next, print_next_split, with_options
from vit21k.cli.options import (
    DEFAULT_MANIFESTS,
    AsJson,
    ImageRoot,
    Manifests,
    require_serving,
)
from vit21k.errors import UsageError, one_line

if TYPE_CHECKING:
    from vit21k.near.leaks import PairSummary
    from vit21k.sources.read import Root

_NUM_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class SheetOptions:
    """Options of commands that find pairs of images."""

    sheets: Annotated[
        Path | None,
        typer.Option(
            "--sheets", metavar="DIR", help="Write contact sheets of the pairs here, PNG."
        ),
    ] = None
    max_pairs: Annotated[
        int,
        typer.Option(min=1, help="Maximum number of pairs on the sheets, most certain first."),
    ] = 480
    num_workers: Annotated[
        int,
        typer.Option(min=1, help="Images read and decoded in parallel; about one per core."),
    ] = 4

    def write(self, manifests: Path, kind: str, root: str | None) -> dict[str, list[str]]:
        """Write the sheets of the *kind* manifest, if asked for; return their paths for JSON."""
        if self.sheets is None:
            return {}
        from vit21k.manifest.io import open_manifest
        from vit21k.manifest.schema import KINDS
        from vit21k.manifest.writer import refuse_inside
        from vit21k.near.sheet import PairImages, sheet_pairs, write_sheets

        manifest = open_manifest(manifests, KINDS[kind])
        header = manifest.header
        for image_root in (header.image_folder, header.options.get("against", "")):
            refuse_inside(self.sheets, image_root, option="--sheets")
        pairs = PairImages(manifest, root=root, max_pairs=self.max_pairs)
        unread: list[str] = []
        written = write_sheets(sheet_pairs(pairs), self.sheets, on_unread=unread.append)
        if unread:
            console.warn(f"{len(unread):,} images on the sheets could not be read: {unread[0]}")
        console.note(
            f"{len(pairs):,} of {manifest.num_rows:,} pairs are on {len(written):,} contact sheets "
            f"in `{self.sheets}`"
        )
        return {"sheets": [str(path) for path in written]}


def leaks_command(
    against: Annotated[
        Path,
        typer.Option(
            "--against",
            metavar="DIR|MANIFEST",
            help="The evaluation set: a folder of images, or its manifests.",
        ),
    ],
    manifests: Manifests = DEFAULT_MANIFESTS,
    root: ImageRoot = None,
    remove: Annotated[
        Literal["exact", "pixel", "near"] | None,
        typer.Option(help="Write a train manifest without leaks of this level or a surer one."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the cleaned train manifest, with --remove."),
    ] = None,
    *,
    sheets: SheetOptions,
    as_json: AsJson = False,
) -> None:
    """Find training images that are in an evaluation set: images, train -> leaks.parquet.

    At three levels: exact, the same bytes; pixel, the same pixels after decoding; near, the same
    image re-encoded, resized, cropped by up to 5 %, in grayscale, or mirrored.

    Every image is decoded once; its fingerprint is stored in fingerprints.parquet.

    [bold]Examples[/bold]

      vit21k leaks --against /data/imagenet1k/val --sheets leak_sheets

      vit21k leaks --against cifar_manifests/val.parquet

      vit21k leaks --against /data/imagenet1k/val --remove near --out clean_manifests
    """
    from vit21k.near.leaks import find_leaks
    from vit21k.near.search import num_views

    if (remove is None) != (out is None):
        raise UsageError(
            "`--remove` and `--out` go together",
            hint="for example: `--remove near --out clean_manifests`",
        )
    with (
        console.progress("leaks: images", unit="images") as progress,
        console.progress("leaks: evaluation set", unit="images") as others,
        console.progress("leaks: search", unit="views", total=num_views(within=False)) as views,
    ):
        summary = find_leaks(
            manifests,
            against,
            root=root,
            num_workers=sheets.num_workers,
            on_images=_counting(progress),
            on_others=_counting(others),
            on_view=views.advance,
        )
    result = asdict(summary)
    result["other_skipped"] = [one._asdict() for one in summary.other_skipped]
    if remove and out:
        result["removed"] = _remove(manifests, remove, out)
    result |= sheets.write(manifests, "leaks", root)
    if as_json:
        console.print_json(result)
    _report_leaks(summary)
    if not summary.is_complete:
        raise typer.Exit(errors.EXIT_BAD_DATA)
    _print_after_leaks(summary, against, out or manifests, root, is_removed=remove is not None)


def _print_after_leaks(
    summary: "PairSummary", against: Path, manifests: Path, root: "Root | None", *, is_removed: bool
) -> None:
    if is_removed or not any(summary.num_found.values()):
        print_next_split(manifests, root)
        return
    print_next(with_options("vit21k review", manifests=manifests, root=root))
    command = f"vit21k leaks --against {shlex.quote(str(against))} --remove near"
    command = with_options(command, manifests=manifests, root=root)
    out = shlex.quote(str(manifests / "without_leaks"))
    console.note(f"to remove them: `{command} --out {out}`")


def _report_leaks(summary: "PairSummary") -> None:
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
        + (f"; {num_skipped:,} entries skipped" if num_skipped else "")
    )


def near_duplicates_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    root: ImageRoot = None,
    *,
    sheets: SheetOptions,
    as_json: AsJson = False,
) -> None:
    """Find images that occur twice with different bytes: images -> near_duplicates.parquet.

    [bold]Examples[/bold]

      vit21k labels near-duplicates

      vit21k labels near-duplicates --sheets near_duplicate_sheets
    """
    from vit21k.near.leaks import find_near_duplicates
    from vit21k.near.search import num_views

    with (
        console.progress("near-duplicates: images", unit="images") as progress,
        console.progress(
            "near-duplicates: search", unit="views", total=num_views(within=True)
        ) as views,
    ):
        summary = find_near_duplicates(
            manifests,
            root=root,
            num_workers=sheets.num_workers,
            on_images=_counting(progress),
            on_view=views.advance,
        )
    result = asdict(summary) | sheets.write(manifests, "near_duplicates", root)
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
    if not summary.is_complete:
        raise typer.Exit(errors.EXIT_BAD_DATA)
    if found:
        print_next(with_options("vit21k review", manifests=manifests, root=root))
    else:
        print_next_split(manifests, root)


def _counting(progress: console.ProgressLine) -> Callable[[int, int], None]:
    def count(num_done: int, total: int) -> None:
        progress.total = total
        progress.advance(num_done)

    return count


def _levels(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {level}" for level, count in counts.items())


def _not_read(num_unread: int) -> str:
    return f", {num_unread:,} not read" if num_unread else ""


def _warn(summary: "PairSummary") -> None:
    if summary.num_problems:
        console.warn(
            f"{summary.num_problems:,} images cannot be decoded and were compared by their bytes "
            "only; column `problem` of fingerprints.parquet has the reason"
        )
    _warn_each(summary.unread, "`{}` could not be read and was not compared: {}")
    _warn_each(
        summary.other_unread,
        "`{}` of the evaluation set could not be read and was not compared: {}",
    )
    if summary.unread or summary.other_unread:
        console.note("next: rerun the same command to read them again")
    _warn_each(
        summary.other_problems, "`{}` of the evaluation set was compared by its bytes only: {}"
    )
    if summary.other_skipped:
        from vit21k.sources.folders import describe_skipped

        console.warn(f"of the evaluation set, {one_line(describe_skipped(summary.other_skipped))}")
    if summary.num_overfull:
        console.warn(
            f"{summary.num_overfull:,} fingerprint keys are shared by too many images to compare "
            "all pairs; near pairs among these may be missing"
        )


def _warn_each(reasons: dict[str, str], message: str) -> None:
    """Warn about the first files in *reasons*; *message* has a slot for path and reason."""
    for path, reason in list(reasons.items())[:_NUM_NAMED]:
        console.warn(message.format(one_line(path), one_line(reason)))
    if (more := len(reasons) - _NUM_NAMED) > 0:
        console.warn(f"and {more:,} more; all are in `--json`")


def _remove(manifests: Path, level: str, out: Path) -> dict[str, object]:
    from vit21k.near.leaks import remove_leaks
    from vit21k.near.search import MatchLevel

    summary = remove_leaks(manifests, MatchLevel(level), out)
    console.done(
        f"remove: {summary.num_before:,} training images: {summary.num_removed:,} removed, "
        f"{summary.num_left:,} in `{out / 'train.parquet'}`"
    )
    return {**asdict(summary), "num_left": summary.num_left, "out": str(out)}


def report_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page; default: report.html in the manifest folder."),
    ] = None,
    root: ImageRoot = None,
    title: Annotated[str, typer.Option(help="Title of the page.")] = "vit21k report",
    as_json: AsJson = False,
) -> None:
    """Write a page with counts, charts and images: manifests -> report.html.

    A single file of at most 5 MB that opens from disk, without network or scripts. It shows the
    manifests that exist: leaks and near-duplicates after their commands have run.

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
            "or name the current image root with `--root`"
        )
    if summary.num_unread or not summary.do_counts_add_up:
        raise typer.Exit(errors.EXIT_BAD_DATA)
    review = with_options("vit21k review", manifests=manifests, root=root)
    console.note(f"next: open it in a browser; `{review}` shows the doubtful images")


DecisionsFile = Annotated[
    Path | None,
    typer.Option(
        "--decisions",
        metavar="FILE",
        help="File of the decisions; default: decisions.jsonl in the manifest folder.",
    ),
]


def review_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    decisions: DecisionsFile = None,
    root: ImageRoot = None,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port to listen on; 0: a free one.")
    ] = 0,
) -> None:
    """Review leaks, near-duplicates and doubtful merges in a browser, by keyboard.

    The page is served to this machine only, at an address with a token. Each decision is written
    to disk before the next item is shown; Ctrl-C stops the server, and the same command resumes.

    [bold]Examples[/bold]

      vit21k review

      vit21k review --port 8021 --decisions mine.jsonl
    """
    require_serving("review")
    import secrets

    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import IMAGES
    from vit21k.manifest.writer import refuse_inside
    from vit21k.review.decisions import FILE_NAME, DecisionLog
    from vit21k.review.queue import open_queue
    from vit21k.review.server import HOST, LIMITS, ReviewSession, review_app
    from vit21k.serving.server import address_of, bind, serve

    queue = open_queue(manifests, root=root)
    path = decisions or manifests / FILE_NAME
    image_folder = open_manifest(manifests, IMAGES).header.image_folder
    refuse_inside(path.parent, image_folder, option="--decisions")
    log = DecisionLog(path)
    try:
        listening = bind(HOST, port)
        token = secrets.token_urlsafe(24)

        def show_address() -> None:
            items = ", ".join(f"{count:,} x {kind}" for kind, count in queue.counts().items())
            console.note(f"{len(queue):,} items: {items}")
            console.print_lines(f"{address_of(listening)}/{token}/")
            sys.stdout.flush()
            console.note("open that address in a browser on this machine; Ctrl-C stops the server")

        app = review_app(ReviewSession(queue, log), token, listening.getsockname()[1])
        serve(app, LIMITS, listening, started=show_address)
    finally:
        log.close()
    decided = log.counts()
    kinds = ", ".join(f"{count:,} x {kind}" for kind, count in sorted(decided.items()))
    console.done(
        f"review: {len(queue):,} items; {len(log.in_effect):,} decisions in effect on "
        f"{decided.total():,} items" + (f": {kinds}" if kinds else "")
    )
    apply = with_options("vit21k labels apply", manifests=manifests, decisions=decisions)
    print_next(f"{apply} --out {shlex.quote(str(manifests / 'reviewed'))}")


def apply_command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the new manifests.")],
    manifests: Manifests = DEFAULT_MANIFESTS,
    decisions: DecisionsFile = None,
    as_json: AsJson = False,
) -> None:
    """Apply decisions of `review`: images, decisions.jsonl -> images, changes.parquet.

    The last decision on each item counts. Dropped labels are removed, near-duplicates become one
    image with the labels of both, and leaks and images without labels are removed.

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
        f"{summary.num_confirmed:,} confirmed, "
        f"{len(summary.not_applied):,} not applied; {summary.num_before:,} images became "
        f"{summary.num_images:,}, "
        f"{summary.num_changed:,} of the old ones changed"
    )
    print_next_split(out)
    if summary.not_applied:
        raise typer.Exit(errors.EXIT_BAD_DATA)
