"""Things that come in any order -> the same things by their keys, without holding them all."""

import pickle
import tempfile
from collections.abc import Iterator
from typing import Generic, Self, TypeVar

_Item = TypeVar("_Item")

_IN_MEMORY_BYTES = 1 << 26


class Spool(Generic[_Item]):
    """Keeps items, the first 64 MiB of them in memory, the others in a file without a name."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115
        self._places: list[tuple[bytes, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, key: bytes, item: _Item) -> None:
        """Keep *item*."""
        self._places.append((key, self._file.tell()))
        pickle.dump(item, self._file, pickle.HIGHEST_PROTOCOL)

    def in_order(self) -> Iterator[_Item]:
        """Yield the items by their keys; nothing can be added after that."""
        for _, place in sorted(self._places):
            self._file.seek(place)
            item: _Item = pickle.load(self._file)  # noqa: S301 (what `add` has just written)
            yield item
