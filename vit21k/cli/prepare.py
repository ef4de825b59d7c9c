"""`hash`, `relabel`, `make-val`, `get-dataset`: from images to manifests."""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vit21k import errors
from vit21k.cli import console
from vit21k.cli.classes import warn_of_numbers, warn_of_part
from vit21k.cli.next_steps import print_next, print_next_training, with_options
from vit21k.cli.options import (
    DEFAULT_MANIFESTS,
    AsJson,
    EngineOptions,
    LabelSource,
    Manifests,
)
from vit21k.errors import DataError, UsageError
from vit21k.machine import num_threads

if TYPE_CHECKING:
    from vit21k.manifest.classes import ClassList
    from vit21k.pack.build import PackSummary
    from vit21k.prep.hash_chunks import HashedChunk
    from vit21k.prep.hash_tree import HashSummary
    from vit21k.prep.import_tree import Prepared
    from vit21k.prep.relabel import RelabelSummary
    from vit21k.prep.shards import Shard
    from vit21k.prep.split import ListSplitSummary, SourceSplitSummary, SplitSummary
    from vit21k.sources.label_file import LabelFile

FROM_SOURCE = "from-source"
"""Value of `--classes`: the class list of the source."""

_WNID = re.compile(r"n\d{8}")


def hash_result(summary: "HashSummary") -> dict[str, object]:
    """Return the counts for JSON."""
    return {
        "num_entries": summary.num_entries,
        "num_files": summary.num_files,
        "num_bytes": summary.num_bytes,
        "num_bytes_read": summary.num_bytes_read,
        "num_known": summary.num_known,
        "num_without_digest": summary.num_without_digest,
        "num_unknown": summary.num_unknown,
        "silently_changed": summary.silently_changed,
        "num_classes": len(summary.wnids),
        "num_bad": summary.num_bad,
        "num_skipped": summary.num_skipped,
        "num_missing": summary.num_missing,
        "problems": console.counts(summary.problems),
        "num_known_problems": summary.num_known_problems,
    }


def report_hash(summary: "HashSummary", manifests: Path) -> None:
    """Report counts and problems (stderr)."""
    from vit21k.manifest.problems import describe_known

    for kind, count in sorted(summary.problems.items()):
        say = console.note if kind.is_skipped else console.warn
        say(f"{count:,} x {kind}: {kind.doc}")
    if known := describe_known(summary.num_known_problems):
        console.note(known)
    _warn_of_unusual_folders(summary.wnids)
    _report_cached(summary)
    if summary.problems:
        console.note(f"listed in `{manifests / 'problems.parquet'}`")
    console.done(
        f"hash: {summary.num_entries:,} files scanned, "
        f"{summary.num_files:,} images in {len(summary.wnids):,} classes "
        f"({console.size(summary.num_bytes)}), "
        f"{summary.num_bad:,} error{'' if summary.num_bad == 1 else 's'}, "
        f"{summary.num_skipped:,} skipped"
        + (f", {summary.num_missing:,} labels without a file" if summary.num_missing else "")
    )


def _report_cached(summary: "HashSummary") -> None:
    if summary.num_known:
        console.note(
            f"{summary.num_known:,} files are unchanged since an earlier run; "
            f"{console.size(summary.num_bytes_read)} read"
        )
    if summary.num_known and summary.is_remote:
        console.warn(
            "on a network file system, unchanged files are detected by size and modification "
            "time only; `--recheck 0.01` re-reads some anyway, `--fresh` all"
        )
    if summary.num_unknown:
        console.warn(
            f"{summary.num_unknown:,} files are not of a known image format (see `format` in "
            "digests.parquet); `vit21k verify --decode` reports which can be decoded"
        )
    if summary.num_without_digest:
        console.note(
            f"{summary.num_without_digest:,} files have no duplicates and were not hashed in full; "
            f"{console.size(summary.num_bytes_read)} read"
        )
    if summary.silently_changed:
        console.warn(
            f"{len(summary.silently_changed):,} files have changed content, although their size "
            f"and times are unchanged: {console.some(summary.silently_changed)}; "
            "the disk may be failing; re-read everything with `--fresh`"
        )


