"""images.parquet -> the pictures with several labels, the most doubtful first, and who meets whom.

Dimensions: P pairs of classes.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.labels.conflicts import conflict_rows, label_pairs
from vit21k.labels.label_lists import LabelLists
from vit21k.manifest.hierarchy import Hierarchy
from vit21k.manifest.reader import Manifest
from vit21k.manifest.relations import relate
from vit21k.manifest.schema import CONFLICTS

Ints = NDArray[np.int64]


class CoOccurrence(NamedTuple):
    """How often two classes meet on one picture, by pair of classes; the most often first.

    Attributes:
        first_P, second_P: Class indices.
        num_P: Pictures that carry both.
        rank_P: How they relate, index into `relations.RANKED`.
    """

    first_P: Ints
    second_P: Ints
    num_P: Ints
    rank_P: Ints


class MergedPictures:
    """The pictures with several labels.

    Attributes:
        conflicts: Rows of `conflicts.parquet`, ranked, with the row in *images* as `row`.
    """

    def __init__(self, images: Manifest) -> None:
        """Read and rank them.

        Raises:
            ManifestError: *images* is damaged.
        """
        self._hierarchy = Hierarchy.of(images.classes())
        self._pictures = _with_several_labels(images)
        self.conflicts = conflict_rows(self._pictures.drop_columns("row"), self._hierarchy)
        rows = self._pictures["row"]
        places = pc.index_in(self.conflicts["path"], self._pictures["path"].combine_chunks())
        self.conflicts = self.conflicts.append_column("row", rows.take(places))

    def __len__(self) -> int:
        return int(self.conflicts.num_rows)

    def co_occurrence(self) -> CoOccurrence:
        """Count how often each two classes meet, and tell how they relate."""
        if not self._pictures.num_rows:
            nothing = np.empty(0, dtype=np.int64)
            return CoOccurrence(nothing, nothing, nothing, nothing)
        lists = LabelLists.from_arrow(self._pictures["label_ids"].combine_chunks())
        pairs = label_pairs(lists)
        size = len(self._hierarchy)
        keys, num_P = np.unique(pairs.first_P * size + pairs.second_P, return_counts=True)
        first_P, second_P = np.divmod(keys, size)
        rank_P = relate(self._hierarchy, first_P, second_P).rank_P
        order = np.lexsort((second_P, first_P, -num_P))
        return CoOccurrence(first_P[order], second_P[order], num_P[order], rank_P[order])


def _with_several_labels(images: Manifest) -> pa.Table:
    """Return the rows of *images* with several labels, and where they are."""
    columns = [name for name in CONFLICTS.schema.names if name in images.kind.schema.names]
    schema = pa.schema([images.kind.schema.field(name) for name in columns])
    parts = [schema.empty_table().append_column("row", pa.array([], pa.int64()))]
    start = 0
    for rows in images.batches(columns):
        place = np.arange(start, start + rows.num_rows)
        start += rows.num_rows
        several = pc.greater(pc.list_value_length(rows["label_ids"]), 1)
        parts.append(rows.append_column("row", pa.array(place)).filter(several))
    return pa.concat_tables(parts, promote_options="permissive").combine_chunks()
