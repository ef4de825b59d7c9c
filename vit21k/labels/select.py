"""Choose classes (a subtree, a list, the larger classes) or add hypernyms to labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit21k.errors import UsageError
from vit21k.labels.edit import (
    LabelClasses,
    LabelLists,
    RewriteSummary,
    check_out,
    derived_header,
    hypernyms,
    read_label_classes,
    renumbered,
    rewrite_folder,
    with_hypernyms,
    without_ancestors,
)
from vit21k.lock import locked
from vit21k.manifest.class_lists import map_ids, read_classes
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import CLASSES, EXPANDED, IMAGES
from vit21k.manifest.wordnet import Above, Hierarchy, names_of
from vit21k.manifest.writer import manifest_writer
from vit21k.prep.dedup import prefetched
from vit21k.prep.split import SplitSummary, make_val


@dataclass(frozen=True, kw_only=True)
class ExpandSummary:
    """Counts of an `expanded.parquet`.

    Attributes:
        num_images: Number of rows.
        num_labels: Labels of the images.
        num_hypernyms: Hypernyms of these.
        num_without: Images without hypernyms.
    """

    num_images: int
    num_labels: int
    num_hypernyms: int
    num_without: int


def expand(manifests: Path, out: Path, *, levels: int | None = None) -> ExpandSummary:
    """Write `expanded.parquet`: every image with its labels and, in another column, hypernyms.

    Args:
        manifests: The folder of `images.parquet`.
        out: Folder of the new manifest.
        levels: Number of steps up, between classes of the list; default: all.

    Raises:
        ManifestError: `images.parquet` is missing, stale or damaged.
        UsageError: *out* is *manifests*, or inside the image root.
        LockedError: Another run works on *out*.
    """
    images = open_manifest(manifests, IMAGES)
    check_out(manifests, out, images.header.image_folder)
    above = _above(Hierarchy.of(images.classes()), levels)
    header = derived_header(images, out, {"verb": "expand", "levels": levels})
    num_labels = num_hypernyms = num_without = 0
    with (
        locked(out, command="labels expand"),
        manifest_writer(EXPANDED, out, header, images.classes()) as writer,
    ):
        for rows in prefetched(images.batches(EXPANDED.schema.names[:-1])):
            lists = LabelLists.from_arrow(rows["label_ids"].combine_chunks())
            added = hypernyms(lists, above)
            num_labels += len(lists.label_L)
            num_hypernyms += len(added.label_L)
            num_without += int((added.num_N == 0).sum())
            writer.write(rows.append_column("hypernym_ids", added.to_arrow()))
    return ExpandSummary(
        num_images=images.num_rows,
        num_labels=num_labels,
        num_hypernyms=num_hypernyms,
        num_without=num_without,
    )


def expand_into_labels(manifests: Path, out: Path, *, levels: int | None = None) -> RewriteSummary:
    """Write a new folder with hypernyms among the labels of images.

    Args and errors are those of `expand`.
    """
    new = read_label_classes(manifests)
    above = _above(Hierarchy.of(new.classes), levels)
    step = {"verb": "expand", "levels": levels, "into_labels": True}
    return rewrite_folder(manifests, out, lambda lists: with_hypernyms(lists, above), new, step)


def reduce(manifests: Path, out: Path) -> RewriteSummary:
    """Write a new folder without labels that are a hypernym of another label of the image.

    An image with the labels "dog" and "animal" keeps "dog".  Args and errors are those of
    `expand`.
    """
    new = read_label_classes(manifests)
    ancestors = Hierarchy.of(new.classes).ancestors
    step = {"verb": "reduce"}
    return rewrite_folder(
        manifests, out, lambda lists: without_ancestors(lists, ancestors), new, step
    )


def _above(hierarchy: Hierarchy, levels: int | None) -> Above:
    return hierarchy.ancestors if levels is None else hierarchy.ancestors_within(levels)


P_MORE_THAN, P_VAL_PER_CLASS = 500, 50
"""Source: Alibaba-MIIL/ImageNet21K, dataset_preprocessing/processing_script.sh."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which classes to keep.  Conditions are combined with "and".

    Attributes:
        keep: Only these: a wnid means its subtree, anything else is a class list.
        drop: Not these.
        more_than: Only classes with more than this many files.
        count: What *more_than* counts: "files" in the class folder, or unique "images".
        keep_indices: Keep the class list and its indices; dropped classes have no images.
    """

    keep: Sequence[str] = ()
    drop: Sequence[str] = ()
    more_than: int | None = None
    count: str = "files"
    keep_indices: bool = False

    def step(self) -> dict[str, Any]:
        """Return the step for the header of the new manifests."""
        return {
            "verb": "select",
            "keep": list(self.keep),
            "drop": list(self.drop),
            "more_than": self.more_than,
            "count": self.count,
            "keep_indices": self.keep_indices,
        }


@dataclass(frozen=True, kw_only=True)
class SelectSummary:
    """Result of a selection of classes.

    Attributes:
        rewritten: Counts of the new manifests.
        num_classes_before: Length of the old class list.
        gone: Old classes that are not in the new list, or were dropped; class index -1.
        lost: Classes of the new list that the old list does not have.
        split: The new split, if one was asked for.
    """

    rewritten: RewriteSummary
    num_classes_before: int
    gone: tuple[str, ...]
    lost: tuple[str, ...]
    split: SplitSummary | None = None


def select_labels(
    manifests: Path, out: Path, selection: Selection, *, hold_out: int | None = None
) -> SelectSummary:
    """Write a new folder with some of the classes and their images.

    If a single known list or file is to be kept, without other conditions, it becomes the new
    class list with its own indices; its classes that are missing in the old list have no images.
    Otherwise the kept classes get new consecutive indices in the same order.

    Args:
        manifests: The folder of `images.parquet` and `classes.parquet`.
        out: Folder of the new manifests.
        selection: Which classes to keep.
        hold_out: Also make a split with this many images of each class held out.  Default: keep
            the existing split.

    Raises:
        UsageError: A name is neither a class nor a list, no class is left, or *out* is
            *manifests* or inside the image root.
        ManifestError: A manifest is missing, stale or damaged.
        LockedError: Another run works on *out*.
    """
    old = read_label_classes(manifests)
    is_kept_K = _is_kept(manifests, old, selection)
    new, new_id_K = _new_classes(old, is_kept_K, selection)
    step = {**selection.step(), "hold_out": hold_out}
    rewritten = rewrite_folder(
        manifests,
        out,
        lambda lists: renumbered(lists, new_id_K),
        new,
        step,
        with_split=hold_out is None,
    )
    here = set(old.classes.wnids)
    return SelectSummary(
        rewritten=rewritten,
        num_classes_before=len(old.classes),
        gone=tuple(old.classes.wnids[k] for k in np.flatnonzero(new_id_K < 0)),
        lost=tuple(wnid for wnid in new.classes.wnids if wnid not in here),
        split=make_val(out, per_class=hold_out, holdout=True) if hold_out is not None else None,
    )


def select_21k_p(manifests: Path, out: Path) -> SelectSummary:
    """Make ImageNet-21K-P: classes with more than 500 files, with 50 images of each held out.

    The held-out images are the first with a single label; the original takes the first 50 files.
    Args and errors are those of `select_labels`.
    """
    return select_labels(manifests, out, Selection(more_than=P_MORE_THAN), hold_out=P_VAL_PER_CLASS)


def _is_kept(manifests: Path, old: LabelClasses, selection: Selection) -> NDArray[np.bool_]:
    hierarchy = Hierarchy.of(old.classes)
    is_kept: NDArray[np.bool_] = np.ones(len(old.classes), dtype=bool)
    if selection.keep:
        is_kept &= np.any([_named(hierarchy, name) for name in selection.keep], axis=0)
    for name in selection.drop:
        is_kept &= ~_named(hierarchy, name)
    if selection.more_than is not None:
        num_K = old.num_files_K
        if selection.count == "images":
            num_K = open_manifest(manifests, CLASSES).read(["num_images"])["num_images"].to_numpy()
        is_kept &= num_K > selection.more_than
    if not is_kept.any():
        raise UsageError(
            "no class is left", hint="`vit21k labels stats` shows the sizes of classes"
        )
    return is_kept


def _named(hierarchy: Hierarchy, name: str) -> NDArray[np.bool_]:
    """Return which classes are in the subtree or list called *name*."""
    if name in hierarchy.synsets:
        return hierarchy.subtree_K(name)
    if name in hierarchy.classes.wnids:  # a folder that is not a wnid
        return np.array([wnid == name for wnid in hierarchy.classes.wnids])
    is_in: NDArray[np.bool_] = map_ids(hierarchy.classes, read_classes(name)) >= 0
    return is_in


def _new_classes(
    old: LabelClasses, is_kept_K: NDArray[np.bool_], selection: Selection
) -> tuple[LabelClasses, NDArray[np.int64]]:
    """Return the new class list, and the new index of each old class; -1 if it is dropped."""
    if selection.keep_indices:
        return old, np.where(is_kept_K, np.arange(len(is_kept_K)), -1)
    names = [selection.keep[0]] if len(selection.keep) == 1 else []
    is_list = names and names[0] not in Hierarchy.of(old.classes).synsets
    if is_list and names[0] not in old.classes.wnids and is_exactly(selection):
        return _as_list(old, read_classes(names[0]))
    kept = np.flatnonzero(is_kept_K)
    classes = ClassList(
        tuple(old.classes.wnids[k] for k in kept), tuple(old.classes.names[k] for k in kept)
    )
    new_id_K = np.where(is_kept_K, np.cumsum(is_kept_K) - 1, -1)
    return LabelClasses(classes, old.num_files_K[kept], is_renumbered=True), new_id_K


def is_exactly(selection: Selection) -> bool:
    """Return whether keeping a list is the only condition."""
    return not selection.drop and selection.more_than is None


def _as_list(old: LabelClasses, target: ClassList) -> tuple[LabelClasses, NDArray[np.int64]]:
    new_id_K = map_ids(old.classes, target)
    num_files = np.zeros(len(target), dtype=np.int64)
    num_files[new_id_K[new_id_K >= 0]] = old.num_files_K[new_id_K >= 0]
    known = names_of(target.wnids)
    names = tuple(
        name or known.get(wnid) for wnid, name in zip(target.wnids, target.names, strict=True)
    )
    new = LabelClasses(ClassList(target.wnids, names), num_files, is_renumbered=True)
    return new, new_id_K