def _warn_of_unusual_folders(wnids: set[str]) -> None:
    """Warn about folders that are not named like the others: each becomes a class."""
    if len(wnids) == 1 and not any(map(_WNID.fullmatch, wnids)):
        console.warn(
            f"all images are of one class, `{next(iter(wnids))}`: is there a folder for each class?"
        )
    unusual = sorted(wnid for wnid in wnids if not _WNID.fullmatch(wnid))
    if unusual and len(unusual) * 10 <= len(wnids):
        console.warn(
            f"{console.some(unusual)} become classes, although not named like the other "
            f"{len(wnids) - len(unusual):,} (n01440764 ...)"
        )


def hash_command(
    root: Annotated[
        str,
        typer.Argument(
            metavar="ROOT",
            help="The image tree, a tar archive, or a URL (s3://bucket/folder); never written to.",
        ),
    ],
    manifests: Manifests = DEFAULT_MANIFESTS,
    algorithm: Annotated[
        Literal["xxh3_128", "md5", "blake2b_128"],
        typer.Option(
            help="Hash algorithm: xxh3_128 (fastest), md5 (PLSC-compatible), blake2b_128 "
            "(collision-resistant)."
        ),
    ] = "xxh3_128",
    num_workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of files read in parallel.",
            show_default="8; 2 without a C compiler; 32 on a network file system or at a URL",
        ),
    ] = None,
    follow_symlinks: Annotated[
        bool, typer.Option("--follow-symlinks", help="Follow symbolic links.")
    ] = False,
    mode: Annotated[
        Literal["full", "quick"],
        typer.Option(
            help="quick: hash only the head and tail of each file, and the full content of "
            "potential duplicates: reads less than a quarter of the bytes and finds the same "
            "duplicates. Unique files get no digest, so `verify` checks only their size, and "
            "`--by content` is refused.",
        ),
    ] = "full",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ignore the cache of earlier runs.")
    ] = False,
    recheck: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="P", help="Fraction of unchanged files to re-read anyway."
        ),
    ] = 0.0,
    layout: Annotated[
        Literal["folders", "splits", "webdataset", "parquet"] | None,
        typer.Option(help="What ROOT is.", show_default="detected"),
    ] = None,
    label_from: LabelSource = None,
    image_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The images, where there are several: a column of Parquet files, or a suffix "
            "(jpg) in a WebDataset.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A file with the class of each image, such as `1.jpg,cat` (CSV, TSV, JSON), or "
            "ILSVRC's ground truth; the folders of the images do not matter then.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Class list that the numbers count, where the labels of ROOT are numbers.",
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Hash only the I-th of N shards of the folders; other machines hash the others.",
        ),
    ] = None,
    *,
    engine: EngineOptions,
    as_json: AsJson = False,
) -> None:
    """Read every image once: ROOT -> digests.parquet, problems.parquet.

    Reports the layout that it detects, and where the class of an image comes from.  What is
    ambiguous is refused, with the options that settle it.

    Class folders, at any depth: the class is the name of the folder.  Tar archives (.tar, .tar.gz,
    .tgz) and class tars in a tar are read in place, as if each had been unpacked to a folder of
    its name.

    WebDataset: the class is a name in .json (class_name, wnid, label ...) or .cls, a WordNet id in
    the key, or a class index with a class list.

    An interrupted run resumes; unchanged files (same size, times and inode) are not read again.

    Files that cannot be used are listed in problems.parquet, and the exit code is 3.

    [bold]Examples[/bold]

      vit21k hash /data/ImageNet21K

      vit21k hash /data/fall11_whole.tar

      vit21k hash /data/imagenet-22k-wds --label-from json:class_name

      vit21k hash ILSVRC2012_img_val.tar --labels ILSVRC2012_validation_ground_truth.txt

      vit21k hash /data/ImageNet21K --shard 3/8

      vit21k hash /shared/ImageNet21K --engine ray --address 10.0.0.1:6379

      vit21k hash s3://bucket/ImageNet21K --num-workers 64
    """
    share = _shard(shard)
    class_names = _class_names(classes)
    cluster = engine.cluster()
    given = {"layout": layout, "label_from": label_from, "image_column": image_column}
    reading = {"follow_symlinks": follow_symlinks, "mode": mode, "is_fresh": fresh}
    options: dict[str, Any] = {**given, **reading, "recheck": recheck, "shard": share}
    options |= {"algorithm": algorithm, "num_workers": num_workers, "class_names": class_names}
    options["engine"] = cluster.hash_chunks if cluster else None
    options["label_file"] = _label_file(labels, root, class_names, label_from)
    summary = _hash(root, manifests, options)
    if as_json:
        console.print_json(hash_result(summary))
    report_hash(summary, share.folder(manifests) if share else manifests)
    print_next(_after_hash(manifests, share, classes))
    _exit(summary)


