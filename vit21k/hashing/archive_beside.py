"""An archive next to a folder, or another archive, of its name -> whether all of it is there.

Only headers are read, and sizes compared: an archive and the folder that it was unpacked to are
told apart from an archive and a folder that somebody has made, or has begun to fill, otherwise.
"""

import os
import stat
import zlib
from typing import NamedTuple

from vit21k.archives.members import read_members
from vit21k.archives.names import archive_stem, is_gzip
from vit21k.archives.part import ArchivePart
from vit21k.archives.window import BombError, FileSource, GzipSource, Window
from vit21k.hashing.archive_names import flaw_of_name
from vit21k.hashing.entry_problems import problem_from
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.one_line import printable

_HOP_BYTES = 4096
_SIZE_OF_GZIP = 4  # at its end: the size of what it unpacks to, modulo 2**32
_SHOWN = 3


class _Images(NamedTuple):
    """The images of an archive.

    Attributes:
        sizes: By path, as if it were unpacked to a folder of its name.
        damage: Why they may not be all; empty if they are.
    """

    sizes: dict[bytes, int]
    damage: str = ""


def problem_beside(root: bytes, part: ArchivePart, *, flags: int) -> Problem:
    """Return what is to be said of *part*, which is not read because of what lies beside it.

    Args:
        root: The image root, with a ``/`` at its end.
        part: An archive with a `beside`.
        flags: To open archives with.
    """
    try:
        if part.beside.endswith(b"/"):
            images = _images_of(root, part.archive, part.folder, flags=flags)
            missing = [path for path, size in images.sizes.items() if not _is_at(root, path, size)]
        else:
            if _unpacks_to(root + part.archive, root + part.beside, flags):
                return Problem(printable(part.archive), ProblemKind.ALREADY_UNPACKED, "")
            images = _images_of(root, part.archive, part.folder, flags=flags)
            others = _images_of(root, part.beside, part.folder, flags=flags).sizes
            missing = [path for path, size in images.sizes.items() if others.get(path) != size]
    except OSError as error:
        return problem_from(part.archive, error)
    if not missing and not images.damage:
        return Problem(printable(part.archive), ProblemKind.ALREADY_UNPACKED, "")
    detail = _detail(missing, images, printable(part.beside))
    return Problem(printable(part.archive), ProblemKind.ARCHIVE_DIFFERS, detail)


def _detail(missing: list[bytes], images: _Images, beside: str) -> str:
    parts = [images.damage] if images.damage else []
    if missing:
        names = ", ".join(printable(path) for path in missing[:_SHOWN])
        more = ", ..." if len(missing) > _SHOWN else ""
        parts.append(
            f"{len(missing):,} of its {len(images.sizes):,} images are not in `{beside}`, or have "
            f"another size there: {names}{more}; unpack it again, or move one of the two away"
        )
    return "; ".join(parts)


def _images_of(root: bytes, archive: bytes, folder: bytes, *, flags: int) -> _Images:
    """Return the images of an archive and of the class tars in it; of equal names the last."""
    descriptor = os.open(root + archive, flags)
    sizes: dict[bytes, int] = {}
    try:
        if is_gzip(descriptor):
            window = Window(GzipSource(descriptor))
        else:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            window = Window(FileSource(descriptor), window_bytes=_HOP_BYTES)
        damage = _add_images(window, folder, None, root, sizes)
    except (EOFError, zlib.error, BombError) as error:
        return _Images(sizes, f"cannot be read to its end ({type(error).__name__})")
    finally:
        os.close(descriptor)
    return _Images(sizes, damage)


def _add_images(
    window: Window, folder: bytes, end: int | None, root: bytes, sizes: dict[bytes, int]
) -> str:
    """Put the images of the tar at *window* into *sizes*; return what is damaged in it."""
    damage = ""
    for member in read_members(window, end):
        if not member.name:
            damage = damage or (member.flaw[1] if member.flaw else "")
            continue
        path = folder + member.name
        stem = archive_stem(member.name)
        if stem is not None and end is None and not _is_at(root, path, member.num_bytes):
            if member.flaw is None:
                inner_end = member.offset + member.num_bytes
                inner = _add_images(window, folder + stem + b"/", inner_end, root, sizes)
                damage = damage or inner
        elif stem is None and flaw_of_name(path) is None:
            sizes.pop(path, None)
            if member.flaw is None:
                sizes[path] = member.num_bytes
    return damage


def _is_at(root: bytes, path: bytes, size: int) -> bool:
    """Return whether an archive was unpacked to *path*: into a folder of its name, or beside it."""
    return any(_has_size(root + place, size) for place in [path, *_without_one_folder(path)])


def _without_one_folder(path: bytes) -> list[bytes]:
    """Return *path* without each of its folders that has the name of the one above it."""
    parts = path.split(b"/")
    return [
        b"/".join(parts[:place] + parts[place + 1 :])
        for place in range(len(parts) - 2)
        if parts[place] == parts[place + 1]
    ]


def _has_size(path: bytes, size: int) -> bool:
    try:
        status = os.stat(path)  # noqa: PTH116 (bytes)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _unpacks_to(compressed: bytes, plain: bytes, flags: int) -> bool:
    """Return whether a gzip file says that it unpacks to as many bytes as *plain* has."""
    descriptor = os.open(compressed, flags)
    try:
        if not is_gzip(descriptor):
            return False
        num_bytes = os.fstat(descriptor).st_size
        said = os.pread(descriptor, _SIZE_OF_GZIP, num_bytes - _SIZE_OF_GZIP)
    finally:
        os.close(descriptor)
    return int.from_bytes(said, "little") == os.stat(plain).st_size % 2**32  # noqa: PTH116 (bytes)
