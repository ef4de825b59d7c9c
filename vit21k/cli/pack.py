"""`pack`, `import-md5sum`, `export-lists`, `export-dataset`: manifests for other readers."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.options import (
    DEFAULT_MANIFESTS,
    AsJson,
    ImageRoot,
    LabelSource,
    Manifests,
    for_manifests,
)
from vit21k.errors import UsageError
from vit21k.machine import num_threads

if TYPE_CHECKING:
    from vit21k.pack.build import PackSummary
    from vit21k.pack.levels import Level

_QUALITY = 90
_WHICH_LEVEL = "`--lossless`, `--short-side 256`, or `--raw --short-side 256`"


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
        int | None, typer.Option(min=8, max=8192, help="Make larger images this size.")
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
    per_shard: Annotated[int, typer.Option(min=1, help="Images of a shard.")] = 5000,
    seed: Annotated[int, typer.Option(min=0, help="Of the order in the shards.")] = 0,
    keep_order: Annotated[
        bool, typer.Option("--keep-order", help="Order of the manifests, by class: not shuffled.")
    ] = False,
    keep_metadata: Annotated[
        bool,
        typer.Option("--keep-metadata", help="With --lossless: EXIF, colour profiles, comments."),
    ] = False,
    num_workers: Annotated[
        int | None, typer.Option(min=1, help="Images prepared at a time; default: the cores.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove the pack that is there, and start over.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the images into shards for fast reading: train.parquet, val.parquet -> DIR.

    Shards are tars that webdataset and timm read in order; train.parquet and val.parquet in DIR
    read them at random: `vit21k train --manifests DIR`. A run that was killed goes on behind the
    last finished shard. Images that cannot be decoded are listed in skipped.parquet; the exit
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
    with console.progress("pack", unit="images") as progress:
        summary = pack(
            manifests,
            out,
            level,
            options,
            root=root,
            on_start=lambda total: setattr(progress, "total", total),
            on_image=lambda num_bytes, is_left_out: progress.advance(
                num_bytes=num_bytes, num_problems=is_left_out
            ),
            note=console.note,
        )
    if as_json:
        console.print_json(asdict(summary))
    _report(summary, out)
    if summary.num_skipped:
        raise typer.Exit(errors.EXIT_BAD_DATA)


def _level(
    lossless: bool, short_side: int | None, quality: int | None, *, raw: bool, keep_metadata: bool
) -> "Level":
    from vit21k.pack.levels import Lossless, Raw, Resized
    from vit21k.pack.tiles import compiled_recoder

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
        console.note(f"{count:,} images stay as they are: {note}")
    if summary.num_skipped:
        kinds = ", ".join(f"{count:,} x {kind}" for kind, count in summary.skipped.items())
        console.warn(
            f"{summary.num_skipped:,} images are skipped: {kinds}; listed in "
            f"`{out / 'skipped.parquet'}`"
        )
    if summary.num_shards_kept:
        console.note(f"{summary.num_shards_kept:,} shards were finished by an earlier run")
    counts = ", ".join(f"{count:,} {form}" for form, count in sorted(summary.forms.items()))
    share = summary.total_bytes / max(summary.source_bytes, 1)
    console.done(
        f"pack: {summary.num_images:,} images: {counts or 'none packed'}, "
        f"{summary.num_skipped:,} skipped; {summary.num_shards:,} shards of "
        f"{summary.total_bytes / 1e6:,.0f} MB, {share:.3f} times the files"
    )
    if summary.has_val:
        console.note(f"next: `vit21k train --manifests {out}`; `vit21k verify --manifests {out}`")
    else:
        console.note(f"next: `vit21k verify --manifests {out}`")


def import_md5sum_command(
    md5sum: Annotated[Path, typer.Argument(metavar="FILE", help="What md5sum printed.")],
    manifests: Manifests = DEFAULT_MANIFESTS,
    strip_prefix: Annotated[
        str, typer.Option(metavar="DIR", help="Folder to take off the paths; all must begin so.")
    ] = "",
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", envvar="VIT21K_ROOT", help="Where the images are."),
    ] = None,
    label_from: LabelSource = None,
    as_json: AsJson = False,
) -> None:
    """Take over digests that md5sum has made: FILE -> digests.parquet.

    The order of its lines is kept. Sizes and times are not in FILE and stay empty. `./` at the
    front of a path is taken off; a path that comes twice is refused.

    [bold]Examples[/bold]

      vit21k import-md5sum md5sum.txt --strip-prefix /data/ImageNet21K --root /data/ImageNet21K
    """
    from vit21k.prep.plsc import import_md5sum

    summary = import_md5sum(
        md5sum, manifests, strip_prefix=strip_prefix, root=root, label_from=label_from
    )
    if summary.num_empty:
        console.warn(
            f"{summary.num_empty:,} lines have the MD5 of an empty file; they are kept, and count "
            "as one image"
        )
    if root is None:
        console.note("where the images are is not known; commands that open them need `--root`")
    if as_json:
        console.print_json(asdict(summary))
    console.done(f"import-md5sum: {summary.num_files:,} lines are {summary.num_files:,} files")
    console.note(f"next: `{for_manifests('vit21k relabel', manifests)}`")


def export_lists_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the lists go; default: beside the manifests."),
    ] = None,
    per_class: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Take the first so many single-label images of each class for the dummy list; "
            "default: what make-val chose, or 20.",
        ),
    ] = None,
    allow_blanks: Annotated[
        bool, typer.Option("--allow-blanks", help="Write names with blanks too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write PLSC's lists: image_all_list.txt and image_dummy_val_list.txt.

    A split made with --holdout gives image_train_list.txt and image_val_list.txt instead.

    Images in archives are listed as if each archive were unpacked to a folder of its name, where
    PLSC's reader expects them.

    [bold]Examples[/bold]

      vit21k export-lists --out lists

      vit21k export-lists --per-class 20
    """
    from vit21k.prep.plsc import export_lists

    out = out or manifests
    _say_if_packed(manifests)
    num_lines = export_lists(manifests, out, per_class=per_class, allow_blanks=allow_blanks)
    if as_json:
        console.print_json({str(out / name): count for name, count in num_lines.items()})
    console.done(
        "export-lists: "
        + ", ".join(f"{count:,} lines in `{out / name}`" for name, count in num_lines.items())
    )