def _class_names(classes: str | None) -> tuple[str, ...] | None:
    from vit21k.manifest.class_lists import read_classes

    return read_classes(classes).wnids if classes else None


def _label_file(
    path: Path | None, root: str, class_names: Sequence[str] | None, label_from: str | None
) -> "LabelFile | None":
    """Read the labels; report how."""
    if path is None:
        return None
    if label_from and not label_from.startswith("column:"):
        raise UsageError(
            "`--labels` and `--label-from` are two sources of classes",
            hint="with `--labels`, only `--label-from column:NAME` selects something: a column",
        )
    from vit21k.sources.label_file import read_label_file

    labels = read_label_file(path, Path(root), class_names=class_names, label_from=label_from)
    console.note(f"`{path}`: {labels.num_labels:,} labels ({labels.form})")
    return labels


def _shard(text: str | None) -> "Shard | None":
    # Arrow's own pool never returns memory: 40 MB at 400,000 files, and it is no faster here.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # before Arrow is imported
    from vit21k.prep.shards import Shard

    return Shard.parse(text) if text else None


def _exit(summary: "HashSummary") -> None:
    if summary.silently_changed:
        raise typer.Exit(errors.EXIT_DIFFERENCES)
    if summary.num_bad or summary.num_missing:
        raise typer.Exit(errors.EXIT_BAD_DATA)


def _hash(root: str, manifests: Path, options: dict[str, Any]) -> "HashSummary":
    """Hash a source, and show progress."""
    from vit21k.prep.hash_tree import hash_tree

    with console.progress("hash, both ends") as looking, console.progress("hash") as progress:

        def look(chunk: "HashedChunk") -> None:
            looking.advance(len(chunk.files), fraction=chunk.fraction)

        def advance(chunk: "HashedChunk") -> None:
            progress.advance(
                len(chunk.files),
                num_bytes=chunk.num_bytes,
                num_problems=chunk.num_bad,
                fraction=chunk.fraction,
            )

        return hash_tree(
            root,
            manifests,
            **options,
            on_layout=lambda found: console.note(found.line),
            on_look=look,
            on_chunk=advance,
        )


def _after_hash(manifests: Path, share: "Shard | None", classes: str | None) -> str:
    """Return the command after `hash`.

    *classes* is the list that numbers are of: their order is that of the class indices, but for
    the devkit's, which no model is numbered by.
    """
    from vit21k.manifest.class_lists import DEVKIT

    command = "vit21k relabel"
    if share:
        command += f" {shlex.quote(str(manifests / 'shards'))}/*"
    if classes and classes != DEVKIT:
        command += f" --classes {shlex.quote(classes)}"
    return with_options(command, manifests=manifests)


