"""The labels of many pictures as two flat arrays, and what can be done to them all at once.

Legend: N pictures, L labels of them all, K classes.
"""

from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.manifest.hierarchy import Above, distinct

Ints = NDArray[np.int64]


class LabelLists(NamedTuple):
    """The labels of each picture, one list after the other; each ascending, without repeats.

    Attributes:
        starts: Where the list of each picture begins, and where the last one ends; N + 1 numbers.
        label_L: Class indices.
    """

    starts: Ints
    label_L: Ints

    @classmethod
    def from_arrow(cls, lists: pa.ListArray) -> Self:
        """Take over a column of `label_ids` without nulls."""
        starts = lists.offsets.to_numpy().astype(np.int64)
        return cls(starts - starts[0], lists.flatten().to_numpy())

    def to_arrow(self) -> pa.ListArray:
        """Return a column of `label_ids`."""
        return pa.ListArray.from_arrays(pa.array(self.starts, pa.int32()), pa.array(self.label_L))

    @property
    def num_N(self) -> Ints:
        """How many labels each picture has."""
        return np.diff(self.starts)

    @property
    def row_L(self) -> Ints:
        """Which picture each label belongs to."""
        return np.repeat(np.arange(len(self.starts) - 1), self.num_N)

    def first_N(self) -> Ints:
        """Return the first label of each picture; -1 where it has none."""
        first = np.full(len(self.starts) - 1, -1, dtype=np.int64)
        has_some = self.num_N > 0
        first[has_some] = self.label_L[self.starts[:-1][has_some]]
        return first

    def of_rows(self, is_in: NDArray[np.bool_]) -> Self:
        """Return the lists of those pictures alone."""
        num_N = self.num_N
        starts = np.append(0, np.cumsum(num_N[is_in]))
        return type(self)(starts, self.label_L[np.repeat(is_in, num_N)])

    def is_changed_N(self, new: "LabelLists") -> NDArray[np.bool_]:
        """Return which pictures have other labels in *new*, which has the same pictures."""
        is_changed: NDArray[np.bool_] = self.num_N != new.num_N
        rest = ~is_changed
        mine, others = self.of_rows(rest), new.of_rows(rest)
        differs = np.add.reduceat(
            np.append(mine.label_L != others.label_L, False).astype(np.int64), mine.starts[:-1]
        )
        is_changed[rest] = (differs > 0) & (mine.num_N > 0)
        return is_changed


def hypernyms(lists: LabelLists, above: Above) -> LabelLists:
    """Return for each picture the classes above its labels that are not labels of it already."""
    found = _keys_above(lists.row_L, lists.label_L, above)
    return _from_keys(found[~_is_among(found, _keys(lists, above))], lists, above)


def with_hypernyms(lists: LabelLists, above: Above) -> LabelLists:
    """Return for each picture its labels and all classes above them."""
    found = _keys_above(lists.row_L, lists.label_L, above)
    return _from_keys(distinct(np.append(_keys(lists, above), found)), lists, above)


def without_ancestors(lists: LabelLists, ancestors: Above) -> LabelLists:
    """Return the labels that no other label of the same picture is a kind of."""
    own = _keys(lists, ancestors)
    has_others = np.repeat(lists.num_N > 1, lists.num_N)
    above = _keys_above(lists.row_L[has_others], lists.label_L[has_others], ancestors)
    is_redundant = np.zeros(len(own), dtype=bool)
    is_redundant[has_others] = _is_among(own[has_others], above)
    return _from_keys(own[~is_redundant], lists, ancestors)


def renumbered(lists: LabelLists, new_id_K: Ints) -> LabelLists:
    """Return the labels by other class indices; labels whose new index is -1 are left out."""
    new_L = new_id_K[lists.label_L]
    is_in = new_L >= 0
    row_L, new_L = lists.row_L[is_in], new_L[is_in]
    order = np.lexsort((new_L, row_L))
    starts = np.searchsorted(row_L, np.arange(len(lists.starts)))
    return LabelLists(starts, new_L[order])


def _keys(lists: LabelLists, above: Above) -> Ints:
    """Return picture and label as one number each; ascending, because the lists are."""
    return lists.row_L * len(above.num_K) + lists.label_L


def _keys_above(row_L: Ints, label_L: Ints, above: Above) -> Ints:
    """Return each picture with each class above its labels, as one number; ascending, distinct."""
    places, found = above.of_each(label_L)
    return distinct(row_L[places] * len(above.num_K) + found)


def _from_keys(keys: Ints, lists: LabelLists, above: Above) -> LabelLists:
    num_classes = len(above.num_K)
    starts = np.searchsorted(keys, np.arange(len(lists.starts)) * num_classes)
    return LabelLists(starts, keys % num_classes)


def _is_among(keys: Ints, ordered: Ints) -> NDArray[np.bool_]:
    """Return which of *keys* are in *ordered*, which ascends."""
    if not len(ordered):
        return np.zeros(len(keys), dtype=bool)
    place = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    found: NDArray[np.bool_] = ordered[place] == keys
    return found
