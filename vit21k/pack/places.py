"""Where the pictures of a split lie in its shards, by row of its manifest."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.pack.parts import Parts, ShardFacts
from vit21k.pack.scratch import scratch_array


class PlacesInShards:
    """Where pictures lie: 20 bytes each, in files that lie beside the parts.

    Args:
        parts: Of the pack.
        shards: Of the split.
        num_rows: Of its manifest.

    Raises:
        ManifestError: A part is damaged.
        OSError: The disk is full or failing.
    """

    def __init__(self, parts: Parts, shards: Sequence[ShardFacts], num_rows: int) -> None:
        self._archives = [shard.file_name for shard in shards]
        self._shard_R = self._array(parts, np.int32, num_rows)  # from 1; 0: in none
        self._offset_R = self._array(parts, np.int64, num_rows)
        self._num_bytes_R = self._array(parts, np.int64, num_rows)
        for number, name in enumerate(self._archives, start=1):
            packed = parts.rows(name, ["row", "offset", "num_bytes", "problem"])
            packed = packed.filter(pc.is_null(packed["problem"]))
            rows = packed["row"].to_numpy()
            self._shard_R[rows] = number
            self._offset_R[rows] = packed["offset"].to_numpy()
            self._num_bytes_R[rows] = packed["num_bytes"].to_numpy()

    def applied(self, rows: pa.Table, numbers_B: NDArray[np.int64]) -> pa.Table:
        """Return *rows*, which have these *numbers_B*, with their places; those that have any."""
        is_in = self._shard_R[numbers_B] > 0
        rows, numbers_B = rows.filter(pa.array(is_in)), numbers_B[is_in]
        archives = pa.DictionaryArray.from_arrays(
            pa.array(self._shard_R[numbers_B] - 1), pa.array(self._archives, pa.string())
        ).cast(pa.string())
        columns = {
            "archive": archives,
            "offset": pa.array(self._offset_R[numbers_B]),
            "num_bytes": pa.array(self._num_bytes_R[numbers_B]),
        }
        for name, values in columns.items():
            rows = rows.set_column(rows.schema.get_field_index(name), name, values)
        return rows

    @staticmethod
    def _array(parts: Parts, dtype: type[np.generic], length: int) -> NDArray[Any]:
        return scratch_array(parts.folder, np.dtype(dtype), length)
