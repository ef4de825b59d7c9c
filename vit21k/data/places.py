"""Which pictures of a manifest lie in archives, and where in them."""

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.archives.names import is_gzip_name
from vit21k.archives.reader import GZIP_HINT, ArchiveReader
from vit21k.errors import ImageTreeError

COLUMNS = ["archive", "offset", "num_bytes"]


class PlaceColumns(NamedTuple):
    """Archive, offset and size of each picture: 20 bytes a picture.

    Attributes:
        archives: Their paths, relative to the image root.
        archive_B: int32, an index into them; -1 for a file of its own.
        offset_B: int64, bytes.
        num_bytes_B: int64; 0 where it is not known.
    """

    archives: tuple[str, ...]
    archive_B: NDArray[np.int32]
    offset_B: NDArray[np.int64]
    num_bytes_B: NDArray[np.int64]

    @classmethod
    def from_rows(cls, rows: pa.Table) -> Self:
        """Read `COLUMNS` of a manifest."""
        column = rows["archive"].dictionary_encode().unify_dictionaries().combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        return cls(
            tuple(column.dictionary.to_pylist()),
            column.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32),
            rows["offset"].fill_null(0).to_numpy(),
            rows["num_bytes"].fill_null(0).to_numpy(),
        )


class Places:
    """Reads pictures that lie in archives."""

    def __init__(self, columns: PlaceColumns, root: Path) -> None:
        """Make an instance for archives below *root*.

        Raises:
            ImageTreeError: An archive is compressed, so that its members cannot be read singly.
        """
        if compressed := [name for name in columns.archives if is_gzip_name(name)]:
            raise ImageTreeError(
                f"`{compressed[0]}` is compressed: its pictures cannot be read", hint=GZIP_HINT
            )
        self._columns = columns
        self._reader = ArchiveReader(str(root))

    def read(self, row: int) -> bytes | None:
        """Return the content of a picture; None if it is a file of its own.

        Raises:
            ImageError: The archive is not there, or too short.
            OSError: It cannot be read.
        """
        columns = self._columns
        archive = columns.archive_B[row]
        if archive < 0:
            return None
        return self._reader.read(
            columns.archives[archive], int(columns.offset_B[row]), int(columns.num_bytes_B[row])
        )