def _say_if_packed(manifests: Path) -> None:
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import IMAGES

    containers = open_manifest(manifests, IMAGES).read(["container"])["container"]
    if num_packed := len(containers) - containers.null_count:
        console.warn(
            f"{num_packed:,} images lie in archives: unpack each to a folder of its name before "
            "PLSC reads the lists"
        )


_HOW_TO_READ = {
    "hf": 'datasets.load_dataset("{out}")',
    "imagefolder": 'datasets.load_dataset("imagefolder", '
    'data_files={{"train": "{out}/train/metadata.parquet"}})',
    "croissant": 'mlcroissant.Dataset("{out}/croissant.json").records("train")',
    "cleanlab": 'find_label_issues(labels=json.load(open("{out}/train_labels.json")), ...)',
    "plsc": "the two lists in `{out}`",
}


def export_dataset_command(
    to: Annotated[
        Literal["hf", "imagefolder", "croissant", "plsc", "cleanlab"],
        typer.Option(help="What reads it."),
    ],
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="A new folder; default: export/<what reads it>."),
    ] = None,
    root: ImageRoot = None,
    as_json: AsJson = False,
) -> None:
    """Write the data set as other libraries read it; no image is copied.

    hf: Parquet with paths and labels, and a dataset card. imagefolder: the same beside a link to
    the image tree, so that images are opened. croissant: Parquet and croissant.json. cleanlab:
    labels as lists. plsc: its two text lists.

    [bold]Examples[/bold]

      vit21k export-dataset --to hf --out in21k_hf

      vit21k export-dataset --to imagefolder --out in21k_images

      vit21k export-dataset --to croissant
    """
    folder = out or manifests / "export" / to
    num_rows = _export(to, manifests, folder, root)
    if as_json:
        console.print_json({"to": to, "out": str(folder), "num_rows": num_rows})
    counts = ", ".join(f"{count:,} in {name}" for name, count in num_rows.items())
    console.done(f"export-dataset: {counts}; in `{folder}`")
    console.note(f"read it with: {_HOW_TO_READ[to].format(out=folder)}")


def _export(to: str, manifests: Path, out: Path, root: Path | None) -> dict[str, int]:
    """Write the export; return the number of images of each split or list."""
    if to == "plsc":
        from vit21k.prep.plsc import export_lists

        return export_lists(manifests, out)
    from vit21k.export.croissant import write_croissant
    from vit21k.export.datasets import (
        Splits,
        open_splits,
        write_cleanlab,
        write_hf,
        write_imagefolder,
    )

    writers: dict[str, Callable[[Splits, Path], object]] = {
        "hf": write_hf,
        "imagefolder": write_imagefolder,
        "croissant": write_croissant,
        "cleanlab": write_cleanlab,
    }
    splits = open_splits(manifests, out, root)
    writers[to](splits, out)
    return splits.num_rows