def relabel_command(
    shards: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SHARD]...",
            show_default=False,
            help="Output folders of `hash --shard`, all of them: merged first.",
        ),
    ] = None,
    manifests: Manifests = DEFAULT_MANIFESTS,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Class list: a known list (fall11, in1k ...), a file with one class folder per "
            "line, another tree, or `from-source`, the dataset's own list in its order; "
            "default: the classes found, sorted.",
        ),
    ] = None,
    by: Annotated[
        Literal["bytes", "content"],
        typer.Option(
            help="Merge files with equal bytes, or with equal image content, so that copies with "
            "another comment or EXIF are merged too."
        ),
    ] = "bytes",
    max_labels: Annotated[
        int | None,
        typer.Option(min=1, help="Skip images with more labels than this: possibly placeholders."),
    ] = None,
    verify_bytes: Annotated[
        bool,
        typer.Option(
            "--verify-bytes",
            help="Compare the bytes of duplicates, not only their digests, before merging.",
        ),
    ] = False,
    *,
    engine: EngineOptions,
    as_json: AsJson = False,
) -> None:
    """Merge duplicate files and their labels: digests.parquet -> images.parquet.

    Also writes copies.parquet (the duplicates), overlabelled.parquet (skipped by --max-labels)
    and classes.parquet.  Reads no images, except to merge quick shards or for --verify-bytes.

    [bold]Examples[/bold]

      vit21k relabel

      vit21k relabel --classes fall11

      vit21k relabel --classes winter21

      vit21k relabel --classes from-source

      vit21k relabel --by content --max-labels 20

      vit21k relabel --verify-bytes

      vit21k relabel data_manifests/shards/*

      vit21k relabel --engine ray
    """
    from vit21k.manifest.class_lists import read_classes
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import IMAGES
    from vit21k.prep.relabel import relabel

    asked = read_classes(classes) if classes and classes != FROM_SOURCE else None
    if shards:
        _merge_shards(shards, manifests)
    if verify_bytes:
        _compare_bytes(manifests, by)
    if classes == FROM_SOURCE:
        asked = _classes_of_source(manifests)
    summary = relabel(
        manifests,
        classes=asked,
        by=by,
        max_labels=max_labels,
        cluster=engine.cluster(),
    )
    if asked is None:
        found = open_manifest(manifests, IMAGES).classes()
        warn_of_part(found)
        warn_of_numbers(found)
        _note_other_order(manifests, found)
    if as_json:
        console.print_json({**asdict(summary), "num_copies": summary.num_copies})
    _report_relabel(summary, manifests, is_capped=max_labels is not None)


def _merge_shards(shards: Sequence[Path], manifests: Path) -> None:
    from vit21k.prep.shards import merge_shards

    num_merged = merge_shards(shards, manifests)
    console.note(f"{len(shards):,} shards merged: {num_merged:,} files in digests.parquet")


def _classes_of_source(manifests: Path) -> "ClassList":
    from vit21k.prep.relabel import classes_of_source

    classes = classes_of_source(manifests)
    if classes is None:
        raise UsageError(
            f"`{manifests / 'digests.parquet'}` has no class list: its source has none",
            hint="name a list, or a file with one class per line: `--classes LIST`",
        )
    return classes


def _note_other_order(manifests: Path, found: "ClassList") -> None:
    """Note that the source has a class list in another order than that of the names *found*."""
    from vit21k.prep.relabel import classes_of_source

    classes = classes_of_source(manifests)
    if classes is not None and classes.wnids != found.wnids:
        console.note(
            f"classes are sorted by name; `--classes {FROM_SOURCE}` keeps the order of the source, "
            f"in which class 0 is `{classes.wnids[0]}`, not `{found.wnids[0]}`"
        )


def _report_relabel(summary: "RelabelSummary", manifests: Path, *, is_capped: bool) -> None:
    from vit21k.prep.relabel import MANY_LABELS
    from vit21k.prep.split import command_to_split

    if summary.num_classes_before is not None:
        console.warn(
            "the class list has changed "
            f"({summary.num_classes_before:,} classes before, now {summary.num_classes:,}): "
            "class indices have changed, and models trained before do not match"
        )
    if summary.num_overlabelled:
        console.warn(
            f"{summary.num_overlabelled:,} images have more than {MANY_LABELS} labels each: "
            "possibly placeholders; inspect those with the most `label_ids` in images.parquet; "
            f"`--max-labels {MANY_LABELS}` skips them"
        )
    if summary.num_in_both:
        console.warn(
            f"{summary.num_in_both:,} images are in the published train split and in another one: "
            "they are not trained on"
        )
    if summary.num_classes_without_files:
        console.warn(
            f"{summary.num_classes_without_files:,} classes of the list have no files; "
            "they keep their class indices"
        )
    console.done(
        f"relabel: {summary.num_files:,} files -> {summary.num_images:,} unique images "
        f"({summary.num_multi_label:,} multi-label), {summary.num_copies:,} duplicates, "
        f"{summary.num_classes:,} classes"
        + (f", {summary.num_overlabelled_files:,} skipped" if is_capped else "")
    )
    print_next(with_options(command_to_split(manifests), manifests=manifests))


