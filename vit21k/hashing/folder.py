"""A folder -> the image files in it, and what of it is not looked at: nothing is left unsaid."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vit21k.archives.names import archive_stem
from vit21k.hashing.walk import walk
from vit21k.manifest.problems import ProblemKind
from vit21k.one_line import printable

_NO_IMAGES = (
    "", ".cfg", ".cls", ".csv", ".db", ".docx", ".html", ".ini", ".json", ".log", ".m", ".mat",
    ".md", ".pdf", ".py", ".rst", ".sh", ".toml", ".tsv", ".txt", ".xml", ".yaml", ".yml",
)  # fmt: skip
"""Suffixes of files that nobody expects images in."""

ARCHIVE = "an archive"
"""Why an archive is skipped: it is a matter of whoever lists the folder to look into it."""

_READ = (None, ProblemKind.NOT_IN_CLASS_FOLDER)
_NO_LOSS = (ProblemKind.HIDDEN, ProblemKind.FOLDER_SEEN_BEFORE)
_NUM_NAMED = 5


class Skipped(NamedTuple):
    r"""An entry of a folder that is not looked at.

    Attributes:
        path: Relative to the folder; bytes that are not UTF-8 as ``\xNN``.
        why: In a few words.
        may_hold_images: Whether images may be missed: it is an archive, an image of another format,
            a link to nothing, a folder that cannot be read.
    """

    path: str
    why: str
    may_hold_images: bool


def list_folder(root: Path, *, any_name: bool = False) -> tuple[list[str], list[Skipped]]:
    """Return the image files below *root*, in byte order, and what is not looked at.

    Symbolic links are followed, and images right in *root* count, which have no class.

    Args:
        root: A folder.
        any_name: Take also files whose names are not UTF-8, as `os.fsdecode` gives them.
    """
    read = (*_READ, ProblemKind.NAME_NOT_UTF8) if any_name else _READ
    paths, skipped = [], []
    for chunk in walk(os.fsencode(root), follow_symlinks=True):
        if chunk.archive:
            skipped.append(Skipped(printable(chunk.archive.archive), ARCHIVE, True))
        for name, problem in chunk.entries:
            path = chunk.folder + name
            if (problem and problem.kind) in read:
                paths.append(os.fsdecode(path))
            elif problem:
                skipped.append(_skipped(path, problem.kind, problem.detail))
    return paths, skipped


def _skipped(path: bytes, kind: ProblemKind, detail: str) -> Skipped:
    if archive_stem(path) is not None:
        return Skipped(printable(path), ARCHIVE, True)
    if kind is ProblemKind.OTHER_SUFFIX:
        return Skipped(printable(path), "another suffix", may_be_image(os.fsdecode(path)))
    words = str(kind).replace("_", " ") + (f": {detail}" if detail else "")
    return Skipped(printable(path), words, kind not in _NO_LOSS)


def may_be_image(name: str) -> bool:
    """Return whether a file with a suffix that is not read may be an image, or hold some."""
    return Path(name).suffix.lower() not in _NO_IMAGES


def in_words(skipped: Sequence[Skipped]) -> str:
    """Return how many entries were not looked at, and name those that matter most."""
    first = sorted(skipped, key=lambda one: not one.may_hold_images)[:_NUM_NAMED]
    named = ", ".join(f"`{one.path}` ({one.why})" for one in first)
    more = f" and {len(skipped) - len(first):,} more" if len(skipped) > len(first) else ""
    verb = "entry was" if len(skipped) == 1 else "entries were"
    return f"{len(skipped):,} {verb} not looked at: {named}{more}"
