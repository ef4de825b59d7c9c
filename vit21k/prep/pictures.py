"""Digests and class indices of all files -> the pictures they are, and their labels.

Arrays in, arrays out.  What is true of most files (no copy, one label) is not stored for each of
them: only groups of copies have entries here, about one file in eight in ImageNet-21K.

Legend: N files, G groups of copies, M files in groups, L labels of groups.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.prep.copies import CopyGroups, find_copies


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Which files are one picture, and which labels it has.

    Attributes:
        label_N: Class index of each file, int32.
        is_copy_N: Whether it is not the file that is kept: an earlier one has the same content, or
            the picture has too many labels to be one.
        kept_row_C: The kept file of each of those, in file order; -1 if there is none.
        first_row_G: The kept file of each group, ascending.
        num_files_G: Number of files of each group.
        num_labels_G: Number of distinct labels of each group.
        label_ids_L: The labels, group by group, ascending in each.
    """

    label_N: NDArray[np.int32]
    is_copy_N: NDArray[np.bool_]
    kept_row_C: NDArray[np.int64]
    first_row_G: NDArray[np.int64]
    num_files_G: NDArray[np.int64]
    num_labels_G: NDArray[np.int64]
    label_ids_L: NDArray[np.int32]

    @property
    def num_pictures(self) -> int:
        """Number of distinct contents."""
        return len(self.is_copy_N) - len(self.kept_row_C)

    @property
    def num_crowded_files(self) -> int:
        """Number of files left out because their picture has too many labels."""
        return int((self.kept_row_C < 0).sum())

    @property
    def copy_row_C(self) -> NDArray[np.int64]:
        """Which files those of `kept_row_C` are."""
        return np.flatnonzero(self.is_copy_N)

    def num_files_of_classes(self, num_classes: int) -> NDArray[np.int64]:
        """Return how many files lie in the folders of each class."""
        return np.pad(self._num_files, (0, num_classes - len(self._num_files)))

    @cached_property
    def _num_files(self) -> NDArray[np.int64]:
        return np.bincount(self.label_N)

    def num_lone_files_of_classes(self, num_classes: int) -> NDArray[np.int64]:
        """Return how many files of each class have no copy at all."""
        in_groups = np.concatenate([self.label_N[self.first_row_G], self.label_N[self.is_copy_N]])
        return self.num_files_of_classes(num_classes) - np.bincount(
            in_groups, minlength=num_classes
        )

    def num_images_of_classes(self, num_classes: int) -> NDArray[np.int64]:
        """Return how many pictures carry each label."""
        in_groups = np.bincount(self.label_ids_L, minlength=num_classes)
        return self.num_lone_files_of_classes(num_classes) + in_groups

    def num_single_label_of_classes(self, num_classes: int) -> NDArray[np.int64]:
        """Return how many pictures carry each label alone."""
        is_single = np.repeat(self.num_labels_G == 1, self.num_labels_G)
        in_groups = np.bincount(self.label_ids_L[is_single], minlength=num_classes)
        return self.num_lone_files_of_classes(num_classes) + in_groups

    def image_order(self) -> NDArray[np.int64] | None:
        """Return for each picture, in file order, its place among all by first label.

        Ties keep file order.  None if file order is already that order, as it is for a tree whose
        files are in path order and whose classes are numbered by name: the first path of a picture
        then has its smallest label.
        """
        first_label_N = self.label_N.copy()
        first_label_N[self.first_row_G] = self.label_ids_L[_starts(self.num_labels_G)]
        first_label = first_label_N[~self.is_copy_N]
        if (first_label[1:] >= first_label[:-1]).all():
            return None
        order = np.argsort(first_label, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return place

    def columns(self, start: int, stop: int) -> tuple[pa.Array, NDArray[np.int64]]:
        """Return `label_ids` and `num_files` of the pictures kept from files *start* to *stop*."""
        kept = start + np.flatnonzero(~self.is_copy_N[start:stop])
        first, last = np.searchsorted(self.first_row_G, (start, stop))
        place = np.searchsorted(kept, self.first_row_G[first:last])
        num_files, num_labels = np.ones((2, len(kept)), dtype=np.int64)
        num_files[place] = self.num_files_G[first:last]
        num_labels[place] = self.num_labels_G[first:last]

        label_ids = np.repeat(self.label_N[kept].astype(np.int64), num_labels)
        in_group = np.zeros(len(kept), dtype=bool)
        in_group[place] = True
        before = int(self.num_labels_G[:first].sum())
        num_group_labels = int(self.num_labels_G[first:last].sum())
        label_ids[np.repeat(in_group, num_labels)] = self.label_ids_L[
            before : before + num_group_labels
        ]
        offsets = np.append(0, np.cumsum(num_labels)).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(label_ids)), num_files


def merge_files(
    digests_N2: NDArray[np.uint64], label_N: NDArray[np.int32], *, max_labels: int | None = None
) -> Pictures:
    """Make one picture of all files with the same digest, with the labels of them all.

    Args:
        digests_N2: Digests of 16 bytes, each as two numbers.
        label_N: Class index of each file.
        max_labels: Leave out pictures with more labels than this, with all of their files.
    """
    return merge_groups(find_copies(digests_N2), label_N, max_labels=max_labels)


def merge_groups(
    groups: CopyGroups, label_N: NDArray[np.int32], *, max_labels: int | None = None
) -> Pictures:
    """Make one picture of each group of files; otherwise as `merge_files`."""
    first_row_G = groups.rows_M[groups.starts_G]
    is_copy_N = np.zeros(len(label_N), dtype=bool)
    is_copy_N[groups.rows_M] = True
    is_copy_N[first_row_G] = False

    group_M = np.repeat(np.arange(len(first_row_G)), groups.sizes_G)
    label_M = label_N[groups.rows_M]
    order = np.lexsort((label_M, group_M))
    group_M, label_M = group_M[order], label_M[order]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (group_M[1:] != group_M[:-1]) | (label_M[1:] != label_M[:-1])
    num_labels_G = np.bincount(group_M[is_new], minlength=len(first_row_G))
    is_kept_G = num_labels_G <= (max_labels or len(label_N))
    is_copy_N[first_row_G[~is_kept_G]] = True
    return Pictures(
        label_N=label_N,
        is_copy_N=is_copy_N,
        kept_row_C=_kept_rows(groups, np.where(is_kept_G, first_row_G, -1), is_copy_N),
        first_row_G=first_row_G[is_kept_G],
        num_files_G=groups.sizes_G[is_kept_G],
        num_labels_G=num_labels_G[is_kept_G],
        label_ids_L=label_M[is_new][np.repeat(is_kept_G, num_labels_G)],
    )


def _kept_rows(
    groups: CopyGroups, kept_row_G: NDArray[np.int64], is_copy_N: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the kept file, by group, of each file that is not kept, in file order."""
    kept_row_M = np.repeat(kept_row_G, groups.sizes_G)
    is_copy_M = is_copy_N[groups.rows_M]
    order = np.argsort(groups.rows_M[is_copy_M])
    return kept_row_M[is_copy_M][order]


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(counts) - counts
