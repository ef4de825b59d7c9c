"""A stream of bytes, and the part of it that is in memory: a window that only moves forward.

The stream is a stretch of a file, read with few large reads, or what a gzip file unpacks to.
"""

import os
import zlib
from typing import Protocol

WINDOW_BYTES = 1 << 20
"""Most members fit many times; small enough to be read into, and digested from, the cache."""

_RAW_BYTES = 1 << 18
_GZIP = 31  # zlib: the window of gzip, and its header
_MAX_RATIO = 100
_RATIO_COUNTS_FROM = 1 << 26
"""Pictures hardly shrink at all; a stream that grows a hundredfold is a bomb."""


class BombError(Exception):
    """A compressed stream unpacks to more than a hundred times its size."""


class Source(Protocol):
    """Where a window's bytes come from.

    Attributes:
        num_bytes: The length of the stream; None if it is not known.
    """

    num_bytes: int | None

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill *view* with what is at *offset* of the stream, or a part of it; 0 at the end."""

    def can_jump(self) -> bool:
        """Return whether any offset may be asked for, not only the next one."""


class FileSource:
    """An open file, offset for offset, up to *end*."""

    def __init__(self, descriptor: int, end: int | None = None) -> None:
        size = os.fstat(descriptor).st_size
        self.num_bytes: int | None = size if end is None else min(end, size)
        self._descriptor = descriptor

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill *view* from *offset* of the file."""
        left = (self.num_bytes or 0) - offset
        return os.preadv(self._descriptor, [view[:left]], offset) if left > 0 else 0

    def can_jump(self) -> bool:
        """Return True."""
        return True


class GzipSource:
    """What a gzip file of one or more parts unpacks to.

    Raises:
        EOFError: On reading: the file ends too early.
        zlib.error: On reading: it is damaged.
        BombError: On reading: it grows too much.
    """

    def __init__(self, descriptor: int) -> None:
        self.num_bytes: int | None = None
        self._descriptor = descriptor
        self._num_read = 0
        self._num_unpacked = 0
        self._unpacker = zlib.decompressobj(_GZIP)
        self._raw = b""
        self._is_within = False

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill *view* with what comes next."""
        while True:
            self._raw = self._raw or self._read()
            if not self._raw:
                if self._is_within:
                    raise EOFError
                return 0
            unpacked = self._unpacker.decompress(self._raw, len(view))
            self._is_within = True
            self._raw = self._unpacker.unconsumed_tail
            if self._unpacker.eof:
                self._next_part()
            if unpacked:
                self._count(len(unpacked))
                view[: len(unpacked)] = unpacked
                return len(unpacked)

    def can_jump(self) -> bool:
        """Return False."""
        return False

    def _read(self) -> bytes:
        raw = os.pread(self._descriptor, _RAW_BYTES, self._num_read)
        self._num_read += len(raw)
        return raw

    def _next_part(self) -> None:
        self._raw = self._unpacker.unused_data.lstrip(b"\0")  # some writers pad
        self._unpacker = zlib.decompressobj(_GZIP)
        self._is_within = False

    def _count(self, num_bytes: int) -> None:
        self._num_unpacked += num_bytes
        limit = max(_MAX_RATIO * self._num_read, _RATIO_COUNTS_FROM)
        if self._num_unpacked > limit:
            raise BombError


class Window:
    """The part of a stream that is in memory.

    Attributes:
        offset: Of the next byte to be taken, in the stream.
    """

    def __init__(self, source: Source, offset: int = 0, *, window_bytes: int = WINDOW_BYTES):
        self.offset = offset
        self._source = source
        self._window_bytes = window_bytes
        self._buffer = memoryview(bytearray(window_bytes))
        self._start = self._end = 0  # what is in memory and not yet taken

    @property
    def num_bytes(self) -> int | None:
        """Length of the stream; None if it is not known."""
        return self._source.num_bytes

    def take(self, num_bytes: int) -> memoryview:
        """Return the next *num_bytes*, fewer if the stream ends; valid until the next call."""
        if self._end - self._start < num_bytes:
            self._fill(num_bytes)
        stop = min(self._start + num_bytes, self._end)
        view = self._buffer[self._start : stop]
        self.offset += stop - self._start
        self._start = stop
        return view

    def give_back(self, num_bytes: int) -> None:
        """Untake the last *num_bytes* of what `take` has just returned."""
        self.offset -= num_bytes
        self._start -= num_bytes

    def go_to(self, offset: int) -> bool:
        """Move forward to *offset*; return whether the stream is that long."""
        num_bytes = offset - self.offset
        if num_bytes <= self._end - self._start:
            self._start += num_bytes
            self.offset = offset
            return True
        if self._source.can_jump():
            self._start = self._end = 0
            self.offset = offset
            return self.num_bytes is None or offset <= self.num_bytes
        while self.offset < offset:
            if not len(self.take(min(offset - self.offset, self._window_bytes))):
                return False
        return True

    def _fill(self, num_bytes: int) -> None:
        """Read until *num_bytes* are there, or the stream ends, and as much more as fits."""
        waiting = self._buffer[self._start : self._end]
        too_small = num_bytes > len(self._buffer)
        if too_small or len(self._buffer) > max(num_bytes, self._window_bytes):
            buffer = memoryview(bytearray(max(num_bytes, self._window_bytes)))
            buffer[: len(waiting)] = waiting
            self._buffer = buffer
        else:
            self._buffer[: len(waiting)] = waiting
        self._start, self._end = 0, len(waiting)
        while self._end < num_bytes:
            at = self.offset + self._end
            num_read = self._source.read_into(self._buffer[self._end :], at)
            if not num_read:
                return
            self._end += num_read
