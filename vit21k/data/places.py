"""Which pictures of a manifest lie in archives, and where in them."""

from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.archives.names import is_gzip_name
from vit21k.archives.reader import GZIP_HINT, ArchiveReader
from vit21k.errors import ImageTreeError

COLUMNS = ["archive", "offset", "num_bytes"]


class Places:
    """Archive, offset and size of each picture, in flat arrays: 20 bytes a picture."""

    def __init__(
        self,
        archives: list[str],
        archive_B: NDArray[np.int32],
        offset_B: NDArray[np.int64],
        num_bytes_B: NDArray[np.int64],
        root: Path,
    ) -> None:
        """Make an instance; *archive_B* indexes *archives*, -1 for a file of its own."""
        self._archives = archives
        self._archive_B, self._offset_B, self._num_bytes_B = archive_B, offset_B, num_bytes_B
        self._reader = ArchiveReader(str(root))

    @classmethod
    def from_rows(cls, rows: pa.Table, root: Path) -> Self | None:
        """Read `COLUMNS` of a manifest; None if no row lies in an archive.

        Raises:
            ImageTreeError: An archive is compressed, so that its members cannot be read singly.
        """
        if rows["archive"].null_count == rows.num_rows:
            return None
        column = rows["archive"].dictionary_encode().unify_dictionaries().combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        archives = column.dictionary.to_pylist()
        if compressed := [name for name in archives if is_gzip_name(name)]:
            raise ImageTreeError(
                f"`{compressed[0]}` is compressed: its pictures cannot be read", hint=GZIP_HINT
            )
        return cls(
            archives,
            column.indices.fill_null(-1).to_numpy().astype(np.int32),
            rows["offset"].fill_null(0).to_numpy(),
            rows["num_bytes"].fill_null(0).to_numpy(),
            root,
        )

    def read(self, row: int) -> bytes | None:
        """Return the content of a picture; None if it is a file of its own.

        Raises:
            ImageError: The archive is not there, or too short.
            OSError: It cannot be read.
        """
        archive = self._archive_B[row]
        if archive < 0:
            return None
        return self._reader.read(
            self._archives[archive], int(self._offset_B[row]), int(self._num_bytes_B[row])
        )
