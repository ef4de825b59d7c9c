"""`classes show | search | map`: what n02084071 is, and which index it has in which list."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from vit21k.cli import console
from vit21k.cli.options import AsJson

if TYPE_CHECKING:
    from vit21k.manifest.synsets import Synsets

_NUM_NAMED = 5

ListName = Annotated[
    str,
    typer.Option(
        "--list", metavar="LIST", help="A known list, or a file or folder that holds one."
    ),
]


def register(classes: typer.Typer) -> None:
    """Add the commands to the group `classes`."""
    classes.command("show")(show_command)
    classes.command("search")(search_command)
    classes.command("map")(map_command)
    classes.command("stats")(stats_command)


def show_command(
    wnid: Annotated[
        str, typer.Argument(metavar="CLASS", help="A wnid; with --list also a class index.")
    ],
    class_list: ListName = "",
    as_json: AsJson = False,
) -> None:
    """Say what a class is: names, meaning, what it is a kind of, which lists have it.

    [bold]Examples[/bold]

      vit21k classes show n02084071

      vit21k classes show 850 --list in1k
    """
    from vit21k.manifest.class_lists import lists_with
    from vit21k.manifest.synsets import load_synsets

    synsets = load_synsets()
    wnid = _wnid_of(wnid, class_list)
    found = {
        "wnid": wnid,
        "name": synsets.name(wnid),
        "gloss": synsets.gloss(wnid),
        "depth": int(synsets.depths[synsets.rows_of([wnid])[0]]),
        "parents": {up: synsets.name(up) for up in synsets.parents(wnid)},
        "ancestors": {up: synsets.name(up) for up in synsets.ancestors(wnid)},
        "class_index": lists_with(wnid),
        "num_below": _num_below(wnid),
    }
    if as_json:
        console.print_json(found)
        return
    for key, value in _shown(wnid, synsets):
        console.print_lines(f"{key:<22}{value}")


def _wnid_of(text: str, class_list: str) -> str:
    """Return the wnid that *text* is, or the one with that class index in *class_list*."""
    from vit21k.errors import UsageError
    from vit21k.manifest.class_lists import read_classes
    from vit21k.manifest.synsets import load_synsets

    if text.isdecimal() and class_list:
        wnids = read_classes(class_list).wnids
        if int(text) >= len(wnids):
            raise UsageError(f"`{class_list}` has class indices 0 to {len(wnids) - 1:,}")
        text = wnids[int(text)]
    if text not in load_synsets():
        raise UsageError(
            f"`{text}` is no noun of WordNet 3.0",
            hint="`vit21k classes search WORD` finds classes; for a class index, name its `--list`",
        )
    return text


def _num_below(wnid: str) -> dict[str, int]:
    """Return how many classes of each shipped list are *wnid* or a kind of it."""
    from vit21k.manifest.class_lists import known_list, shipped_lists
    from vit21k.manifest.synsets import load_synsets

    is_in = load_synsets().subtree(wnid)
    rows = {name: load_synsets().rows_of(known_list(name).wnids) for name in shipped_lists()}
    return {name: int(is_in[row_K].sum()) for name, row_K in rows.items()}


def _shown(wnid: str, synsets: "Synsets") -> Iterator[tuple[str, str]]:
    from vit21k.manifest.class_lists import lists_with

    depth = int(synsets.depths[synsets.rows_of([wnid])[0]])
    yield "wnid", wnid
    yield "name", synsets.name(wnid)
    yield "meaning", synsets.gloss(wnid)
    yield "depth", f"{depth} steps below {synsets.name('n00001740')}"
    for up in synsets.parents(wnid):
        yield "is a kind of", f"{up} {synsets.name(up)}"
    indices = lists_with(wnid)
    for name, num_below in _num_below(wnid).items():
        where = f"class {indices[name]:,}" if name in indices else "not in it (-1)"
        yield f"in {name}", f"{where}; its subtree has {num_below:,} classes"


def search_command(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A word, or a part of one.")],
    class_list: ListName = "fall11",
    limit: Annotated[int, typer.Option(min=1, help="Print at most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Find classes by their names and meanings.

    [bold]Examples[/bold]

      vit21k classes search crane

      vit21k classes search "toy dog" --list in1k

      vit21k classes search physicist --list all
    """
    from vit21k.manifest.class_lists import read_classes
    from vit21k.manifest.synsets import load_synsets

    synsets = load_synsets()
    wnids = synsets.wnids if class_list == "all" else read_classes(class_list).wnids
    index_of = {wnid: index for index, wnid in enumerate(wnids)}
    found = [wnid for wnid in synsets.search(text) if wnid in index_of]
    if as_json:
        keys = ("class_index", "wnid", "name", "gloss")
        rows = ((index_of[w], w, synsets.name(w), synsets.gloss(w)) for w in found[:limit])
        console.print_json([dict(zip(keys, row, strict=True)) for row in rows])
    else:
        console.print_table(
            ["index", "wnid", "name", "meaning"],
            [[str(index_of[w]), w, synsets.name(w), synsets.gloss(w)] for w in found[:limit]],
        )
    where = "all nouns of WordNet" if class_list == "all" else f"`{class_list}`"
    console.done(f"search: {len(found):,} in {where}, {min(limit, len(found)):,} shown")


