"""`labels`: statistics, conflicts, and new manifests with other labels."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vit21k.cli import console
from vit21k.cli.options import DEFAULT_MANIFESTS, AsJson, Manifests

if TYPE_CHECKING:
    from vit21k.labels.edit import RewriteSummary
    from vit21k.labels.select import SelectSummary

_NUM_NAMED = 5

NewFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder of the new manifests; default: labels/<command> in that of the old.",
    ),
]


def reduce_command(
    manifests: Manifests = DEFAULT_MANIFESTS, out: NewFolder = None, as_json: AsJson = False
) -> None:
    """Drop labels that another label of the image is a kind of: "animal" where there is "dog".

    [bold]Examples[/bold]

      vit21k labels reduce

      vit21k labels reduce --out leaf_manifests
    """
    from vit21k.labels.select import reduce

    folder = new_folder(out, manifests, "reduce")
    summary = reduce(manifests, folder)
    if as_json:
        console.print_json(_result(summary))
    _report("reduce", summary, folder)


def expand_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: NewFolder = None,
    levels: Annotated[
        int | None,
        typer.Option(min=1, help="Steps up, from class to class of the list; default: all."),
    ] = None,
    into_labels: Annotated[
        bool,
        typer.Option("--into-labels", help="Write manifests to train on, labelled by both."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add what the labels are a kind of, in a column of its own: images -> expanded.parquet.

    With --into-labels: new images, train and val manifests whose labels are both.

    [bold]Examples[/bold]

      vit21k labels expand

      vit21k labels expand --levels 1

      vit21k labels expand --into-labels --out expanded_manifests
    """
    from vit21k.labels.select import expand, expand_into_labels

    folder = new_folder(out, manifests, "expand")
    if into_labels:
        rewritten = expand_into_labels(manifests, folder, levels=levels)
        if as_json:
            console.print_json(_result(rewritten))
        _report("expand", rewritten, folder)
        return
    summary = expand(manifests, folder, levels=levels)
    if as_json:
        console.print_json(asdict(summary))
    console.done(
        f"expand: {summary.num_images:,} images: {summary.num_labels:,} labels and "
        f"{summary.num_hypernyms:,} classes above them, {summary.num_without:,} images without; "
        f"in `{folder}`"
    )


