"""Paths on the command line -> images by row: files, folders, members of tar archives, bytes.

Dimensions: B images.
"""

import errno
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit21k.data.dataset import ImageRows
from vit21k.errors import ImageError, printable
from vit21k.manifest.problems import ProblemKind
from vit21k.sources.folders import IMAGE_SUFFIXES, Skipped, list_folder, may_be_image
from vit21k.sources.tar import (
    MAX_MEMBER_BYTES,
    WINDOW_BYTES,
    BombError,
    FileSource,
    GzipSource,
    Member,
    Window,
    archive_stem,
    is_gzip,
    is_gzip_name,
    read_members,
)


class Files:
    """Image files, as the rows that a loader reads; they have no labels.

    Args:
        paths: Files, also `archive.tar/member.jpg`.
        contents: Bytes of images that are not on disk, by row.
    """

    def __init__(
        self,
        paths: Iterable[str | os.PathLike[str]],
        contents: Mapping[int, bytes] | None = None,
    ) -> None:
        self._paths = [os.fspath(path) for path in paths]
        self._contents = contents or {}

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, row: int) -> str:
        """Return the path as it was given."""
        return self._paths[row]

    def read_bytes(self, row: int) -> bytes:
        """Return the content of a file.

        Raises:
            ImageError: It cannot be read.
        """
        if row in self._contents:
            return self._contents[row]
        path = Path(self._paths[row])
        try:
            return path.read_bytes()
        except NotADirectoryError:
            return _read_member(path)
        except OSError as error:
            raise ImageError(error.strerror or str(error)) from error

    def labels_of(self, rows_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return no labels."""
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing

    @property
    def num_ahead(self) -> int:
        """None: they are on a disk."""
        return 0

    def prefetch(self, rows_B: NDArray[np.int64]) -> None:
        """Do nothing."""


class RowRange:
    """Consecutive rows of *images*, indexed from 0."""

    def __init__(self, images: ImageRows, rows: range) -> None:
        self._images = images
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def path(self, row: int) -> str:
        """Return the path of an image."""
        return self._images.path(self._rows[row])

    def read_bytes(self, row: int) -> bytes:
        """Return the content of its file.

        Raises:
            ImageError: It cannot be read.
        """
        return self._images.read_bytes(self._rows[row])

    def labels_of(self, rows_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return label_rows_L and label_ids_L of a batch."""
        return self._images.labels_of(rows_B + self._rows.start)

    @property
    def num_ahead(self) -> int:
        """How many images to announce with `prefetch` before they are read."""
        return self._images.num_ahead

    def prefetch(self, rows_B: NDArray[np.int64]) -> None:
        """Begin to read the images of a batch."""
        self._images.prefetch(rows_B + self._rows.start)


def find_images(paths: Iterable[Path], skipped: list[Skipped] | None = None) -> list[Path]:
    """Return the image files of *paths*: files themselves, all images of folders and tars.

    In folders and archives, files with a suffix of `IMAGE_SUFFIXES` count; in a folder they are
    ordered by path, in an archive by offset.  Damaged parts of an archive, and members that are
    not supported (links, sparse files, absolute names), are included: reading them raises the
    reason.

    Args:
        paths: Files, folders and archives.
        skipped: Receives the entries of folders and archives that are not images.

    Raises:
        ImageError: An archive cannot be read.
    """
    found: list[Path] = []
    others: list[Skipped] = [] if skipped is None else skipped
    for path in paths:
        if path.is_dir():
            inside, left = list_folder(path, any_name=True)
            found += sorted(path / name for name in inside)
            others += [one._replace(path=f"{printable(path)}/{one.path}") for one in left]
        elif _is_archive(path) and path.is_file():
            members, left = list_archive(path)
            found += [path / name for name in members]
            others += [one._replace(path=printable(path)) for one in left]
        else:
            found.append(path)
    return found


def list_archive(path: Path) -> tuple[list[str], list[Skipped]]:
    """Return the images of an archive, in its order, and the skipped entries.

    Raises:
        ImageError: It cannot be read.
    """
    members = _opened(path).members
    found = [name for name, member in members.items() if _is_wanted(name, member)]
    others = [name for name, member in members.items() if not _is_wanted(name, member)]
    if not others:
        return found, []
    words = f"{len(others):,} members with other suffixes"
    return found, [Skipped("", words, any(map(may_be_image, others)))]


def _is_image(path: Path) -> bool:
    return os.fsencode(path.suffix.lower()) in IMAGE_SUFFIXES


def _is_archive(path: Path) -> bool:
    return archive_stem(os.fsencode(path.name)) is not None


def _is_wanted(name: str, member: Member) -> bool:
    """Return whether a member is an image, or a defect of the archive to report."""
    is_stretch = member.flaw is not None and not member.name
    is_archive = archive_stem(os.fsencode(name)) is not None
    return is_stretch or is_archive or _is_image(Path(name))


class _Archive:
    """An open tar archive and its members by name.

    Attributes:
        members: Members by their path in the archive; of equal names the last one.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if is_gzip(self._descriptor):
            self._unpack()
        size = os.fstat(self._descriptor).st_size
        self.members = dict(self._read("", 0, size, is_inner=False))

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def _unpack(self) -> None:
        """Decompress a gzip file to an unnamed temporary file, and read that instead."""
        window = Window(GzipSource(self._descriptor))
        with tempfile.TemporaryFile() as file:
            while len(part := window.take(WINDOW_BYTES)):
                file.write(part)
            file.flush()
            os.dup2(file.fileno(), self._descriptor, inheritable=False)

    def content(self, member: Member) -> bytes:
        """Return the bytes of a member; thread-safe.

        Raises:
            ImageError: It cannot be read.
        """
        if member.flaw:
            kind, detail = member.flaw
            raise ImageError(detail or kind.doc, kind=kind)
        if member.num_bytes > MAX_MEMBER_BYTES:
            raise ImageError(f"has {member.num_bytes:,} bytes", kind=ProblemKind.MEMBER_TOO_LARGE)
        content = os.pread(self._descriptor, member.num_bytes, member.offset)
        if len(content) < member.num_bytes:
            raise ImageError("the archive ends before its member does")
        return content

    def _read(
        self, folder: str, start: int, end: int, *, is_inner: bool
    ) -> Iterator[tuple[str, Member]]:
        """Yield the members between two offsets, and those of class tars among them."""
        last: dict[str, Member] = {}
        for member in read_members(Window(FileSource(self._descriptor, end), start), end):
            name = os.fsdecode(member.name).lstrip("/") or f"at offset {member.offset:,}"
            last.pop(name, None)
            last[name] = member
        for name, member in last.items():
            if archive_stem(member.name) is None or is_inner or member.flaw:
                yield folder + name, member
            elif is_gzip_name(name):
                flaw = ProblemKind.MEMBER_NOT_SUPPORTED, "a compressed archive within an archive"
                yield folder + name, member._replace(flaw=flaw)
            else:
                stop = member.offset + member.num_bytes
                yield from self._read(name + "/", member.offset, stop, is_inner=True)


@lru_cache(maxsize=8)
def _opened(archive: Path) -> _Archive:
    """Return an archive and its members, named as in `vit21k hash`.

    Raises:
        ImageError: It cannot be read.
    """
    try:
        opened = _Archive(archive)
    except (OSError, EOFError, zlib.error, BombError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # of the folder for temporary files
        reason = str(error) or type(error).__name__
        raise ImageError(f"`{archive}` is not a tar archive that can be read: {reason}") from error
    if opened.members and not any(member.name for member in opened.members.values()):
        (_, detail) = next(iter(opened.members.values())).flaw or ("", "")
        raise ImageError(f"`{archive}` is not a tar archive that can be read: {detail}")
    return opened


def _read_member(path: Path) -> bytes:
    """Return the bytes of `archive.tar/member`.

    A member's name is looked up among those of the archive; it is never used as a path.

    Raises:
        ImageError: There is no such archive or member.
    """
    archive = next((parent for parent in path.parents if parent.is_file()), None)
    if archive is None or not _is_archive(archive):
        raise ImageError(os.strerror(errno.ENOTDIR))
    opened = _opened(archive)
    member = opened.members.get(path.relative_to(archive).as_posix())
    if member is None:
        raise ImageError(f"`{archive}` has no such member")
    return opened.content(member)
