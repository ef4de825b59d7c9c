"""A class list in WordNet's tree: which class is a kind of which, as flat arrays.

Labels of ImageNet-21K contain one another: a picture of a beagle may lie under "dog" or "animal".
A `Hierarchy` answers for millions of labels at a time; it holds no Python object per class.

Legend: K classes, E pairs of a class and what is above it, P pairs of classes, S nouns of WordNet.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vit21k.manifest.classes import ClassList
from vit21k.manifest.synsets import Synsets, load_synsets

Ints = NDArray[np.int64]


class Above(NamedTuple):
    """What is above each class: a list for each, one after the other.

    Attributes:
        starts: Where the list of each class begins, and where the last one ends; K + 1 numbers.
        above_E: What is above: class indices, or rows of WordNet.
    """

    starts: Ints
    above_E: Ints

    @property
    def num_K(self) -> Ints:
        """How many there are above each class."""
        return np.diff(self.starts)

    def of(self, class_index: int) -> list[int]:
        """Return what is above one class."""
        start, stop = self.starts[class_index : class_index + 2]
        return [int(above) for above in self.above_E[start:stop]]

    def of_each(self, class_indices: Ints) -> tuple[Ints, Ints]:
        """Return what is above each of *class_indices*: places in *class_indices*, and what."""
        starts = self.starts[class_indices]
        counts = self.starts[class_indices + 1] - starts
        places = np.repeat(np.arange(len(counts)), counts)
        in_list = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        return places, self.above_E[starts[places] + in_list]


@dataclass(frozen=True)
class Hierarchy:
    """The classes of a list, each with the classes of the same list that it is a kind of.

    Attributes:
        classes: The list.
        synsets: WordNet.
        row_K: Row of each class in WordNet; -1 where its name is no wnid.
    """

    classes: ClassList
    synsets: Synsets
    row_K: Ints

    @classmethod
    def of(cls, classes: ClassList) -> Self:
        """Place *classes* in WordNet.

        Raises:
            ManifestError: WordNet's table was not installed with vit21k, or is damaged.
        """
        synsets = load_synsets()
        return cls(classes, synsets, synsets.rows_of(classes.wnids))

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def num_unknown(self) -> int:
        """How many classes WordNet does not know; nothing is above or below them."""
        return int((self.row_K < 0).sum())

    @cached_property
    def class_of_row_S(self) -> Ints:
        """Class index of each noun of WordNet; -1 where it is not in the list."""
        class_of_row = np.full(len(self.synsets), -1, dtype=np.int64)
        known = np.flatnonzero(self.row_K >= 0)
        class_of_row[self.row_K[known]] = known
        return class_of_row

    @cached_property
    def synset_ancestors(self) -> Above:
        """All of WordNet that is above each class, in the list or not: rows, ascending."""
        return self._climb(only_nearest=False)

    @cached_property
    def parents(self) -> Above:
        """The nearest classes of the list on the ways up from a class; ascending by row.

        None is above another one: what a shorter way reaches too early is left out.
        """
        rows = self._climb(only_nearest=True)
        of_E = np.repeat(np.arange(len(self)), rows.num_K)
        above_E = self.class_of_row_S[rows.above_E]
        places, higher = self.ancestors.of_each(above_E)
        key_E = of_E * len(self) + above_E
        is_nearest = ~np.isin(key_E, of_E[places] * len(self) + higher)
        return _as_lists(of_E[is_nearest], above_E[is_nearest], len(self))

    @cached_property
    def ancestors(self) -> Above:
        """Every class of the list above each class; ascending by row of WordNet."""
        rows = self.synset_ancestors
        above_E = self.class_of_row_S[rows.above_E]
        of_E = np.repeat(np.arange(len(self)), rows.num_K)
        return _as_lists(of_E[above_E >= 0], above_E[above_E >= 0], len(self))

    def ancestors_within(self, num_levels: int) -> Above:
        """Return the classes at most *num_levels* steps up in the list from each class."""
        of_E, above_E = (np.empty(0, dtype=np.int64),) * 2
        of_F = reached_F = np.arange(len(self))
        for _ in range(num_levels):
            places, above = self.parents.of_each(reached_F)
            of_F, reached_F = _distinct(of_F[places], above, len(self))
            of_E, above_E = _distinct(
                np.append(of_E, of_F), np.append(above_E, reached_F), len(self)
            )
        return _as_lists(of_E, above_E, len(self))

    @cached_property
    def num_children_K(self) -> Ints:
        """How many classes have each class as a parent; 0 for a leaf."""
        return np.bincount(self.parents.above_E, minlength=len(self))

    def is_leaf_K(self) -> NDArray[np.bool_]:
        """Return which classes have no other class of the list below them."""
        is_leaf: NDArray[np.bool_] = self.num_children_K == 0
        return is_leaf

    def subtree_K(self, wnid: str) -> NDArray[np.bool_]:
        """Return which classes are *wnid*, in the list or not, or a kind of it.

        Raises:
            KeyError: *wnid* is no noun of WordNet.
        """
        is_in = np.append(self.synsets.subtree(wnid), False)  # the last: row -1
        subtree: NDArray[np.bool_] = is_in[self.row_K]
        return subtree

    def primary_parent_K(self) -> Ints:
        """Return one parent for each class, so that the list is a forest; -1 for a root.

        Of several it is the deepest in WordNet, and of equally deep ones that of the lowest index.
        """
        of_E = np.repeat(np.arange(len(self)), self.parents.num_K)
        above_E = self.parents.above_E
        depth_E = self.synsets.depths[self.row_K[above_E]]
        order = np.lexsort((-above_E, depth_E, of_E))
        primary_K = np.full(len(self), -1, dtype=np.int64)
        primary_K[of_E[order]] = above_E[order]  # the last one written stays
        return primary_K

    def _climb(self, *, only_nearest: bool) -> Above:
        """Go up from every class, a step at a time; with *only_nearest* as far as the list.

        Returns:
            Rows of WordNet above each class; with *only_nearest* those that are in the list.
        """
        starts, parents = self.synsets.parent_rows
        num_rows = len(self.synsets)
        of_F = np.flatnonzero(self.row_K >= 0)
        row_F = self.row_K[of_F]
        found_of, found_row = [of_F[:0]], [row_F[:0]]
        while len(of_F):
            places, row_F = Above(starts, parents).of_each(row_F)
            of_F, row_F = _distinct(of_F[places], row_F, num_rows)
            is_end = self.class_of_row_S[row_F] >= 0 if only_nearest else np.ones(len(of_F), bool)
            found_of.append(of_F[is_end])
            found_row.append(row_F[is_end])
            if only_nearest:
                of_F, row_F = of_F[~is_end], row_F[~is_end]
        pairs = _distinct(np.concatenate(found_of), np.concatenate(found_row), num_rows)
        return _as_lists(*pairs, len(self))


def _distinct(of_E: Ints, above_E: Ints, size: int) -> tuple[Ints, Ints]:
    """Return the pairs without repeats, in order; *above_E* is smaller than *size*."""
    keys = distinct(of_E * size + above_E)
    return keys // size, keys % size


def distinct(keys: Ints) -> Ints:
    """Return *keys* ascending, without repeats.

    `np.unique` hashes, which takes ten times as long for millions of keys that are nearly sorted.
    """
    ordered = np.sort(keys, kind="stable")
    is_new = np.ones(len(ordered), dtype=bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    unique: Ints = ordered[is_new]
    return unique


def _as_lists(of_E: Ints, above_E: Ints, num_classes: int) -> Above:
    """Return pairs that are ascending by their first as a list for each class."""
    return Above(np.searchsorted(of_E, np.arange(num_classes + 1)), above_E)
