"""Cache of earlier runs of `hash`, so that unchanged files are not read again.

Every hashed chunk is appended to a journal next to the manifests, by the thread that hashed it, so
a run that is killed loses only the chunks in progress.  When a run ends well, its journal becomes
the cache of the next run.  Neither is part of the manifests, and both may be deleted.

A file is unchanged if its size, modification time, status-change time and inode are.  On network
file systems the last two are unreliable and are ignored.

Times have a granularity: a file that is modified twice within it keeps its times.  So a file is
cached only if its times were older than that when it was read.
"""

import errno
import json
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit21k.manifest.io import ManifestHeader
from vit21k.manifest.layout import LABEL_FILE_OPTION
from vit21k.manifest.layout import OPTION as LABEL_OPTION
from vit21k.prep.scan import HEAD, NO_ROWS, Label, NamedRows, decode, decode_label, encode

_LABEL_BYTES = 512  # read at a time; most labels are shorter


class Record(NamedTuple):
    """Position of a record in a journal."""

    label: Label
    descriptor: int
    offset: int

    def content(self) -> bytes:
        """Return the record as it was written."""
        body_bytes, _, _ = HEAD.unpack(os.pread(self.descriptor, HEAD.size, self.offset))
        return os.pread(self.descriptor, HEAD.size + body_bytes, self.offset)

    def files(self) -> NamedRows:
        """Return the files of the record; none if it is damaged."""
        whole = self.content()
        _, label_bytes, checksum = HEAD.unpack_from(whole)
        return decode(whole[HEAD.size :], label_bytes, checksum)


Records = dict[bytes, list[Record]]
"""The records of a journal by folder; each folder's in the order of its names."""


def records_of(descriptor: int, offset: int) -> Records:
    """Index the records of an open journal, from *offset* on.

    An incomplete record at the end, left by a killed run, is ignored.
    """
    records: Records = {}
    size = os.fstat(descriptor).st_size
    while (found := _label_at(descriptor, offset, size)) is not None:
        label, num_bytes = found
        records.setdefault(label.folder, []).append(Record(label, descriptor, offset))
        offset += num_bytes
    for found_there in records.values():  # threads end their chunks in any order
        found_there.sort()
    return records


def between(records: list[Record], first: bytes, last: bytes) -> Iterator[Record]:
    """Yield those of *records*, of one folder, that hold names from *first* to *last*."""
    index = bisect_left(records, first, key=lambda record: record.label.last)
    while index < len(records) and records[index].label.first <= last:
        yield records[index]
        index += 1


def joined(parts: Sequence[NamedRows]) -> NamedRows:
    """Merge the files of all *parts*, sorted by name; a later part wins."""
    names = [name for part in parts for name in part.names]
    index_of = {name: index for index, name in enumerate(names)}
    indices = [index for _, index in sorted(index_of.items())]
    return NamedRows(sorted(index_of), np.concatenate([part.rows for part in parts])[indices])


def _label_at(descriptor: int, offset: int, size: int) -> tuple[Label, int] | None:
    """Return the label of the record at *offset*, and its length; None if it is incomplete."""
    start = os.pread(descriptor, HEAD.size + _LABEL_BYTES, offset)
    if len(start) < HEAD.size:
        return None
    body_bytes, label_bytes, _ = HEAD.unpack_from(start)
    if offset + HEAD.size + body_bytes > size or label_bytes > body_bytes:
        return None
    if label_bytes > _LABEL_BYTES:
        start = os.pread(descriptor, HEAD.size + label_bytes, offset)
    label = decode_label(start[HEAD.size : HEAD.size + label_bytes])
    return (label, HEAD.size + body_bytes) if label else None


VERSION = 2
"""Version of the cached rows; a cache of another version is not used."""

CACHE = ".hash-cache"
JOURNAL = ".hash-journal"
_NEXT_JOURNAL = ".hash-journal-2"

_TICK_NS = 50_000_000
"""A file that changed so shortly before it was read may change again without its times moving: the
clock of the kernel ticks every 10 ms or faster."""
_SECOND_NS = 1_000_000_000
_COARSE_NS = 2 * _SECOND_NS
"""The same, of a time in whole seconds, for all times may be: HFS+, ext3 and ext4 with small inodes
have seconds, FAT has two."""
_SKEW_NS = 60 * _SECOND_NS
"""Largest difference between the clock of a file server and ours."""


class _Recalled(NamedTuple):
    """The last recall of a thread, and its record."""

    folder: bytes
    files: NamedRows
    record: Record


