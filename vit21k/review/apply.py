"""Apply decisions: write images, classes and changes.parquet to a new folder."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vit21k.labels.edit import (
    LabelLists,
    check_out,
    derived_header,
    read_label_classes,
    write_classes,
)
from vit21k.lock import locked
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import Manifest, open_manifest
from vit21k.manifest.schema import CHANGES, IMAGES
from vit21k.manifest.writer import write_manifest
from vit21k.review.decisions import Action, Decision, ItemKind, in_effect, read_decisions

Row = dict[str, Any]

NO_SPLIT = (
    "a merge can no longer be split, as the same bytes would be in two rows: "
    "drop the labels that are wrong"
)


class Edit:
    """Images with edited labels.

    An image keeps its row, its digest and its file; its labels change, or it is removed.

    Args:
        table: All rows of `images.parquet`.
        classes: The class list of its labels.
        paths: Paths of the images that may be edited.
    """

    def __init__(self, table: pa.Table, classes: ClassList, paths: Collection[str]) -> None:
        self._table = table
        self._index_of = {wnid: index for index, wnid in enumerate(classes.wnids)}
        self._paths = table["path"]
        is_named = pc.is_in(self._paths, pa.array(sorted(paths), pa.string()))
        rows = np.flatnonzero(is_named.to_numpy())
        named = self._paths.take(pa.array(rows)).to_pylist()
        self._row_of = dict(zip(named, rows.tolist(), strict=True))
        self._now: dict[int, Row] = {}  # by row: the edited row; removed if without labels
        self._why: dict[int, tuple[str, str]] = {}  # by row: action, other path
        self._joined: dict[int, int] = {}  # by row: the row that it is merged into

    def apply(self, decision: Decision) -> str | None:
        """Apply a decision; return the reason if it is not possible."""
        row = self._row_of.get(decision.path)
        if row is None:
            return "the image is not in the manifest"
        digest = self._table["digest"][row].as_py()
        if digest and decision.digest and digest.hex() != decision.digest:
            return "the image has changed"
        if decision.kind is ItemKind.LEAK:
            return self._remove(row, decision.other_path)
        if decision.kind is ItemKind.NEAR:
            return self._join(row, decision.other_path)
        if decision.action is Action.DROP:
            return self._drop(row, decision.wnid)
        return NO_SPLIT

    def _of(self, row: int) -> Row:
        """Return the edited row of an image."""
        while row in self._joined:
            row = self._joined[row]
        if row not in self._now:
            (self._now[row],) = self._table.slice(row, 1).to_pylist()
        return self._now[row]

    def _drop(self, row: int, wnid: str) -> str | None:
        index = self._index_of.get(wnid)
        image = self._of(row)
        if self._why.get(row, ("", ""))[0] == "remove":
            return None
        if index not in image["label_ids"]:
            return f"it is not labelled {wnid}"
        image["label_ids"].remove(index)
        self._why[row] = ("drop", "")
        return None

    def _remove(self, row: int, other_path: str) -> str | None:
        self._of(row)["label_ids"].clear()
        self._why[row] = ("remove", other_path)
        return None

    def _join(self, row: int, other_path: str) -> str | None:
        other = self._row_of.get(other_path)
        if other is None:
            return "the other image is not in the manifest"
        mine, theirs = self._of(row), self._of(other)
        if mine is theirs:
            return None
        if not mine["label_ids"] or not theirs["label_ids"]:
            return "one of the two is already removed"
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
        """Return the paths of the images whose labels were all dropped."""
        dropped = [row for row, (action, _) in sorted(self._why.items()) if action == "drop"]
        return [str(self._paths[row]) for row in dropped if not self._of(row)["label_ids"]]

    def result(self) -> tuple[pa.Table, list[Row]]:
        """Return the new rows of images, ordered by first label, and the rows of changes."""
        edited = [{**now, "row": row} for row, now in self._now.items() if now["label_ids"]]
        is_kept = np.ones(self._table.num_rows, dtype=bool)
        is_kept[[*self._now, *self._joined]] = False
        schema = self._table.schema.append(pa.field("row", pa.int64()))
        rows = self._table.append_column("row", pa.array(np.arange(self._table.num_rows)))
        parts = [
            rows.filter(pa.array(is_kept)).cast(schema),
            pa.Table.from_pylist(edited, schema=schema),
        ]
        images = pa.concat_tables(parts)
        first = pc.list_element(images["label_ids"], 0).to_numpy()
        order = np.lexsort((images["row"].to_numpy(), first))
        images = images.take(pa.array(order)).drop_columns("row")
        return images, [self._change(row) for row in sorted(self._why)]

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


@dataclass(kw_only=True)
class ApplySummary:
    """Counts of an application of decisions.

    Attributes:
        num_before, num_images: Images of the old and the new manifest.
        num_decisions: Decisions in effect.
        num_confirmed: Decisions that change nothing.
        num_applied: Decisions that change something.
        not_applied: Path and reason of decisions that are not possible.
        unlabelled: Paths of images that are removed because all of their labels were dropped.
        num_changed: Rows of `changes.parquet`.
    """

    num_before: int
    num_images: int = 0
    num_decisions: int = 0
    num_confirmed: int = 0
    num_applied: int = 0
    not_applied: list[tuple[str, str]] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    num_changed: int = 0


def apply_decisions(manifests: Path, decisions: Path, out: Path) -> ApplySummary:
    """Write the manifests that *decisions* make of those in *manifests* into *out*.

    Args:
        manifests: The folder of `images` and `classes.parquet`.
        decisions: The file of `vit21k review`.
        out: The new folder; created if missing.

    Raises:
        ManifestError: A manifest is missing, stale or damaged.
        DataError: *decisions* is missing or damaged.
        UsageError: *out* is *manifests*, or inside the image root.
        LockedError: Another run works on *out*.
    """
    images = open_manifest(manifests, IMAGES)
    check_out(manifests, out, images.header.image_folder)
    decided = in_effect(read_decisions(decisions))
    table = images.read()
    edit = Edit(table, images.classes(), _paths_of(decided))
    summary = ApplySummary(num_before=images.num_rows, num_decisions=len(decided))
    for decision in decided:
        if decision.action is Action.REJECT or _is_confirmation(decision):
            summary.num_confirmed += 1
        elif problem := edit.apply(decision):
            summary.not_applied.append((decision.path, problem))
        else:
            summary.num_applied += 1
    summary.unlabelled = edit.unlabelled()
    rows, changes = edit.result()
    digest = hashlib.sha256(b"".join(one.to_line() for one in decided)).hexdigest()
    step = {"verb": "apply", "decisions": digest, "num_applied": summary.num_applied}
    with locked(out, command="labels apply"):
        _write(manifests, out, images, rows, changes, step)
    summary.num_images, summary.num_changed = rows.num_rows, len(changes)
    return summary


def _is_confirmation(decision: Decision) -> bool:
    return decision.kind is ItemKind.MERGE and decision.action is Action.ACCEPT


def _paths_of(decided: list[Decision]) -> set[str]:
    return {path for one in decided for path in (one.path, one.other_path) if path}


def _write(
    manifests: Path,
    out: Path,
    images: Manifest,
    rows: pa.Table,
    changes: list[Row],
    step: Mapping[str, Any],
) -> None:
    classes = read_label_classes(manifests)
    header = derived_header(images, out, step)
    write_manifest(rows, IMAGES, out, header, classes.classes)
    lists = LabelLists.from_arrow(rows["label_ids"].combine_chunks())
    single = lists.of_rows(lists.num_N == 1)
    size = len(classes.classes)
    counts = (np.bincount(some.label_L, minlength=size) for some in (lists, single))
    header = write_classes(out, header, classes, *counts)
    write_manifest(pa.Table.from_pylist(changes, schema=CHANGES.schema), CHANGES, out, header)
