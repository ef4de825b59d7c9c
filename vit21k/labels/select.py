"""Choose classes (a subtree, a list, the larger classes) or add hypernyms to labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    hypernyms,
    read_label_classes,
    relative,
    renumbered,
    rewrite_folder,
    with_hypernyms,
    with_step,
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
        num_images: Its rows.
        num_labels: Labels of the images.
        num_hypernyms: Classes above them, added beside.
        num_without: Images that nothing was added to.
    """

    num_images: int
    num_labels: int
    num_hypernyms: int
    num_without: int


def expand(manifests: Path, out: Path, *, levels: int | None = None) -> ExpandSummary:
    """Write `expanded.parquet`: every image with its labels and, beside, the classes above them.

    Args:
        manifests: The folder of `images.parquet`.
        out: Where the new manifest goes.
        levels: How many steps up, from class to class of the list; default: all.

    Raises:
        ManifestError: `images.parquet` is missing, stale or damaged.
        UsageError: *out* is *manifests*, or lies inside the image root.
        LockedError: Another run works on *out*.
    """
    images = open_manifest(manifests, IMAGES)
    check_out(manifests, out, images.header.root)
    above = _above(Hierarchy.of(images.classes()), levels)
    header = replace(
        with_step(images.header, {"verb": "expand", "levels": levels}),
        inputs={"images": images.fingerprint},
        inputs_in=relative(manifests, out),
    )
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
    """Write a new folder whose images are labelled by the classes above their labels as well.

    Args and errors are those of `expand`.
    """
    new = read_label_classes(manifests)
    above = _above(Hierarchy.of(new.classes), levels)
    step = {"verb": "expand", "levels": levels, "into_labels": True}
    return rewrite_folder(manifests, out, lambda lists: with_hypernyms(lists, above), new, step)


def reduce(manifests: Path, out: Path) -> RewriteSummary:
    """Write a new folder whose images have only labels that no other label of them is a kind of.

    An image of a dog that lies under "animal" as well keeps "dog".  Args and errors are those of
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
    """Which classes stay.  What is asked for together must all be true.

    Attributes:
        keep: Only these: a wnid means its subtree, anything else is a class list.
        drop: Not these.
        more_than: Only classes with more than this many files.
        count: What is counted: "files" in the class folder, or distinct "images".
        keep_indices: Leave the class list, and with it the indices, as they are; the classes that
            go have no images then.
    """

    keep: Sequence[str] = ()
    drop: Sequence[str] = ()
    more_than: int | None = None
    count: str = "files"
    keep_indices: bool = False

    def step(self) -> dict[str, Any]:
        """Return what the header of the new manifests says."""
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
    """What became of the classes.

    Attributes:
        rewritten: Counts of the new manifests.
        num_classes_before: Length of the old class list.
        gone: Old classes that the new list does not have, or that were dropped; class index -1.
        lost: Classes of a list that was to be kept that the old list does not have.
        split: The new split, with the preset.
    """

    rewritten: RewriteSummary
    num_classes_before: int
    gone: tuple[str, ...]
    lost: tuple[str, ...]
    split: SplitSummary | None = None


def select(
    manifests: Path, out: Path, selection: Selection, *, hold_out: int | None = None
) -> SelectSummary:
    """Write a new folder with some of the classes, and the images that carry one of them.

    If one known list or file is to be kept and nothing else is asked for, the new class list is
    that list: the indices are its own, and its classes that are not here have no images.
    Otherwise the classes that stay are numbered anew, in the same order.

    Args:
        manifests: The folder of `images.parquet` and `classes.parquet`.
        out: Where the new manifests go.
        selection: What stays.
        hold_out: Make a split too, with so many images of each class held out.  Default: the
            split that there is.

    Raises:
        UsageError: What is asked for is no class, no list, or leaves no class; *out* is not
            a place to write to.
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
    """Make ImageNet-21K-P: classes with more than 500 files, then 50 images of each held out.

    Images to hold out are the first that carry one label only; the original takes the first 50
    files.  Args and errors are those of `select`.
    """
    return select(manifests, out, Selection(more_than=P_MORE_THAN), hold_out=P_VAL_PER_CLASS)


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
        raise UsageError("no class is left", hint="`vit21k labels stats` shows what there is")
    return is_kept


def _named(hierarchy: Hierarchy, name: str) -> NDArray[np.bool_]:
    """Return which classes are of the subtree or list that *name* means."""
    if name in hierarchy.synsets:
        return hierarchy.subtree_K(name)
    if name in hierarchy.classes.wnids:  # a folder that is no wnid
        return np.array([wnid == name for wnid in hierarchy.classes.wnids])
    is_in: NDArray[np.bool_] = map_ids(hierarchy.classes, read_classes(name)) >= 0
    return is_in


def _new_classes(
    old: LabelClasses, is_kept_K: NDArray[np.bool_], selection: Selection
) -> tuple[LabelClasses, NDArray[np.int64]]:
    """Return the new class list, and the new index of each old class; -1 for one that goes."""
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
    """Return whether a list is to be kept and nothing else is asked for."""
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
