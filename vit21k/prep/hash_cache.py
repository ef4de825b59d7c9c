"""A journal on the disk: where the record of each run of names is, and what it says.

What earlier runs of `hash` have read, so that this one need not: a journal beside the manifests.

Every chunk that is done is added to the journal at once, by the thread that did it, so a run that
is killed loses no more than the chunks its threads were at.  The journal of a run that ended well
becomes the cache of the next one.  Neither is part of the manifests, and both may be deleted.

A file is taken to be as it was if its size, its modification and status-change times and its inode
are.  On network file systems the last two are not to be relied on, and are not looked at.

Times have a granularity: a file that changes again within it keeps them.  So a file is remembered
only if its times were older than that when it was read.
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

from vit21k.manifest.io import Header
from vit21k.manifest.layout import OPTION as LABEL_OPTION
from vit21k.prep.hash_chunks import ChunkDigester
from vit21k.prep.scan import HEAD, NO_ROWS, Label, NamedRows, decode, decode_label, encode

_LABEL_BYTES = 512  # read at a time; most labels are shorter


class Record(NamedTuple):
    """Where a record is."""

    label: Label
    descriptor: int
    offset: int

    def content(self) -> bytes:
        """Return the record as it was written."""
        body_bytes, _, _ = HEAD.unpack(os.pread(self.descriptor, HEAD.size, self.offset))
        return os.pread(self.descriptor, HEAD.size + body_bytes, self.offset)

    def files(self) -> NamedRows:
        """Return the files that it tells of; none if it is damaged."""
        whole = self.content()
        _, label_bytes, checksum = HEAD.unpack_from(whole)
        return decode(whole[HEAD.size :], label_bytes, checksum)


Records = dict[bytes, list[Record]]
"""The records of a journal by folder; each folder's in the order of its names."""


def records_of(descriptor: int, offset: int) -> Records:
    """Return where the records of an open journal are, from *offset* on.

    One that a kill cut short, at the end, is none.
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
    place = bisect_left(records, first, key=lambda record: record.label.last)
    while place < len(records) and records[place].label.first <= last:
        yield records[place]
        place += 1


def joined(parts: Sequence[NamedRows]) -> NamedRows:
    """Return the files of all *parts*, each once, by name; what a later part says counts."""
    names = [name for part in parts for name in part.names]
    place_of = {name: place for place, name in enumerate(names)}
    places = [place for _, place in sorted(place_of.items())]
    return NamedRows(sorted(place_of), np.concatenate([part.rows for part in parts])[places])


def _label_at(descriptor: int, offset: int, size: int) -> tuple[Label, int] | None:
    """Return the label of the record at *offset*, and its length; None if there is no whole one."""
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
"""Raised when a file that has not changed would be described in other words."""

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
"""How far the clock of a file server may be from ours."""


class _Recalled(NamedTuple):
    """What a thread has recalled last, from which record."""

    folder: bytes
    files: NamedRows
    record: Record


class HashMemory:
    """Remembers files; any number of threads may share it."""

    def __init__(
        self,
        folder: Path,
        options: Mapping[str, Any],
        *,
        is_fresh: bool = False,
        is_remote: bool = False,
    ) -> None:
        """Make an instance that knows what runs with the same *options* left in *folder*.

        Args:
            folder: Of the manifests; locked by the caller.
            options: All that changes what is remembered of a file.
            is_fresh: Forget everything.
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
        """Return what is known of files of *folder* about the names from *first* to *last*."""
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

    def note(self, folder: bytes, files: NamedRows, read_at: int) -> None:
        """Remember *files* of *folder*.

        Args:
            folder: Where they lie.
            files: What is known of them.
            read_at: The time, by `now`, before the first of them was read.
        """
        if not files.names:
            return
        record = self._noted_before(folder, files)
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
        """Return which of *files* cannot have changed since *read_at* without it showing."""
        times = files.rows["mtime_ns" if self._is_remote else "ctime_ns"]
        granularity = np.where(times % _SECOND_NS == 0, _COARSE_NS + _TICK_NS, _TICK_NS)
        skew = _SKEW_NS if self._is_remote else 0
        settled: NDArray[np.bool_] = times + granularity + skew < read_at
        return settled

    def _write(self, record: bytes) -> None:
        name = self._journal.name
        try:
            num_written = self._journal.write(record)
        except OSError as error:  # it does not say of which file
            raise OSError(error.errno, error.strerror, name) from error
        if num_written != len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    def _noted_before(self, folder: bytes, files: NamedRows) -> bytes | None:
        """Return the record that this thread has just recalled *files* from, if they are all of it.

        An unchanged tree takes a fifth less than with every file encoded anew.
        """
        last: _Recalled | None = getattr(self._recalled, "last", None)
        if last is None or last.folder != folder or last.files.names != files.names:
            return None
        if last.files.rows.tobytes() != files.rows.tobytes():
            return None
        return last.record.content()

    def turn_back(self) -> None:
        """Recall from now on what has been noted so far, too."""
        self._runs.append(self._index(Path(self._journal.name)))

    def finish(self) -> None:
        """Make the journal the cache of the next run; this one has ended well."""
        name = self._journal.name
        self.close()
        if Path(name).exists():
            Path(name).replace(self._folder / CACHE)
        else:
            self._remove(CACHE)
        self._remove(JOURNAL, _NEXT_JOURNAL)

    def close(self) -> None:
        """Close all files; what has been noted stays, if it is anything."""
        if not self._journal.closed and self._journal.tell() == len(self._head):
            Path(self._journal.name).unlink()
        self._journal.close()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _journal_name(self) -> str:
        return _NEXT_JOURNAL if (self._folder / JOURNAL).exists() else JOURNAL

    def _keep_the_longer_journal(self) -> None:
        """Of the journals of two runs that were killed keep that of the one that came further."""
        old, new = self._folder / JOURNAL, self._folder / _NEXT_JOURNAL
        if new.exists() and (not old.exists() or new.stat().st_size >= old.stat().st_size):
            new.replace(old)
        self._remove(_NEXT_JOURNAL)

    def _remove(self, *names: str) -> None:
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    def _index(self, path: Path) -> Records:
        """Return where the records of *path* are; remove it if it is of a run of another kind."""
        if not path.exists():
            return {}
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors.append(descriptor)
        if os.pread(descriptor, len(self._head), 0) != self._head:
            path.unlink()
            return {}
        return records_of(descriptor, len(self._head))


class _NoMemory:
    """Stands in where nothing is remembered."""

    def finish(self) -> None:
        """Do nothing."""


@contextmanager
def remembering(
    digester: ChunkDigester, folder: Path, header: Header, *, is_fresh: bool, is_local: bool
) -> Iterator["HashMemory | _NoMemory"]:
    """Give *digester* a memory in *folder* for the time of the block.

    Args:
        digester: Whose threads are to use it.
        folder: Of the manifests; locked by the caller.
        header: Of the manifests; tells runs of different kinds apart.
        is_fresh: Forget what earlier runs have read.
        is_local: Whether those threads are of this process; if not, nothing is remembered.
    """
    if not is_local:
        yield _NoMemory()
        return
    options = {"algorithm": header.algorithm, "root": header.root, **header.options}
    options.pop(LABEL_OPTION, None)  # it changes nothing that is remembered
    memory = HashMemory(folder, options, is_fresh=is_fresh, is_remote=digester.is_remote)
    digester.memory = memory
    try:
        yield memory
    finally:
        memory.close()
