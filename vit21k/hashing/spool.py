"""Things that come in any order -> the same things by their keys, without holding them all."""

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Generic, Self, TypeVar

from vit21k.errors import TemporaryFolderError

_Item = TypeVar("_Item")

_HELD_ITEMS = 64
_IN_MEMORY_BYTES = 1 << 25


class Spool(Generic[_Item]):
    """Keeps items: the first as they are, the next 32 MiB packed, others in an unnamed file.

    Raises:
        TemporaryFolderError: That file cannot be made, written or read.
    """

    def __init__(self) -> None:
        self._held: list[_Item] = []
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115
        self._places: list[tuple[bytes, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what it has not written yet no longer counts
            self._file.close()

    def add(self, key: bytes, item: _Item) -> None:
        """Keep *item*."""
        if len(self._held) < _HELD_ITEMS:
            self._held.append(item)
            self._places.append((key, -len(self._held)))
        else:
            packed = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
            with _in_temporary_folder():
                self._places.append((key, self._file.tell()))
                self._file.write(packed)

    def in_order(self) -> Iterator[_Item]:
        """Yield the items by their keys; nothing can be added after that."""
        for _, place in sorted(self._places):
            if place < 0:
                yield self._held[-place - 1]
                continue
            with _in_temporary_folder():
                self._file.seek(place)
                item: _Item = pickle.load(self._file)  # noqa: S301 (what `add` has just written)
            yield item


@contextmanager
def _in_temporary_folder() -> Iterator[None]:
    """Say of an `OSError` whose fault it is: that of our own file, not of what is read."""
    try:
        yield
    except OSError as error:
        raise TemporaryFolderError(
            f"the temporary folder `{tempfile.gettempdir()}`: {error.strerror or error}",
            hint="free some space there, or name another folder: `TMPDIR=/big/disk vit21k ...`",
        ) from error
