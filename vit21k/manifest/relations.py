"""How the labels of one picture relate: a kind of one another, siblings, near, or far apart.

A picture of ImageNet-21K lies under several classes for a good reason (a beagle is a dog) or for a
bad one (a doughnut is no target).  WordNet tells the one from the other: two classes that have
nothing in common below "artifact" or "organism" hardly are one picture.

Legend: P pairs of classes.
"""

from enum import StrEnum
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vit21k.manifest.hierarchy import Hierarchy, Ints

NEAR_DEPTH = 6
"""From this depth on, what two classes have in common says something: animal, device, vehicle ...

One step above are organism and instrumentality, and there everything meets.  The depth is the
number of steps from "entity" on the longest way.
"""

_PAIRS_AT_A_TIME = 1 << 13


class Relation(StrEnum):
    """How two classes relate, the most doubtful first.

    Attributes:
        doc: One sentence for the user.
    """

    doc: str

    def __new__(cls, value: str, doc: str) -> Self:
        """Make a member of the string *value*."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.doc = doc
        return member

    FAR = "far", f"What they have in common lies less than {NEAR_DEPTH} steps below `entity`."
    UNKNOWN = "unknown", "WordNet does not know one of them."
    NEAR = "near", f"They have something in common at least {NEAR_DEPTH} steps below `entity`."
    SIBLINGS = "siblings", "Both are a kind of the same thing, one step up in WordNet."
    ANCESTOR = "ancestor", "One is a kind of the other."


RANKED = tuple(Relation)
"""Every relation by its rank, 0 the most doubtful."""


class Related(NamedTuple):
    """How the classes of each pair relate.

    Attributes:
        rank_P: Which of `RANKED`.
        row_P: Their lowest common ancestor, one of them perhaps, as a row of WordNet; -1 if there
            is none.
        depth_P: Its depth; -1 if there is none.
        distance_P: Steps between the two through it, on the longest ways; -1 if there is none.
    """

    rank_P: Ints
    row_P: Ints
    depth_P: Ints
    distance_P: Ints


def relate(hierarchy: Hierarchy, first_P: Ints, second_P: Ints) -> Related:
    """Tell how the classes *first_P* and *second_P* relate, pair by pair."""
    lists = _Lines(hierarchy)
    parts = [
        lists.relate(first_P[start : start + _PAIRS_AT_A_TIME], second_P[start:][:_PAIRS_AT_A_TIME])
        for start in range(0, len(first_P), _PAIRS_AT_A_TIME)
    ]
    if not parts:
        none = np.empty(0, dtype=np.int64)
        return Related(none, none, none, none)
    return Related(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


class _Lines:
    """Each class with all that is above it in a row of one length, the deepest first."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self._depths = np.append(hierarchy.synsets.depths, -1)  # of row -1: no such noun
        self._row_K = hierarchy.row_K
        above = hierarchy.synset_ancestors
        width = int(above.num_K.max(initial=0)) + 1
        self._line_KW = np.full((len(hierarchy), width), -1, dtype=np.int64)
        self._line_KW[:, 0] = hierarchy.row_K
        of_E = np.repeat(np.arange(len(hierarchy)), above.num_K)
        place_E = 1 + np.arange(len(of_E)) - above.starts[of_E]
        self._line_KW[of_E, place_E] = above.above_E
        order = np.argsort(-self._depths[self._line_KW], axis=1, kind="stable")
        self._line_KW = np.take_along_axis(self._line_KW, order, axis=1)
        starts, parents = hierarchy.synsets.parent_rows
        self._parents_KW = _padded_parents(starts, parents, hierarchy.row_K)

    def relate(self, first_P: Ints, second_P: Ints) -> Related:
        line_PW, other_PW = self._line_KW[first_P], self._line_KW[second_P]
        is_common_PW = _is_in(line_PW, other_PW)
        column_P = is_common_PW.argmax(axis=1)  # the deepest
        row_P = line_PW[np.arange(len(first_P)), column_P]
        row_P = np.where(is_common_PW.any(axis=1), row_P, -1)
        depth_P = self._depths[row_P]
        rows_P, others_P = self._row_K[first_P], self._row_K[second_P]
        is_known_P = row_P >= 0
        distance_P = self._depths[rows_P] + self._depths[others_P] - 2 * depth_P
        is_sibling_P = _is_in(self._parents_KW[first_P], self._parents_KW[second_P]).any(axis=1)
        rank_P = np.select(
            [~is_known_P, (row_P == rows_P) | (row_P == others_P), is_sibling_P],
            [
                RANKED.index(kind)
                for kind in (Relation.UNKNOWN, Relation.ANCESTOR, Relation.SIBLINGS)
            ],
            np.where(
                depth_P >= NEAR_DEPTH, RANKED.index(Relation.NEAR), RANKED.index(Relation.FAR)
            ),
        )
        return Related(rank_P, row_P, depth_P, np.where(is_known_P, distance_P, -1))


def _padded_parents(starts: Ints, parents: Ints, row_K: Ints) -> Ints:
    """Return the rows directly above each class in WordNet, filled up with -1."""
    counts_K = np.where(row_K >= 0, starts[row_K + 1] - starts[row_K], 0)
    padded_KW = np.full((len(row_K), int(counts_K.max(initial=1))), -1, dtype=np.int64)
    for column in range(padded_KW.shape[1]):
        has_K = counts_K > column
        padded_KW[has_K, column] = parents[starts[row_K[has_K]] + column]
    return padded_KW


def _is_in(rows_PW: Ints, others_PV: Ints) -> NDArray[np.bool_]:
    """Return which of each row of *rows_PW* are in that row of *others_PV*; -1 never is."""
    is_in_PW = np.zeros(rows_PW.shape, dtype=bool)
    for column in others_PV.T:
        is_in_PW |= rows_PW == column[:, None]
    return is_in_PW & (rows_PW >= 0)
