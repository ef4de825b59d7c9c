"""images.parquet, decisions.jsonl -> a new folder: images, classes, and changes.parquet.

The old manifests stay as they are.  `changes` says of every picture that changed what was done and
why; the header of `images` names the decisions by their digest.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vit21k.labels.label_classes import read_label_classes
from vit21k.labels.rewrite import check_out, relative, with_step
from vit21k.lock import locked
from vit21k.manifest.reader import Manifest, open_manifest
from vit21k.manifest.schema import CHANGES, CLASSES, IMAGES
from vit21k.manifest.writer import write_manifest
from vit21k.review.decisions import Action, Decision, ItemKind, read_decisions, standing
from vit21k.review.edit import Edit, Row


@dataclass(kw_only=True)
class ApplySummary:
    """Counts of what was done.

    Attributes:
        num_before, num_images: Pictures of the old and the new manifest.
        num_decisions: That stand.
        num_confirmed: Of these, those that leave everything as it is.
        num_applied: Those that changed something.
        not_applied: Those that no longer fit, with the reason, by path.
        unlabelled: Paths of the pictures that go because all of their labels were dropped.
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
        decisions: What `vit21k review` wrote.
        out: The new folder; made if need be.

    Raises:
        ManifestError: A manifest is missing, stale or damaged.
        DataError: *decisions* is missing or damaged.
        UsageError: *out* is *manifests*, or lies inside the image root.
        LockedError: Another run works on *out*.
    """
    images = open_manifest(manifests, IMAGES)
    check_out(manifests, out, images.header.root)
    stand = standing(read_decisions(decisions))
    table = images.read()
    edit = Edit(table, images.classes(), _paths_of(stand))
    summary = ApplySummary(num_before=images.num_rows, num_decisions=len(stand))
    for decision in stand:
        if decision.action is Action.REJECT or _is_confirmation(decision):
            summary.num_confirmed += 1
        elif problem := edit.apply(decision):
            summary.not_applied.append((decision.path, problem))
        else:
            summary.num_applied += 1
    summary.unlabelled = edit.unlabelled()
    rows, changes = edit.result()
    digest = hashlib.sha256(b"".join(one.to_line() for one in stand)).hexdigest()
    step = {"verb": "apply", "decisions": digest, "num_applied": summary.num_applied}
    with locked(out, command="labels apply"):
        _write(manifests, out, images, rows, changes, step)
    summary.num_images, summary.num_changed = rows.num_rows, len(changes)
    return summary


def _is_confirmation(decision: Decision) -> bool:
    return decision.kind is ItemKind.MERGE and decision.action is Action.ACCEPT


def _paths_of(stand: list[Decision]) -> set[str]:
    return {path for one in stand for path in (one.path, one.other_path) if path}


def _write(
    manifests: Path,
    out: Path,
    images: Manifest,
    rows: pa.Table,
    changes: list[Row],
    step: Mapping[str, Any],
) -> None:
    classes = read_label_classes(manifests)
    header = replace(
        with_step(images.header, step),
        inputs={"images": images.fingerprint},
        inputs_in=relative(manifests, out),
    )
    write_manifest(rows, IMAGES, out, header, classes.classes)
    lengths = pc.list_value_length(rows["label_ids"])
    single = rows.filter(pc.equal(lengths, 1))
    size = len(classes.classes)
    counts = {
        name: np.bincount(pc.list_flatten(some["label_ids"]).to_numpy(), minlength=size)
        for name, some in (("num_images", rows), ("num_single_label", single))
    }
    table = pa.table(
        {
            "class_index": np.arange(size),
            "wnid": list(classes.classes.wnids),
            "name": list(classes.classes.names),
            "num_files": classes.num_files_K,
            **counts,
        },
        schema=CLASSES.schema,
    )
    inputs = {"images": open_manifest(out, IMAGES).fingerprint}
    beside = replace(header, inputs=inputs, inputs_in=".")
    write_manifest(table, CLASSES, out, beside)
    write_manifest(
        pa.Table.from_pylist(changes, schema=CHANGES.schema), CHANGES, out, replace(beside)
    )
