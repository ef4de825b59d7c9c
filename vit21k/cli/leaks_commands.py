"""`leaks`, `labels near-duplicates`: pictures that are the same, in two sets or in one."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.data_commands import PANEL
from vit21k.cli.options import DEFAULT_MANIFESTS, AsJson, ImageRoot, Manifests
from vit21k.errors import UsageError
from vit21k.one_line import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from vit21k.near.leaks import PairSummary

_NUM_NAMED = 5

NumWorkers = Annotated[
    int, typer.Option(min=1, help="Pictures read and decoded at a time; about the number of cores.")
]
Sheets = Annotated[
    Path | None,
    typer.Option("--sheets", metavar="DIR", help="Write contact sheets of the pairs here, PNG."),
]
MaxPairs = Annotated[
    int, typer.Option(min=1, help="Pairs on the contact sheets at most, the surest first.")
]


def register(app: typer.Typer) -> None:
    """Add `leaks` to *app*."""
    app.command("leaks", rich_help_panel=PANEL)(leaks_command)


def register_labels(labels: typer.Typer) -> None:
    """Add `near-duplicates` to the `labels` commands."""
    labels.command("near-duplicates")(near_duplicates_command)


def leaks_command(
    against: Annotated[
        Path,
        typer.Option(
            "--against",
            metavar="DIR|MANIFEST",
            help="The evaluation set: a folder of pictures, or manifests of one.",
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
    """Find training pictures that are in an evaluation set: images, train -> leaks.parquet.

    At three levels: exact, the same bytes; pixel, the same pixels after decoding; near, the same
    picture encoded anew, resized, cropped by up to 5 %, in grey, or mirrored.

    Every picture is decoded once; what it is compared by is kept in fingerprints.parquet.

    [bold]Examples[/bold]

      vit21k leaks --against /data/imagenet1k/val --sheets leak_sheets

      vit21k leaks --against cifar_manifests/val.parquet

      vit21k leaks --against /data/imagenet1k/val --remove near --out clean_manifests
    """
    from vit21k.near.find import num_views
    from vit21k.near.leaks import find_leaks

    _check_remove(remove, out)
    with (
        console.progress("leaks: pictures", unit="pictures") as pictures,
        console.progress("leaks: evaluation set", unit="pictures") as others,
        console.progress("leaks: search", unit="views") as views,
    ):
        views.total = num_views(within=False)
        summary = find_leaks(
            manifests,
            against,
            root=root,
            num_workers=num_workers,
            on_pictures=_counting(pictures),
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
        f"leaks: {summary.num_pictures:,} training pictures: {found:,} in the evaluation set "
        f"({_levels(summary.num_found)}), "
        f"{summary.num_pictures - found - len(summary.unread):,} not"
        f"{_not_read(len(summary.unread))}; "
        f"{others_found:,} of its {summary.num_others:,} pictures are in train"
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
    """Find pictures that occur twice but for their bytes: images -> near_duplicates.parquet.

    [bold]Examples[/bold]

      vit21k labels near-duplicates

      vit21k labels near-duplicates --sheets near_duplicate_sheets
    """
    from vit21k.near.find import num_views
    from vit21k.near.leaks import find_near_duplicates

    with (
        console.progress("near-duplicates: pictures", unit="pictures") as pictures,
        console.progress("near-duplicates: search", unit="views") as views,
    ):
        views.total = num_views(within=True)
        summary = find_near_duplicates(
            manifests,
            root=root,
            num_workers=num_workers,
            on_pictures=_counting(pictures),
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
        f"near-duplicates: {summary.num_pictures:,} pictures: {found:,} occur again "
        f"({_levels(summary.num_found)}) in {sum(summary.num_pairs.values()):,} pairs, "
        f"{summary.num_pictures - found - len(summary.unread):,} do not"
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
            f"{summary.num_problems:,} pictures cannot be decoded and were compared by their bytes "
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
        from vit21k.hashing.folder import in_words

        console.warn(f"of the evaluation set, {one_line(in_words(summary.other_skipped))}")
    if summary.num_crowded:
        console.warn(
            f"{summary.num_crowded:,} times too many pictures looked nearly the same to compare "
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
    from vit21k.near.find import Level
    from vit21k.near.remove import remove_leaks

    summary = remove_leaks(manifests, Level(level), out)
    console.done(
        f"remove: {summary.num_before:,} training pictures: {summary.num_removed:,} removed, "
        f"{summary.num_left:,} in `{out / 'train.parquet'}`"
    )
    return {**asdict(summary), "num_left": summary.num_left, "out": str(out)}


def _sheets(
    manifests: Path, kind: str, folder: Path, root: Path | None, max_pairs: int
) -> list[str]:
    from vit21k.hashing.places import refuse_inside
    from vit21k.manifest.reader import open_manifest
    from vit21k.manifest.schema import KINDS
    from vit21k.near.pair_pictures import PairPictures
    from vit21k.near.sheet import sheet_pairs, write_sheets

    manifest = open_manifest(manifests, KINDS[kind])
    for image_root in (manifest.header.root, manifest.header.options.get("against", "")):
        refuse_inside(folder, image_root, option="--sheets")
    pairs = PairPictures(manifest, root=root, max_pairs=max_pairs)
    unread: list[str] = []
    written = write_sheets(sheet_pairs(pairs), folder, on_unread=unread.append)
    if unread:
        console.warn(f"{len(unread):,} images on the sheets could not be read: {unread[0]}")
    console.note(
        f"{len(pairs):,} of {manifest.num_rows:,} pairs are on {len(written):,} contact sheets "
        f"in `{folder}`"
    )
    return [str(path) for path in written]
