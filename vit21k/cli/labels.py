"""`labels`: statistics, conflicts, and new manifests with other labels."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vit21k.cli import console
from vit21k.cli.next_steps import print_next, print_next_split, with_options
from vit21k.cli.options import DEFAULT_MANIFESTS, AsJson, Manifests
from vit21k.errors import UsageError

if TYPE_CHECKING:
    from vit21k.labels.edit import RewriteSummary
    from vit21k.labels.select import SelectSummary

_NUM_NAMED = 5

NewFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder of the new manifests; default: labels/<command> in the manifest folder.",
    ),
]


def print_label_stats(manifests: Manifests = DEFAULT_MANIFESTS, as_json: AsJson = False) -> None:
    """Count labels, images and classes: labels per image, images per class.

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
        f"stats: {stats['num_images']:,} images have {stats['num_labels']:,} labels of "
        f"{stats['classes']['num_classes']:,} classes"
    )
    print_next(with_options("vit21k labels conflicts", manifests=manifests))


def conflicts_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: NewFolder = None,
    limit: Annotated[int, typer.Option(min=0, help="Maximum number of images to print.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Rank images with several labels by how these are related: images -> conflicts.parquet.

    far: probably a label error; near; siblings; ancestor: one is a hypernym of the other.

    [bold]Examples[/bold]

      vit21k labels conflicts

      vit21k labels conflicts --limit 100 --json > conflicts.json
    """
    from vit21k.labels.conflicts import conflicts

    folder = _new_folder(out, manifests, "conflicts")
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
    if shown:
        print_next(with_options("vit21k review", manifests=manifests))


def _first_conflicts(folder: Path, limit: int) -> list[dict[str, object]]:
    """Return the first conflicts, with names of classes."""
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import CONFLICTS
    from vit21k.manifest.wordnet import names_of

    manifest = open_manifest(folder, CONFLICTS)
    rows = manifest.read().slice(0, limit).to_pylist()
    wnids = manifest.classes().wnids
    columns = {
        "one": [wnids[row["first_id"]] for row in rows],
        "other": [wnids[row["second_id"]] for row in rows],
        "common": [row["common_wnid"] for row in rows],
    }
    names = names_of({wnid for column in columns.values() for wnid in column if wnid})
    shown = {
        name: [f"{w} {names.get(w, '').partition(',')[0]}".rstrip() if w else "-" for w in column]
        for name, column in columns.items()
    }
    return [
        {
            "relation": row["relation"],
            **{name: column[index] for name, column in shown.items()},
            "depth": row["common_depth"],
            "path": row["path"],
        }
        for index, row in enumerate(rows)
    ]


def reduce_command(
    manifests: Manifests = DEFAULT_MANIFESTS, out: NewFolder = None, as_json: AsJson = False
) -> None:
    """Drop labels that are hypernyms of another label of the image: "animal" next to "dog".

    [bold]Examples[/bold]

      vit21k labels reduce

      vit21k labels reduce --out leaf_manifests
    """
    from vit21k.labels.select import reduce

    folder = _new_folder(out, manifests, "reduce")
    summary = reduce(manifests, folder)
    if as_json:
        console.print_json(_result(summary))
    _report("reduce", summary, folder)


def expand_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: NewFolder = None,
    levels: Annotated[
        int | None,
        typer.Option(min=1, help="Steps up, between classes of the list; default: all."),
    ] = None,
    into_labels: Annotated[
        bool,
        typer.Option("--into-labels", help="Write manifests to train on, with both as labels."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add the hypernyms of the labels, in a separate column: images -> expanded.parquet.

    With --into-labels: new images, train and val manifests with both as labels.

    [bold]Examples[/bold]

      vit21k labels expand

      vit21k labels expand --levels 1

      vit21k labels expand --into-labels --out expanded_manifests
    """
    from vit21k.labels.select import expand, expand_into_labels

    folder = _new_folder(out, manifests, "expand")
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
        f"{summary.num_hypernyms:,} hypernyms, {summary.num_without:,} images without; "
        f"in `{folder}`"
    )


def select_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: NewFolder = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="WNID|LIST", help="Only this subtree or list; repeatable."),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="WNID|LIST", help="Not this subtree or list; repeatable."),
    ] = None,
    more_than: Annotated[
        int | None, typer.Option(metavar="N", help="Only classes with more than N images.")
    ] = None,
    count: Annotated[
        Literal["files", "images"], typer.Option(help="What --more-than counts.")
    ] = "files",
    keep_indices: Annotated[
        bool, typer.Option("--keep-indices", help="Keep the class list unchanged.")
    ] = False,
    hold_out: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Make a split, with N val images per class."),
    ] = None,
    preset: Annotated[
        Literal["21k-p"] | None,
        typer.Option(help="ImageNet-21K-P: --more-than 500 --hold-out 50."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Keep some of the classes, and the images that have one of them.

    A wnid means its subtree. A list is a known one (`vit21k classes lists`), a file or a folder;
    with --keep LIST alone it becomes the class list, otherwise the kept classes get new consecutive
    indices.

    [bold]Examples[/bold]

      vit21k labels select --drop n00007846

      vit21k labels select --drop persons-unsafe

      vit21k labels select --keep in1k --out in1k_manifests

      vit21k labels select --more-than 100 --count images

      vit21k labels select --preset 21k-p --out in21k_p_manifests
    """
    from vit21k.labels.select import Selection, select_21k_p, select_labels

    folder = _new_folder(out, manifests, "select")
    selection = Selection(
        keep=keep or (),
        drop=drop or (),
        more_than=more_than,
        count=count,
        keep_indices=keep_indices,
    )
    if preset and (selection != Selection() or hold_out):
        raise UsageError("`--preset` cannot be combined with other conditions")
    if not preset and not hold_out and selection == Selection():
        raise UsageError(
            "nothing is selected", hint="give a condition: --keep, --drop or --more-than"
        )
    if preset:
        summary = select_21k_p(manifests, folder)
    else:
        summary = select_labels(manifests, folder, selection, hold_out=hold_out)
    if as_json:
        console.print_json({**asdict(summary), "rewritten": _result(summary.rewritten)})
    _report_selection(summary, folder)


def _report_selection(summary: "SelectSummary", folder: Path) -> None:
    if summary.gone:
        console.warn(f"{len(summary.gone):,} classes are dropped (-1): {_named(summary.gone)}")
    if summary.lost:
        console.warn(
            f"{len(summary.lost):,} classes of the list are not in the old one and have no images: "
            f"{_named(summary.lost)}"
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


def _named(wnids: Sequence[str]) -> str:
    from vit21k.manifest.wordnet import names_of

    names = names_of(wnids[:_NUM_NAMED])
    some = ", ".join(f"{wnid} ({names.get(wnid, 'no name')})" for wnid in wnids[:_NUM_NAMED])
    rest = len(wnids) - _NUM_NAMED
    return f"{some} and {rest:,} more; all are in `--json`" if rest > 0 else some


def _new_folder(out: Path | None, manifests: Path, verb: str) -> Path:
    return out or manifests / "labels" / verb


def _result(summary: "RewriteSummary") -> dict[str, object]:
    return {**asdict(summary), "num_skipped": summary.num_skipped}


def _report(verb: str, summary: "RewriteSummary", folder: Path) -> None:
    if summary.stale_split:
        console.warn("the split is stale and was skipped; make a new one in the new folder")
    for name, count in summary.splits.items():
        console.note(f"{name}: {count:,} images")
    console.done(
        f"{verb}: {summary.num_before:,} images: {summary.num_changed:,} with other labels, "
        f"{summary.num_images - summary.num_changed:,} unchanged, "
        f"{summary.num_skipped:,} skipped; "
        f"{summary.num_labels_before:,} labels are now {summary.num_labels:,}; in `{folder}`"
    )
    print_next_split(folder)


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

    For each class: its parents and ancestors in the list, and one path to a root (class_tree_list,
    as in the tree of ImageNet-21K-P's semantic softmax).

    [bold]Examples[/bold]

      vit21k labels tree

      vit21k labels tree --classes in21k-p --out in21k_p_tree.json
    """
    from vit21k.labels.stats import write_class_tree
    from vit21k.manifest.class_lists import read_classes
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import IMAGES

    wanted = read_classes(classes) if classes else open_manifest(manifests, IMAGES).classes()
    path = out or manifests / "labels" / "tree.json"
    tree = write_class_tree(wanted, path)
    num_roots = tree["level"].count(0)
    console.done(
        f"tree: {len(wanted):,} classes: {num_roots:,} roots, {len(wanted) - num_roots:,} below "
        f"them, at most {max(tree['level'])} levels deep; in `{path}`"
    )
