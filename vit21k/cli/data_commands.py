"""`hash`, `relabel`, `make-val`: thin shells around `vit21k.prep`.

A command calls one function and reports its counts; nothing is decided here.
"""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.classes_commands import warn_of_part
from vit21k.cli.options import DEFAULT_MANIFESTS, AsJson, Manifests

if TYPE_CHECKING:
    from vit21k.prep.hashing import HashSummary
    from vit21k.prep.split import SplitSummary

PANEL = "Prepare the data (in this order)"

_NUM_NAMED = 10
_WNID = re.compile(r"n\d{8}")


def register(app: typer.Typer) -> None:
    """Add the data commands to *app*."""
    app.command("hash", rich_help_panel=PANEL)(hash_command)
    app.command("relabel", rich_help_panel=PANEL)(relabel_command)
    app.command("make-val", rich_help_panel=PANEL)(make_val_command)


def hash_command(
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="The image tree; it is never written to.")
    ],
    manifests: Manifests = DEFAULT_MANIFESTS,
    algorithm: Annotated[
        Literal["xxh3_128", "md5", "blake2b_128"],
        typer.Option(help="What digests are made with: fast, known everywhere, or unforgeable."),
    ] = "xxh3_128",
    num_workers: Annotated[
        int, typer.Option(min=1, help="Files read at a time; on a network disk, try 64.")
    ] = 16,
    follow_symlinks: Annotated[
        bool, typer.Option("--follow-symlinks", help="Read what symbolic links lead to.")
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Read only the I-th of N shares of the folders; other machines read the others.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read every image once: ROOT -> digests.parquet, problems.parquet.

    The class of an image is the name of the folder it lies in, at any depth.

    Files that cannot be used are listed and do not stop the run; the exit code is then 3.

    [bold]Examples[/bold]

      vit21k hash /data/ImageNet21K

      vit21k hash /data/ImageNet21K --manifests in21k_manifests --num-workers 64

      vit21k hash /data/ImageNet21K --algorithm md5 --json > hash.json

      vit21k hash /data/ImageNet21K --shard 3/8
    """
    from vit21k.prep.hashing import hash_tree
    from vit21k.prep.shards import Shard

    share = Shard.parse(shard) if shard else None
    with console.progress("hash") as progress:
        summary = hash_tree(
            root,
            manifests,
            algorithm=algorithm,
            num_workers=num_workers,
            follow_symlinks=follow_symlinks,
            shard=share,
            on_chunk=lambda chunk: progress.advance(
                len(chunk.files),
                num_bytes=chunk.num_bytes,
                num_problems=chunk.num_bad,
                fraction=chunk.fraction,
            ),
        )
    if as_json:
        console.print_json(_hash_result(summary))
    if share:
        _report_hash(summary, share.folder(manifests), next_command=_after_shards(manifests))
    else:
        _report_hash(summary, manifests)
    if summary.num_bad:
        raise typer.Exit(errors.EXIT_BAD_DATA)


def _hash_result(summary: "HashSummary") -> dict[str, object]:
    return {
        "num_entries": summary.num_entries,
        "num_files": summary.num_files,
        "num_bytes": summary.num_bytes,
        "num_classes": len(summary.wnids),
        "num_bad": summary.num_bad,
        "num_left_out": summary.num_left_out,
        "problems": {str(kind): count for kind, count in sorted(summary.problems.items())},
    }


def _after_shards(manifests: Path) -> str:
    return f"vit21k relabel {manifests / 'shards'}/*"


def _report_hash(
    summary: "HashSummary", manifests: Path, *, next_command: str = "vit21k relabel"
) -> None:
    for kind, count in sorted(summary.problems.items()):
        say = console.note if kind.is_left_out else console.warn
        say(f"{count:,} x {kind}: {kind.doc}")
    _warn_of_odd_folders(summary.wnids)
    if summary.problems:
        console.note(f"listed in `{manifests / 'problems.parquet'}`")
    console.done(
        f"hash: {summary.num_entries:,} entries: "
        f"{summary.num_files:,} files in {len(summary.wnids):,} classes "
        f"({_size(summary.num_bytes)}), "
        f"{summary.num_bad:,} bad, {summary.num_left_out:,} left out"
    )
    console.note(f"next: `{next_command}`")


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


def _warn_of_odd_folders(wnids: set[str]) -> None:
    """Point at folders that are not named like the others: each would be a class of its own."""
    odd = sorted(wnid for wnid in wnids if not _WNID.fullmatch(wnid))
    if odd and len(odd) * 10 <= len(wnids):
        console.warn(
            f"{_some(odd)} will be classes, though not named like the other "
            f"{len(wnids) - len(odd):,} (n01440764 ...)"
        )


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
    as_json: AsJson = False,
) -> None:
    """Merge files with equal content, with the labels of them all: digests -> images.parquet.

    Also written: copies.parquet, the files that were merged away, and classes.parquet.

    [bold]Examples[/bold]

      vit21k relabel

      vit21k relabel --classes fall11

      vit21k relabel --classes winter21.txt

      vit21k relabel data_manifests/shards/*
    """
    from vit21k.manifest.class_lists import read_classes
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import IMAGES
    from vit21k.manifest.synsets import names_of
    from vit21k.prep.relabel import CROWDED_LABELS, relabel

    asked = read_classes(classes) if classes else None
    if shards:
        from vit21k.prep.shards import merge_shards

        num_merged = merge_shards(shards, manifests)
        console.note(f"{len(shards):,} shards hold {num_merged:,} files: digests.parquet is whole")
    summary = relabel(manifests, classes=asked, names_of=names_of)
    if asked is None:
        warn_of_part(open_manifest(manifests, IMAGES).classes())
    if summary.num_classes_before is not None:
        console.warn(
            "the class list was another one before "
            f"({summary.num_classes_before:,} classes, now {summary.num_classes:,}): "
            "class indices have moved, and models trained until now do not fit"
        )
    if summary.num_crowded:
        console.warn(
            f"{summary.num_crowded:,} pictures lie under more than {CROWDED_LABELS} classes each: "
            "placeholders, perhaps; look at those with the most `label_ids` in images.parquet"
        )
    if summary.num_classes_without_files:
        console.warn(
            f"{summary.num_classes_without_files:,} classes of the list have no files; "
            "they keep their class indices"
        )
    if as_json:
        console.print_json({**asdict(summary), "num_copies": summary.num_copies})
    console.done(
        f"relabel: {summary.num_files:,} files are {summary.num_images:,} pictures "
        f"({summary.num_multi_label:,} with several labels) and {summary.num_copies:,} copies, "
        f"in {summary.num_classes:,} classes"
    )
    console.note("next: `vit21k make-val`")


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
    _report_split(summary, per_class=per_class, holdout=holdout)


def _report_split(summary: "SplitSummary", *, per_class: int, holdout: bool) -> None:
    if summary.short_classes:
        console.warn(
            f"{len(summary.short_classes):,} classes have fewer than {per_class} pictures with one "
            f"label: {_some(list(summary.short_classes))}; all are in `make-val --json`"
        )
    if summary.classes_without_train:
        console.warn(
            f"{len(summary.classes_without_train):,} classes have no picture left in train: "
            f"{_some(summary.classes_without_train)}"
        )
    shared = "none in both" if holdout else f"{summary.num_val:,} in both (a dummy split)"
    console.done(
        f"make-val: {summary.num_images:,} pictures: {summary.num_train:,} in train, "
        f"{summary.num_val:,} in val, {shared}"
    )
    console.note("next: `vit21k train --stage pretrain`")


def _some(names: list[str]) -> str:
    """Return the first of *names*, and how many more there are."""
    more = f" and {len(names) - _NUM_NAMED:,} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(f"`{name}`" for name in names[:_NUM_NAMED]) + more
