"""A manifest of pictures -> paths, bytes and labels by row.

Dimensions: B images, L labels of them.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.data import flat_rows
from vit21k.data.flat_rows import FlatRows
from vit21k.data.places import PlaceColumns, Places
from vit21k.data.row_index import RowIndex, open_index
from vit21k.errors import ImageTreeError, UnreadableImageError
from vit21k.manifest.reader import Manifest

_READ_BYTES = 1 << 18  # of a file at once: more than most pictures have
_WHERE_NOW = "if the image tree has moved, say where it is now with `--root`"


class Pictures:
    """Paths and labels of a manifest, in flat arrays: no Python object for a row.

    14.2 million pictures take about 0.8 GB (1.1 GB in archives), once, whatever the number of
    threads; mapped, they take the page cache, which all processes of a machine share.

    Attributes:
        root: The folder that paths are relative to.
        index: Where the rows are mapped from; None: they are in memory.
    """

    def __init__(self, root: Path, rows: FlatRows, index: RowIndex | None = None) -> None:
        """Make an instance of *rows*.

        Raises:
            ImageTreeError: An archive is compressed.
        """
        self.root = root
        self.index = index
        self._rows = rows
        self._path_text = memoryview(rows.path_text_T.data)
        places = rows.places
        self._in_archives = Places(places, root) if places and places.archives else None

    @classmethod
    def from_arrow(
        cls,
        root: Path,
        paths: pa.Array,
        label_lists: pa.Array,
        in_archives: PlaceColumns | None = None,
    ) -> Self:
        """Take string *paths* and list *label_lists*, without nulls.

        Raises:
            ImageTreeError: An archive is compressed.
        """
        return cls(root, FlatRows.from_arrow(paths, label_lists, in_archives))

    @classmethod
    def from_manifest(
        cls,
        manifest: Manifest,
        root: Path | None = None,
        *,
        mapped: bool = False,
        note: Callable[[str], None] = lambda _text: None,
    ) -> Self:
        """Read the paths and labels of an images, train or val manifest.

        Args:
            manifest: Which.
            root: Where the images are now; None: where they were hashed.
            mapped: Map the rows of a large manifest into memory: see `row_index`.
            note: Hears what is done for that, if it takes long.

        Raises:
            ImageTreeError: The image root is not there, or not known, or an archive in it is
                compressed.
            ManifestError: The manifest is damaged.
        """
        if root is None and not manifest.header.root:
            raise ImageTreeError(
                f"`{manifest.path}` does not know where its images are: it was made from a list",
                hint="say where they are with `--root DIR`",
            )
        root = Path(manifest.header.root) if root is None else root
        if not root.is_dir():
            raise ImageTreeError(f"the image root `{root}` is not a folder", hint=_WHERE_NOW)
        index = open_index(manifest, note) if mapped else None
        rows = index.rows if index else FlatRows.from_table(manifest.read(flat_rows.COLUMNS))
        return cls(root, rows, index)

    def __len__(self) -> int:
        return len(self._rows.path_starts_B) - 1

    @property
    def num_multi_label(self) -> int:
        """How many pictures carry more than one label."""
        return self._rows.num_multi_label

    def path(self, row: int) -> str:
        """Return the path of a picture, relative to the root."""
        start, end = self._rows.path_starts_B[row], self._rows.path_starts_B[row + 1]
        return str(self._path_text[start:end], "utf-8")

    def label_ids(self, row: int) -> list[int]:
        """Return the class indices of a picture, ascending."""
        start, end = self._rows.label_starts_B[row], self._rows.label_starts_B[row + 1]
        return [int(label) for label in self._rows.label_ids_L[start:end]]

    def labels_of(self, rows_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the labels of a batch, sparse.

        Returns:
            label_rows_L, the place of each label's picture in *rows_B*; and label_ids_L, its class
            index.
        """
        label_starts_B = self._rows.label_starts_B
        starts_B = label_starts_B[rows_B]
        counts_B = label_starts_B[rows_B + 1] - starts_B
        label_rows_L = np.repeat(np.arange(len(rows_B), dtype=np.int64), counts_B)
        before_B = np.cumsum(counts_B) - counts_B
        in_row_L = np.arange(len(label_rows_L)) - before_B[label_rows_L]
        return label_rows_L, self._rows.label_ids_L[starts_B[label_rows_L] + in_row_L].astype(
            np.int64
        )

    def read_bytes(self, row: int) -> bytes:
        """Return the content of a picture's file, or member of an archive; from any thread.

        Raises:
            UnreadableImageError: The file is not there.
            ImageError: An archive is shorter than it was.
            OSError: It cannot be read.
        """
        if self._in_archives and (content := self._in_archives.read(row)) is not None:
            return content
        try:
            return _content(f"{self.root}/{self.path(row)}")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise UnreadableImageError("the file is not there", hint=_WHERE_NOW) from None


def _content(path: str) -> bytes:
    """Return what is in a file.

    Every call of the system hands the interpreter's lock to another thread and asks for it again,
    so there are as few as can be: a file object makes twice as many.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, _READ_BYTES):
            parts.append(part)
    finally:
        os.close(descriptor)
    return parts[0] if len(parts) == 1 else b"".join(parts)
