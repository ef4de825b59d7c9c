"""`classes`: the known class lists, and what a wnid is in each."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit21k.cli import console
from vit21k.cli.options import AsJson
from vit21k.errors import ManifestError, UsageError

if TYPE_CHECKING:
    from vit21k.manifest.class_lists import Match
    from vit21k.manifest.classes import ClassList
    from vit21k.manifest.wordnet import Synsets

_NUM_NAMED = 5

ListName = Annotated[
    str,
    typer.Option(
        "--list", metavar="LIST", help="A known list, a file, or a folder of class folders."
    ),
]


def show_classes(
    wnid: Annotated[
        str, typer.Argument(metavar="CLASS", help="A wnid; with --list also a class index.")
    ],
    class_list: ListName = "",
    as_json: AsJson = False,
) -> None:
    """Show a class: names, meaning, hypernyms, and the lists that contain it.

    [bold]Examples[/bold]

      vit21k classes show n02084071

      vit21k classes show 850 --list in1k
    """
    from vit21k.manifest.class_lists import lists_with
    from vit21k.manifest.wordnet import load_synsets

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
    """Return *text* if it is a wnid, or the wnid with that class index in *class_list*."""
    from vit21k.manifest.class_lists import read_classes
    from vit21k.manifest.wordnet import load_synsets

    if text.isdecimal() and class_list:
        wnids = read_classes(class_list).wnids
        if int(text) >= len(wnids):
            raise UsageError(f"`{class_list}` has class indices 0 to {len(wnids) - 1:,}")
        text = wnids[int(text)]
    if text not in load_synsets():
        raise UsageError(
            f"`{text}` is not a noun of WordNet 3.0",
            hint="`vit21k classes search WORD` finds classes; for a class index, name its `--list`",
        )
    return text


def _num_below(wnid: str) -> dict[str, int]:
    """Return how many classes of each known list are *wnid* or a hyponym of it."""
    from vit21k.manifest.class_lists import KNOWN_LISTS, known_list
    from vit21k.manifest.wordnet import load_synsets

    is_in = load_synsets().subtree(wnid)
    rows = {name: load_synsets().rows_of(known_list(name).wnids) for name in KNOWN_LISTS}
    return {name: int(is_in[row_K].sum()) for name, row_K in rows.items()}


def _shown(wnid: str, synsets: "Synsets") -> Iterator[tuple[str, str]]:
    from vit21k.manifest.class_lists import lists_with

    depth = int(synsets.depths[synsets.rows_of([wnid])[0]])
    yield "wnid", wnid
    yield "name", synsets.name(wnid)
    yield "meaning", synsets.gloss(wnid)
    yield "depth", f"{depth} steps below {synsets.name('n00001740')}"
    for up in synsets.parents(wnid):
        yield "hypernym", f"{up} {synsets.name(up)}"
    indices = lists_with(wnid)
    for name, num_below in _num_below(wnid).items():
        where = f"class {indices[name]:,}" if name in indices else "not in it (-1)"
        yield f"in {name}", f"{where}; its subtree has {num_below:,} classes"


def search_command(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A word, or a part of one.")],
    class_list: ListName = "fall11",
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of classes to print.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Find classes by their names and meanings.

    [bold]Examples[/bold]

      vit21k classes search crane

      vit21k classes search "toy dog" --list in1k

      vit21k classes search physicist --list all
    """
    from vit21k.manifest.class_lists import read_classes
    from vit21k.manifest.wordnet import load_synsets

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
    from vit21k.manifest.class_lists import map_ids, read_classes
    from vit21k.manifest.wordnet import names_of

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


def class_stats(
    class_list: Annotated[
        str, typer.Argument(metavar="LIST", help="A known list, a file or a folder.")
    ] = "fall11",
    as_json: AsJson = False,
) -> None:
    """Count leaves, ancestors, people and names that are not unique in a class list.

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
        f"{facts['num_inner']:,} with descendants"
    )


def lists_command(as_json: AsJson = False) -> None:
    """Print the known class lists: name, length, fingerprint, what it is; with --json the source.

    [bold]Examples[/bold]

      vit21k classes lists
    """
    from dataclasses import asdict

    from vit21k.manifest.class_lists import KNOWN_LISTS, OTHER_LISTS

    lists = [*KNOWN_LISTS.values(), *OTHER_LISTS.values()]
    if as_json:
        console.print_json([asdict(known) for known in lists])
        return
    rows = [
        [known.name, f"{known.num_classes:,}", known.fingerprint[:12], known.what]
        for known in lists
    ]
    console.print_table(["list", "classes", "fingerprint", "what it is"], rows)


def identify_command(
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="An image tree, manifests, or a text file.")
    ],
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="FILE", help="Write its classes here, one per line."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Identify a class list: which known list it is, or is a part of.

    TARGET is an image tree (class folders, or one .tar for each), a folder of manifests, or a file
    with one class per line.

    [bold]Examples[/bold]

      vit21k classes identify /data/ImageNet21K

      vit21k classes identify data_manifests

      vit21k classes identify /data/my_images --write classes.txt
    """
    from vit21k.manifest.class_lists import identify

    classes = _classes_of(target)
    matches = [match for match in identify(classes) if match.num_common]
    if target.is_file() and target.suffix != ".parquet" and not matches:
        raise UsageError(
            f"`{target}` is not a list of ImageNet classes: none of its {len(classes):,} lines is "
            f"a class of a known list, such as {classes.wnids[0][:80]!r}",
            hint="give a file with one class folder (n01440764) per line",
        )
    if write:
        _write_list(classes, write)
    if as_json:
        console.print_json(_identified(classes, matches))
    elif matches:
        columns = ["list", "classes", "found", "missing", "not in it", "order"]
        console.print_table(columns, [_match_row(match) for match in matches])
    console.done(f"identify: {_verdict(classes, matches)}")
    console.note(f"fingerprint {classes.fingerprint}")


