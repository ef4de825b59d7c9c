"""WordNet's nouns: what a wnid is called, what it means, and what it is a kind of.

A class folder of ImageNet is named after a noun of WordNet 3.0: ``n`` and eight digits.  The table
of all 82,115 is `data_manifests/synsets.parquet`, made by `tools/build_synsets.py`; it travels in
the wheel with WordNet's licence.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vit21k.errors import ManifestError
from vit21k.manifest.io import damage_is_an_error

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

_IN_WHEEL = Path(__file__).parent / "data" / "synsets.parquet"
_IN_CHECKOUT = Path(__file__).parents[2] / "data_manifests" / "synsets.parquet"


class Synsets:
    """The nouns of WordNet 3.0, by wnid.

    Every method raises `KeyError` for a wnid that is not among them.
    """

    def __init__(self, table: pa.Table) -> None:
        self._lemmas = table["lemmas"].combine_chunks()
        self._glosses = table["gloss"].combine_chunks()
        self._parents = table["parents"].combine_chunks()
        self._rows = {wnid: row for row, wnid in enumerate(table["wnid"].to_pylist())}

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
    path = _IN_WHEEL if _IN_WHEEL.exists() else _IN_CHECKOUT
    if not path.is_file():
        raise ManifestError(f"no table of synsets at `{path}`", hint="install vit21k again")
    with damage_is_an_error(path):
        return pq.read_table(path, columns=columns, page_checksum_verification=True)
