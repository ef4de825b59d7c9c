"""`labels stats | conflicts | tree`: what labels there are and how they relate."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vit21k.cli import console, leaks_commands, relabelling_commands, review_commands
from vit21k.cli.classes_commands import PANEL
from vit21k.cli.options import DEFAULT_MANIFESTS, AsJson, Manifests
from vit21k.cli.relabelling_commands import NewFolder, new_folder


def register(app: typer.Typer) -> None:
    """Add the `labels` commands to *app*."""
    labels = typer.Typer(
        no_args_is_help=True,
        help="New manifests with other labels; the old ones stay as they are.",
    )
    labels.command("stats")(stats_command)
    labels.command("conflicts")(conflicts_command)
    relabelling_commands.register_labels(labels)
    labels.command("tree")(tree_command)
    leaks_commands.register_labels(labels)
    review_commands.register_labels(labels)
    app.add_typer(labels, name="labels", rich_help_panel=PANEL)


def stats_command(manifests: Manifests = DEFAULT_MANIFESTS, as_json: AsJson = False) -> None:
    """Count labels, pictures and classes: how many labels a picture has, how large classes are.

    [bold]Examples[/bold]

      vit21k labels stats

      vit21k labels stats --json | jq .mean_labels_with_hypernyms
    """
    from vit21k.labels.stats import label_stats, list_facts
    from vit21k.manifest.reader import open_manifest
    from vit21k.manifest.schema import IMAGES

    stats = label_stats(manifests)
    stats["classes"] = list_facts(open_manifest(manifests, IMAGES).classes())
    if as_json:
        console.print_json(stats)
    else:
        console.print_facts(stats)
    console.done(
        f"stats: {stats['num_images']:,} pictures carry {stats['num_labels']:,} labels of "
        f"{stats['classes']['num_classes']:,} classes"
    )


def conflicts_command(
    manifests: Manifests = DEFAULT_MANIFESTS,
    out: NewFolder = None,
    limit: Annotated[int, typer.Option(min=0, help="Print at most so many pictures.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Rank the pictures with several labels by how these relate: images -> conflicts.parquet.

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
        f"conflicts: {summary.num_images:,} pictures, {summary.num_multi_label:,} with several "
        f"labels: {counts}; in `{folder}`"
    )


def _first_conflicts(folder: Path, limit: int) -> list[dict[str, object]]:
    """Return the first conflicts, with the classes in words."""
    from vit21k.manifest.reader import open_manifest
    from vit21k.manifest.schema import CONFLICTS
    from vit21k.manifest.synsets import names_of

    manifest = open_manifest(folder, CONFLICTS)
    rows = manifest.read().slice(0, limit).to_pylist()
    wnids = manifest.classes().wnids
    pairs = [(wnids[row["first_id"]], wnids[row["second_id"]], row["common_wnid"]) for row in rows]
    names = names_of({wnid for pair in pairs for wnid in pair if wnid})
    return [
        {
            "relation": row["relation"],
            "one": _in_words(one, names),
            "other": _in_words(other, names),
            "common": _in_words(common, names) if common else "-",
            "depth": row["common_depth"],
            "path": row["path"],
        }
        for row, (one, other, common) in zip(rows, pairs, strict=True)
    ]


def _in_words(wnid: str, names: dict[str, str]) -> str:
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
    from vit21k.labels.tree import write_tree
    from vit21k.manifest.class_lists import read_classes
    from vit21k.manifest.reader import open_manifest
    from vit21k.manifest.schema import IMAGES

    wanted = read_classes(classes) if classes else open_manifest(manifests, IMAGES).classes()
    path = out or manifests / "labels" / "tree.json"
    tree = write_tree(wanted, path)
    num_roots = tree["level"].count(0)
    console.done(
        f"tree: {len(wanted):,} classes: {num_roots:,} roots, {len(wanted) - num_roots:,} below "
        f"them, {max(tree['level'])} levels deep at most; in `{path}`"
    )
