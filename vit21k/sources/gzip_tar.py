"""Gzip files (compressed tars): unpacked from beginning to end, or read at random by an index.

An index has a point for every 4 MiB or so at which decompression can begin: its offset, in bits,
and the bytes before it that later ones refer to.  rapidgzip, an optional dependency, finds the
points while it unpacks the file with several threads; zlib alone reads at random with them.  What
rapidgzip does not unpack is unpacked by zlib: content and flaws do not depend on what is installed.
Without an index, a reader keeps states of zlib, further apart.
"""

import io
import struct
import threading
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from copy import copy
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from vit21k import machine
from vit21k.atomic import write_atomic
from vit21k.errors import ImageError
from vit21k.manifest.problems import ProblemKind
from vit21k.sources.archive_file import ArchiveFile
from vit21k.sources.container import ReadAt
from vit21k.sources.tar import MAX_RATIO, RATIO_COUNTS_FROM, BombError, Flaw

GZIP = "gzip"
"""`storage` of images in a compressed tar."""

NEEDS_INDEX_BYTES = 8 << 20
"""Smaller files are unpacked from their beginning: an index would save little."""

MAX_WITHOUT_INDEX_BYTES = 32 << 30
"""Larger files are not read at random without an index: the states would be 64 MiB apart."""

_STATE_EVERY_BYTES, _MAX_STATES = 4 << 20, 512  # of the file; a state has 40 kB

_GZIP, _RAW = 31, -15  # wbits of zlib: gzip members, a deflate stream
_FOOTER_BYTES = 8  # of a gzip member: CRC-32 and size
_READ_BYTES = 1 << 18
_STEP_BYTES = 1 << 20
_WINDOW_BYTES = 1 << 15


class _Growth:
    """Detects bombs."""

    def __init__(self, packed: int = 0, unpacked: int = 0) -> None:
        self._packed, self._unpacked = packed, unpacked

    def check(self, packed: int, unpacked: int) -> None:
        """Check what the first *packed* bytes have become.

        Raises:
            BombError: They have grown too much since they were checked before.
        """
        grown = unpacked - self._unpacked
        if grown > RATIO_COUNTS_FROM:
            if grown > MAX_RATIO * (packed - self._packed):
                raise BombError
            self._packed, self._unpacked = packed, unpacked


class Point(NamedTuple):
    """Where decompression can begin.

    Attributes:
        unpacked: Offset in what the file unpacks to.
        packed: Offset in the file of the first byte that belongs to what follows completely.
        num_bits: As many bits of the byte before belong to it, too: the upper ones, 0 to 7.
        window: What comes before it and may be referred to, compressed by zlib; empty: nothing.
    """

    unpacked: int
    packed: int
    num_bits: int
    window: bytes


_START = Point(0, 0, 0, b"")


class GzipStream:
    """What a gzip file of one or more members unpacks to, from a point onwards.

    Attributes:
        offset: Of what comes next, in what the file unpacks to.
        packed_offset: Of what is read next of the file.

    Args:
        read_at: Reads the file.
        point: Where to begin.
        on_used_up: Called with the stream when it has used up what it has read: it can be copied.

    Raises:
        EOFError: On reading: the file ends too early.
        zlib.error: On reading: it is damaged.
        BombError: On reading: it grows too much.
        OSError: On reading: it cannot be read.
    """

    num_bytes: int | None = None
    index: "GzipIndex | None" = None

    def __init__(
        self,
        read_at: ReadAt,
        point: Point = _START,
        on_used_up: "Callable[[GzipStream], None]" = lambda _stream: None,
    ) -> None:
        self.offset = point.unpacked
        self.packed_offset = point.packed
        self._read_at = read_at
        self._on_used_up = on_used_up
        self._packed = b""
        self._is_within = self._is_raw = point != _START
        self._growth = _Growth(self.packed_offset, self.offset)
        self._inflater = zlib.decompressobj(_GZIP)
        if self._is_raw:
            window = zlib.decompressobj().decompress(point.window, _WINDOW_BYTES)
            self._inflater = zlib.decompressobj(_RAW, zdict=window)
            if point.num_bits:
                before = read_at(1, point.packed - 1)
                self._packed = _aligned(before[0] >> 8 - point.num_bits, point.num_bits)

    def read_into(self, view: memoryview, _offset: int = 0) -> int:
        """Fill *view* with what comes next, or with a part of it; 0 at the end."""
        content = self.read(len(view))
        view[: len(content)] = content
        return len(content)

    def read(self, max_bytes: int) -> bytes:
        """Return what comes next, at least one byte; nothing at the end."""
        while self._has_more():
            content = self._inflater.decompress(self._packed, max_bytes)
            self._is_within = True
            self._packed = self._inflater.unconsumed_tail
            if self._inflater.eof:
                self._end_member()
            if content:
                self.offset += len(content)
                self._growth.check(self.packed_offset, self.offset)
                return content
        return b""

    def take(self, num_bytes: int) -> bytes:
        """Return the next *num_bytes*; raise EOFError if there are fewer."""
        parts = []
        end = self.offset + num_bytes
        while self.offset < end:
            parts.append(self.read(end - self.offset))
            if not parts[-1]:
                raise EOFError
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def go_to(self, offset: int) -> None:
        """Move forward to *offset*; raise EOFError if that is beyond the end."""
        while self.offset < offset:
            self.take(min(offset - self.offset, _READ_BYTES))

    def can_jump(self) -> bool:
        """Return False."""
        return False

    def close(self) -> None:
        """Do nothing: there is nothing to be released."""

    def copy(self) -> "GzipStream":
        """Return another stream at the same place; this one has used up what it has read."""
        other = copy(self)
        other._inflater = self._inflater.copy()  # noqa: SLF001 (its own class)
        other._growth = _Growth(self.packed_offset, self.offset)  # noqa: SLF001
        return other

    def _has_more(self) -> bool:
        while not self._packed:
            if self._is_within:
                self._on_used_up(self)
            self._packed = self._read_at(_READ_BYTES, self.packed_offset)
            self.packed_offset += len(self._packed)
            if not self._packed:
                if self._is_within:
                    raise EOFError
                return False
            if not self._is_within:
                self._packed = self._packed.lstrip(b"\0")  # some writers pad
        return True

    def _end_member(self) -> None:
        if self._is_raw:
            self.packed_offset += _FOOTER_BYTES - len(self._inflater.unused_data)
            self._packed = b""
        else:
            self._packed = self._inflater.unused_data.lstrip(b"\0")
        self._inflater = zlib.decompressobj(_GZIP)
        self._is_within = self._is_raw = False


