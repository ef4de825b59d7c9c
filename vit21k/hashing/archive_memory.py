"""An archive, or a class tar in one, as an earlier run left it in the memory.

What counts is the archive's own state: if its size, times and inode are as they were, so are all of
its members.  Parts with problems are read again, and so are archives too large to be held.
"""

import os
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from vit21k.archives.part import ArchivePart
from vit21k.hashing.digested import DigestedChunk, Memory
from vit21k.hashing.file_rows import FileRows
from vit21k.hashing.records import NamedRows

_EVERYTHING = (b"", b"\xff")
MAX_BYTES = 4 << 30
"""Of a part that is remembered: its rows, 600 bytes a member, are held at once."""

Members = list[tuple[str, list[str], FileRows]]
"""Folder by folder: the folder, the members' paths, and what they are; inodes are offsets."""


def is_small(part: ArchivePart, status: os.stat_result) -> bool:
    """Return whether the members of *part* may be held at once."""
    return (status.st_size if part.end is None else part.end - part.start) <= MAX_BYTES


def recall_part(
    memory: Memory, part: ArchivePart, status: os.stat_result, *, is_remote: bool
) -> Members:
    """Return what is known of the members of *part*; nothing, unless it is known to be all."""
    label = _label(part, status, is_remote=is_remote)
    known = memory.recall(label, *_EVERYTHING)
    if (known.rows["mtime_ns"] != status.st_mtime_ns).any():
        return []  # it had changed too shortly before
    members: Members = []
    start = 0
    for folder, names in groupby(known.names, key=_folder_of):
        paths = [name.decode() for name in names]
        rows = known.rows[start : start + len(paths)]
        members.append((folder.decode(), paths, FileRows(rows)))
        start += len(paths)
    return members


def differing_members(known: Members, chunks: Sequence[DigestedChunk]) -> list[str]:
    """Return the paths of members that have another digest in *chunks* than is known of them."""
    before = {
        path: digest
        for _, paths, files in known
        for path, digest in zip(paths, files.array["digest"].tolist(), strict=True)
    }
    return [
        path
        for chunk in chunks
        if before
        for path, digest in zip(chunk.paths, chunk.files.array["digest"].tolist(), strict=True)
        if before.get(path, digest) != digest
    ]


def note_part(
    memory: Memory,
    part: ArchivePart,
    status: os.stat_result,
    chunks: Sequence[DigestedChunk],
    *,
    is_remote: bool,
    read_at: int,
) -> None:
    """Remember the members of *part*, all of them in *chunks*, which were read after *read_at*."""
    if any(chunk.problems for chunk in chunks):
        return
    paths = [path.encode() for chunk in chunks for path in chunk.paths]
    rows = np.concatenate([chunk.files.array for chunk in chunks])
    rows["ctime_ns"] = status.st_ctime_ns
    rows["inode"] = [offset for chunk in chunks for offset in chunk.offsets]
    memory.note(_label(part, status, is_remote=is_remote), NamedRows(paths, rows), read_at)


def _label(part: ArchivePart, status: os.stat_result, *, is_remote: bool) -> bytes:
    """Return what stands for the folder in the memory; no folder's path begins with a slash."""
    version = [status.st_size, status.st_mtime_ns]
    version += [] if is_remote else [status.st_ctime_ns, status.st_ino]
    return b"/%b/%b" % (part.name, " ".join(map(str, version)).encode())


def _folder_of(path: bytes) -> bytes:
    return path[: path.rfind(b"/") + 1]
