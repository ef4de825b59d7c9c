"""`pack`: a thin shell around `vit21k.pack.build`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.classes_commands import PANEL
from vit21k.cli.options import DEFAULT_MANIFESTS, AsJson, ImageRoot, Manifests
from vit21k.errors import UsageError
from vit21k.machine import num_threads

if TYPE_CHECKING:
    from vit21k.pack.build import PackSummary
    from vit21k.pack.levels import Level

_QUALITY = 90
_WHICH_LEVEL = "`--lossless`, `--short-side 256`, or `--raw --short-side 256`"


def register(app: typer.Typer) -> None:
    """Add `pack` to *app*."""
    app.command("pack", rich_help_panel=PANEL)(pack_command)


def pack_command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the pack goes.")],
    lossless: Annotated[
        bool,
        typer.Option(
            "--lossless",
            help="JPEGs get restart markers, so that a crop decodes only what it needs; every "
            "pixel stays as it is.",
        ),
    ] = False,
    short_side: Annotated[
        int | None, typer.Option(min=8, max=8192, help="Make larger pictures this size.")
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Of the JPEGs that --short-side makes; default: 90."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="RGB pixels instead of JPEGs: nothing to decode.")
    ] = False,
    manifests: Manifests = DEFAULT_MANIFESTS,
    root: ImageRoot = None,
    name: Annotated[str, typer.Option(help="What the names of the shards begin with.")] = (
        "imagenet21k"
    ),
    per_shard: Annotated[int, typer.Option(min=1, help="Pictures of a shard.")] = 5000,
    seed: Annotated[int, typer.Option(min=0, help="Of the order in the shards.")] = 0,
    keep_order: Annotated[
        bool, typer.Option("--keep-order", help="Order of the manifests, by class: not shuffled.")
    ] = False,
    keep_metadata: Annotated[
        bool,
        typer.Option("--keep-metadata", help="With --lossless: EXIF, colour profiles, comments."),
    ] = False,
    num_workers: Annotated[
        int | None, typer.Option(min=1, help="Pictures prepared at a time; default: the cores.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove the pack that is there, and start over.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the pictures into shards for fast reading: train.parquet, val.parquet -> DIR.

    Shards are tars that webdataset and timm read in order; train.parquet and val.parquet in DIR
    read them at random: `vit21k train --manifests DIR`. A run that was killed goes on behind the
    last finished shard. Pictures that cannot be decoded are listed in left_out.parquet; the exit
    code is then 3.

    [bold]Examples[/bold]

      vit21k pack --lossless --out in21k_pack

      vit21k pack --short-side 256 --quality 90 --out in21k_256

      vit21k pack --raw --short-side 256 --out in21k_raw

      vit21k verify --manifests in21k_pack --decode
    """
    from vit21k.pack.build import PackOptions, pack

    level = _level(lossless, short_side, quality, raw=raw, keep_metadata=keep_metadata)
    options = PackOptions(
        name=name,
        per_shard=per_shard,
        seed=None if keep_order else seed,
        num_workers=num_workers or num_threads(),
        fresh=fresh,
    )
    with console.progress("pack", unit="pictures") as progress:
        summary = pack(
            manifests,
            out,
            level,
            options,
            root=root,
            on_start=lambda total: setattr(progress, "total", total),
            on_picture=lambda num_bytes, is_left_out: progress.advance(
                num_bytes=num_bytes, num_problems=is_left_out
            ),
            note=console.note,
        )
    if as_json:
        console.print_json(asdict(summary))
    _report(summary, out)
    if summary.num_left_out:
        raise typer.Exit(errors.EXIT_BAD_DATA)


def _level(
    lossless: bool, short_side: int | None, quality: int | None, *, raw: bool, keep_metadata: bool
) -> "Level":
    from vit21k.jpeg.compiled_recode import compiled_recoder
    from vit21k.pack.levels import Lossless, Raw, Resized

    _refuse_contradictions(lossless, short_side, quality, raw=raw, keep_metadata=keep_metadata)
    if raw and short_side is not None:
        return Raw(short_side)
    recode = compiled_recoder()
    if short_side is not None:
        return Resized(recode, short_side, _QUALITY if quality is None else quality)
    return Lossless(recode, keep_metadata)


def _refuse_contradictions(
    lossless: bool, short_side: int | None, quality: int | None, *, raw: bool, keep_metadata: bool
) -> None:
    if not lossless and short_side is None:
        raise UsageError("which level?", hint=_WHICH_LEVEL)
    if lossless and (raw or short_side is not None):
        raise UsageError("`--lossless` changes no pixel", hint=f"one of {_WHICH_LEVEL}")
    if quality is not None and (raw or short_side is None):
        raise UsageError("`--quality` is for `--short-side` without `--raw`")
    if keep_metadata and not lossless:
        raise UsageError("`--keep-metadata` is for `--lossless`")


def _report(summary: "PackSummary", out: Path) -> None:
    for note, count in summary.notes.items():
        console.note(f"{count:,} pictures stay as they are: {note}")
    if summary.num_left_out:
        kinds = ", ".join(f"{count:,} x {kind}" for kind, count in summary.left_out.items())
        console.warn(
            f"{summary.num_left_out:,} pictures are left out: {kinds}; listed in "
            f"`{out / 'left_out.parquet'}`"
        )
    if summary.num_shards_kept:
        console.note(f"{summary.num_shards_kept:,} shards were finished by an earlier run")
    counts = ", ".join(f"{count:,} {form}" for form, count in sorted(summary.forms.items()))
    share = summary.total_bytes / max(summary.source_bytes, 1)
    console.done(
        f"pack: {summary.num_pictures:,} pictures: {counts or 'none packed'}, "
        f"{summary.num_left_out:,} left out; {summary.num_shards:,} shards of "
        f"{summary.total_bytes / 1e6:,.0f} MB, {share:.3f} times the files"
    )
    if summary.has_val:
        console.note(f"next: `vit21k train --manifests {out}`; `vit21k verify --manifests {out}`")
    else:
        console.note(f"next: `vit21k verify --manifests {out}`")
