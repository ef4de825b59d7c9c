"""WordNet: names, glosses, hypernyms; a class list as a hierarchy; relations of labels."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vit21k.errors import ManifestError
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import damage_is_an_error

COLUMNS = {
    "wnid": "`n` and the eight digits of its offset in WordNet 3.0.",
    "lemmas": "Its names; ImageNet joins them with commas.",
    "gloss": "Its definition, with WordNet's examples.",
    "parents": "The wnids of its direct hypernyms; only the root has none.",
}
"""Columns of the table; its rows are in ascending order of `wnid`."""

_STRINGS = pa.list_(pa.field("element", pa.string()))

SCHEMA = pa.schema(
    [("wnid", pa.string()), ("lemmas", _STRINGS), ("gloss", pa.string()), ("parents", _STRINGS)]
)

_FILE = Path(__file__).parent / "data" / "synsets.parquet"


class Synsets:
    """The nouns of WordNet 3.0, by wnid.

    Methods that take a wnid raise `KeyError` for an unknown one.

    Attributes:
        wnids: All wnids, ascending.  The index of a wnid in this list is its *row*.
    """

    def __init__(self, table: pa.Table) -> None:
        self.wnids: list[str] = table["wnid"].to_pylist()
        self._lemmas = table["lemmas"].combine_chunks()
        self._glosses = table["gloss"].combine_chunks()
        self._parents = table["parents"].combine_chunks()
        self._rows = {wnid: row for row, wnid in enumerate(self.wnids)}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __contains__(self, wnid: object) -> bool:
        return wnid in self._rows

    def name(self, wnid: str) -> str:
        """Return its lemmas, joined by commas: "tench, Tinca tinca".

        Names are not unique: two classes of ImageNet-1k are called "crane".
        """
        return ", ".join(self._lemmas[self._rows[wnid]].as_py())

    def gloss(self, wnid: str) -> str:
        """Return its definition."""
        return str(self._glosses[self._rows[wnid]].as_py())

    def parents(self, wnid: str) -> tuple[str, ...]:
        """Return its direct hypernyms; only the root has none."""
        return tuple(self._parents[self._rows[wnid]].as_py())

    def ancestors(self, wnid: str) -> tuple[str, ...]:
        """Return all hypernyms, the nearest first, each once."""
        found: dict[str, None] = {}
        nearest = self.parents(wnid)
        while nearest:
            found.update(dict.fromkeys(nearest))
            nearest = tuple(dict.fromkeys(up for near in nearest for up in self.parents(near)))
            nearest = tuple(up for up in nearest if up not in found)
        return tuple(found)

    def search(self, text: str) -> list[str]:
        """Return the wnids with *text* in one of their names, then those with it in their gloss.

        Case-insensitive; names that are equal to *text* come first.
        """
        import pyarrow.compute as pc  # noqa: PLC0415 (takes long)

        wanted = text.strip().lower()
        joined = pc.utf8_lower(pc.binary_join(self._lemmas, "\n"))
        named = pc.match_substring(joined, wanted).to_numpy(zero_copy_only=False)
        called = [wanted in names.split("\n") for names in joined.filter(named).to_pylist()]
        glossed = pc.match_substring(pc.utf8_lower(self._glosses), wanted)
        rows = np.flatnonzero(named)
        rows = rows[np.argsort(~np.array(called, dtype=bool), kind="stable")]
        rest = np.flatnonzero(glossed.to_numpy(zero_copy_only=False) & ~named)
        return [self.wnids[row] for row in (*rows.tolist(), *rest.tolist())]

    def rows_of(self, wnids: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each of *wnids*; -1 for unknown ones."""
        return np.array([self._rows.get(wnid, -1) for wnid in wnids], dtype=np.int64)

    @cached_property
    def parent_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Start of the parents of each row (and the end of the last), and the rows of parents."""
        flat = np.array([self._rows[wnid] for wnid in self._parents.flatten().to_pylist()])
        return self._parents.offsets.to_numpy().astype(np.int64), flat

    def subtree(self, wnid: str) -> NDArray[np.bool_]:
        """Return which rows are *wnid* or a hyponym of it."""
        starts, parents = self.parent_rows
        children = np.repeat(np.arange(len(self)), np.diff(starts))
        is_in = np.zeros(len(self), dtype=bool)
        is_in[self._rows[wnid]] = True
        num_before = 0
        while num_before < (num_now := int(is_in.sum())):
            is_in[children[is_in[parents]]] = True
            num_before = num_now
        return is_in

    @cached_property
    def depths(self) -> NDArray[np.int64]:
        """Number of steps from the root to each row, on the longest path; the root has 0."""
        starts, parents = self.parent_rows
        children = np.repeat(np.arange(len(self)), np.diff(starts))
        depths = np.zeros(len(self), dtype=np.int64)
        while True:
            deeper = depths.copy()
            np.maximum.at(deeper, children, depths[parents] + 1)
            if (deeper == depths).all():
                return depths
            depths = deeper


@cache
def load_synsets() -> Synsets:
    """Return the nouns of WordNet 3.0 (cached).

    Raises:
        ManifestError: The table was not installed with vit21k, or is damaged.
    """
    return Synsets(_read(None))


def names_of(wnids: Iterable[str]) -> dict[str, str]:
    """Return the name of each known wnid as ImageNet writes it: lemmas joined by commas.

    Raises:
        ManifestError: The table was not installed with vit21k, or is damaged.
    """
    import pyarrow.compute as pc  # noqa: PLC0415 (takes long)

    table = _read(["wnid", "lemmas"])
    table = table.filter(pc.is_in(table["wnid"], pa.array(set(wnids), pa.string())))
    names = pc.binary_join(table["lemmas"], ", ")
    return dict(zip(table["wnid"].to_pylist(), names.to_pylist(), strict=True))


def _read(columns: list[str] | None) -> pa.Table:
    if not _FILE.is_file():
        raise ManifestError(f"no table of synsets at `{_FILE}`", hint="reinstall vit21k")
    with damage_is_an_error(_FILE):
        return pq.read_table(_FILE, columns=columns, page_checksum_verification=True)


Ints = NDArray[np.int64]


class Above(NamedTuple):
    """Hypernyms of each class: one list per class, concatenated.

    Attributes:
        starts: Start of the list of each class, and the end of the last; K + 1 offsets.
        above_E: Class indices or rows of WordNet.
    """

    starts: Ints
    above_E: Ints

    @property
    def num_K(self) -> Ints:
        """Number of hypernyms of each class."""
        return np.diff(self.starts)

    def of(self, class_index: int) -> list[int]:
        """Return the hypernyms of a class."""
        start, stop = self.starts[class_index : class_index + 2]
        return [int(above) for above in self.above_E[start:stop]]

    def of_each(self, class_indices: Ints) -> tuple[Ints, Ints]:
        """Return pairs of an index into *class_indices* and a hypernym of that class."""
        starts = self.starts[class_indices]
        counts = self.starts[class_indices + 1] - starts
        index_E = np.repeat(np.arange(len(counts)), counts)
        in_list = np.arange(len(index_E)) - np.repeat(np.cumsum(counts) - counts, counts)
        return index_E, self.above_E[starts[index_E] + in_list]


@dataclass(frozen=True)
class Hierarchy:
    """The classes of a list with their hypernyms in the list.

    Attributes:
        classes: The list.
        synsets: WordNet.
        row_K: Row of each class in WordNet; -1 if its name is not a wnid.
    """

    classes: ClassList
    synsets: Synsets
    row_K: Ints

    @classmethod
    def of(cls, classes: ClassList) -> Self:
        """Look up *classes* in WordNet.

        Raises:
            ManifestError: WordNet's table was not installed with vit21k, or is damaged.
        """
        synsets = load_synsets()
        return cls(classes, synsets, synsets.rows_of(classes.wnids))

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def num_unknown(self) -> int:
        """Number of classes that are not in WordNet; they have no hypernyms or hyponyms."""
        return int((self.row_K < 0).sum())

    @cached_property
    def class_of_row_S(self) -> Ints:
        """Class index of each noun of WordNet; -1 if it is not in the list."""
        class_of_row = np.full(len(self.synsets), -1, dtype=np.int64)
        known = np.flatnonzero(self.row_K >= 0)
        class_of_row[self.row_K[known]] = known
        return class_of_row

    @cached_property
    def synset_ancestors(self) -> Above:
        """Rows of all hypernyms of each class in WordNet, ascending."""
        return self._climb(only_nearest=False)

    @cached_property
    def parents(self) -> Above:
        """The nearest hypernyms of each class in the list; ascending by row.

        None is a hypernym of another one, which a shorter path may reach.
        """
        rows = self._climb(only_nearest=True)
        of_E = np.repeat(np.arange(len(self)), rows.num_K)
        above_E = self.class_of_row_S[rows.above_E]
        index_E, higher = self.ancestors.of_each(above_E)
        key_E = of_E * len(self) + above_E
        is_nearest = ~np.isin(key_E, of_E[index_E] * len(self) + higher)
        return _as_lists(of_E[is_nearest], above_E[is_nearest], len(self))

    @cached_property
    def ancestors(self) -> Above:
        """All hypernyms of each class in the list; ascending by row of WordNet."""
        rows = self.synset_ancestors
        above_E = self.class_of_row_S[rows.above_E]
        of_E = np.repeat(np.arange(len(self)), rows.num_K)
        return _as_lists(of_E[above_E >= 0], above_E[above_E >= 0], len(self))

    def ancestors_within(self, num_levels: int) -> Above:
        """Return the classes at most *num_levels* steps up in the list from each class."""
        of_E, above_E = (np.empty(0, dtype=np.int64),) * 2
        of_F = reached_F = np.arange(len(self))
        for _ in range(num_levels):
            index, above = self.parents.of_each(reached_F)
            of_F, reached_F = _distinct(of_F[index], above, len(self))
            of_E, above_E = _distinct(
                np.append(of_E, of_F), np.append(above_E, reached_F), len(self)
            )
        return _as_lists(of_E, above_E, len(self))

    @cached_property
    def num_children_K(self) -> Ints:
        """Number of classes with each class as a parent; 0 for a leaf."""
        return np.bincount(self.parents.above_E, minlength=len(self))

    def is_leaf_K(self) -> NDArray[np.bool_]:
        """Return which classes have no hyponyms in the list."""
        is_leaf: NDArray[np.bool_] = self.num_children_K == 0
        return is_leaf

    def subtree_K(self, wnid: str) -> NDArray[np.bool_]:
        """Return which classes are *wnid* or a hyponym of it.

        Raises:
            KeyError: *wnid* is not in WordNet.
        """
        is_in = np.append(self.synsets.subtree(wnid), False)  # the last: row -1
        subtree: NDArray[np.bool_] = is_in[self.row_K]
        return subtree

    def primary_parent_K(self) -> Ints:
        """Return one parent for each class, so that the list is a forest; -1 for a root.

        Of several, it is the deepest in WordNet, and of equally deep ones that of the lowest index.
        """
        of_E = np.repeat(np.arange(len(self)), self.parents.num_K)
        above_E = self.parents.above_E
        depth_E = self.synsets.depths[self.row_K[above_E]]
        order = np.lexsort((-above_E, depth_E, of_E))
        primary_K = np.full(len(self), -1, dtype=np.int64)
        primary_K[of_E[order]] = above_E[order]  # the last one wins
        return primary_K

    def _climb(self, *, only_nearest: bool) -> Above:
        """Follow hypernyms step by step; with *only_nearest* up to the first in the list.

        Returns:
            Rows of the hypernyms of each class; with *only_nearest* only of those in the list.
        """
        starts, parents = self.synsets.parent_rows
        num_rows = len(self.synsets)
        of_F = np.flatnonzero(self.row_K >= 0)
        row_F = self.row_K[of_F]
        found_of, found_row = [of_F[:0]], [row_F[:0]]
        while len(of_F):
            index, row_F = Above(starts, parents).of_each(row_F)
            of_F, row_F = _distinct(of_F[index], row_F, num_rows)
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

    `np.unique` hashes, which is ten times slower for millions of nearly sorted keys.
    """
    ordered = np.sort(keys, kind="stable")
    is_new = np.ones(len(ordered), dtype=bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    unique: Ints = ordered[is_new]
    return unique


def _as_lists(of_E: Ints, above_E: Ints, num_classes: int) -> Above:
    """Return pairs that are ascending by their first as a list for each class."""
    return Above(np.searchsorted(of_E, np.arange(num_classes + 1)), above_E)


NEAR_DEPTH = 6
"""From this depth on, common ancestors are specific: animal, device, vehicle ...

One step above are organism and instrumentality, which cover nearly everything.  The depth is the
number of steps from "entity" on the longest path.
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

    FAR = "far", f"Their common ancestor is less than {NEAR_DEPTH} steps below `entity`."
    UNKNOWN = "unknown", "One of them is not in WordNet."
    NEAR = "near", f"Their common ancestor is at least {NEAR_DEPTH} steps below `entity`."
    SIBLINGS = "siblings", "Both have the same direct hypernym in WordNet."
    ANCESTOR = "ancestor", "One is a hypernym of the other."


RANKED = tuple(Relation)
"""All relations by rank, 0 the most doubtful."""


class Related(NamedTuple):
    """Relation of the classes of each pair.

    Attributes:
        rank_P: Index into `RANKED`.
        row_P: Row of their lowest common ancestor, which may be one of them; -1 if there is none.
        depth_P: Its depth; -1 if there is none.
        distance_P: Steps between the two through it, on the longest paths; -1 if there is none.
    """

    rank_P: Ints
    row_P: Ints
    depth_P: Ints
    distance_P: Ints


def relate(hierarchy: Hierarchy, first_P: Ints, second_P: Ints) -> Related:
    """Return the relation of the classes *first_P* and *second_P*, pair by pair."""
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
    """Each class with its hypernyms, in rows of equal length, the deepest first."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self._depths = np.append(hierarchy.synsets.depths, -1)  # of row -1: no such noun
        self._row_K = hierarchy.row_K
        above = hierarchy.synset_ancestors
        width = int(above.num_K.max(initial=0)) + 1
        self._line_KW = np.full((len(hierarchy), width), -1, dtype=np.int64)
        self._line_KW[:, 0] = hierarchy.row_K
        of_E = np.repeat(np.arange(len(hierarchy)), above.num_K)
        column_E = 1 + np.arange(len(of_E)) - above.starts[of_E]
        self._line_KW[of_E, column_E] = above.above_E
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
    """Return the rows of the direct hypernyms of each class, padded with -1."""
    counts_K = np.where(row_K >= 0, starts[row_K + 1] - starts[row_K], 0)
    padded_KW = np.full((len(row_K), int(counts_K.max(initial=1))), -1, dtype=np.int64)
    for column in range(padded_KW.shape[1]):
        has_K = counts_K > column
        padded_KW[has_K, column] = parents[starts[row_K[has_K]] + column]
    return padded_KW


def _is_in(rows_PW: Ints, others_PV: Ints) -> NDArray[np.bool_]:
    """Return which elements of each row of *rows_PW* are in that row of *others_PV*, except -1."""
    is_in_PW = np.zeros(rows_PW.shape, dtype=bool)
    for column in others_PV.T:
        is_in_PW |= rows_PW == column[:, None]
    return is_in_PW & (rows_PW >= 0)