def _aligned(bits: int, num_bits: int) -> bytes:
    """Return the first *num_bits* of a deflate stream after blocks of nothing, in whole bytes."""
    value = num_before = 0
    if num_bits % 2:
        value, num_before = _ODD_BLOCK, _ODD_BLOCK_BITS
    while (num_before + num_bits) % 8:
        value |= _EVEN_BLOCK << num_before
        num_before += _EVEN_BLOCK_BITS
    return (value | bits << num_before).to_bytes((num_before + num_bits) // 8, "little")


def _bits(*fields: tuple[int, int]) -> tuple[int, int]:
    """Return (value, number of bits) pairs, one after the other, the lowest bit first."""
    value = num_bits = 0
    for field, width in fields:
        value |= field << num_bits
        num_bits += width
    return value, num_bits


_EVEN_BLOCK, _EVEN_BLOCK_BITS = _bits((0, 1), (1, 2), (0, 7))
"""An empty block with fixed codes (RFC 1951, 3.2.6): not the last one, type 1, its end."""

_ODD_BLOCK, _ODD_BLOCK_BITS = _bits(
    (0, 1), (2, 2), (0, 5), (0, 5), (14, 4),  # with codes of its own, for 257 and 1 symbols
    *((width, 3) for width in (0, 0, 2, 2, *[0] * 13, 1)),  # of the codes of lengths 18, 0 and 1
    (3, 2), (127, 7), (3, 2), (107, 7),  # no code for 138 symbols, nor for the next 118
    (0, 1), (1, 2), (0, 1),  # a code of one bit for the end, none for distances; the end
)  # fmt: skip
"""An empty block of an odd number of bits (3.2.7)."""


class StaleIndexError(Exception):
    """An index is of another file, or malformed."""


_MARK = b"vit21k gzip index 1\n"
_CHECKSUM_BYTES = 16
_POINT = struct.Struct(">QQII")  # unpacked, packed, number of bits, bytes of the window that follow
_HEAD = struct.Struct(">8s8sQQ")


class GzipIndex:
    """Points of a gzip file, in their order; the first is its beginning.

    Args:
        content: In the format of gztool, version 0, as rapidgzip writes it; default: no others.

    Raises:
        StaleIndexError: It is malformed.
    """

    def __init__(self, content: bytes = _HEAD.pack(bytes(8), b"gzipindx", 0, 0)) -> None:
        self._content = content
        self._points = [_START]
        try:
            self._points += [point for point in _points(content) if point.unpacked]
        except struct.error as error:
            raise StaleIndexError(str(error)) from None
        self._offsets = [point.unpacked for point in self._points]
        if any(a >= b for a, b in pairwise(self._offsets)):
            raise StaleIndexError("points out of order")

    def __len__(self) -> int:
        return len(self._points)

    def before(self, offset: int) -> Point:
        """Return the last point at or before *offset* of what the file unpacks to."""
        return self._points[bisect_right(self._offsets, offset) - 1]

    def save(self, path: Path, version: str) -> None:
        """Write the index to *path*.

        Args:
            path: Its folder is made if need be.
            version: One line that another version of the gzip file does not have.
        """
        content = _MARK + version.encode() + b"\n" + self._content
        write_atomic(path, xxhash.xxh3_128_digest(content) + content)

    @classmethod
    def load(cls, path: Path, version: str) -> "GzipIndex":
        """Read the index at *path*.

        Raises:
            StaleIndexError: It is of another version of the file, or damaged.
            OSError: It cannot be read.
        """
        content = path.read_bytes()
        checksum, content = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        if xxhash.xxh3_128_digest(content) != checksum:
            raise StaleIndexError("damaged")
        head = _MARK + version.encode() + b"\n"
        if not content.startswith(head):
            raise StaleIndexError("of another version of the file")
        return cls(content[len(head) :])


def _points(content: bytes) -> Iterator[Point]:
    _, mark, _, num_points = _HEAD.unpack_from(content)
    if mark != b"gzipindx":
        raise StaleIndexError("not an index of gztool")
    at = _HEAD.size
    for _ in range(num_points):
        unpacked, packed, num_bits, num_bytes = _POINT.unpack_from(content, at)
        at += _POINT.size + num_bytes
        yield Point(unpacked, packed, num_bits, content[at - num_bytes : at])


INDEX_FOLDER = "gzip_index"
"""Next to the manifests."""


class IndexFolder:
    """A folder with the indices of compressed tars."""

    def __init__(self, manifests: Path) -> None:
        """Make an instance; *manifests* is its folder, or will be."""
        self._folder = manifests / INDEX_FOLDER

    def lacks(self, container: str, file: ArchiveFile) -> bool:
        """Return whether a file has no index here, but would have one if it were read."""
        is_large = file.num_bytes >= NEEDS_INDEX_BYTES and rapidgzip() is not None
        return is_large and file.is_gzip and self.load(container, file) is None

    def has(self, container: str) -> bool:
        """Return whether there is an index of a file, perhaps of another version of it."""
        return self._path(container).exists()

    def load(self, container: str, file: ArchiveFile) -> GzipIndex | None:
        """Return the index of a file; None if there is none of its present version.

        Args:
            container: Path of the file, relative to the image root.
            file: It.
        """
        try:
            return GzipIndex.load(self._path(container), _version(file))
        except (OSError, StaleIndexError):
            return None

    def save(self, container: str, file: ArchiveFile, index: GzipIndex) -> None:
        """Keep the index of a file.

        Raises:
            OSError: It cannot be written.
        """
        index.save(self._path(container), _version(file))

    def _path(self, container: str) -> Path:
        return self._folder / f"{container}.index"


def _version(file: ArchiveFile) -> str:
    status = file.status
    return f"{status.st_size} {status.st_mtime_ns}"


_MAX_STREAMS = 8


DAMAGE = (EOFError, zlib.error, BombError)
"""What reading a stream raises if its file is damaged."""


def flaw_of_stream(error: Exception) -> Flaw:
    """Describe the damage of the file from an exception of `DAMAGE`."""
    if isinstance(error, EOFError):
        return ProblemKind.ARCHIVE_TRUNCATED, "the compressed stream ends too early"
    if isinstance(error, BombError):
        return ProblemKind.ARCHIVE_BOMB, ""
    return ProblemKind.ARCHIVE_DAMAGED, str(error)


class GzipReader:
    """Reads a gzip file at random; any number of threads may share it."""

    def __init__(self, read_at: ReadAt, index: GzipIndex | None, num_bytes: int = 0) -> None:
        """Read a file.

        Args:
            read_at: Reads it.
            index: Of it; None: states are kept as it is unpacked.
            num_bytes: Its size: the larger, the further apart the states.
        """
        self._read_at = read_at
        self._index = index or GzipIndex()
        self._lock = threading.Lock()
        self._idle: list[GzipStream] = []  # the last one used is the last one
        self._states = [GzipStream(read_at)]
        self._state_every = max(num_bytes // _MAX_STATES, _STATE_EVERY_BYTES)
        self._on_used_up = self._keep_state if index is None else lambda _stream: None

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Return *num_bytes* from *offset* of what the file unpacks to.

        Raises:
            ImageError: The file is damaged, or shorter than that.
            OSError: It cannot be read.
        """
        stream = self._stream_at(offset)
        try:
            stream.go_to(offset)
            content = stream.take(num_bytes)
        except DAMAGE as error:
            raise ImageError(
                f"a compressed tar is damaged ({str(error) or 'it ends too early'})",
                hint="if it has changed since it was hashed, run `vit21k hash` again",
            ) from None
        with self._lock:
            self._idle = [*self._idle[1 - _MAX_STREAMS :], stream]
        return content

    def _stream_at(self, offset: int) -> GzipStream:
        """Return a stream that unpacks least before it comes to *offset*."""
        point = self._index.before(offset)
        with self._lock:
            state = self._states[bisect_right(self._states, offset, key=_offset) - 1]
            first = max(point.unpacked, state.offset)
            usable = [one for one in self._idle if first <= one.offset <= offset]
            if usable:
                best = max(usable, key=_offset)
                self._idle.remove(best)
                return best
        if state.offset > point.unpacked:
            return state.copy()
        return GzipStream(self._read_at, point, self._on_used_up)

    def _keep_state(self, stream: GzipStream) -> None:
        with self._lock:
            if stream.packed_offset >= self._states[-1].packed_offset + self._state_every:
                self._states.append(stream.copy())


def _offset(stream: GzipStream) -> int:
    return stream.offset


def unpack(file: ArchiveFile) -> "IndexingStream | GzipStream":
    """Return what a gzip file unpacks to, by rapidgzip if it is installed and the file is large."""
    if file.num_bytes < NEEDS_INDEX_BYTES or rapidgzip() is None:
        return GzipStream(file.read_at)
    return IndexingStream(file)


def made_index(file: ArchiveFile) -> GzipIndex | None:
    """Unpack a file to make its index; return None if rapidgzip is not installed, or refuses it."""
    if rapidgzip() is None:
        return None
    view = memoryview(bytearray(_STEP_BYTES))
    with closing(IndexingStream(file)) as stream, suppress(*_ERRORS, BombError):
        while stream.read_into(view):
            pass
        return stream.index
    return None


@cache
def rapidgzip() -> Any:
    """Return the package, an optional dependency; None if it is not installed."""
    try:
        import rapidgzip as package  # noqa: PLC0415 (optional)
    except ImportError:
        return None
    return package


class _Cores:
    """Divides the cores among the files that are unpacked: each takes those that are left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_taken = 0

    def take(self) -> int:
        """Return how many threads to start, at least one."""
        with self._lock:
            count = max(machine.num_threads() - self._num_taken, 1)
            self._num_taken += count
        return count

    def give_back(self, count: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self._num_taken -= count


_cores = _Cores()
_ERRORS = (ValueError, RuntimeError, OSError, EOFError, zlib.error)


class IndexingStream:
    """What a gzip file unpacks to, with several threads, which find the points of its index.

    Attributes:
        index: At the end of the file; None before, and where rapidgzip does not unpack the file.

    Raises:
        EOFError: As `GzipStream` does, as the next two; zlib unpacks the file in these cases.
        zlib.error: On reading: it is damaged.
        BombError: On reading: it grows too much.
        OSError: On reading: it cannot be read.
    """

    num_bytes: int | None = None

    def __init__(self, file: ArchiveFile) -> None:
        """Begin with the threads; it has to be closed."""
        self.index: GzipIndex | None = None
        self._read_at = file.read_at
        self._offset = 0
        self._growth = _Growth()
        self._file: Any = None
        self._num_threads = _cores.take()
        self._read_into: Callable[[memoryview], int] = self._read_file
        try:
            self._file = rapidgzip().RapidgzipFile(
                file if file.descriptor is None else file.descriptor,
                parallelization=self._num_threads,
            )
        except _ERRORS:
            self._read_into = self._fall_back()

    def read_into(self, view: memoryview, _offset: int = 0) -> int:
        """Fill *view* with what comes next, or with a part of it; 0 at the end."""
        try:
            num_read = self._read_into(view)
        except _ERRORS:
            if self._file is None:
                raise
            self._read_into = self._fall_back()
            num_read = self._read_into(view)
        self._offset += num_read
        return num_read

    def can_jump(self) -> bool:
        """Return False."""
        return False

    def close(self) -> None:
        """Stop all threads: they would abort a process that ends before."""
        if self._num_threads:
            _cores.give_back(self._num_threads)
            self._num_threads = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read_file(self, view: memoryview) -> int:
        num_read = int(self._file.readinto(view))
        if num_read:
            self._growth.check(self._file.tell_compressed() // 8, self._offset + num_read)
        else:
            self.index = self._made_index()
        return num_read

    def _made_index(self) -> GzipIndex:
        """Return the index; check that the file does not end too early, which rapidgzip ignores."""
        content = io.BytesIO()
        self._file.export_index(content, rapidgzip().IndexFormat.GZTOOL)
        index = GzipIndex(content.getvalue())
        end = GzipStream(self._read_at, index.before(max(self._offset - 1, 0)))
        while end.read(_READ_BYTES):
            pass
        if end.offset != self._offset:
            raise EOFError
        return index

    def _fall_back(self) -> Callable[[memoryview], int]:
        """Return how to read the next bytes with zlib."""
        self.close()
        stream = GzipStream(self._read_at)
        stream.go_to(self._offset)
        return stream.read_into