def _compare_bytes(manifests: Path, by: str) -> None:
    from vit21k.prep.verify import compare_copies

    if by != "bytes":
        raise errors.UsageError(
            "`--verify-bytes` needs `--by bytes`",
            hint="use one of `--by content` and `--verify-bytes`",
        )
    num_pairs = compare_copies(manifests)
    console.note(f"{num_pairs:,} files compared byte by byte with their duplicates: all equal")


def make_val_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    per_class: Annotated[
        int | None,
        typer.Option(min=1, help="Images per class, if there are enough.", show_default="20"),
    ] = None,
    holdout: Annotated[
        bool, typer.Option("--holdout", help="Remove them from train, with all their duplicates.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=2**64 - 1,
            help="Choose at random, by a hash of the content; default: the first images.",
        ),
    ] = None,
    from_source: Annotated[
        bool | None,
        typer.Option(
            "--from-source/--no-from-source",
            help="Take the published split; or choose from all images, although there is one.",
            show_default="refused if there is one",
        ),
    ] = None,
    val_list: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Take the images in a list: paths, names with or without suffix, or digests.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose validation images: images.parquet -> val.parquet, train.parquet.

    Only images with one label are chosen.

    Without --holdout they stay in train as well, as in PLSC: a dummy split, for monitoring a
    training run; its metrics are named dummy_val/...

    --from-source and --val-list hold them out.  No image that was published as validation or test
    data is in train then, nor is any duplicate of one.

    [bold]Examples[/bold]

      vit21k make-val

      vit21k make-val --per-class 50 --holdout --seed 0

      vit21k make-val --from-source

      vit21k make-val --val-list val_12k.csv

      vit21k make-val --json | jq .short_classes
    """
    from vit21k.prep.split import make_val

    if from_source or val_list:
        if per_class or seed is not None or (from_source is not None and val_list):
            raise UsageError(
                "`--from-source` and `--val-list` choose all val images",
                hint="use one of them, without `--per-class` and `--seed`",
            )
        _take_split(manifests, val_list, as_json=as_json)
        return
    per_class = per_class or _PER_CLASS
    summary = make_val(
        manifests,
        per_class=per_class,
        holdout=holdout,
        seed=seed,
        is_any_split=from_source is False,
    )
    if as_json:
        console.print_json(asdict(summary))
    _report_split(summary, manifests, per_class=per_class, holdout=holdout)


_PER_CLASS = 20


def _take_split(manifests: Path, val_list: Path | None, *, as_json: bool) -> None:
    """Make the split that was published, or that a list gives; report it."""
    from vit21k.prep.split import split_by_list, split_by_source

    summary: SourceSplitSummary | ListSplitSummary
    unmatched: Sequence[str] = ()
    if val_list is None:
        summary = split_by_source(manifests)
        rest = {
            f"{summary.num_several_labels:,} of {summary.val_split} with several labels": (
                summary.num_several_labels
            ),
            f"{summary.num_held_out:,} of the test split": summary.num_held_out,
            f"{summary.num_without:,} without a published split": summary.num_without,
        }
        words = f"in val (the published {summary.val_split} split)"
    else:
        summary = split_by_list(manifests, val_list)
        unmatched = summary.unmatched
        rest = {
            f"{summary.num_several_labels:,} of the list with several labels": (
                summary.num_several_labels
            ),
            f"{summary.num_held_out:,} published as validation or test data": summary.num_held_out,
        }
        words = f"in val ({summary.num_names:,} names in the list)"
    if as_json:
        console.print_json(asdict(summary))
    neither = [words for words, count in rest.items() if count]
    if neither:
        console.note(f"in neither: {', '.join(neither)}")
    console.done(
        f"make-val: {summary.num_images:,} images: {summary.num_train:,} in train, "
        f"{summary.num_val:,} {words}, {sum(rest.values()):,} in neither"
    )
    print_next_training(manifests)
    if unmatched:
        console.warn(
            f"{len(unmatched):,} names in `{val_list}` are of no image: "
            f"{console.some(list(unmatched))}; all are in `make-val --json`"
        )
        raise typer.Exit(errors.EXIT_BAD_DATA)


def _report_split(
    summary: "SplitSummary", manifests: Path, *, per_class: int, holdout: bool
) -> None:
    if summary.short_classes:
        console.warn(
            f"{len(summary.short_classes):,} classes have fewer than {per_class} images with one "
            f"label: {console.some(list(summary.short_classes))}; all are in `make-val --json`"
        )
    if summary.classes_without_train:
        console.warn(
            f"{len(summary.classes_without_train):,} classes have no image left in train: "
            f"{console.some(summary.classes_without_train)}"
        )
    shared = "none in both" if holdout else f"{summary.num_val:,} in both (a dummy split)"
    console.done(
        f"make-val: {summary.num_images:,} images: {summary.num_train:,} in train, "
        f"{summary.num_val:,} in val, {shared}"
    )
    print_next_training(manifests)


NEXT = {
    "cifar10": "vit21k train --recipe cifar10_cpu",
    "cifar100": "vit21k train --recipe cifar10_cpu --run-dir runs/cifar100",
}


def get_dataset_command(
    name: Annotated[Literal["cifar10", "cifar100"], typer.Argument(metavar="cifar10|cifar100")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Output folder; default: the name of the dataset."),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A local archive: the published python .tar.gz, or a .zip of `train/<class>/` and "
            "`test/<class>/`; default: downloaded by torchvision.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Download CIFAR as an image tree with manifests: OUT/images, OUT/manifests.

    Images become PNG files, `train/frog/00000.png`, whose number is torchvision's; those of a zip
    stay as they are. The test images are val.parquet.

    [bold]Examples[/bold]

      vit21k get-dataset cifar10

      vit21k get-dataset cifar100 --out /data/cifar100 --archive cifar-100-python.tar.gz
    """
    from vit21k.prep.cifar import read_cifar
    from vit21k.prep.import_tree import IMAGES, MANIFESTS, prepare, read_zip, write_tree

    folder = out or Path(name)
    file = archive or _downloaded(name, folder)
    if not file.is_file():
        raise UsageError(f"no archive at `{file}`", hint="run without --archive to download it")
    is_zip = file.suffix.lower() == ".zip"
    md5 = _md5_of(file)
    if not is_zip:
        _compare_md5(name, file, md5)
    images = read_zip(file) if is_zip else read_cifar(file, name)
    with console.progress("get-dataset", unit="images") as bar:
        counts = write_tree(images, folder, {"name": name, "md5": md5}, on_image=bar.advance)
    prepared = prepare(folder / IMAGES, folder / MANIFESTS)
    if as_json:
        console.print_json({"counts": counts, "md5": md5, **asdict(prepared)})
    console.done(
        f"get-dataset: {sum(counts.values()):,} files in `{folder / IMAGES}`; "
        f"{file_counts(prepared)}"
    )
    print_next(with_options(NEXT[name], manifests=folder / MANIFESTS))


