"""Images of a source behind a URL: read ahead of their use, and kept on a disk of this node.

`AheadReader` prefetches images, `NodeCache` keeps them for the
next epoch, for the other processes of the node, and for the next run.

Layout::

    DIR/<key>/            one URL, manifest and version of its containers
      card.json           what the key stands for
      index               uint64 for each row: where its record is; 0: not cached
      00000.segment       64 bytes of header, then records: row, size, checksum, content

A record is read only if its row, size and checksum are right, and its place is noted after it is
written.  So whatever is left by a process that was killed, or a machine that lost power, is read
again from the source, and no lock is needed to read.  Each process appends to segments of its own,
which are allocated in full before they are used: a full disk is met there.

An epoch reads every image once, in another order than the one before.  What is evicted to make
room would be as useful as what takes its place, so images of the same source stay, and the rest is
read from the source (CoorDL: Mohan et al., "Analyzing and mitigating data stalls in DNN training",
2021).  Evicted are sources that no process uses, the one that was used longest ago first.
"""

import fcntl
import json
import os
import shutil
import struct
import threading
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from vit21k.atomic import write_atomic
from vit21k.errors import ImageError
from vit21k.lock import locked
from vit21k.machine import allow_open_files
from vit21k.sources.read import ImageReader, Locator

_VERSION = 1
_COMMAND = "train (cache)"
_CARD, _INDEX, _IN_USE, _SUFFIX = "card.json", "index", ".in-use", ".segment"
_USED = struct.Struct("<Q")
_RECORD = struct.Struct("<qqQ")  # row, bytes of the content, xxh3_64 of it
_IN_USE_NUMBER = -1
_MAX_WRITTEN = 256  # records at a time: Linux takes 1,024 buffers
_ALIGNMENT = 64
_SIZE_BITS = 26
_MAX_IMAGE_BYTES = (1 << _SIZE_BITS) - 1
_MAX_BYTES = _ALIGNMENT << (64 - _SIZE_BITS)
_NUM_SEGMENTS, _MIN_SEGMENT_BYTES, _MAX_SEGMENT_BYTES = 256, 1 << 20, 1 << 30


class _Segment(NamedTuple):
    """A segment that this process appends to; its descriptor holds its lock."""

    number: int
    descriptor: int


