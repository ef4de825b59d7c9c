"""images.parquet -> images with several labels, the most doubtful first, and pairs of classes."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vit21k.labels.conflicts import conflict_rows, label_pairs
from vit21k.labels.label_lists import LabelLists
from vit21k.manifest.hierarchy import Hierarchy
from vit21k.manifest.reader import Manifest
from vit21k.manifest.relations import RANKED, relate
from vit21k.manifest.schema import CONFLICTS


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

    def co_occurrence(self) -> pd.DataFrame:
        """Count how often two classes meet on one image: the pairs that meet most often first.

        Returns:
            A row for each pair: `class_index`, `other_index`, `num_images`, and how they relate.
        """
        lists = LabelLists.from_arrow(self._pictures["label_ids"].combine_chunks())
        met = label_pairs(lists)
        pairs = pd.DataFrame({"class_index": met.first_P, "other_index": met.second_P})
        pairs = pairs.groupby(["class_index", "other_index"]).size().reset_index(name="num_images")
        relations = relate(self._hierarchy, *pairs[["class_index", "other_index"]].to_numpy().T)
        pairs["relation"] = [str(RANKED[rank]) for rank in relations.rank_P]
        return pairs.sort_values("num_images", ascending=False, kind="stable", ignore_index=True)


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