def file_counts(prepared: "Prepared") -> str:
    """Return the counts of files as text; they add up."""
    problems = f", {prepared.num_problems:,} unusable" if prepared.num_problems else ""
    skipped = f", {prepared.num_skipped:,} skipped" if prepared.num_skipped else ""
    unused = f", {prepared.num_unused:,} in neither" if prepared.num_unused else ""
    return (
        f"{prepared.num_files:,} files read{problems}{skipped}: "
        f"{prepared.num_train:,} images in train, "
        f"{prepared.num_val:,} in val ({prepared.split}){unused}, "
        f"{prepared.num_classes:,} classes"
    )


def prepare_data(path: Path, run_dir: Path, *, fresh: bool = False) -> Path:
    """Return the folder of the manifests of *path*, created below *run_dir*.

    Processes of torchrun call it one after the other and get the same result.  The manifests of a
    run that has begun are not changed.

    Args:
        path: A source of any layout: class folders, optionally below ``train`` and ``val``, a
            Hugging Face dataset on disk, WebDataset shards, zips ...
        run_dir: Folder of the run; nothing is written elsewhere.
        fresh: Start the run over.

    Raises:
        UsageError: *path* does not exist.
        DataError: It has no images with labels, or other images than the run began with.
    """
    from vit21k.lock import locked
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import IMAGES as IMAGES_KIND
    from vit21k.prep.import_tree import MANIFESTS, prepare

    if not path.exists():
        raise UsageError(f"`{path}` does not exist")
    folder = run_dir / "data"
    with locked(folder, command="train --data", wait=True):
        has_begun = not fresh and (run_dir / "checkpoints" / "latest").is_file()
        with _prepared_apart(folder / MANIFESTS, path, run_dir, has_begun) as manifests:
            prepared = prepare(path, manifests, on_layout=lambda found: console.note(found.line))
        warn_of_numbers(open_manifest(folder / MANIFESTS, IMAGES_KIND).classes())
        console.done(f"data: {file_counts(prepared)}; manifests in `{folder / MANIFESTS}`")
        return _copied_if_slow(folder / MANIFESTS, folder / "pack")