def _classes_of(target: Path) -> "ClassList":
    from vit21k.manifest.class_lists import read_classes
    from vit21k.manifest.io import open_manifest
    from vit21k.manifest.schema import IMAGE_KINDS

    paths = [target, *(target / kind.file_name for kind in IMAGE_KINDS)]
    for path in paths:
        if path.suffix == ".parquet" and path.is_file():
            return open_manifest(path, *IMAGE_KINDS, allow_stale=True).classes()
    try:
        return read_classes(str(target))
    except ManifestError as error:
        raise UsageError(error.message, hint=error.hint) from error


def _write_list(classes: "ClassList", path: Path) -> None:
    from vit21k.atomic import write_atomic
    from vit21k.manifest.wordnet import names_of

    names = names_of(classes.wnids)
    lines = (f"{wnid}\t{names.get(wnid, '')}".rstrip("\t") for wnid in classes.wnids)
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode())
    console.note(f"{len(classes):,} classes in `{path}`; use it with `--classes {path}`")


def _match_row(match: "Match") -> list[str]:
    return [
        match.name,
        f"{match.num_known:,}",
        f"{match.num_common:,}",
        f"{len(match.missing):,}",
        f"{len(match.extra):,}",
        "same" if match.is_same_order else "another",
    ]


def _identified(classes: "ClassList", matches: list["Match"]) -> dict[str, object]:
    return {
        "num_classes": len(classes),
        "fingerprint": classes.fingerprint,
        "is": next((match.name for match in matches if match.is_equal), None),
        "part_of": [match.name for match in matches if match.is_part],
        "lists": [
            {
                "list": match.name,
                "num_known": match.num_known,
                "num_common": match.num_common,
                "missing": match.missing,
                "extra": match.extra,
                "is_same_order": match.is_same_order,
            }
            for match in matches
        ],
    }


def _verdict(classes: "ClassList", matches: list["Match"]) -> str:
    """Return a description of *classes*."""
    size = f"{len(classes):,} classes"
    for match in matches:
        if match.is_equal:
            return f"{size}: this is `{match.name}`"
        if not (match.missing or match.extra):
            return f"{size}: those of `{match.name}`, but in another order: other class indices"
    if parts := [match for match in matches if match.is_part]:
        wholes = ", ".join(f"`{m.name}` ({m.num_common:,} of {m.num_known:,})" for m in parts)
        return f"{size}: a part of {wholes}"
    if matches:
        best = matches[0]
        return (
            f"{size}: not a known list; the nearest is `{best.name}`: {len(best.missing):,} of its "
            f"classes are missing, {len(best.extra):,} are not in it"
            + (f": {console.some(best.extra, _NUM_NAMED)}" if best.extra else "")
        )
    return f"{size}: none of them in any list of ImageNet"


def warn_of_part(classes: "ClassList") -> None:
    """Warn if *classes* are only a part of a known list, so that class indices would shift."""
    from vit21k.manifest.class_lists import wholes

    if parts := wholes(classes):
        names = ", ".join(f"{part.name} ({part.num_known:,})" for part in parts)
        console.warn(
            f"the {len(classes):,} class folders are only a part of known lists: {names}. Class "
            "indices are ranks among the folders found and shift when one is added; "
            "`--classes LIST` takes them from a list"
        )


def warn_of_numbers(classes: "ClassList") -> None:
    """Warn if folders are named by numbers that are not their class indices."""
    if not all(wnid.isdecimal() for wnid in classes.wnids):
        return
    other = next((pair for pair in enumerate(classes.wnids) if pair[0] != int(pair[1])), None)
    if other is not None:
        console.warn(
            f"the class folders are named by numbers, but class indices are ranks of the names as "
            f"text: class {other[0]} is `{other[1]}`; `relabel --classes FILE` uses another order"
        )
