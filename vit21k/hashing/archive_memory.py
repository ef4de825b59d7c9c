"""An archive, or a class tar in one, as an earlier run left it in the memory.

What counts is the archive's own state: if its size, times and inode are as they were, so are all of
its members.  Parts with problems are read again, and so are archives too large to be held.
"""

import os
from collections.abc import Sequence
from itertools import groupby

from vit21k.archives.part import ArchivePart
from vit21k.hashing.digested import DigestedChunk, Memory
from vit21k.hashing.file_digest import FileDigest

MAX_BYTES = 4 << 30
"""Of a part that is remembered: its rows, 600 bytes a member, are held at once."""

_ANY = (b"", b"\xff")
Members = list[tuple[str, list[str], list[FileDigest]]]
"""Folder by folder: the folder, the members' paths, and what they are; inodes are offsets."""


def is_small(part: ArchivePart, status: os.stat_result) -> bool:
    """Return whether the members of *part* may be held at once."""
    return (status.st_size if part.end is None else part.end - part.start) <= MAX_BYTES


def recall_part(
    memory: Memory, part: ArchivePart, status: os.stat_result, *, is_remote: bool
) -> Members:
    """Return what is known of the members of *part*; nothing, unless it is known to be all."""
    known = memory.recall(_label(part, status, is_remote=is_remote), _ANY)
    if any(file.mtime_ns != status.st_mtime_ns for file in known.values()):
        return []  # it had changed too shortly before
    return [
        (folder.decode(), [name.decode() for name in names], [known[name] for name in names])
        for folder, names in (
            (folder, list(names)) for folder, names in groupby(known, key=_folder_of)
        )
    ]


def note_part(
    memory: Memory,
    part: ArchivePart,
    status: os.stat_result,
    chunks: Sequence[DigestedChunk],
    *,
    is_remote: bool,
) -> None:
    """Remember the members of *part*, all of which are in *chunks*."""
    if any(chunk.problems for chunk in chunks):
        return
    members = {
        path.encode(): file._replace(ctime_ns=status.st_ctime_ns, inode=offset)
        for chunk in chunks
        for path, file, offset in zip(chunk.paths, chunk.files, chunk.offsets, strict=True)
    }
    memory.note(_label(part, status, is_remote=is_remote), members)


def _label(part: ArchivePart, status: os.stat_result, *, is_remote: bool) -> bytes:
    """Return what stands for the folder in the memory; no folder's path begins with a slash."""
    version = [status.st_size, status.st_mtime_ns]
    version += [] if is_remote else [status.st_ctime_ns, status.st_ino]
    return b"/%b/%b" % (part.name, " ".join(map(str, version)).encode())


def _folder_of(path: bytes) -> bytes:
    return path[: path.rfind(b"/") + 1]
