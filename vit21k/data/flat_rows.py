"""The rows of a manifest as flat arrays: no Python object for a row.

Dimensions: B rows, L labels, T bytes of text.
"""

from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.data import places
from vit21k.data.places import PlaceColumns

COLUMNS = ["path", "label_ids", *places.COLUMNS]


class FlatRows(NamedTuple):
    """Paths, labels and places in archives; in memory, or mapped from files.

    Attributes:
        path_text_T: uint8; all paths in UTF-8, one after the other.
        path_starts_B: int64; where each begins, and where the last one ends.
        label_ids_L: int32, which holds the index of any class.
        label_starts_B: int64; where those of each row begin, and where the last ones end.
        num_multi_label: How many rows have more than one label.
        places: Where rows lie in archives; None if all are files.
    """

    path_text_T: NDArray[np.uint8]
    path_starts_B: NDArray[np.int64]
    label_ids_L: NDArray[np.int32]
    label_starts_B: NDArray[np.int64]
    num_multi_label: int
    places: PlaceColumns | None

    @classmethod
    def from_arrow(
        cls, paths: pa.Array, label_lists: pa.Array, in_archives: PlaceColumns | None = None
    ) -> Self:
        """Take string *paths* and list *label_lists*, without nulls."""
        paths = paths.cast(pa.large_string())
        label_lists = label_lists.cast(pa.large_list(pa.int64()))
        label_starts_B = _offsets(label_lists)
        return cls(
            np.frombuffer(paths.buffers()[2] or b"", dtype=np.uint8),
            _offsets(paths),
            label_lists.values.to_numpy(zero_copy_only=False).astype(np.int32),
            label_starts_B,
            int((np.diff(label_starts_B) > 1).sum()),
            in_archives,
        )

    @classmethod
    def from_table(cls, rows: pa.Table) -> Self:
        """Take `COLUMNS` of a manifest."""
        columns = PlaceColumns.from_rows(rows)
        return cls.from_arrow(
            _whole(rows["path"]), _whole(rows["label_ids"]), columns if columns.archives else None
        )


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