class HashCache:
    """Hashed files of earlier runs and of this one; thread-safe."""

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, Any],
        *,
        is_fresh: bool = False,
        is_remote: bool = False,
    ) -> None:
        """Load the cache that runs with the same *options* left in *folder*.

        Args:
            folder: Of the manifests; locked by the caller.
            options: Everything that changes what is cached of a file.
            is_fresh: Ignore and remove the cache of earlier runs.
            is_remote: Whether the times of the files are those of another machine.
        """
        self._folder = folder
        self._is_remote = is_remote
        self._head = json.dumps({"version": VERSION, **options}, sort_keys=True).encode() + b"\n"
        self._lock = threading.Lock()
        self._recalled = threading.local()
        self._descriptors: list[int] = []
        self._runs: list[Records] = []
        if is_fresh:
            self._remove(CACHE, JOURNAL, _NEXT_JOURNAL)
        self._keep_the_longer_journal()
        for name in (CACHE, JOURNAL):
            self._runs.append(self._index(folder / name))
        self._journal = (folder / self._journal_name()).open("wb", buffering=0)
        self._journal.write(self._head)

    def recall(self, folder: bytes, first: bytes, last: bytes) -> NamedRows:
        """Return the cached files of *folder* near the names from *first* to *last*."""
        records = [
            record for run in self._runs for record in between(run.get(folder, []), first, last)
        ]
        self._recalled.last = None
        if not records:
            return NO_ROWS
        if len(records) > 1:
            return joined([record.files() for record in records])
        files = records[0].files()
        self._recalled.last = _Recalled(folder, files, records[0])
        return files

    def now(self) -> int:
        """Return the time, in ns since 1970."""
        return time.time_ns()

    def add(self, folder: bytes, files: NamedRows, read_at: int) -> None:
        """Add *files* of *folder*.

        Args:
            folder: Their folder, or the label of an archive.
            files: Their names and rows.
            read_at: The time, by `now`, before the first of them was read.
        """
        if not files.names:
            return
        record = self._unchanged_record(folder, files)
        if record is None:
            is_settled = self._are_settled(files, read_at)
            if not is_settled.all():
                files = NamedRows(files.names, files.rows.copy())
                files.rows["ctime_ns"][~is_settled] = 0
                files.rows["mtime_ns"][~is_settled] = -1
            record = encode(folder, files)
        with self._lock:
            self._write(record)

    def _are_settled(self, files: NamedRows, read_at: int) -> NDArray[np.bool_]:
        """Return which of *files* cannot have changed since *read_at* with the same times."""
        times = files.rows["mtime_ns" if self._is_remote else "ctime_ns"]
        granularity = np.where(times % _SECOND_NS == 0, _COARSE_NS + _TICK_NS, _TICK_NS)
        skew = _SKEW_NS if self._is_remote else 0
        settled: NDArray[np.bool_] = times + granularity + skew < read_at
        return settled

    def _write(self, record: bytes) -> None:
        name = self._journal.name
        try:
            num_written = self._journal.write(record)
        except OSError as error:  # without the path
            raise OSError(error.errno, error.strerror, name) from error
        if num_written != len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    def _unchanged_record(self, folder: bytes, files: NamedRows) -> bytes | None:
        """Return the record that this thread last recalled, if it holds exactly *files*.

        Hashing an unchanged tree takes 20 % less time than with every file encoded again.
        """
        last: _Recalled | None = getattr(self._recalled, "last", None)
        if last is None or last.folder != folder or last.files.names != files.names:
            return None
        if last.files.rows.tobytes() != files.rows.tobytes():
            return None
        return last.record.content()

    def include_current(self) -> None:
        """Recall what this run has added so far, too."""
        self._runs.append(self._index(Path(self._journal.name)))

    def finish(self) -> None:
        """Make the journal the cache of the next run, after a complete run."""
        name = self._journal.name
        self.close()
        if Path(name).exists():
            Path(name).replace(self._folder / CACHE)
        else:
            self._remove(CACHE)
        self._remove(JOURNAL, _NEXT_JOURNAL)

    def close(self) -> None:
        """Close all files; keep the journal unless it is empty."""
        if not self._journal.closed and self._journal.tell() == len(self._head):
            Path(self._journal.name).unlink()
        self._journal.close()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _journal_name(self) -> str:
        return _NEXT_JOURNAL if (self._folder / JOURNAL).exists() else JOURNAL

    def _keep_the_longer_journal(self) -> None:
        """Keep the longer one of the journals of two killed runs."""
        old, new = self._folder / JOURNAL, self._folder / _NEXT_JOURNAL
        if new.exists() and (not old.exists() or new.stat().st_size >= old.stat().st_size):
            new.replace(old)
        self._remove(_NEXT_JOURNAL)

    def _remove(self, *names: str) -> None:
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    def _index(self, path: Path) -> Records:
        """Index the records of *path*; remove the file if its options differ."""
        if not path.exists():
            return {}
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors.append(descriptor)
        if os.pread(descriptor, len(self._head), 0) != self._head:
            path.unlink()
            return {}
        return records_of(descriptor, len(self._head))


@contextmanager
def hash_cache(
    folder: Path, header: ManifestHeader, *, is_fresh: bool, is_remote: bool
) -> Iterator[HashCache]:
    """Open the cache in *folder*; save it at the end of the block, unless that fails.

    Args:
        folder: Folder of the manifests; locked by the caller.
        header: Header of the manifests; the cache of a run with another one is not used.
        is_fresh: Ignore the cache of earlier runs.
        is_remote: Whether the times of the files are those of another machine.
    """
    options = {"algorithm": header.algorithm, "root": header.root, **header.options}
    for name in (LABEL_OPTION, LABEL_FILE_OPTION):  # do not change what is cached
        options.pop(name, None)
    cache = HashCache(folder, options, is_fresh=is_fresh, is_remote=is_remote)
    try:
        yield cache
        cache.finish()
    finally:
        cache.close()
