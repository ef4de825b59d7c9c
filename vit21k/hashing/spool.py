"""Things that come in any order -> the same things by their keys, without holding them all."""

import pickle
import tempfile
from collections.abc import Iterator
from typing import Generic, Self, TypeVar

_Item = TypeVar("_Item")

_HELD_ITEMS = 64
_IN_MEMORY_BYTES = 1 << 25


class Spool(Generic[_Item]):
    """Keeps items: the first as they are, the next 32 MiB packed, others in an unnamed file."""

    def __init__(self) -> None:
        self._held: list[_Item] = []
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115
        self._places: list[tuple[bytes, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, key: bytes, item: _Item) -> None:
        """Keep *item*."""
        if len(self._held) < _HELD_ITEMS:
            self._held.append(item)
            self._places.append((key, -len(self._held)))
        else:
            self._places.append((key, self._file.tell()))
            pickle.dump(item, self._file, pickle.HIGHEST_PROTOCOL)

    def in_order(self) -> Iterator[_Item]:
        """Yield the items by their keys; nothing can be added after that."""
        for _, place in sorted(self._places):
            if place < 0:
                yield self._held[-place - 1]
                continue
            self._file.seek(place)
            item: _Item = pickle.load(self._file)  # noqa: S301 (what `add` has just written)
            yield item
