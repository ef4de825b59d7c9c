"""WordNet's nouns: what a wnid is called, what it means, and what it is a kind of.

A class folder of ImageNet is named after a noun of WordNet 3.0: ``n`` and eight digits.  The table
of all 82,115 is `data/synsets.parquet`, made by `tools/build_synsets.py`; it travels in
the wheel with WordNet's licence.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vit21k.errors import ManifestError
from vit21k.manifest.reader import damage_is_an_error

COLUMNS = {
    "wnid": "`n` and the eight digits of its place in WordNet 3.0.",
    "lemmas": "Its names; ImageNet joins them with commas.",
    "gloss": "What it means, with WordNet's examples.",
    "parents": "The wnids it is a kind or an instance of; the root alone has none.",
}
"""What each column of the table holds; its rows are in ascending order of `wnid`."""

_STRINGS = pa.list_(pa.field("element", pa.string()))

SCHEMA = pa.schema(
    [("wnid", pa.string()), ("lemmas", _STRINGS), ("gloss", pa.string()), ("parents", _STRINGS)]
)

_FILE = Path(__file__).parent / "data" / "synsets.parquet"


class Synsets:
    """The nouns of WordNet 3.0, by wnid.

    Every method of a wnid raises `KeyError` for one that is not among them.

    Attributes:
        wnids: All of them, ascending.  The place of one in this list is its *row*.
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

        Names do not identify: two classes of ImageNet-1k are called "crane".
        """
        return ", ".join(self._lemmas[self._rows[wnid]].as_py())

    def gloss(self, wnid: str) -> str:
        """Return what it means, in a sentence."""
        return str(self._glosses[self._rows[wnid]].as_py())

    def parents(self, wnid: str) -> tuple[str, ...]:
        """Return what it is directly a kind or an instance of; the root alone has none."""
        return tuple(self._parents[self._rows[wnid]].as_py())

    def ancestors(self, wnid: str) -> tuple[str, ...]:
        """Return everything it is a kind or an instance of, the nearest first, each once."""
        found: dict[str, None] = {}
        nearest = self.parents(wnid)
        while nearest:
            found.update(dict.fromkeys(nearest))
            nearest = tuple(dict.fromkeys(up for near in nearest for up in self.parents(near)))
            nearest = tuple(up for up in nearest if up not in found)
        return tuple(found)

    def search(self, text: str) -> list[str]:
        """Return the wnids that have *text* in one of their names, then those in whose gloss it is.

        Case does not matter; of the names, those that are *text* and nothing else come first.
        """
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
        """Return the row of each of *wnids*; -1 for what is no noun of WordNet."""
        return np.array([self._rows.get(wnid, -1) for wnid in wnids], dtype=np.int64)

    @cached_property
    def parent_rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the parents of each row begin (and the last end), and the rows that they are."""
        flat = np.array([self._rows[wnid] for wnid in self._parents.flatten().to_pylist()])
        return self._parents.offsets.to_numpy().astype(np.int64), flat

    def subtree(self, wnid: str) -> NDArray[np.bool_]:
        """Return which rows are *wnid* or a kind of it."""
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
        """Number of steps from the root to each row, on the longest way; the root has 0."""
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
    """Return the nouns of WordNet 3.0, read once.

    Raises:
        ManifestError: The table was not installed with vit21k, or is damaged.
    """
    return Synsets(_read(None))


def names_of(wnids: Iterable[str]) -> dict[str, str]:
    """Return the name of each wnid that WordNet knows, as ImageNet writes it: lemmas and commas.

    Raises:
        ManifestError: The table was not installed with vit21k, or is damaged.
    """
    table = _read(["wnid", "lemmas"])
    table = table.filter(pc.is_in(table["wnid"], pa.array(set(wnids), pa.string())))
    names = pc.binary_join(table["lemmas"], ", ")
    return dict(zip(table["wnid"].to_pylist(), names.to_pylist(), strict=True))


def _read(columns: list[str] | None) -> pa.Table:
    if not _FILE.is_file():
        raise ManifestError(f"no table of synsets at `{_FILE}`", hint="install vit21k again")
    with damage_is_an_error(_FILE):
        return pq.read_table(_FILE, columns=columns, page_checksum_verification=True)
