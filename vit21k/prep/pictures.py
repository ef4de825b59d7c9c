"""Digests and class indices of all files -> the pictures they are, and their labels.

Arrays in, arrays out.  What is true of most files (no copy, one label) is not stored for each of
them: only groups of copies have entries here, about one file in eight in ImageNet-21K.

Legend: N files, G groups of copies, M files in groups, L labels of groups.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.prep.copies import CopyGroups

_LABEL_BITS = np.uint64(32)
_LABEL_MASK = np.uint64(0xFFFF_FFFF)
_SLICE_ROWS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Which files are one picture, and which labels it has.

    Attributes:
        label_N: Class index of each file, int32.
        is_copy_N: Whether it is not the file that is kept: an earlier one has the same content, or
            the picture has too many labels to be one.
        group_C: The group of each of those, in file order; -1 if it is left out.
        first_row_G: The kept file of each group, ascending.
        num_files_G: Number of files of each group.
        num_labels_G: Number of distinct labels of each group.
        label_ids_L: The labels, group by group, ascending in each.
    """

    label_N: NDArray[np.int32]
    is_copy_N: NDArray[np.bool_]
    group_C: NDArray[np.int64]
    first_row_G: NDArray[np.int64]
    num_files_G: NDArray[np.int64]
    num_labels_G: NDArray[np.int64]
    label_ids_L: NDArray[np.int32]

    @property
    def num_pictures(self) -> int:
        """Number of distinct contents."""
        return len(self.is_copy_N) - len(self.group_C)

    @property
    def num_crowded_files(self) -> int:
        """Number of files left out because their picture has too many labels."""
        return int((self.group_C < 0).sum())

    @property
    def copy_row_C(self) -> NDArray[np.int64]:
        """Which files those of `group_C` are."""
        return np.flatnonzero(self.is_copy_N)

    def num_files_of_classes(self, num_classes: int) -> NDArray[np.int64]:
        """Return how many files lie in the folders of each class."""
        return np.pad(self._num_files, (0, num_classes - len(self._num_files)))

    @cached_property
    def _num_files(self) -> NDArray[np.int64]:
        num_files_K = np.zeros(int(self.label_N.max(initial=-1)) + 1, dtype=np.int64)
        for start in range(0, len(self.label_N), _SLICE_ROWS):
            part = np.bincount(self.label_N[start : start + _SLICE_ROWS])
            num_files_K[: len(part)] += part
        return num_files_K

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
        last = -1
        for labels in self._first_labels():
            if len(labels) and (labels[0] < last or (labels[1:] < labels[:-1]).any()):
                break
            last = labels[-1] if len(labels) else last
        else:
            return None
        order = np.argsort(np.concatenate(list(self._first_labels())), kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return place

    def _first_labels(self) -> Iterator[NDArray[np.int32]]:
        """Yield the first label of each picture, in file order, those of some files at a time."""
        first_label_G = self.label_ids_L[_starts(self.num_labels_G)]
        for start in range(0, len(self.label_N), _SLICE_ROWS):
            labels = self.label_N[start : start + _SLICE_ROWS].copy()
            first, last = np.searchsorted(self.first_row_G, (start, start + len(labels)))
            labels[self.first_row_G[first:last] - start] = first_label_G[first:last]
            yield labels[~self.is_copy_N[start : start + len(labels)]]

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


def merge_groups(
    groups: CopyGroups, label_N: NDArray[np.int32], *, max_labels: int | None = None
) -> Pictures:
    """Make one picture of each group of files, with the labels of them all.

    Args:
        groups: Files with the same content.
        label_N: Class index of each file.
        max_labels: Leave out pictures with more labels than this, with all of their files.
    """
    first_row_G = groups.rows_M[groups.starts_G]
    is_copy_N = np.zeros(len(label_N), dtype=bool)
    is_copy_N[groups.rows_M] = True
    is_copy_N[first_row_G] = False

    group_M = np.repeat(np.arange(len(first_row_G), dtype=np.uint64), groups.sizes_G)
    label_M = label_N[groups.rows_M].astype(np.uint64)
    pair_M = np.sort((group_M << _LABEL_BITS) | label_M)
    pair_L = pair_M[np.append(True, pair_M[1:] != pair_M[:-1])[: len(pair_M)]]
    num_labels_G = np.bincount((pair_L >> _LABEL_BITS).view(np.int64), minlength=len(first_row_G))
    label_ids_L = (pair_L & _LABEL_MASK).astype(np.int32)
    is_kept_G = num_labels_G <= (max_labels or len(label_N))
    is_copy_N[first_row_G[~is_kept_G]] = True
    return Pictures(
        label_N=label_N,
        is_copy_N=is_copy_N,
        group_C=_groups_of_copies(groups, is_kept_G, is_copy_N),
        first_row_G=first_row_G[is_kept_G],
        num_files_G=groups.sizes_G[is_kept_G],
        num_labels_G=num_labels_G[is_kept_G],
        label_ids_L=label_ids_L[np.repeat(is_kept_G, num_labels_G)],
    )


def _groups_of_copies(
    groups: CopyGroups, is_kept_G: NDArray[np.bool_], is_copy_N: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the group, by number of those kept, of each file that is not kept, in file order."""
    group_M = np.repeat(np.where(is_kept_G, np.cumsum(is_kept_G) - 1, -1), groups.sizes_G)
    is_copy_M = is_copy_N[groups.rows_M]
    order = np.argsort(groups.rows_M[is_copy_M])
    return group_M[is_copy_M][order]


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(counts) - counts