def map_command(
    class_ids: Annotated[
        list[int] | None, typer.Argument(metavar="[INDEX]...", help="Class indices; default: all.")
    ] = None,
    source: Annotated[
        str, typer.Option("--from", metavar="LIST", help="A known list, a file or a folder.")
    ] = "in1k",
    target: Annotated[str, typer.Option("--to", metavar="LIST", help="The same.")] = "fall11",
    as_json: AsJson = False,
) -> None:
    """Translate class indices from one list to another; -1 where the other has no such class.

    [bold]Examples[/bold]

      vit21k classes map 207 850 --from in1k --to fall11

      vit21k classes map --from google --to fall11 --json > google_to_fall11.json
    """
    from vit21k.errors import UsageError
    from vit21k.manifest.class_lists import map_ids, read_classes
    from vit21k.manifest.synsets import names_of

    classes = read_classes(source)
    mapped = map_ids(classes, read_classes(target)).tolist()
    names = names_of(classes.wnids)
    wanted = class_ids or range(len(classes))
    if max(wanted) >= len(classes) or min(wanted) < 0:
        raise UsageError(f"`{source}` has class indices 0 to {len(classes) - 1:,}")
    if as_json:
        console.print_json({index: mapped[index] for index in wanted})
    else:
        rows = [
            [str(k), str(mapped[k]), classes.wnids[k], names.get(classes.wnids[k], "")]
            for k in wanted
        ]
        console.print_table([source, target, "wnid", "name"], rows)
    lost = [k for k in wanted if mapped[k] < 0]
    for index in lost[:_NUM_NAMED]:
        wnid = classes.wnids[index]
        console.warn(
            f"{wnid} ({names.get(wnid, 'no name')}), {index} in {source}: -1, not in {target}"
        )
    console.done(
        f"map: {len(wanted):,} classes of `{source}`: {len(wanted) - len(lost):,} in "
        f"`{target}`, {len(lost):,} not (-1)"
    )


def stats_command(
    class_list: Annotated[
        str, typer.Argument(metavar="LIST", help="A known list, a file or a folder.")
    ] = "fall11",
    as_json: AsJson = False,
) -> None:
    """Count what a class list is made of: leaves, ancestors, people, names that are not unique.

    [bold]Examples[/bold]

      vit21k classes stats

      vit21k classes stats in21k-p --json
    """
    from vit21k.labels.stats import list_facts
    from vit21k.manifest.class_lists import read_classes

    facts = list_facts(read_classes(class_list))
    if as_json:
        console.print_json(facts)
    else:
        console.print_facts(facts)
    console.done(
        f"stats: {facts['num_classes']:,} classes: {facts['num_leaves']:,} leaves, "
        f"{facts['num_inner']:,} with others below them"
    )
