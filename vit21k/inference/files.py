"""Paths on the command line -> images by row: files, folders, members of tar archives, bytes.

Dimensions: B images.
"""

import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vit21k.data.dataset import ImageRows
from vit21k.errors import printable
from vit21k.sources.folders import Skipped, list_folder
from vit21k.sources.listing import is_container_name, list_images, read_path
from vit21k.sources.read import ImageReader
from vit21k.sources.remote import refuse_url


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
            ImageError: It is not there, or a member that cannot be read.
            OSError: It cannot be read.
        """
        if row in self._contents:
            return self._contents[row]
        return read_path(_reader(), self._paths[row])

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
    """Return the image files of *paths*: files themselves, all images of folders and archives.

    In folders and archives, files with a suffix of `IMAGE_SUFFIXES` count; in a folder they are
    ordered by path, in an archive by offset.  Damage in an archive, and members that are
    not supported (links, sparse files, absolute names), are included: reading them raises the
    reason.

    Args:
        paths: Files, folders and archives.
        skipped: Receives the entries of folders and archives that are not images.

    Raises:
        ImageError: An archive cannot be read.
        UsageError: A path is a URL.
    """
    found: list[Path] = []
    others: list[Skipped] = [] if skipped is None else skipped
    for path in paths:
        refuse_url(path, "`--manifest DIR/images.parquet`")
        if path.is_dir():
            inside, left = list_folder(path, any_name=True)
            found += sorted(path / name for name in inside)
            others += [one._replace(path=f"{printable(path)}/{one.path}") for one in left]
        elif is_container_name(path.name) and path.is_file():
            members, left = list_images(_reader(), str(path))
            found += [path / name for name in members]
            others += [one._replace(path=printable(path)) for one in left]
        else:
            found.append(path)
    return found


@cache
def _reader() -> ImageReader:
    """Return the reader of all paths: archives stay open, and those compressed unpacked."""
    return ImageReader("", unpacks=True)
