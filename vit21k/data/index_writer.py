"""Flat rows, piece by piece -> the files of an index; and back, mapped.

Each array is a file of its plain values, little-endian; `index.json` says how many there are.
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit21k.data.flat_rows import FlatRows
from vit21k.data.places import PlaceColumns

_VERSION = 1
_CARD = "index.json"
_DTYPES = {
    "path_text": "u1",
    "path_starts": "<i8",
    "label_ids": "<i4",
    "label_starts": "<i8",
    "archive": "<i4",
    "offset": "<i8",
    "num_bytes": "<i8",
}
_PLACES = ("archive", "offset", "num_bytes")


class IndexWriter:
    """Writes the rows of a manifest to an empty folder, in constant memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._files = {
            name: self._stack.enter_context((folder / name).open("wb")) for name in _DTYPES
        }
        self._counts = dict.fromkeys(_DTYPES, 0)
        self._archives: dict[str, int] = {}
        self._num_multi_label = 0
        for name in ("path_starts", "label_starts"):
            self._append(name, np.zeros(1))

    def write(self, rows: FlatRows) -> None:
        """Append *rows*."""
        self._append_lists("path", rows.path_text_T, rows.path_starts_B, "text")
        self._append_lists("label", rows.label_ids_L, rows.label_starts_B, "ids")
        self._num_multi_label += rows.num_multi_label
        self._append_places(rows.places, len(rows.path_starts_B) - 1)

    def finish(self) -> None:
        """Write what is needed to open the files, and close them."""
        self._stack.close()
        if not self._archives:
            for name in _PLACES:
                self._counts[name] = 0
                (self._folder / name).write_bytes(b"")
        card = {
            "version": _VERSION,
            "counts": self._counts,
            "num_multi_label": self._num_multi_label,
            "archives": list(self._archives),
        }
        (self._folder / _CARD).write_text(json.dumps(card), encoding="utf-8")

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def _append(self, name: str, values: NDArray[Any]) -> None:
        self._files[name].write(np.ascontiguousarray(values, dtype=_DTYPES[name]).data)
        self._counts[name] += len(values)

    def _append_lists(
        self, name: str, values: NDArray[Any], starts_B: NDArray[np.int64], what: str
    ) -> None:
        before = self._counts[f"{name}_{what}"] - starts_B[0]
        self._append(f"{name}_starts", starts_B[1:] + before)
        self._append(f"{name}_{what}", values[starts_B[0] : starts_B[-1]])

    def _append_places(self, columns: PlaceColumns | None, num_rows: int) -> None:
        if columns is None:
            self._append("archive", np.full(num_rows, -1))
            self._append("offset", np.zeros(num_rows))
            self._append("num_bytes", np.zeros(num_rows))
            return
        numbers = [self._archives.setdefault(n, len(self._archives)) for n in columns.archives]
        # The last one is what -1 picks.
        self._append("archive", np.array([*numbers, -1])[columns.archive_B])
        self._append("offset", columns.offset_B)
        self._append("num_bytes", columns.num_bytes_B)


def map_index(folder: Path) -> FlatRows | None:
    """Return the rows of an index, mapped; None if there is none, or none that is whole."""
    try:
        card = json.loads((folder / _CARD).read_bytes())
        if card["version"] != _VERSION:
            return None
        arrays = {name: _mapped(folder / name, card["counts"][name]) for name in _DTYPES}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    archives = tuple(card["archives"])
    return FlatRows(
        arrays["path_text"],
        arrays["path_starts"],
        arrays["label_ids"],
        arrays["label_starts"],
        card["num_multi_label"],
        PlaceColumns(archives, *(arrays[name] for name in _PLACES)) if archives else None,
    )


def _mapped(path: Path, count: int) -> NDArray[Any]:
    """Map *count* values.

    Raises:
        ValueError: The file has another size.
    """
    dtype = np.dtype(_DTYPES[path.name])
    if path.stat().st_size != count * dtype.itemsize:
        raise ValueError(f"`{path}` has another size")
    if not count:
        return np.zeros(0, dtype)
    # A plain array: what a `memmap` adds to each access costs more than the access.
    return np.asarray(np.memmap(path, dtype, mode="r"))
