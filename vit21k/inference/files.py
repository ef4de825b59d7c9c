"""Paths that a user gives -> pictures by row: files, folders, members of tar archives, bytes.

Dimensions: B images.
"""

import errno
import os
import tarfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit21k.data.rows import PictureRows
from vit21k.errors import ImageError

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""What counts as a picture in a folder or an archive, in lower case."""

_ARCHIVE = ".tar"


class Files:
    """Picture files, as the rows that a loader reads; they have no labels.

    Args:
        paths: Files, also `archive.tar/member.jpg`.
        contents: The bytes of those that are not read from disk, by row.
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


class RowRange:
    """Some successive rows of *pictures*, counted from 0 again."""

    def __init__(self, pictures: PictureRows, rows: range) -> None:
        self._pictures = pictures
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def path(self, row: int) -> str:
        """Return what a picture is called."""
        return self._pictures.path(self._rows[row])

    def read_bytes(self, row: int) -> bytes:
        """Return the content of its file.

        Raises:
            ImageError: It cannot be had.
        """
        return self._pictures.read_bytes(self._rows[row])

    def labels_of(self, rows_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return label_rows_L and label_ids_L of a batch."""
        return self._pictures.labels_of(rows_B + self._rows.start)


def find_pictures(paths: Iterable[Path]) -> list[Path]:
    """Return the picture files that *paths* mean: files as they are, folders and tars in depth.

    In folders and archives, files with a suffix of `IMAGE_SUFFIXES` count; in a folder they are
    ordered by path, in an archive they stay as they lie.

    Raises:
        ImageError: An archive cannot be read.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = (file for file in path.rglob("*") if _is_picture(file))
            found += sorted(file for file in inside if file.is_file())
        elif path.suffix == _ARCHIVE and path.is_file():
            found += [path / name for name in _members(path) if _is_picture(Path(name))]
        else:
            found.append(path)
    return found


def printable(path: Path) -> str:
    r"""Return *path* with bytes that are not UTF-8 as `\\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


class _Place(NamedTuple):
    """Where the bytes of a member lie."""

    offset: int
    num_bytes: int


@lru_cache(maxsize=8)
def _members(archive: Path) -> dict[str, _Place]:
    """Return the files of an archive that is not compressed, in its order.

    Raises:
        ImageError: It cannot be read.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            return {
                member.name: _Place(member.offset_data, member.size)
                for member in tar
                if member.isreg()
            }
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise ImageError(f"`{archive}` is not a tar archive that can be read: {error}") from error


def _read_member(path: Path) -> bytes:
    """Return the bytes of `archive.tar/member`.

    Raises:
        ImageError: There is no such archive or member.
    """
    archive = next((parent for parent in path.parents if parent.is_file()), None)
    if archive is None or archive.suffix != _ARCHIVE:
        raise ImageError(os.strerror(errno.ENOTDIR))
    place = _members(archive).get(path.relative_to(archive).as_posix())
    if place is None:
        raise ImageError(f"`{archive}` has no such member")
    descriptor = os.open(archive, os.O_RDONLY)  # its own, so that threads do not share a position
    try:
        if place.offset + place.num_bytes > os.fstat(descriptor).st_size:
            raise ImageError(f"`{archive}` ends before its member does")
        return os.pread(descriptor, place.num_bytes, place.offset)
    finally:
        os.close(descriptor)
