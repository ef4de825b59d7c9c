"""`relabel`, `make-val`: thin shells around `vit21k.prep`.

A command calls one function and reports its counts; nothing is decided here.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.classes_commands import warn_of_numbers, warn_of_part
from vit21k.cli.options import (
    DEFAULT_MANIFESTS,
    AsJson,
    Manifests,
    OnAddress,
    OnEngine,
    for_manifests,
    is_on_ray,
)

if TYPE_CHECKING:
    from vit21k.prep.ray_copies import FindCopies
    from vit21k.prep.relabel import RelabelSummary
    from vit21k.prep.split import SplitSummary

PANEL = "Prepare the data (in this order)"


def register(app: typer.Typer) -> None:
    """Add the data commands to *app*."""
    app.command("relabel", rich_help_panel=PANEL)(relabel_command)
    app.command("make-val", rich_help_panel=PANEL)(make_val_command)


def relabel_command(
    shards: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SHARD]...",
            show_default=False,
            help="What `hash --shard` wrote, all shares of it: put together first.",
        ),
    ] = None,
    manifests: Manifests = DEFAULT_MANIFESTS,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="What fixes the class indices: a known list (fall11, in1k ...), a file with one "
            "class folder per line, or another tree; default: the folders found, sorted.",
        ),
    ] = None,
    by: Annotated[
        Literal["bytes", "content"],
        typer.Option(
            help="What makes files equal: all their bytes, or those of the picture, so that copies "
            "with another comment or EXIF are merged too."
        ),
    ] = "bytes",
    max_labels: Annotated[
        int | None,
        typer.Option(
            min=1, help="Leave out pictures under more classes than this: placeholders, perhaps."
        ),
    ] = None,
    verify_bytes: Annotated[
        bool,
        typer.Option(
            "--verify-bytes",
            help="Before files are merged, compare their bytes, not only their digests.",
        ),
    ] = False,
    engine: OnEngine = "local",
    address: OnAddress = None,
    as_json: AsJson = False,
) -> None:
    """Merge files with equal content, with the labels of them all: digests -> images.parquet.

    Also written: copies.parquet, the files that were merged away; crowded.parquet, those left out
    by --max-labels; and classes.parquet.

    [bold]Examples[/bold]

      vit21k relabel

      vit21k relabel --classes fall11

      vit21k relabel --classes winter21.txt

      vit21k relabel --by content --max-labels 20

      vit21k relabel --verify-bytes

      vit21k relabel data_manifests/shards/*

      vit21k relabel --engine ray
    """
    from vit21k.manifest.class_lists import read_classes
    from vit21k.manifest.reader import open_manifest
    from vit21k.manifest.schema import IMAGES
    from vit21k.manifest.synsets import names_of
    from vit21k.prep.relabel import relabel

    asked = read_classes(classes) if classes else None
    if shards:
        from vit21k.hashing.shards import merge_shards

        num_merged = merge_shards(shards, manifests)
        console.note(f"{len(shards):,} shards hold {num_merged:,} files: digests.parquet is whole")
    if verify_bytes:
        _compare_bytes(manifests, by)
    summary = relabel(
        manifests,
        classes=asked,
        by=by,
        max_labels=max_labels,
        find_copies=_copies_on(engine, address),
        names_of=names_of,
    )
    if asked is None:
        found = open_manifest(manifests, IMAGES).classes()
        warn_of_part(found)
        warn_of_numbers(found)
    if as_json:
        console.print_json({**asdict(summary), "num_copies": summary.num_copies})
    _report_relabel(summary, manifests, is_capped=max_labels is not None)


def _copies_on(engine: str, address: str | None) -> "FindCopies | None":
    if not is_on_ray(engine, address):
        return None
    from vit21k.prep.ray_copies import copies_on_ray

    return copies_on_ray(address)


def _report_relabel(summary: "RelabelSummary", manifests: Path, *, is_capped: bool) -> None:
    from vit21k.prep.relabel import CROWDED_LABELS

    if summary.num_classes_before is not None:
        console.warn(
            "the class list was another one before "
            f"({summary.num_classes_before:,} classes, now {summary.num_classes:,}): "
            "class indices have moved, and models trained until now do not fit"
        )
    if summary.num_crowded:
        console.warn(
            f"{summary.num_crowded:,} pictures lie under more than {CROWDED_LABELS} classes each: "
            "placeholders, perhaps; look at those with the most `label_ids` in images.parquet; "
            f"`--max-labels {CROWDED_LABELS}` leaves them out"
        )
    if summary.num_classes_without_files:
        console.warn(
            f"{summary.num_classes_without_files:,} classes of the list have no files; "
            "they keep their class indices"
        )
    console.done(
        f"relabel: {summary.num_files:,} files are {summary.num_images:,} pictures "
        f"({summary.num_multi_label:,} with several labels) and {summary.num_copies:,} copies, "
        f"in {summary.num_classes:,} classes"
        + (f", {summary.num_crowded_files:,} left out" if is_capped else "")
    )
    console.note(f"next: `{for_manifests('vit21k make-val', manifests)}`")


def _compare_bytes(manifests: Path, by: str) -> None:
    from vit21k.prep.byte_compare import compare_copies

    if by != "bytes":
        raise errors.UsageError(
            "`--verify-bytes` compares files that are to be equal in all bytes",
            hint="leave out one of `--by content` and `--verify-bytes`",
        )
    num_pairs = compare_copies(manifests)
    console.note(f"{num_pairs:,} files compared with the one they are merged into: all equal")


def make_val_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    per_class: Annotated[
        int, typer.Option(min=1, help="Pictures to choose of each class, where there are so many.")
    ] = 20,
    holdout: Annotated[
        bool, typer.Option("--holdout", help="Take them out of train, with all their copies.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, max=2**64 - 1, help="Draw them by a hash of their content; default: the first."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose pictures to validate on: images.parquet -> val.parquet, train.parquet.

    Only pictures with one label are chosen.

    Without --holdout they stay in train as well, as in PLSC: a dummy split, to watch a training
    run by; its metrics are named dummy_val/...

    [bold]Examples[/bold]

      vit21k make-val

      vit21k make-val --per-class 50 --holdout --seed 0

      vit21k make-val --json | jq .short_classes
    """
    from vit21k.prep.split import make_val

    summary = make_val(manifests, per_class=per_class, holdout=holdout, seed=seed)
    if as_json:
        console.print_json(asdict(summary))
    _report_split(summary, manifests, per_class=per_class, holdout=holdout)


def _report_split(
    summary: "SplitSummary", manifests: Path, *, per_class: int, holdout: bool
) -> None:
    if summary.short_classes:
        console.warn(
            f"{len(summary.short_classes):,} classes have fewer than {per_class} pictures with one "
            f"label: {console.some(list(summary.short_classes))}; all are in `make-val --json`"
        )
    if summary.classes_without_train:
        console.warn(
            f"{len(summary.classes_without_train):,} classes have no picture left in train: "
            f"{console.some(summary.classes_without_train)}"
        )
    shared = "none in both" if holdout else f"{summary.num_val:,} in both (a dummy split)"
    console.done(
        f"make-val: {summary.num_images:,} pictures: {summary.num_train:,} in train, "
        f"{summary.num_val:,} in val, {shared}"
    )
    console.note(f"next: `{for_manifests('vit21k train --stage pretrain', manifests)}`")
