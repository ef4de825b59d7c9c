"""Label lists, class lists, and manifests rewritten with other labels."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.errors import ManifestError, UsageError
from vit21k.lock import locked
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import Manifest, ManifestHeader, open_manifest
from vit21k.manifest.schema import CLASSES, IMAGES, TRAIN, VAL, ManifestKind
from vit21k.manifest.wordnet import Above, distinct
from vit21k.manifest.writer import manifest_writer, refuse_inside, write_manifest
from vit21k.prep.dedup import prefetched

Ints = NDArray[np.int64]


class LabelLists(NamedTuple):
    """The labels of each image, concatenated; each list ascending, without repeats.

    Attributes:
        starts: Start of the list of each image, and the end of the last; N + 1 offsets.
        label_L: Class indices.
    """

    starts: Ints
    label_L: Ints

    @classmethod
    def from_arrow(cls, lists: pa.ListArray) -> Self:
        """Convert a column of `label_ids` without nulls."""
        starts = lists.offsets.to_numpy().astype(np.int64)
        return cls(starts - starts[0], lists.flatten().to_numpy())

    def to_arrow(self) -> pa.ListArray:
        """Return a column of `label_ids`."""
        return pa.ListArray.from_arrays(pa.array(self.starts, pa.int32()), pa.array(self.label_L))

    @property
    def num_N(self) -> Ints:
        """Number of labels of each image."""
        return np.diff(self.starts)

    @property
    def row_L(self) -> Ints:
        """Row of the image of each label."""
        return np.repeat(np.arange(len(self.starts) - 1), self.num_N)

    def first_N(self) -> Ints:
        """Return the first label of each image; -1 if it has none."""
        first = np.full(len(self.starts) - 1, -1, dtype=np.int64)
        has_some = self.num_N > 0
        first[has_some] = self.label_L[self.starts[:-1][has_some]]
        return first

    def of_rows(self, is_in: NDArray[np.bool_]) -> Self:
        """Return the lists of the selected images."""
        num_N = self.num_N
        starts = np.append(0, np.cumsum(num_N[is_in]))
        return type(self)(starts, self.label_L[np.repeat(is_in, num_N)])

    def is_changed_N(self, new: "LabelLists") -> NDArray[np.bool_]:
        """Return which images have other labels in *new*, of the same images."""
        is_changed: NDArray[np.bool_] = self.num_N != new.num_N
        rest = ~is_changed
        mine, others = self.of_rows(rest), new.of_rows(rest)
        differs = np.add.reduceat(
            np.append(mine.label_L != others.label_L, False).astype(np.int64), mine.starts[:-1]
        )
        is_changed[rest] = (differs > 0) & (mine.num_N > 0)
        return is_changed


def hypernyms(lists: LabelLists, above: Above) -> LabelLists:
    """Return for each image the hypernyms of its labels that are not among them."""
    found = _keys_above(lists.row_L, lists.label_L, above)
    return _from_keys(found[~_is_among(found, _keys(lists, above))], lists, above)


def with_hypernyms(lists: LabelLists, above: Above) -> LabelLists:
    """Return for each image its labels and all their hypernyms."""
    found = _keys_above(lists.row_L, lists.label_L, above)
    return _from_keys(distinct(np.append(_keys(lists, above), found)), lists, above)


def without_ancestors(lists: LabelLists, ancestors: Above) -> LabelLists:
    """Return the labels without those that are a hypernym of another label of the image."""
    own = _keys(lists, ancestors)
    has_others = np.repeat(lists.num_N > 1, lists.num_N)
    above = _keys_above(lists.row_L[has_others], lists.label_L[has_others], ancestors)
    is_redundant = np.zeros(len(own), dtype=bool)
    is_redundant[has_others] = _is_among(own[has_others], above)
    return _from_keys(own[~is_redundant], lists, ancestors)


def renumbered(lists: LabelLists, new_id_K: Ints) -> LabelLists:
    """Return the labels with new class indices; labels whose new index is -1 are dropped."""
    new_L = new_id_K[lists.label_L]
    is_in = new_L >= 0
    row_L, new_L = lists.row_L[is_in], new_L[is_in]
    order = np.lexsort((new_L, row_L))
    starts = np.searchsorted(row_L, np.arange(len(lists.starts)))
    return LabelLists(starts, new_L[order])


def _keys(lists: LabelLists, above: Above) -> Ints:
    """Return a key for each pair of image and label, ascending."""
    return lists.row_L * len(above.num_K) + lists.label_L


def _keys_above(row_L: Ints, label_L: Ints, above: Above) -> Ints:
    """Return the distinct keys of each image with each hypernym of its labels, ascending."""
    index, found = above.of_each(label_L)
    return distinct(row_L[index] * len(above.num_K) + found)


def _from_keys(keys: Ints, lists: LabelLists, above: Above) -> LabelLists:
    num_classes = len(above.num_K)
    starts = np.searchsorted(keys, np.arange(len(lists.starts)) * num_classes)
    return LabelLists(starts, keys % num_classes)


def _is_among(keys: Ints, ordered: Ints) -> NDArray[np.bool_]:
    """Return which of *keys* are in *ordered*, which is ascending."""
    if not len(ordered):
        return np.zeros(len(keys), dtype=bool)
    index = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    found: NDArray[np.bool_] = ordered[index] == keys
    return found


class LabelClasses(NamedTuple):
    """A class list with the number of files of each class.

    Attributes:
        classes: The list, with names if known.
        num_files_K: Files in the folder of each class.
        is_renumbered: Whether class indices differ from those of the old list.
    """

    classes: ClassList
    num_files_K: NDArray[np.int64]
    is_renumbered: bool = False

    def is_changed_N(self, old: LabelLists, new: LabelLists) -> NDArray[np.bool_]:
        """Return which images have other labels; a new index of the same class does not count."""
        lost: NDArray[np.bool_] = old.num_N != new.num_N
        return lost if self.is_renumbered else old.is_changed_N(new)


def read_label_classes(manifests: Path) -> LabelClasses:
    """Return the class list of the folder, with names and file counts.

    Raises:
        ManifestError: `images` or `classes.parquet` is missing, stale or damaged.
    """
    images = open_manifest(manifests, IMAGES)
    rows = open_manifest(manifests, CLASSES).read(["wnid", "name", "num_files"])
    classes = ClassList(tuple(rows["wnid"].to_pylist()), tuple(rows["name"].to_pylist()))
    if classes.fingerprint != images.header.classes:
        raise ManifestError(
            f"`{manifests / CLASSES.file_name}` holds another class list than `images.parquet`",
            hint="make both again with `vit21k relabel`",
        )
    return LabelClasses(classes, rows["num_files"].to_numpy())


ROWS_IN_MEMORY = 2_000_000

Change = Callable[[LabelLists], LabelLists]
"""Labels of images -> their new labels, possibly none."""


@dataclass(kw_only=True)
class RewriteSummary:
    """Counts of a new `images.parquet`.

    Attributes:
        num_before: Images of the old one.
        num_images: Images of the new one.
        num_changed: New images with other labels than before.
        num_labels_before: Labels of the old images.
        num_labels: Labels of the new ones.
        num_multi_label: New images with several labels.
        num_classes: Length of the new class list.
        num_empty_classes: Classes without images.
        splits: Rows of the new `val` and `train`, if there is a split.
        stale_split: Whether there was a stale split, which was skipped.
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
    def num_skipped(self) -> int:
        """Images that are left without labels."""
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
        out: The new one; created if missing.
        change: Maps old labels to new ones.  Images left without labels are skipped.
        new: The class list of the new labels.
        step: "verb" and its options; stored in the headers.
        with_split: Also write `val` and `train`, if they exist.

    Raises:
        ManifestError: A manifest is missing, stale or damaged.
        UsageError: *out* is *manifests*, or inside the image root.
        LockedError: Another run works on *out*.
    """
    images = open_manifest(manifests, IMAGES)
    check_out(manifests, out, images.header.image_folder)
    summary = RewriteSummary(num_classes=len(new.classes))
    with locked(out, command=f"labels {step['verb']}"):
        writer = _Writer(out, change, new, summary)
        header = derived_header(images, out, step)
        writer.write_images(images, replace(header, classes=new.classes.fingerprint))
        if with_split and (manifests / VAL.file_name).is_file():
            try:
                split = [open_manifest(manifests, kind) for kind in (VAL, TRAIN)]
            except ManifestError:
                summary.stale_split = True
            else:
                writer.write_split(split, step)
    return summary


def check_out(manifests: Path, out: Path, root: str) -> None:
    """Refuse to overwrite the old manifests, or to write into the image tree.

    Raises:
        UsageError: *out* is *manifests*, or inside *root*.
    """
    if out.resolve() == manifests.resolve():
        raise UsageError(
            "the new manifests must not replace their input",
            hint="name another folder with `--out DIR`",
        )
    refuse_inside(out, root, option="--out")


def derived_header(source: Manifest, out: Path, step: Mapping[str, Any]) -> ManifestHeader:
    """Return the header of a manifest in *out* that *step* makes from *source*."""
    folder = os.path.relpath(source.path.parent.resolve(), out.resolve())
    return replace(
        _with_step(source.header, step),
        inputs={source.kind.name: source.fingerprint},
        inputs_in=Path(folder).as_posix(),
    )


def _with_step(header: ManifestHeader, step: Mapping[str, Any]) -> ManifestHeader:
    """Return *header* with one more step of the labels."""
    steps = [*header.options.get("labels", []), dict(step)]
    return replace(header, options={**header.options, "labels": steps})


def write_classes(
    out: Path, header: ManifestHeader, classes: LabelClasses, num_images_K: Ints, num_single_K: Ints
) -> ManifestHeader:
    """Write `classes.parquet` next to the `images.parquet` of *out*; return its header."""
    rows = pa.table(
        {
            "class_index": np.arange(len(classes.classes)),
            "wnid": list(classes.classes.wnids),
            "name": list(classes.classes.names),
            "num_files": classes.num_files_K,
            "num_images": num_images_K,
            "num_single_label": num_single_K,
        },
        schema=CLASSES.schema,
    )
    inputs = {"images": open_manifest(out, IMAGES).fingerprint}
    header = replace(header, inputs=inputs, inputs_in=".")
    write_manifest(rows, CLASSES, out, header)
    return header


class _Writer:
    """Writes the manifests of a new folder."""

    def __init__(
        self, out: Path, change: Change, new: LabelClasses, summary: RewriteSummary
    ) -> None:
        self._out = out
        self._change = change
        self._new = new
        self._summary = summary

    def write_images(self, images: Manifest, header: ManifestHeader) -> None:
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
        write_classes(self._out, header, self._new, num_images_K, num_single_K)

    def write_split(self, split: list[Manifest], step: Mapping[str, Any]) -> None:
        inputs = {"images": open_manifest(self._out, IMAGES).fingerprint}
        for source in split:
            header = replace(
                _with_step(source.header, step),
                classes=self._new.classes.fingerprint,
                inputs=inputs,
                inputs_in=".",
            )
            firsts = [new.first_N() for _, new in self._label_lists(source)]
            first_N = np.concatenate([np.empty(0, dtype=np.int64), *firsts])
            kind = source.kind
            self._summary.splits[kind.name] = self._write(kind, source, header, first_N)
            inputs = {**inputs, kind.name: open_manifest(self._out, kind).fingerprint}

    def _label_lists(self, source: Manifest) -> Iterator[tuple[LabelLists, LabelLists]]:
        for rows in prefetched(source.batches(["label_ids"])):
            old = LabelLists.from_arrow(rows["label_ids"].combine_chunks())
            yield old, self._change(old)

    def _write(
        self,
        kind: ManifestKind,
        source: Manifest,
        header: ManifestHeader,
        first_N: NDArray[np.int64],
    ) -> int:
        """Write the images with labels, ordered by first label; return how many."""
        is_ordered = bool((np.diff(first_N[first_N >= 0]) >= 0).all())
        with manifest_writer(kind, self._out, header, self._new.classes) as writer:
            for rows in self._rows(source) if is_ordered else self._reordered(source, first_N):
                writer.write(rows)
        return writer.num_rows

    def _rows(self, source: Manifest) -> Iterator[pa.Table]:
        for rows in prefetched(source.batches()):
            new = self._change(LabelLists.from_arrow(rows["label_ids"].combine_chunks()))
            column = rows.schema.get_field_index("label_ids")
            changed = rows.set_column(column, rows.schema.field(column), new.to_arrow())
            yield changed.filter(pa.array(new.num_N > 0))

    def _reordered(self, source: Manifest, first_N: NDArray[np.int64]) -> Iterator[pa.Table]:
        """Yield the images ordered by first label, reading all of them once per part in memory."""
        kept = first_N[first_N >= 0]
        order = np.argsort(kept, kind="stable")
        new_row = np.empty_like(order)
        new_row[order] = np.arange(len(order))
        for start in range(0, len(new_row), ROWS_IN_MEMORY):
            parts, new_rows, row = [], [], 0
            for rows in self._rows(source):
                here = new_row[row : row + rows.num_rows]
                is_in = (here >= start) & (here < start + ROWS_IN_MEMORY)
                parts.append(rows.filter(pa.array(is_in)))
                new_rows.append(here[is_in])
                row += rows.num_rows
            yield pa.concat_tables(parts).take(pa.array(np.argsort(np.concatenate(new_rows))))
