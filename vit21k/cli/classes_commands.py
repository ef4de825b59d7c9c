"""`classes lists | identify`: the known class lists, and which of them this is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit21k.cli import class_lookup_commands, console
from vit21k.cli.options import AsJson
from vit21k.errors import ManifestError, UsageError

if TYPE_CHECKING:
    from vit21k.manifest.classes import ClassList
    from vit21k.manifest.identify import Match

PANEL = "Prepare the data (in this order)"

_NUM_NAMED = 5


def register(app: typer.Typer) -> None:
    """Add the `classes` commands to *app*."""
    classes = typer.Typer(no_args_is_help=True, help="Class lists, and what their classes are.")
    classes.command("lists")(lists_command)
    classes.command("identify")(identify_command)
    class_lookup_commands.register(classes)
    app.add_typer(classes, name="classes", rich_help_panel=PANEL)


def lists_command(as_json: AsJson = False) -> None:
    """Print the known class lists: name, length, fingerprint, what it is.

    [bold]Examples[/bold]

      vit21k classes lists
    """
    from dataclasses import asdict

    from vit21k.manifest.class_lists import KNOWN_LISTS

    if as_json:
        console.print_json([asdict(known) for known in KNOWN_LISTS.values()])
        return
    rows = [
        [known.name, f"{known.num_classes:,}", known.fingerprint[:12] or "-", known.what]
        for known in KNOWN_LISTS.values()
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
    """Say which known class list this is, or is a part of.

    TARGET is an image tree (class folders, or one .tar for each), a folder of manifests, or a file
    with one class per line.

    [bold]Examples[/bold]

      vit21k classes identify /data/ImageNet21K

      vit21k classes identify data_manifests

      vit21k classes identify /data/winter21 --write winter21.txt
    """
    from vit21k.manifest.identify import identify

    classes = _classes_of(target)
    matches = [match for match in identify(classes) if match.num_common]
    if target.is_file() and target.suffix != ".parquet" and not matches:
        raise UsageError(
            f"`{target}` is no list of ImageNet classes: none of its {len(classes):,} lines, such "
            f"as {classes.wnids[0][:80]!r}, is a class of a known list",
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
    from vit21k.manifest.reader import open_manifest
    from vit21k.manifest.schema import PICTURE_KINDS

    paths = [target, *(target / kind.file_name for kind in PICTURE_KINDS)]
    for path in paths:
        if path.suffix == ".parquet" and path.is_file():
            return open_manifest(path, *PICTURE_KINDS, allow_stale=True).classes()
    try:
        return read_classes(str(target))
    except ManifestError as error:  # what was named is no list
        raise UsageError(error.message, hint=error.hint) from error


def _write_list(classes: "ClassList", path: Path) -> None:
    from vit21k.atomic import write_atomic
    from vit21k.manifest.synsets import names_of

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
    """Return in words what *classes* are."""
    size = f"{len(classes):,} classes"
    for match in matches:
        if match.is_equal:
            return f"{size}: this is `{match.name}`"
        if not (match.missing or match.extra):
            return f"{size}: those of `{match.name}`, but in another order: other class indices"
    if _may_be_winter21(classes, matches):
        return (
            f"{size}: as many as winter21 has, all of them in fall11, and all of in21k-p-winter21 "
            "among them; winter21's own list is in no package to compare with"
        )
    if parts := [match for match in matches if match.is_part]:
        wholes = ", ".join(f"`{m.name}` ({m.num_common:,} of {m.num_known:,})" for m in parts)
        return f"{size}: a part of {wholes}"
    if matches:
        best = matches[0]
        return (
            f"{size}: no known list; nearest is `{best.name}`, {len(best.missing):,} of whose "
            f"classes are missing, with {len(best.extra):,} that it does not have"
            f"{_some(best.extra)}"
        )
    return f"{size}: none of them in any list of ImageNet"


def _may_be_winter21(classes: "ClassList", matches: list["Match"]) -> bool:
    from vit21k.manifest.class_lists import KNOWN_LISTS

    by_name = {match.name: match for match in matches}
    return (
        len(classes) == KNOWN_LISTS["winter21"].num_classes
        and not by_name["fall11"].extra
        and not by_name["in21k-p-winter21"].missing
    )


def _some(wnids: tuple[str, ...]) -> str:
    if not wnids:
        return ""
    more = f" and {len(wnids) - _NUM_NAMED:,} more" if len(wnids) > _NUM_NAMED else ""
    return f": {', '.join(wnids[:_NUM_NAMED])}{more}"


def warn_of_part(classes: "ClassList") -> None:
    """Warn if *classes* are only a part of a known list, so that class indices would shift."""
    from vit21k.manifest.identify import wholes

    if parts := wholes(classes):
        names = ", ".join(f"{part.name} ({part.num_known:,})" for part in parts)
        console.warn(
            f"the {len(classes):,} class folders are only a part of known lists: {names}. Class "
            "indices are ranks among the folders found and shift when one is added; "
            "`--classes LIST` takes them from a list"
        )


def warn_of_numbers(classes: "ClassList") -> None:
    """Warn if folders are called by numbers, and their class indices are others."""
    if not all(wnid.isdecimal() for wnid in classes.wnids):
        return
    other = next((pair for pair in enumerate(classes.wnids) if pair[0] != int(pair[1])), None)
    if other is not None:
        console.warn(
            f"the class folders are called by numbers, but class indices are ranks of the names as "
            f"text: class {other[0]} is `{other[1]}`; `relabel --classes FILE` takes another order"
        )
