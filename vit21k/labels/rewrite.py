"""A folder of manifests -> another one with other labels: images, classes, and the split if any.

The old folder stays as it is.  Every new manifest names the step that made it, after those before
it, and the fingerprint of what it was made from, so that it goes stale with it.

`images` is ordered by first label.  Other labels may put pictures in another order: a first pass
over the labels tells, and only then are rows held, `ROWS_IN_MEMORY` at a time.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.errors import ManifestError, UsageError
from vit21k.hashing.places import refuse_inside
from vit21k.labels.label_classes import LabelClasses
from vit21k.labels.label_lists import LabelLists
from vit21k.lock import locked
from vit21k.manifest.header import Header
from vit21k.manifest.kind import ManifestKind
from vit21k.manifest.reader import Manifest, open_manifest
from vit21k.manifest.schema import CLASSES, IMAGES, TRAIN, VAL
from vit21k.manifest.writer import manifest_writer, write_manifest
from vit21k.prep.ahead import ahead

ROWS_IN_MEMORY = 2_000_000

Change = Callable[[LabelLists], LabelLists]
"""The labels of some pictures -> their new labels, picture by picture; perhaps none."""


@dataclass(kw_only=True)
class RewriteSummary:
    """Counts of a new `images.parquet`.

    Attributes:
        num_before: Pictures of the old one.
        num_images: Pictures of the new one.
        num_changed: Of these, those whose labels are others.
        num_labels_before: Labels of the old pictures.
        num_labels: Labels of the new ones.
        num_multi_label: New pictures with several labels.
        num_classes: Length of the new class list.
        num_empty_classes: Classes of it that no picture carries.
        splits: Rows of the new `val` and `train`, where there is a split.
        stale_split: Whether there was a split that no longer fitted, and was left out.
    """

    num_before: int = 0
    num_images: int = 0
    num_changed: int = 0
    num_labels_before: int = 0
    num_labels: int = 0
    num_multi_label: int = 0
    num_classes: int = 0
    num_empty_classes: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    stale_split: bool = False

    @property
    def num_left_out(self) -> int:
        """Pictures that have no label any more."""
        return self.num_before - self.num_images


def rewrite_folder(
    manifests: Path,
    out: Path,
    change: Change,
    new: LabelClasses,
    step: Mapping[str, Any],
    *,
    with_split: bool = True,
) -> RewriteSummary:
    """Write `images`, `classes` and the split of *manifests* with other labels into *out*.

    Args:
        manifests: The old folder.
        out: The new one; made if need be.
        change: What becomes of the labels.  Pictures left without labels are left out.
        new: The class list of the new labels.
        step: What is done: "verb" and its options; kept in the headers.
        with_split: Carry `val` and `train` over, if there are any.

    Raises:
        ManifestError: A manifest is missing, stale or damaged.
        UsageError: *out* is *manifests*, or lies inside the image root.
        LockedError: Another run works on *out*.
    """
    images = open_manifest(manifests, IMAGES)
    check_out(manifests, out, images.header.root)
    summary = RewriteSummary(num_classes=len(new.classes))
    with locked(out, command=f"labels {step['verb']}"):
        writer = _Writer(out, change, new, summary)
        header = replace(
            with_step(images.header, step),
            classes=new.classes.fingerprint,
            inputs={"images": images.fingerprint},
            inputs_in=relative(manifests, out),
        )
        writer.write_images(images, header)
        if with_split and (manifests / VAL.file_name).is_file():
            try:
                split = [open_manifest(manifests, kind) for kind in (VAL, TRAIN)]
            except ManifestError:
                summary.stale_split = True
            else:
                writer.write_split(split, step)
    return summary


def check_out(manifests: Path, out: Path, root: str) -> None:
    """Refuse to write over the old manifests, or into the image tree.

    Raises:
        UsageError: *out* is *manifests*, or lies inside *root*.
    """
    if out.resolve() == manifests.resolve():
        raise UsageError(
            "the new manifests must not replace those they are made from",
            hint="name another folder with `--out DIR`",
        )
    refuse_inside(out, root, option="--out")


def with_step(header: Header, step: Mapping[str, Any]) -> Header:
    """Return *header* with one more step of the labels."""
    steps = [*header.options.get("labels", []), dict(step)]
    return replace(header, options={**header.options, "labels": steps})


def relative(folder: Path, start: Path) -> str:
    """Return how *folder* is reached from *start*, as POSIX."""
    return Path(os.path.relpath(folder.resolve(), start.resolve())).as_posix()


class _Writer:
    """Writes the manifests of one new folder."""

    def __init__(
        self, out: Path, change: Change, new: LabelClasses, summary: RewriteSummary
    ) -> None:
        self._out = out
        self._change = change
        self._new = new
        self._summary = summary

    def write_images(self, images: Manifest, header: Header) -> None:
        size = len(self._new.classes)
        num_images_K, num_single_K = np.zeros((2, size), dtype=np.int64)
        summary = self._summary
        summary.num_before = images.num_rows
        firsts = [np.empty(0, dtype=np.int64)]
        for old, new in self._label_lists(images):
            firsts.append(new.first_N())
            is_single = new.num_N == 1
            is_changed = self._new.is_changed_N(old, new) & (new.num_N > 0)
            num_images_K += np.bincount(new.label_L, minlength=size)
            num_single_K += np.bincount(new.of_rows(is_single).label_L, minlength=size)
            summary.num_labels_before += len(old.label_L)
            summary.num_labels += len(new.label_L)
            summary.num_changed += int(is_changed.sum())
            summary.num_multi_label += int((new.num_N > 1).sum())
        summary.num_images = self._write(IMAGES, images, header, np.concatenate(firsts))
        summary.num_empty_classes = int((num_images_K == 0).sum())
        self._write_classes(header, num_images_K, num_single_K)

    def write_split(self, split: list[Manifest], step: Mapping[str, Any]) -> None:
        inputs = {"images": open_manifest(self._out, IMAGES).fingerprint}
        for source in split:
            header = replace(
                with_step(source.header, step),
                classes=self._new.classes.fingerprint,
                inputs=inputs,
                inputs_in=".",
            )
            firsts = [new.first_N() for _, new in self._label_lists(source)]
            first_N = np.concatenate([np.empty(0, dtype=np.int64), *firsts])
            kind = source.kind
            self._summary.splits[kind.name] = self._write(kind, source, header, first_N)
            inputs = {**inputs, kind.name: open_manifest(self._out, kind).fingerprint}

    def _write_classes(
        self, header: Header, num_images_K: NDArray[np.int64], num_single_K: NDArray[np.int64]
    ) -> None:
        classes = self._new.classes
        rows = pa.table(
            {
                "class_index": np.arange(len(classes)),
                "wnid": list(classes.wnids),
                "name": list(classes.names),
                "num_files": self._new.num_files_K,
                "num_images": num_images_K,
                "num_single_label": num_single_K,
            },
            schema=CLASSES.schema,
        )
        inputs = {"images": open_manifest(self._out, IMAGES).fingerprint}
        header = replace(header, inputs=inputs, inputs_in=".")
        write_manifest(rows, CLASSES, self._out, header)

    def _label_lists(self, source: Manifest) -> Iterator[tuple[LabelLists, LabelLists]]:
        for rows in ahead(source.batches(["label_ids"])):
            old = LabelLists.from_arrow(rows["label_ids"].combine_chunks())
            yield old, self._change(old)

    def _write(
        self, kind: ManifestKind, source: Manifest, header: Header, first_N: NDArray[np.int64]
    ) -> int:
        """Write the pictures that have labels, by their first label; return how many."""
        is_ordered = bool((np.diff(first_N[first_N >= 0]) >= 0).all())
        with manifest_writer(kind, self._out, header, self._new.classes) as writer:
            for rows in self._rows(source) if is_ordered else self._reordered(source, first_N):
                writer.write(rows)
        return writer.num_rows

    def _rows(self, source: Manifest) -> Iterator[pa.Table]:
        for rows in ahead(source.batches()):
            new = self._change(LabelLists.from_arrow(rows["label_ids"].combine_chunks()))
            column = rows.schema.get_field_index("label_ids")
            changed = rows.set_column(column, rows.schema.field(column), new.to_arrow())
            yield changed.filter(pa.array(new.num_N > 0))

    def _reordered(self, source: Manifest, first_N: NDArray[np.int64]) -> Iterator[pa.Table]:
        """Yield the pictures by first label, reading all of them once for each part held."""
        kept = first_N[first_N >= 0]
        order = np.argsort(kept, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        for start in range(0, len(place), ROWS_IN_MEMORY):
            parts, places, row = [], [], 0
            for rows in self._rows(source):
                here = place[row : row + rows.num_rows]
                is_in = (here >= start) & (here < start + ROWS_IN_MEMORY)
                parts.append(rows.filter(pa.array(is_in)))
                places.append(here[is_in])
                row += rows.num_rows
            yield pa.concat_tables(parts).take(pa.array(np.argsort(np.concatenate(places))))
