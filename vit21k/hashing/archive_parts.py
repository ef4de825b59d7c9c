"""An archive -> parts that can be digested side by side.

A tar of tars is the case that counts: ImageNet-21K comes as one of 21,841.  Its outer headers lead
from one class tar to the next, so every class tar is a part.  Anything else is one part, read from
front to back: a tar of pictures, and all that is compressed.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress

from vit21k.archives.members import Member, read_members
from vit21k.archives.names import archive_stem, is_gzip
from vit21k.archives.part import ArchivePart
from vit21k.archives.window import FileSource, Window
from vit21k.hashing.archive_names import flaw_of_class_tar
from vit21k.hashing.entry_problems import problem_from
from vit21k.hashing.walk import Chunk
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.one_line import printable

_HOP_BYTES = 4096
"""Read at a time where only headers are wanted."""


def with_parts(chunks: Iterable[Chunk], root: bytes, *, flags: int) -> Iterator[Chunk]:
    """Yield *chunks*, with a chunk for each part of an archive in place of that of the archive.

    Args:
        chunks: Of a walk.
        root: The image root, with a ``/`` at its end.
        flags: To open archives with.
    """
    fraction = 0.0
    for chunk in chunks:
        if chunk.archive is None or chunk.archive.beside:
            yield chunk
        else:
            for part in plan_archive(root, chunk.archive, flags=flags):
                if isinstance(part, Problem):
                    yield Chunk(chunk.folder, [(b"", part)], chunk.fraction)
                else:
                    share = _share_before_end(part, root)
                    done = fraction + share * (chunk.fraction - fraction)
                    yield Chunk(chunk.folder, [], done, part)
        fraction = chunk.fraction


def _share_before_end(part: ArchivePart, root: bytes) -> float:
    if part.end is None:
        return 1.0
    with suppress(OSError, ZeroDivisionError):
        return min(part.end / os.stat(root + part.archive).st_size, 1.0)  # noqa: PTH116 (bytes)
    return 1.0


def plan_archive(root: bytes, whole: ArchivePart, *, flags: int) -> list[ArchivePart | Problem]:
    """Return the parts of an archive, and what is wrong with it so far, in path order.

    Args:
        root: The image root, with a ``/`` at its end.
        whole: The archive.
        flags: To open it with.
    """
    try:
        descriptor = os.open(root + whole.archive, flags)
    except OSError as error:
        return [problem_from(whole.archive, error)]
    try:
        if is_gzip(descriptor):
            return [whole]
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        found = _class_tars(Window(FileSource(descriptor), window_bytes=_HOP_BYTES))
    except OSError as error:
        return [problem_from(whole.archive, error)]
    finally:
        os.close(descriptor)
    return _parts_of(found, whole) if found else [whole]


def _class_tars(window: Window) -> list[Member] | None:
    """Return the members of a tar that holds tars only; None of any other."""
    found = []
    for member in read_members(window):
        if member.name and archive_stem(member.name) is None:
            return None
        found.append(member)
    return found if any(member.flaw is None for member in found) else None


def _parts_of(found: list[Member], whole: ArchivePart) -> list[ArchivePart | Problem]:
    parts: dict[bytes, list[ArchivePart | Problem]] = {}
    last_of = {
        archive_stem(member.name): member
        for member in found
        if flaw_of_class_tar(member.name) is None
    }
    for member in found:
        name = whole.folder + member.name if member.name else whole.archive
        stem = archive_stem(member.name) or b""
        flaw = member.flaw or flaw_of_class_tar(member.name)
        if flaw is None and last_of[stem] is not member:
            flaw = ProblemKind.DUPLICATE_MEMBER, f"at offset {member.offset:,}"
        if flaw is not None:
            parts.setdefault(name, []).append(Problem(printable(name), *flaw))
            continue
        end = member.offset + member.num_bytes
        folder = whole.folder + stem + b"/"
        part = ArchivePart(whole.archive, name, folder, member.offset, end)
        parts.setdefault(folder, []).append(part)
    return [part for name in sorted(parts) for part in parts[name]]
