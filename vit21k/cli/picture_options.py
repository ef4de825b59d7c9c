"""Options of the commands that take pictures from anywhere: paths, a list of them, a manifest."""

import codecs
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vit21k.cli import console
from vit21k.errors import UsageError
from vit21k.one_line import one_line

if TYPE_CHECKING:
    from vit21k.data.rows import PictureRows
    from vit21k.hashing.folder import Skipped

PicturePaths = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[IMAGE]...",
        help="Pictures, folders and tar archives of pictures, `archive.tar/member.jpg`; "
        "- reads one picture from stdin.",
    ),
]
PictureManifest = Annotated[
    Path | None, typer.Option("--manifest", metavar="FILE", help="A manifest of pictures instead.")
]
PictureList = Annotated[
    Path | None,
    typer.Option(
        "--from-file", metavar="LIST", help="A file of paths instead, one a line; - is stdin."
    ),
]

_STDIN = Path("-")


def open_rows(
    paths: list[Path] | None,
    manifest: Path | None,
    from_file: Path | None,
    root: Path | None,
    skipped: "list[Skipped]",
) -> "PictureRows":
    """Return the pictures that a user asks for; *skipped* gets what is not looked at.

    Raises:
        UsageError: None of the three ways is taken, or several are, or there are no pictures.
        ManifestError: The manifest is missing, damaged or stale.
        ImageTreeError: The image root of the manifest is not there.
    """
    if sum((bool(paths), manifest is not None, from_file is not None)) != 1:
        raise UsageError(
            "which pictures?", hint="give IMAGE..., or --manifest FILE, or --from-file LIST"
        )
    if manifest:
        rows = _of_manifest(manifest, root)
    else:
        rows = _of_paths(paths or _listed(from_file), skipped)
    if not len(rows):
        where = manifest or from_file or ", ".join(f"`{path}`" for path in paths or [])
        raise UsageError(f"no pictures in {where}" + (f"; {_words_of(skipped)}" if skipped else ""))
    return rows


def warn_of_skipped(skipped: "list[Skipped]") -> bool:
    """Warn of what is not looked at; return whether images may be missed for it."""
    if skipped:
        console.warn(_words_of(skipped))
        if any(one.why == "an archive" for one in skipped):
            console.note("next: archives in a folder are read if they are named: `DIR DIR/*.tar`")
    return any(one.may_hold_images for one in skipped)


def _words_of(skipped: "list[Skipped]") -> str:
    from vit21k.hashing.folder import in_words

    return one_line(in_words(skipped))


def _of_manifest(manifest: Path, root: Path | None) -> "PictureRows":
    from vit21k.data.pictures import Pictures
    from vit21k.manifest.reader import open_manifest
    from vit21k.manifest.schema import PICTURE_KINDS

    source = open_manifest(manifest, *PICTURE_KINDS)
    return Pictures.from_manifest(source, root, mapped=True, note=console.note)


def _of_paths(paths: list[Path], skipped: "list[Skipped]") -> "PictureRows":
    from vit21k.inference.files import Files, find_pictures

    if _STDIN in paths:
        if len(paths) > 1:
            raise UsageError("- reads one picture from stdin, and takes no others beside it")
        return Files(paths, {0: sys.stdin.buffer.read()})
    return Files(find_pictures(paths, skipped))


def _listed(from_file: Path | None) -> list[Path]:
    if from_file == _STDIN:
        content = sys.stdin.buffer.read()
    else:
        content = from_file.read_bytes() if from_file else b""
    content = content.removeprefix(codecs.BOM_UTF8)
    return [Path(os.fsdecode(line)) for line in content.splitlines() if line.strip()]