class _Record(NamedTuple):
    """An image as it is written to a segment."""

    row: int
    content: bytes

    @property
    def num_bytes(self) -> int:
        return -(-(_RECORD.size + len(self.content)) // _ALIGNMENT) * _ALIGNMENT

    @property
    def parts(self) -> tuple[bytes, bytes, bytes]:
        padding = bytes(-(_RECORD.size + len(self.content)) % _ALIGNMENT)
        return _head(self.row, self.content), self.content, padding


class NodeCache:
    """Contents of the images of one manifest, by row; thread-safe.

    Attributes:
        folder: Of this manifest.
        is_full: Nothing is added any more.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        identity: Mapping[str, Any],
        num_rows: int,
        warn: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Open the cache in *folder*, or begin it.

        Args:
            folder: Of the caches of all sources.
            max_bytes: Limit for all of them together.
            identity: What the images are: URL, fingerprint of the manifest, versions of containers.
            num_rows: Of the manifest.
            warn: Called, once, when nothing can be written any more.

        Raises:
            OSError: The disk is full or failing: there is no cache.
        """
        card = json.dumps({"version": _VERSION, **identity}, sort_keys=True).encode()
        self.folder = folder / xxhash.xxh3_128_hexdigest(card)
        self._disk = _Disk(folder, min(max_bytes, _MAX_BYTES))
        self._warn = warn
        self._lock = threading.Lock()
        self._segment: _Segment | None = None
        self.is_full = False
        with locked(folder, command=_COMMAND, wait=True):
            in_use, is_only_user = _mark_in_use(self.folder)
            self._descriptors = {_IN_USE_NUMBER: in_use}
            self._segment_bytes = self._begin(card, num_rows)
            self._disk.shrink(self.folder if is_only_user else None)
        self._index: NDArray[np.uint64] = np.asarray(
            np.memmap(self.folder / _INDEX, np.uint64, mode="r+", shape=(num_rows,))
        )

    def have(self, rows_B: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of *rows_B* are cached, as far as the index says."""
        cached: NDArray[np.bool_] = self._index[rows_B] != 0
        return cached

    def get(self, row: int) -> bytes | None:
        """Return the content of an image; None if it is not cached, or damaged."""
        at = int(self._index[row])
        if not at:
            return None
        num_bytes = at & _MAX_IMAGE_BYTES
        number, offset = divmod((at >> _SIZE_BITS) * _ALIGNMENT, self._segment_bytes)
        record = b""
        with suppress(OSError):  # evicted, or the disk fails
            record = os.pread(self._opened(number), _RECORD.size + num_bytes, offset)
        content = record[_RECORD.size :]
        if record[: _RECORD.size] != _head(row, content) or len(content) != num_bytes:
            self._index[row] = 0
            return None
        return content

    def put(self, contents: Mapping[int, bytes]) -> None:
        """Keep the contents of images, by row, as far as there is room."""
        new = {
            row: content
            for row, content in contents.items()
            if not self._index[row] and len(content) <= _MAX_IMAGE_BYTES
        }
        records = [_Record(row, content) for row, content in new.items()]
        with self._lock:
            try:
                while records and not self.is_full:
                    records = self._append(records)
            except OSError as error:
                self.is_full = True
                self._warn(
                    f"the cache `{self.folder}` cannot be written ({error.strerror or error}): "
                    "images that are not in it are read from the source each time"
                )

    def close(self) -> None:
        """Close all files; this source may be evicted then."""
        with self._lock:
            self.is_full = True
            self._leave_segment()
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])

    def _begin(self, card: bytes, num_rows: int) -> int:
        """Make card and index, unless they are there; return the size of a segment."""
        with suppress(OSError, ValueError, KeyError):
            if (self.folder / _INDEX).stat().st_size == 8 * num_rows:
                found: int = json.loads((self.folder / _CARD).read_bytes())["segment_bytes"]
                return found
        for left in self.folder.glob(f"*{_SUFFIX}"):
            left.unlink()
        _allocate(self.folder / _INDEX, 8 * num_rows)
        segment_bytes = self._disk.segment_bytes
        facts = {**json.loads(card), "segment_bytes": segment_bytes}
        write_atomic(self.folder / _CARD, json.dumps(facts, indent=1).encode())
        return segment_bytes

    def _append(self, records: "list[_Record]") -> "list[_Record]":
        """Write as many of *records* as fit into one segment; return the others."""
        first = records[0].num_bytes
        if first > self._segment_bytes - _ALIGNMENT:
            return records[1:]
        if self._segment is None or _used(self._segment) + first > self._segment_bytes:
            self._leave_segment()
            with locked(self._disk.folder, command=_COMMAND, wait=True):
                self._segment = self._next_segment(first)
        if self._segment is None:
            self.is_full = True
            return []
        start = _used(self._segment)
        ends = list(accumulate((record.num_bytes for record in records), initial=start))
        count = min(bisect_right(ends, self._segment_bytes) - 1, _MAX_WRITTEN)
        number, descriptor = self._segment
        os.pwrite(descriptor, _USED.pack(ends[count]), 0)
        os.pwritev(descriptor, [part for one in records[:count] for part in one.parts], start)
        for record, offset in zip(records[:count], ends, strict=False):
            position = number * self._segment_bytes + offset
            value = (position // _ALIGNMENT) << _SIZE_BITS | len(record.content)
            self._index[record.row] = value
        return records[count:]

    def _leave_segment(self) -> None:
        if self._segment:
            os.close(self._segment.descriptor)
            self._segment = None

    def _next_segment(self, num_bytes: int) -> _Segment | None:
        """Return a segment with *num_bytes* of free space: of an earlier process, or a new one."""
        numbers = [int(path.stem) for path in self.folder.glob(f"*{_SUFFIX}")]
        for number in sorted(numbers):
            if segment := self._adopted(number, num_bytes):
                return segment
        if not self._disk.make_room(self._segment_bytes):
            return None
        number = min(set(range(len(numbers) + 1)) - set(numbers))
        _allocate(self._path(number), self._segment_bytes)
        return _Segment(number, _open_locked(self._path(number), fcntl.LOCK_EX))

    def _adopted(self, number: int, num_bytes: int) -> _Segment | None:
        try:
            descriptor = _open_locked(self._path(number), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        segment = _Segment(number, descriptor)
        if _used(segment) <= self._segment_bytes - num_bytes:
            return segment
        os.close(descriptor)
        return None

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05}{_SUFFIX}"

    def _opened(self, number: int) -> int:
        """Return the descriptor to read a segment with; it stays open."""
        if (descriptor := self._descriptors.get(number)) is not None:
            return descriptor
        with self._lock:
            if number not in self._descriptors:
                allow_open_files(len(self._descriptors))
                self._descriptors[number] = os.open(self._path(number), os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[number]


AHEAD_IMAGES = 1024
"""Announced before they are used: at 4,000 images a second, back-off of a quarter of a second."""

_NUM_BATCHES = 8
_FILL_BYTES = 32 << 20
"""Read at a time to fill the cache, by requests of 8 MiB."""
_Content = bytes | ImageError | OSError


@dataclass
class _Awaited:
    """An image on its way: its place in the batch it is read with, and how often it is used."""

    batch: Future[list[_Content]]
    place: int
    num_uses: int = 0


class AheadReader:
    """Reads images behind a URL ahead of their use; thread-safe.

    Args:
        reader: Of the images.
        locate: Returns where the image of a row is.
        cache: Keeps what is read; None: each use reads the image from its source.
    """

    def __init__(
        self, reader: ImageReader, locate: Callable[[int], Locator], cache: NodeCache | None
    ) -> None:
        self._reader = reader
        self._locate = locate
        self._cache = cache
        self._lock = threading.Lock()
        self._waiting: OrderedDict[int, _Awaited] = OrderedDict()
        self._pool = ThreadPoolExecutor(_NUM_BATCHES, thread_name_prefix="ahead")

    def expect(self, rows_B: NDArray[np.int64]) -> None:
        """Begin to read the images of a batch that is used soon, unless they are cached."""
        if self._cache:
            rows_B = rows_B[~self._cache.have(rows_B)]
        with self._lock:
            counts = Counter(rows_B.tolist())
            rows = [row for row in counts if row not in self._waiting]
            if rows:
                batch = self._pool.submit(self._read, rows)
                self._waiting |= {row: _Awaited(batch, at) for at, row in enumerate(rows)}
            for row, count in counts.items():
                self._waiting[row].num_uses += count
            while len(self._waiting) > 2 * AHEAD_IMAGES + len(rows):  # never asked for
                self._waiting.popitem(last=False)

    def take(self, row: int) -> bytes:
        """Return the content of an image.

        Raises:
            ImageError: It is not there, or its container is shorter than it was.
            OSError: It cannot be read.
        """
        with self._lock:
            awaited = self._waiting.get(row)
            if awaited:
                awaited.num_uses -= 1
                if not awaited.num_uses:
                    del self._waiting[row]
        if awaited:
            content = awaited.batch.result()[awaited.place]
        else:
            content = (self._cache and self._cache.get(row)) or self._read([row])[0]
        if isinstance(content, bytes):
            return content
        raise content

    def _read(self, rows: list[int]) -> list[_Content]:
        contents = self._reader.read_many([self._locate(row) for row in rows])
        if self._cache:
            found = zip(rows, contents, strict=True)
            self._cache.put({row: content for row, content in found if isinstance(content, bytes)})
        return contents


class CacheFiller:
    """Read complete containers into a cache in the background.

    Requests of 8 MiB cost a fraction of a request for each image.  The processes of a node divide
    the containers: each takes one that no other has locked.

    Args:
        reader: Of the containers.
        containers: Their paths.
        locate: Returns rows, offsets and sizes of the images in one of them, by its index.
        cache: What is filled.
    """

    def __init__(
        self,
        reader: ImageReader,
        containers: Sequence[str | None],
        locate: Callable[[int], tuple[NDArray[np.int64], list[Locator]]],
        cache: NodeCache,
    ) -> None:
        self._reader = reader
        self._containers = containers
        self._locate = locate
        self._cache = cache
        self._is_stopped = False
        threading.Thread(target=self._run, name="fill", daemon=True).start()

    def stop(self) -> None:
        """End after the present request."""
        self._is_stopped = True

    def _run(self) -> None:
        with suppress(OSError, RuntimeError):  # the disk fails; the interpreter ends
            for index, container in enumerate(self._containers):
                if container is not None:
                    self._fill_alone(index)

    def _fill_alone(self, index: int) -> None:
        """Read a container unless another process does."""
        try:
            lock = _open_locked(self._cache.folder / f"{index}.fill", fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        try:
            self._fill(index)
        finally:
            os.close(lock)

    def _fill(self, index: int) -> None:
        rows_B, locators = self._locate(index)
        written: Future[None] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="fill") as pool:
            for start, stop in _spans(locators):
                if self._is_stopped or self._cache.is_full:
                    return
                wanted = np.flatnonzero(~self._cache.have(rows_B[start:stop])) + start
                contents = self._reader.read_many([locators[at] for at in wanted.tolist()])
                found = zip(rows_B[wanted].tolist(), contents, strict=True)
                new = {row: content for row, content in found if isinstance(content, bytes)}
                if written:
                    written.result()  # one span is read while another is written
                written = pool.submit(self._cache.put, new)


def _spans(locators: Sequence[Locator]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last index of images that are read at a time."""
    start, num_bytes = 0, 0
    for index, locator in enumerate(locators):
        num_bytes += locator.num_bytes or 0
        if num_bytes >= _FILL_BYTES:
            yield start, index + 1
            start, num_bytes = index + 1, 0
    yield start, len(locators)


class _Disk(NamedTuple):
    """The caches of all sources; its methods are for whoever has locked *folder*."""

    folder: Path
    max_bytes: int

    @property
    def segment_bytes(self) -> int:
        """Size of a segment of a new cache."""
        size = min(max(self.max_bytes // _NUM_SEGMENTS, _MIN_SEGMENT_BYTES), _MAX_SEGMENT_BYTES)
        return size - size % _ALIGNMENT

    def make_room(self, num_bytes: int) -> bool:
        """Evict sources that no process uses; return whether *num_bytes* fit."""
        left = self.max_bytes - num_bytes - self._num_bytes()
        for folder in sorted(self._sources(), key=lambda path: path.stat().st_mtime):
            if left < 0:
                left += _evict(folder)
        return left >= 0

    def shrink(self, own: Path | None) -> None:
        """Keep the limit, which may be lower than before; *own*: a source that may be cut."""
        self.make_room(0)
        for segment in sorted(own.glob(f"*{_SUFFIX}"), reverse=True) if own else ():
            if self._num_bytes() > self.max_bytes:
                segment.unlink()

    def _num_bytes(self) -> int:
        return sum(_size(path) for source in self._sources() for path in source.iterdir())

    def _sources(self) -> list[Path]:
        return [path.parent for path in self.folder.glob(f"*/{_IN_USE}")]


def _mark_in_use(folder: Path) -> tuple[int, bool]:
    """Return a descriptor that keeps *folder* from being evicted; and if no process has another."""
    folder.mkdir(exist_ok=True)
    os.utime(folder)
    try:
        descriptor = _open_locked(folder / _IN_USE, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _open_locked(folder / _IN_USE, fcntl.LOCK_SH), False
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor, True


def _evict(folder: Path) -> int:
    """Remove *folder* unless a process uses it; return how many bytes that frees."""
    try:
        descriptor = _open_locked(folder / _IN_USE, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return 0
    num_bytes = sum(map(_size, folder.iterdir()))
    shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)
    return num_bytes


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _open_locked(path: Path, operation: int) -> int:
    """Open *path* and lock it.

    Raises:
        BlockingIOError: Another holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, operation)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _allocate(path: Path, num_bytes: int) -> None:
    """Make a file of zeros for which the disk has room.

    Raises:
        OSError: It has not.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


def _used(segment: _Segment) -> int:
    """Return where the next record of *segment* goes; a new one is all zeros."""
    used: int = _USED.unpack(os.pread(segment.descriptor, _USED.size, 0))[0]
    return max(used, _ALIGNMENT)


def _head(row: int, content: bytes) -> bytes:
    return _RECORD.pack(row, len(content), xxhash.xxh3_64_intdigest(content))
