"""Decisions -> what becomes of the pictures they are about."""

from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vit21k.manifest.classes import ClassList
from vit21k.review.decisions import Action, Decision, ItemKind

Row = dict[str, Any]

NO_SPLIT = (
    "a merge can no longer be split, as the same bytes would be in two rows: "
    "drop the labels that are wrong"
)


class Edit:
    """The pictures that decisions are about, as they become; all others are not touched.

    A picture keeps its row, its digest and its file; only its labels change, or it goes.
    """

    def __init__(self, table: pa.Table, classes: ClassList, paths: Collection[str]) -> None:
        """Make an instance.

        Args:
            table: All rows of `images.parquet`.
            classes: What its labels index.
            paths: Those of the pictures that may be edited.
        """
        self._table = table
        self._index_of = {wnid: index for index, wnid in enumerate(classes.wnids)}
        self._paths = table["path"]
        is_named = pc.is_in(self._paths, pa.array(sorted(paths), pa.string()))
        rows = np.flatnonzero(is_named.to_numpy())
        named = self._paths.take(pa.array(rows)).to_pylist()
        self._row_of = dict(zip(named, rows.tolist(), strict=True))
        self._now: dict[int, Row] = {}  # by row: what became of it; without labels it goes
        self._why: dict[int, tuple[str, str]] = {}  # by row: action, other path
        self._joined: dict[int, int] = {}  # by row: the row that it is a part of now

    def apply(self, decision: Decision) -> str | None:
        """Do what was decided; return why not, if it no longer fits."""
        row = self._row_of.get(decision.path)
        if row is None:
            return "the picture is not in the manifest"
        digest = self._table["digest"][row].as_py()
        if digest and decision.digest and digest.hex() != decision.digest:
            return "the picture is another one now"
        if decision.kind is ItemKind.LEAK:
            return self._remove(row, decision.other_path)
        if decision.kind is ItemKind.NEAR:
            return self._join(row, decision.other_path)
        if decision.action is Action.DROP:
            return self._drop(row, decision.wnid)
        return NO_SPLIT

    def _of(self, row: int) -> Row:
        """Return what the picture of a row has become."""
        while row in self._joined:
            row = self._joined[row]
        if row not in self._now:
            (self._now[row],) = self._table.slice(row, 1).to_pylist()
        return self._now[row]

    def _drop(self, row: int, wnid: str) -> str | None:
        index = self._index_of.get(wnid)
        picture = self._of(row)
        if self._why.get(row, ("", ""))[0] == "remove":
            return None
        if index not in picture["label_ids"]:
            return f"it is not labelled {wnid}"
        picture["label_ids"].remove(index)
        self._why[row] = ("drop", "")
        return None

    def _remove(self, row: int, other_path: str) -> str | None:
        self._of(row)["label_ids"].clear()
        self._why[row] = ("remove", other_path)
        return None

    def _join(self, row: int, other_path: str) -> str | None:
        other = self._row_of.get(other_path)
        if other is None:
            return "the other picture is not in the manifest"
        mine, theirs = self._of(row), self._of(other)
        if mine is theirs:
            return None
        if not mine["label_ids"] or not theirs["label_ids"]:
            return "one of the two is left out already"
        mine["label_ids"] = sorted({*mine["label_ids"], *theirs["label_ids"]})
        mine["num_files"] += theirs["num_files"]
        theirs["label_ids"].clear()
        while other in self._joined:
            other = self._joined[other]
        self._joined[other] = row
        self._why[row] = ("join", other_path)
        self._why[other] = ("join", str(self._paths[row]))
        return None

    def unlabelled(self) -> list[str]:
        """Return the paths of the pictures whose labels were all dropped."""
        dropped = [row for row, (action, _) in sorted(self._why.items()) if action == "drop"]
        return [str(self._paths[row]) for row in dropped if not self._of(row)["label_ids"]]

    def result(self) -> tuple[pa.Table, list[Row]]:
        """Return the new rows of images, by first label, and the rows of changes."""
        edited = [{**now, "row": row} for row, now in self._now.items() if now["label_ids"]]
        is_kept = np.ones(self._table.num_rows, dtype=bool)
        is_kept[[*self._now, *self._joined]] = False
        schema = self._table.schema.append(pa.field("row", pa.int64()))
        rows = self._table.append_column("row", pa.array(np.arange(self._table.num_rows)))
        parts = [
            rows.filter(pa.array(is_kept)).cast(schema),
            pa.Table.from_pylist(edited, schema=schema),
        ]
        whole = pa.concat_tables(parts)
        first = pc.list_element(whole["label_ids"], 0).to_numpy()
        order = np.lexsort((whole["row"].to_numpy(), first))
        whole = whole.take(pa.array(order)).drop_columns("row")
        return whole, [self._change(row) for row in sorted(self._why)]

    def _change(self, row: int) -> Row:
        action, other_path = self._why[row]
        labels = list(self._of(row)["label_ids"])
        return {
            "path": str(self._paths[row]),
            "action": action if labels else "remove",
            "before": self._table["label_ids"][row].as_py(),
            "after": labels,
            "other_path": other_path,
        }
