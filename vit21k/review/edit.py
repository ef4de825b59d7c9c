"""Decisions -> what becomes of the pictures they are about."""

from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vit21k.manifest.classes import ClassList
from vit21k.review.decisions import Action, Decision, ItemKind

Row = dict[str, Any]


class Edit:
    """The pictures that decisions are about, as they become; all others are not touched."""

    def __init__(
        self,
        table: pa.Table,
        classes: ClassList,
        copies: Mapping[bytes, list[Row]],
        paths: Collection[str],
    ) -> None:
        """Make an instance.

        Args:
            table: All rows of `images.parquet`.
            classes: What its labels index.
            copies: The files that were merged away, by digest, of pictures that may be split.
            paths: Those of the pictures that may be edited.
        """
        self._table = table
        self._index_of = {wnid: index for index, wnid in enumerate(classes.wnids)}
        self._wnids = classes.wnids
        self._copies = copies
        self._paths = table["path"]
        is_named = pc.is_in(self._paths, pa.array(sorted(paths), pa.string()))
        rows = np.flatnonzero(is_named.to_numpy())
        named = self._paths.take(pa.array(rows)).to_pylist()
        self._row_of = dict(zip(named, rows.tolist(), strict=True))
        self._parts: dict[int, list[Row]] = {}  # by row: what became of it
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
        return self._split(row)

    def _of(self, row: int) -> list[Row]:
        """Return what the picture of a row has become."""
        while row in self._joined:
            row = self._joined[row]
        if row not in self._parts:
            self._parts[row] = self._table.slice(row, 1).to_pylist()
        return self._parts[row]

    def _drop(self, row: int, wnid: str) -> str | None:
        index = self._index_of.get(wnid)
        parts = self._of(row)
        if not any(index in part["label_ids"] for part in parts):
            return f"it is not labelled {wnid}"
        for part in parts:
            part["label_ids"] = [label for label in part["label_ids"] if label != index]
        self._why[row] = ("drop", "")
        return None

    def _remove(self, row: int, other_path: str) -> str | None:
        self._of(row).clear()
        self._why[row] = ("remove", other_path)
        return None

    def _join(self, row: int, other_path: str) -> str | None:
        other = self._row_of.get(other_path)
        if other is None:
            return "the other picture is not in the manifest"
        mine, theirs = self._of(row), self._of(other)
        if mine is theirs:
            return None
        if len(mine) != 1 or len(theirs) != 1:
            return "one of the two is split or left out already"
        labels = {*mine[0]["label_ids"], *theirs[0]["label_ids"]}
        mine[0]["label_ids"] = sorted(labels)
        mine[0]["num_files"] += theirs[0]["num_files"]
        while other in self._joined:
            other = self._joined[other]
        theirs.clear()
        self._joined[other] = row
        self._why[row] = ("join", other_path)
        self._why[other] = ("join", str(self._paths[row]))
        return None

    def _split(self, row: int) -> str | None:
        parts = self._of(row)
        if len(parts) != 1:
            return "it is split, or left out, already"
        (kept,) = parts
        files = self._copies.get(kept["digest"] or b"", [])
        own = _own_wnid(kept["path"], [self._wnids[i] for i in kept["label_ids"]], files)
        by_wnid: dict[str, list[Row]] = {own: [kept]}
        for file in files:
            by_wnid.setdefault(file["wnid"], []).append(file)
        if {self._index_of.get(wnid) for wnid in by_wnid} < set(kept["label_ids"]):
            return "`copies.parquet` does not tell which file has which label"
        new = [
            {**kept, **_place(some[0]), "label_ids": [index], "num_files": len(some)}
            for wnid, some in by_wnid.items()
            if (index := self._index_of.get(wnid)) in kept["label_ids"]
        ]
        if any(part["archive"] and part["num_bytes"] is None for part in new):
            return "the size of a copy in an archive is not known"
        parts[:] = new
        self._why[row] = ("split", "")
        return None

    def result(self) -> tuple[pa.Table, list[Row]]:
        """Return the new rows of images, by first label, and the rows of changes."""
        touched = sorted(self._why)
        parts = [
            {**part, "row": row}
            for row, some in self._parts.items()
            for part in some
            if part["label_ids"]
        ]
        is_kept = np.ones(self._table.num_rows, dtype=bool)
        is_kept[[*self._parts, *self._joined]] = False
        schema = self._table.schema.append(pa.field("row", pa.int64()))
        rows = self._table.append_column("row", pa.array(np.arange(self._table.num_rows)))
        edited = pa.Table.from_pylist(parts, schema=schema)
        whole = pa.concat_tables([rows.filter(pa.array(is_kept)).cast(schema), edited])
        first = pc.list_element(whole["label_ids"], 0).to_numpy()
        order = np.lexsort((whole["row"].to_numpy(), first))
        whole = whole.take(pa.array(order)).drop_columns("row")
        return whole, [self._change(row) for row in touched]

    def _change(self, row: int) -> Row:
        action, other_path = self._why[row]
        labels = {label for part in self._of(row) for label in part["label_ids"]}
        return {
            "path": str(self._paths[row]),
            "action": action if labels else "remove",
            "before": self._table["label_ids"][row].as_py(),
            "after": sorted(labels),
            "other_path": other_path,
        }


def _own_wnid(path: str, wnids: list[str], files: list[Row]) -> str:
    """Return which class the kept file lies under: its folder, or the one that no copy has."""
    folder = PurePosixPath(path).parent.name
    if folder in wnids:
        return folder
    others = {file["wnid"] for file in files}
    return next((wnid for wnid in wnids if wnid not in others), folder)


def _place(file: Row) -> Row:
    """Return where a file lies."""
    return {name: file[name] for name in ("path", "archive", "offset")}
