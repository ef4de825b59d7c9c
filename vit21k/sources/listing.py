"""Images of a tar or zip by name, without hashing it: for images that no manifest lists."""

import errno
import os
import zlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from vit21k.errors import ImageError, UnreadableImageError, printable
from vit21k.manifest.archive_names import archive_stem, is_gzip_name, is_zip_name
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.sources.archive_file import ArchiveFile
from vit21k.sources.folders import Skipped, is_image_name, may_be_image
from vit21k.sources.gzip_tar import GZIP
from vit21k.sources.read import ImageReader, Locator
from vit21k.sources.tar import (
    MAX_MEMBER_BYTES,
    BombError,
    Member,
    Window,
    read_members,
)
from vit21k.sources.zip import read_zip_members

Members = Mapping[str, Locator | Problem]
"""Members of a container by name; problems for those that cannot be read."""

_HOP_BYTES = 4096
"""Bytes to read at a time when skipping from header to header."""


def is_container_name(name: str) -> bool:
    """Return whether a file name has the suffix of a tar or zip."""
    return archive_stem(os.fsencode(name)) is not None


@lru_cache(maxsize=8)
def list_container(reader: ImageReader, container: str) -> Members:
    """Return the members of a container in its order; of equal names the last one counts.

    The members of class tars in a tar are included, as `<class tar>/<member>`.

    Raises:
        ImageError: It is not a tar or zip, or cannot be read.
    """
    try:
        if is_zip_name(os.fsencode(container)):
            members = dict(_zip_members(reader, container))
        else:
            members = dict(_tar_members(reader, container))
    except (OSError, EOFError, zlib.error, BombError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # of the folder for temporary files
        raise _unreadable(container, str(error) or type(error).__name__) from error
    only = next(iter(members.values()), None)
    if len(members) == 1 and isinstance(only, Problem) and only.path == container:
        raise _unreadable(container, only.detail or only.kind.doc)
    return members


def _unreadable(container: str, why: str) -> ImageError:
    return ImageError(f"`{printable(Path(container))}` cannot be read as an archive: {why}")


def find_member(reader: ImageReader, path: str) -> Locator | Problem | None:
    """Return the member at `<container>/<name>`; None if no part of *path* is a container.

    The name is looked up among those of the container; it is never used as a path.

    Raises:
        ImageError: The container has no such member, or cannot be read.
    """
    container = next((str(one) for one in Path(path).parents if reader.is_file(str(one))), None)
    if container is None or not is_container_name(container):
        return None
    member = list_container(reader, container).get(Path(path).relative_to(container).as_posix())
    if member is None:
        raise ImageError(f"`{printable(Path(container))}` has no such member")
    return member


def read_path(reader: ImageReader, path: str) -> bytes:
    """Return the content of a file, or of a member of a container: `archive.tar/member.jpg`.

    Raises:
        ImageError: It is not there, or a member that cannot be read.
        OSError: It cannot be read.
    """
    try:
        return reader.read(path)
    except UnreadableImageError:
        member = find_member(reader, path)
        if member is None:
            raise
    if isinstance(member, Problem):
        raise ImageError(member.detail or member.kind.doc, kind=member.kind)
    return reader.read(*member)


def list_images(reader: ImageReader, container: str) -> tuple[list[str], list[Skipped]]:
    """Return the names of the images in a container, in its order, and what else it holds.

    Raises:
        ImageError: It cannot be read.
    """
    members = list_container(reader, container)
    is_wanted = {name: _is_wanted(name, member, container) for name, member in members.items()}
    found = [name for name, is_one in is_wanted.items() if is_one]
    others = [name for name, is_one in is_wanted.items() if not is_one]
    if not others:
        return found, []
    words = f"{len(others):,} members with other suffixes"
    return found, [Skipped("", words, any(map(may_be_image, others)))]


def _is_wanted(name: str, member: Locator | Problem, container: str) -> bool:
    """Return whether a member is an image, or damage of the container to report."""
    is_damage = isinstance(member, Problem) and member.path == container
    raw = os.fsencode(name)
    return is_damage or archive_stem(raw) is not None or is_image_name(raw)


def _tar_members(reader: ImageReader, container: str) -> Iterator[tuple[str, Locator | Problem]]:
    opened = reader.open_container(container)
    storage = GZIP if opened.is_unpacked else None
    file = opened.file
    for name, member in _members_between(file, "", 0, file.num_bytes, is_inner=False):
        yield name, _located(container, name, member, storage)


def _members_between(
    file: ArchiveFile, folder: str, start: int, end: int, *, is_inner: bool
) -> Iterator[tuple[str, Member]]:
    """Yield the members between two offsets, and those of class tars among them."""
    last: dict[str, Member] = {}
    for member in read_members(Window(file, start, window_bytes=_HOP_BYTES), end):
        name = os.fsdecode(member.name).lstrip("/") or f"at offset {member.offset:,}"
        last.pop(name, None)
        last[name] = member
    for name, member in last.items():
        if archive_stem(member.name) is None or is_inner or member.flaw:
            yield folder + name, member
        elif is_gzip_name(member.name) or is_zip_name(member.name):
            flaw = ProblemKind.MEMBER_NOT_SUPPORTED, "a compressed archive within an archive"
            yield folder + name, member._replace(flaw=flaw)
        else:
            stop = member.offset + member.num_bytes
            yield from _members_between(file, name + "/", member.offset, stop, is_inner=True)


def _located(container: str, name: str, member: Member, storage: str | None) -> Locator | Problem:
    path = f"{container}/{name}"
    if member.flaw:
        return Problem(path if member.name else container, *member.flaw)
    if member.num_bytes > MAX_MEMBER_BYTES:
        return Problem(path, ProblemKind.MEMBER_TOO_LARGE, f"{member.num_bytes:,} bytes")
    return Locator(path, container, member.offset, member.num_bytes, storage)


def _zip_members(reader: ImageReader, container: str) -> Iterator[tuple[str, Locator | Problem]]:
    with reader.open_stream(container) as file:
        for member in read_zip_members(file, is_image_name):
            name = os.fsdecode(member.name).lstrip("/")
            path = f"{container}/{name}"
            if member.flaw:
                yield name, Problem(path if name else container, *member.flaw)
            else:
                yield (
                    name,
                    Locator(path, container, member.offset, member.num_bytes, member.storage),
                )