def select_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: NewFolder = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="WNID|LIST", help="Only this subtree or list; may be repeated."),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="WNID|LIST", help="Not this subtree or list; may be repeated."),
    ] = None,
    more_than: Annotated[
        int | None, typer.Option(metavar="N", help="Only classes with more than N images.")
    ] = None,
    count: Annotated[
        Literal["files", "images"], typer.Option(help="What --more-than counts.")
    ] = "files",
    keep_indices: Annotated[
        bool, typer.Option("--keep-indices", help="Leave the class list as it is.")
    ] = False,
    hold_out: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Make a split, with N val images of each class."),
    ] = None,
    preset: Annotated[
        Literal["21k-p"] | None,
        typer.Option(help="ImageNet-21K-P: --more-than 500 --hold-out 50."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Keep some of the classes, and the images that carry one of them.

    A wnid means its subtree. A list is a known one (`vit21k classes lists`), a file or a folder;
    with --keep LIST alone the new class indices are those of that list, else the classes that stay
    are numbered anew.

    [bold]Examples[/bold]

      vit21k labels select --drop n00007846

      vit21k labels select --drop persons-unsafe

      vit21k labels select --keep in1k --out in1k_manifests

      vit21k labels select --more-than 100 --count images

      vit21k labels select --preset 21k-p --out in21k_p_manifests
    """
    from vit21k.errors import UsageError
    from vit21k.labels.select import Selection, select, select_21k_p

    folder = new_folder(out, manifests, "select")
    selection = Selection(
        keep=keep or (),
        drop=drop or (),
        more_than=more_than,
        count=count,
        keep_indices=keep_indices,
    )
    if preset and (selection != Selection() or hold_out):
        raise UsageError("`--preset` says it all; leave the other options out")
    if not preset and not hold_out and selection == Selection():
        raise UsageError("nothing is selected", hint="say what stays: --keep, --drop, --more-than")
    if preset:
        summary = select_21k_p(manifests, folder)
    else:
        summary = select(manifests, folder, selection, hold_out=hold_out)
    if as_json:
        console.print_json({**asdict(summary), "rewritten": _result(summary.rewritten)})
    _report_selection(summary, folder)


def _report_selection(summary: "SelectSummary", folder: Path) -> None:
    if summary.gone:
        console.warn(f"{len(summary.gone):,} classes go (-1): {_in_words(summary.gone)}")
    if summary.lost:
        console.warn(
            f"{len(summary.lost):,} classes of the list were no classes here and have no images: "
            f"{_in_words(summary.lost)}"
        )
    console.note(
        f"{summary.num_classes_before:,} classes before, {summary.rewritten.num_classes:,} now, "
        f"{summary.rewritten.num_empty_classes:,} of them without images"
    )
    if summary.split:
        console.note(
            f"split: {summary.split.num_train:,} in train, {summary.split.num_val:,} in val"
        )
    _report("select", summary.rewritten, folder)


def _in_words(wnids: Sequence[str]) -> str:
    from vit21k.manifest.wordnet import names_of

    names = names_of(wnids[:_NUM_NAMED])
    some = ", ".join(f"{wnid} ({names.get(wnid, 'no name')})" for wnid in wnids[:_NUM_NAMED])
    rest = len(wnids) - _NUM_NAMED
    return f"{some} and {rest:,} more; all are in `--json`" if rest > 0 else some


def new_folder(out: Path | None, manifests: Path, verb: str) -> Path:
    """Return where the new manifests go: *out*, or beside the old ones."""
    return out or manifests / "labels" / verb


def _result(summary: "RewriteSummary") -> dict[str, object]:
    return {**asdict(summary), "num_skipped": summary.num_skipped}


def _report(verb: str, summary: "RewriteSummary", folder: Path) -> None:
    if summary.stale_split:
        console.warn(
            "there is a split, but it is stale and was skipped; make one in the new folder"
        )
    for name, count in summary.splits.items():
        console.note(f"{name}: {count:,} images carried over")
    console.done(
        f"{verb}: {summary.num_before:,} images: {summary.num_changed:,} with other labels, "
        f"{summary.num_images - summary.num_changed:,} as before, {summary.num_skipped:,} skipped; "
        f"{summary.num_labels_before:,} labels are now {summary.num_labels:,}; in `{folder}`"
    )
    command = "train --stage pretrain" if summary.splits else "make-val"
    console.note(f"next: `vit21k {command} --manifests {folder}`")


def stats_command(manifests: Manifests = DEFAULT_MANIFESTS, as_json: AsJson = False) -> None:
    """Count labels, images and classes: how many labels an image has, how large classes are.

    [bold]Examples[/bold]

      vit21k labels stats

      vit21k labels stats --json | jq .mean_labels_with_hypernyms
    """
    from vit21k.labels.stats import label_stats, list_facts
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import IMAGES

    stats = label_stats(manifests)
    stats["classes"] = list_facts(open_manifest(manifests, IMAGES).classes())
    if as_json:
        console.print_json(stats)
    else:
        console.print_facts(stats)
    console.done(
        f"stats: {stats['num_images']:,} images carry {stats['num_labels']:,} labels of "
        f"{stats['classes']['num_classes']:,} classes"
    )


def conflicts_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: NewFolder = None,
    limit: Annotated[int, typer.Option(min=0, help="Print at most so many images.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Rank the images with several labels by how these relate: images -> conflicts.parquet.

    far: label errors, most likely; near; siblings; ancestor: one is a kind of the other.

    [bold]Examples[/bold]

      vit21k labels conflicts

      vit21k labels conflicts --limit 100 --json > conflicts.json
    """
    from vit21k.labels.conflicts import conflicts

    folder = new_folder(out, manifests, "conflicts")
    summary = conflicts(manifests, folder)
    shown = _first_conflicts(folder, limit)
    if as_json:
        console.print_json({**asdict(summary), "conflicts": shown})
    elif shown:
        console.print_table(
            ["relation", "one", "other", "in common", "depth", "path"],
            [[str(value) for value in row.values()] for row in shown],
        )
    counts = ", ".join(f"{count:,} {relation}" for relation, count in summary.relations.items())
    console.done(
        f"conflicts: {summary.num_images:,} images, {summary.num_multi_label:,} with several "
        f"labels: {counts}; in `{folder}`"
    )


def _first_conflicts(folder: Path, limit: int) -> list[dict[str, object]]:
    """Return the first conflicts, with the classes in words."""
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import CONFLICTS
    from vit21k.manifest.wordnet import names_of

    manifest = open_manifest(folder, CONFLICTS)
    rows = manifest.read().slice(0, limit).to_pylist()
    wnids = manifest.classes().wnids
    pairs = [(wnids[row["first_id"]], wnids[row["second_id"]], row["common_wnid"]) for row in rows]
    names = names_of({wnid for pair in pairs for wnid in pair if wnid})
    return [
        {
            "relation": row["relation"],
            "one": _labels_commands_in_words(one, names),
            "other": _labels_commands_in_words(other, names),
            "common": _labels_commands_in_words(common, names) if common else "-",
            "depth": row["common_depth"],
            "path": row["path"],
        }
        for row, (one, other, common) in zip(rows, pairs, strict=True)
    ]


def _labels_commands_in_words(wnid: str, names: dict[str, str]) -> str:
    return f"{wnid} {names.get(wnid, '').partition(',')[0]}".rstrip()


def tree_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    classes: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="A class list; default: that of the manifests."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Default: labels/tree.json in the manifest folder."
        ),
    ] = None,
) -> None:
    """Write the tree of the class list as JSON, for hierarchical losses.

    For each class: its parents and ancestors in the list, and one line up (class_tree_list, as in
    the tree of ImageNet-21K-P's semantic softmax).

    [bold]Examples[/bold]

      vit21k labels tree

      vit21k labels tree --classes in21k-p --out in21k_p_tree.json
    """
    from vit21k.labels.stats import write_tree
    from vit21k.manifest.class_lists import read_classes
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import IMAGES

    wanted = read_classes(classes) if classes else open_manifest(manifests, IMAGES).classes()
    path = out or manifests / "labels" / "tree.json"
    tree = write_tree(wanted, path)
    num_roots = tree["level"].count(0)
    console.done(
        f"tree: {len(wanted):,} classes: {num_roots:,} roots, {len(wanted) - num_roots:,} below "
        f"them, {max(tree['level'])} levels deep at most; in `{path}`"
    )
