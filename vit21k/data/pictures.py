"""A manifest of pictures -> paths, bytes and labels by row.

Dimensions: B images, L labels of them.
"""

from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.data import places
from vit21k.data.places import Places
from vit21k.errors import ImageError, ImageTreeError
from vit21k.manifest.io import Manifest

_WHERE_NOW = "if the image tree has moved, say where it is now with `--root`"


class Pictures:
    """Paths and labels of a manifest, in flat arrays: no Python object for a row.

    14.2 million pictures take about 0.8 GB (1.1 GB in archives), once, whatever the number of
    threads.
    """

    def __init__(
        self,
        root: Path,
        paths: pa.Array,
        label_lists: pa.Array,
        in_archives: Places | None = None,
    ) -> None:
        """Make an instance of string *paths* and list *label_lists*, without nulls."""
        paths = paths.cast(pa.large_string())
        label_lists = label_lists.cast(pa.large_list(pa.int64()))
        self.root = root
        self._in_archives = in_archives
        self._path_text = memoryview(paths.buffers()[2] or b"")
        self._path_starts = _offsets(paths)
        self._label_starts = _offsets(label_lists)
        # Indices of classes fit 32 bits, whatever the manifest takes for them.
        self._label_ids = label_lists.values.to_numpy(zero_copy_only=False).astype(np.int32)

    @classmethod
    def from_manifest(cls, manifest: Manifest, root: Path | None = None) -> Self:
        """Read the paths and labels of an images, train or val manifest.

        Args:
            manifest: Which.
            root: Where the images are now; None: where they were hashed.

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
        rows = manifest.read(["path", "label_ids", *places.COLUMNS])
        in_archives = Places.from_rows(rows, root)
        return cls(root, _whole(rows["path"]), _whole(rows["label_ids"]), in_archives)

    def __len__(self) -> int:
        return len(self._path_starts) - 1

    @property
    def num_multi_label(self) -> int:
        """How many pictures carry more than one label."""
        return int((np.diff(self._label_starts) > 1).sum())

    def path(self, row: int) -> str:
        """Return the path of a picture, relative to the root."""
        start, end = self._path_starts[row], self._path_starts[row + 1]
        return str(self._path_text[start:end], "utf-8")

    def label_ids(self, row: int) -> list[int]:
        """Return the class indices of a picture, ascending."""
        start, end = self._label_starts[row], self._label_starts[row + 1]
        return [int(label) for label in self._label_ids[start:end]]

    def labels_of(self, rows_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the labels of a batch, sparse.

        Returns:
            label_rows_L, the place of each label's picture in *rows_B*; and label_ids_L, its class
            index.
        """
        starts_B = self._label_starts[rows_B]
        counts_B = self._label_starts[rows_B + 1] - starts_B
        label_rows_L = np.repeat(np.arange(len(rows_B), dtype=np.int64), counts_B)
        before_B = np.cumsum(counts_B) - counts_B
        in_row_L = np.arange(len(label_rows_L)) - before_B[label_rows_L]
        return label_rows_L, self._label_ids[starts_B[label_rows_L] + in_row_L].astype(np.int64)

    def read_bytes(self, row: int) -> bytes:
        """Return the content of a picture's file, or member of an archive; from any thread.

        Raises:
            ImageError: The file is not there, or an archive is shorter than it was.
            OSError: It cannot be read.
        """
        if self._in_archives and (content := self._in_archives.read(row)) is not None:
            return content
        try:
            with open(f"{self.root}/{self.path(row)}", "rb", buffering=0) as file:  # noqa: PTH123
                return file.readall()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise ImageError("the file is not there", hint=_WHERE_NOW) from None


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """Join the row groups of a column; large offsets, for paths of more than 2 GB."""
    large = pa.large_list(pa.int64()) if pa.types.is_list(column.type) else pa.large_string()
    whole = column.cast(large).combine_chunks()
    return whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole


def _offsets(array: pa.Array) -> NDArray[np.int64]:
    """Return where each row starts in the array's values, and where the last one ends."""
    if not len(array):
        return np.zeros(1, dtype=np.int64)
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)
    return offsets[array.offset : array.offset + len(array) + 1]
