"""Which classes the labels of a folder of manifests mean, and those of the folder made from it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit21k.errors import ManifestError
from vit21k.labels.label_lists import LabelLists
from vit21k.manifest.classes import ClassList
from vit21k.manifest.reader import open_manifest
from vit21k.manifest.schema import CLASSES, IMAGES


class LabelClasses(NamedTuple):
    """A class list, and what is counted by it.

    Attributes:
        classes: The list, with names where they are known.
        num_files_K: Files in the folders of each class.
        is_renumbered: Whether class indices mean other classes than in the old list.
    """

    classes: ClassList
    num_files_K: NDArray[np.int64]
    is_renumbered: bool = False

    def is_changed_N(self, old: LabelLists, new: LabelLists) -> NDArray[np.bool_]:
        """Return which pictures have other labels; the same class by a new index is no other."""
        lost: NDArray[np.bool_] = old.num_N != new.num_N
        return lost if self.is_renumbered else old.is_changed_N(new)


def read_label_classes(manifests: Path) -> LabelClasses:
    """Return the class list of the folder, with names and numbers of files.

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
