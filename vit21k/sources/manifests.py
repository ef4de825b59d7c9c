"""An image tree -> manifests to train on, by the ordinary steps: hash, relabel, make-val."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vit21k.errors import LayoutError
from vit21k.hashing.hash_tree import hash_tree
from vit21k.manifest.classes import ClassList
from vit21k.manifest.layout import LabelFrom
from vit21k.manifest.reader import read_manifest
from vit21k.manifest.schema import CLASSES
from vit21k.prep.folder_split import split_by_folders
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val

TRAIN_FOLDER = "train"
VAL_FOLDERS = ("val", "valid", "validation", "test")
"""What the folder of a split may be called, the first that is there counts; all are left out of
train."""

_MOST_HELD_OUT = 50
_HELD_OUT_SHARE = 5


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What was made of an image tree.

    Attributes:
        num_files: Files that were read.
        num_problems: Files that could not be used; `problems.parquet` lists them.
        num_train: Pictures to train on.
        num_val: Pictures to validate on.
        num_unused: Pictures that are for neither: in other folders, or with several labels in val.
        num_classes: Length of the class list.
        split: Where val is from, in words.
    """

    num_files: int
    num_problems: int
    num_train: int
    num_val: int
    num_unused: int
    num_classes: int
    split: str


def prepare(
    root: Path,
    manifests: Path,
    *,
    labels: Mapping[str, str] | None = None,
) -> Prepared:
    """Hash *root*, merge equal files, and split train from val.

    Where *root* has a folder ``train`` and one for validation, those are the split; else pictures
    of every class are held out, drawn by their content.

    Args:
        root: The image tree; opened read-only.
        manifests: Where the manifests go; not below *root*.
        labels: Where a dataset says itself what its labels are: the classes in words by the name
            of their folder, in the order of the labels, which is kept; empty if it does not name
            them.  None: the folders are the classes, by name.

    Raises:
        DataError: There are no images.
        LayoutError: Its folders cannot be classes, or there is only one.
        UsageError: *manifests* lies inside *root*.
        OSError: The disk is full or failing.
    """
    val = val_folder_of(root)
    splits = (TRAIN_FOLDER, *VAL_FOLDERS) if val is not None else ()
    label_from: LabelFrom | None = "folder" if labels is not None else None
    summary = hash_tree(root, manifests, label_from=label_from, splits=splits)
    classes = _classes_of(labels, summary.wnids) if labels is not None else None
    relabelled = relabel(manifests, classes=classes, names_of=lambda wnids: {w: w for w in wnids})
    if relabelled.num_classes == 1:
        raise LayoutError(
            f"all images of `{root}` are of one class, `{next(iter(summary.wnids))}`",
            hint="put the images into one folder for each class",
        )
    if val is not None:
        others = [name for name in VAL_FOLDERS if name != val]
        by_folder = split_by_folders(manifests, train=TRAIN_FOLDER, val=val, held_out=others)
        num_train, num_val = by_folder.num_train, by_folder.num_val
        split = f"the folder `{val}`"
    else:
        per_class = held_out_of_each(manifests)
        drawn = make_val(manifests, per_class=per_class, holdout=True, seed=0)
        num_train, num_val = drawn.num_train, drawn.num_val
        split = f"{per_class} of each class, held out"
    return Prepared(
        num_files=relabelled.num_files,
        num_problems=sum(summary.problems.values()),
        num_train=num_train,
        num_val=num_val,
        num_unused=relabelled.num_images - num_train - num_val,
        num_classes=relabelled.num_classes,
        split=split,
    )


def _classes_of(labels: Mapping[str, str], folders: Collection[str]) -> ClassList:
    """Return the classes of a dataset in the order of its labels, which may be mere numbers."""
    if labels:
        return ClassList(tuple(labels), tuple(labels.values()))
    are_numbers = all(folder.isdecimal() for folder in folders)
    return ClassList(tuple(sorted(folders, key=int if are_numbers else None)))


def val_folder_of(root: Path) -> str | None:
    """Return the folder of *root* to validate on; None if its folders are no splits."""
    if not (root / TRAIN_FOLDER).is_dir():
        return None
    return next((name for name in VAL_FOLDERS if (root / name).is_dir()), None)


def held_out_of_each(manifests: Path) -> int:
    """Return how many pictures of each class to hold out: a fifth of the smallest, 1 to 50."""
    counts: Sequence[int] = read_manifest(manifests, CLASSES, ["num_single_label"])[
        "num_single_label"
    ].to_pylist()
    smallest = min((count for count in counts if count >= _HELD_OUT_SHARE), default=0)
    return max(1, min(_MOST_HELD_OUT, smallest // _HELD_OUT_SHARE))
