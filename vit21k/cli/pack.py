"""`pack`, `import-md5sum`, `export-lists`, `export-dataset`: manifests for other readers."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.next_steps import print_next, print_next_training, with_options
from vit21k.cli.options import (
    DEFAULT_MANIFESTS,
    AsJson,
    ImageRoot,
    Manifests,
)
from vit21k.errors import UsageError
from vit21k.machine import num_threads

if TYPE_CHECKING:
    from vit21k.pack.build import PackSummary
    from vit21k.pack.levels import PackLevel

_QUALITY = 90
_WHICH_LEVEL = "`--lossless`, `--short-side 256`, or `--raw --short-side 256`"


def pack_command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the pack.")],
    lossless: Annotated[
        bool,
        typer.Option(
            "--lossless",
            help="Add restart markers to JPEGs, so that a crop decodes only its part; pixels are "
            "unchanged.",
        ),
    ] = False,
    short_side: Annotated[
        int | None, typer.Option(min=8, max=8192, help="Resize larger images to this short side.")
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="JPEG quality for --short-side; default: 90."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="RGB pixels instead of JPEGs: nothing to decode.")
    ] = False,
    manifests: Manifests = DEFAULT_MANIFESTS,
    root: ImageRoot = None,
    name: Annotated[str, typer.Option(help="Prefix of the shard names.")] = ("imagenet21k"),
    per_shard: Annotated[int, typer.Option(min=1, help="Images per shard.")] = 5000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order in the shards.")] = 0,
    keep_order: Annotated[
        bool, typer.Option("--keep-order", help="Order of the manifests, by class: not shuffled.")
    ] = False,
    keep_metadata: Annotated[
        bool,
        typer.Option(
            "--keep-metadata", help="With --lossless: keep EXIF, colour profiles, comments."
        ),
    ] = False,
    num_workers: Annotated[
        int | None, typer.Option(min=1, help="Images processed in parallel; default: one per core.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove an existing pack and start over.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write the images into shards for fast reading: train.parquet, val.parquet -> DIR.

    Shards are tars that webdataset and timm read sequentially; train.parquet and val.parquet in DIR
    give random access: `vit21k train --manifests DIR`. An interrupted run resumes after the last
    complete shard. Images that cannot be decoded are listed in skipped.parquet; the exit code is
    then 3.

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
            on_image=lambda num_bytes, is_skipped: progress.advance(
                num_bytes=num_bytes, num_problems=is_skipped
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
) -> "PackLevel":
    from vit21k.pack.levels import Lossless, Raw, Resized
    from vit21k.pack.tiles import require_recoder

    _refuse_contradictions(lossless, short_side, quality, raw=raw, keep_metadata=keep_metadata)
    if raw and short_side is not None:
        return Raw(short_side)
    require_recoder()
    if short_side is not None:
        return Resized(short_side, _QUALITY if quality is None else quality)
    return Lossless(keep_metadata)


def _refuse_contradictions(
    lossless: bool, short_side: int | None, quality: int | None, *, raw: bool, keep_metadata: bool
) -> None:
    if not lossless and short_side is None:
        raise UsageError("which level?", hint=_WHICH_LEVEL)
    if lossless and (raw or short_side is not None):
        raise UsageError("`--lossless` cannot resize or decode", hint=f"one of {_WHICH_LEVEL}")
    if quality is not None and (raw or short_side is None):
        raise UsageError("`--quality` needs `--short-side` without `--raw`")
    if keep_metadata and not lossless:
        raise UsageError("`--keep-metadata` needs `--lossless`")


def _report(summary: "PackSummary", out: Path) -> None:
    for note, count in summary.notes.items():
        console.note(f"{count:,} images are stored unchanged: {note}")
    if summary.num_skipped:
        kinds = ", ".join(f"{count:,} x {kind}" for kind, count in summary.skipped.items())
        console.warn(
            f"{summary.num_skipped:,} images are skipped: {kinds}; listed in "
            f"`{out / 'skipped.parquet'}`"
        )
    if summary.num_shards_kept:
        console.note(f"{summary.num_shards_kept:,} shards are complete from an earlier run")
    counts = ", ".join(f"{count:,} {form}" for form, count in sorted(summary.forms.items()))
    share = summary.total_bytes / max(summary.source_bytes, 1)
    console.done(
        f"pack: {summary.num_images:,} images: {counts or 'none packed'}, "
        f"{summary.num_skipped:,} skipped; {summary.num_shards:,} shards of "
        f"{summary.total_bytes / 1e6:,.0f} MB, {share:.3f} times the files"
    )
    if summary.has_val:
        print_next_training(out)
    else:
        print_next(with_options("vit21k verify", manifests=out))


def import_md5sum_command(
    md5sum: Annotated[Path, typer.Argument(metavar="FILE", help="Output of md5sum.")],
    manifests: Manifests = DEFAULT_MANIFESTS,
    strip_prefix: Annotated[
        str, typer.Option(metavar="DIR", help="Prefix to remove from all paths.")
    ] = "",
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", envvar="VIT21K_ROOT", help="Where the images are."),
    ] = None,
    label_from: Annotated[
        Literal["folder", "top"] | None,
        typer.Option(
            help="The class of an image: its folder, or the first folder below the root.",
            show_default="folder, unless its name cannot be that of a class",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Import the output of md5sum: FILE -> digests.parquet.

    The order of the lines is kept. Sizes and times are not in FILE and stay empty. A leading `./`
    of a path is removed; a repeated path is refused.

    [bold]Examples[/bold]

      vit21k import-md5sum md5sum.txt --strip-prefix /data/ImageNet21K --root /data/ImageNet21K
    """
    from vit21k.prep.plsc import import_md5sum

    summary = import_md5sum(
        md5sum, manifests, strip_prefix=strip_prefix, root=root, label_from=label_from
    )
    if summary.num_empty:
        console.warn(
            f"{summary.num_empty:,} lines have the MD5 of an empty file; they are kept as one image"
        )
    if root is None:
        console.note("the image root is unknown; commands that open images need `--root`")
    if as_json:
        console.print_json(asdict(summary))
    console.done(f"import-md5sum: {summary.num_files:,} lines are {summary.num_files:,} files")
    print_next(with_options("vit21k relabel", manifests=manifests))


def export_lists_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the lists; default: the manifest folder."),
    ] = None,
    per_class: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of single-label images per class in the dummy list; default: as chosen by "
            "make-val, or 20.",
        ),
    ] = None,
    allow_blanks: Annotated[
        bool, typer.Option("--allow-blanks", help="Also write names with blanks.")
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
            f"{num_packed:,} images are in archives: extract each to a folder of its name before "
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
        typer.Option(help="The library that reads it."),
    ],
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="A new folder; default: export/<library>."),
    ] = None,
    root: ImageRoot = None,
    as_json: AsJson = False,
) -> None:
    """Write the dataset in the format of another library; no image is copied.

    hf: Parquet with paths and labels, and a dataset card. imagefolder: the same with a link to the
    image tree, so that images are opened. croissant: Parquet and croissant.json. cleanlab: labels
    as lists. plsc: its two text lists.

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


def _export(to: str, manifests: Path, out: Path, root: str | None) -> dict[str, int]:
    """Write the export; return the number of images in each split or list."""
    if to == "plsc":
        from vit21k.prep.plsc import export_lists

        return export_lists(manifests, out)
    from vit21k.export.datasets import (
        Splits,
        open_splits,
        write_cleanlab,
        write_croissant,
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