def _copied_if_slow(manifests: Path, out: Path) -> Path:
    """Return *manifests*, or those of a pack in *out* if single images are slow to read."""
    from vit21k.data.dataset import ImageDataset
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import TRAIN
    from vit21k.pack.build import PackOptions, pack
    from vit21k.pack.levels import AsIs

    if not ImageDataset.from_manifest(open_manifest(manifests, TRAIN)).has_slow_images:
        return manifests
    with console.progress("copy", unit="images") as bar:

        def copy(*, fresh: bool) -> "PackSummary":
            return pack(
                manifests,
                out,
                AsIs(),
                PackOptions(num_workers=num_threads(), fresh=fresh),
                on_start=lambda total: setattr(bar, "total", total),
                on_image=lambda num_bytes, is_skipped: bar.advance(
                    num_bytes=num_bytes, num_problems=is_skipped
                ),
            )

        try:
            summary = copy(fresh=False)
        except UsageError:  # a copy of what the manifests were before
            summary = copy(fresh=True)
    console.note(f"data: {summary.num_images - summary.num_skipped:,} images copied to `{out}`")
    return out


@contextmanager
def _prepared_apart(manifests: Path, path: Path, run_dir: Path, has_begun: bool) -> Iterator[Path]:
    """Yield the folder to write *manifests* to: a temporary one if the run *has_begun*.

    Raises:
        DataError: The result is another split than that of *manifests*.
    """
    from vit21k.manifest.schema import TRAIN

    if not has_begun or not (manifests / TRAIN.file_name).is_file():
        yield manifests
        return
    with TemporaryDirectory(dir=manifests.parent, prefix=".manifests.") as again:
        copytree(manifests, again, dirs_exist_ok=True)
        yield Path(again)
        _check_same_split(manifests, Path(again), path, run_dir)


def _check_same_split(before: Path, now: Path, path: Path, run_dir: Path) -> None:
    """Check that two folders of manifests hold the same split."""
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import TRAIN, VAL

    for kind in (TRAIN, VAL):
        if open_manifest(before, kind).fingerprint != open_manifest(now, kind).fingerprint:
            raise DataError(
                f"`{run_dir}` began with other images than `{path}` has now: "
                f"{kind.file_name} differs",
                hint="name a new run with --run-dir; or resume this one with its first images, "
                f"if they still exist: `--manifests {before}` instead of --data",
            )


def _downloaded(name: str, folder: Path) -> Path:
    from vit21k.prep.cifar import download_cifar

    console.note(f"{name}: downloading with torchvision, unless it is already in `{folder}`")
    return download_cifar(name, folder)


def _md5_of(file: Path) -> str:
    import hashlib

    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _compare_md5(name: str, file: Path, md5: str) -> None:
    from vit21k.prep.cifar import published_md5

    published = published_md5(name)
    if published is not None and md5 != published:
        console.warn(f"`{file}` is not the published archive: its MD5 is {md5}, not {published}")
