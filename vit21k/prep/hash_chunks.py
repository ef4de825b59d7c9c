"""Chunks of a source -> rows of digests.parquet and problems.parquet, in a thread pool."""

import os
import random
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k import machine
from vit21k.errors import printable
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.manifest.writer import ManifestWriter
from vit21k.prep.file_digest import (
    BUFFER_BYTES,
    NOT_IMAGES,
    WHOLE_BYTES,
    FileDigest,
    FileReader,
    no_image,
)
from vit21k.prep.hash_archives import (
    HashedMembers,
    KnownMembers,
    UnusableError,
    cache_key,
    cache_members,
    cached_members,
    differing_members,
    hash_container,
    is_small,
    problem_of_superseded,
)
from vit21k.prep.hash_cache import HashCache
from vit21k.prep.hash_containers import cache_chunks, cached_chunks, chunks_of_items, hash_items
from vit21k.prep.scan import (
    FORMATS,
    HAS_CONTENT,
    HAS_DIGEST,
    HAS_FACTS,
    HAS_PROBE,
    LOOKED_FOR_END,
    ROW,
    SAW_END,
    ChunkFiles,
    FileRows,
    HashedChunk,
    Rows,
    bytes_read,
    compiled_reader_for,
    have,
)
from vit21k.sources.archive_file import ArchiveFile, ContainerFiles, DiskFiles, FileStatus
from vit21k.sources.container import TAR, ContainerRange
from vit21k.sources.detect import CLASS_FOLDERS, SourceLayout
from vit21k.sources.folders import Chunk, Walker, problem_from
from vit21k.sources.gzip_tar import GzipIndex, IndexFolder


def arrow_array(values: Sequence[Any], dtype: pa.DataType) -> pa.Array:
    """Return *values* as an array of *dtype*; None becomes null.

    Args:
        values: Integers, booleans, strings, or bytes of one length.
        dtype: A fixed-width integer, boolean, string, or fixed-size binary type.
    """
    validity = _validity(values)
    if pa.types.is_string(dtype):
        buffers = _text_buffers(values)
    elif pa.types.is_boolean(dtype):
        buffers = [_bits(np.fromiter(map(bool, values), bool, len(values)))]
    elif pa.types.is_fixed_size_binary(dtype):
        blank = bytes(dtype.byte_width)
        buffers = [pa.py_buffer(b"".join([value or blank for value in values]))]
    else:
        numbers = [value or 0 for value in values] if validity else values
        buffers = [pa.py_buffer(np.fromiter(numbers, dtype.to_pandas_dtype(), len(values)))]
    return pa.Array.from_buffers(dtype, len(values), [validity, *buffers])


def array_of_numbers(
    values: NDArray[Any], dtype: pa.DataType, is_valid: NDArray[np.bool_] | None = None
) -> pa.Array:
    """Return *values* as an array of *dtype*.

    Args:
        values: Booleans, or items of as many bytes as those of *dtype*; may be strided.
        dtype: A fixed-width integer, boolean, or fixed-size binary type.
        is_valid: Which of them are not null; default: all.
    """
    validity = None if is_valid is None or is_valid.all() else _bits(is_valid)
    if pa.types.is_boolean(dtype):
        data = _bits(values)
    else:
        data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(dtype, len(values), [validity, data])


def array_of_texts(texts: Sequence[str], indices: NDArray[np.integer]) -> pa.Array:
    """Return those of *texts* at *indices*, null for -1, as an array of strings."""
    encoded = [*(text.encode() for text in texts), b""]  # -1 is the last
    lengths = np.array([len(text) for text in encoded])[indices]
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
    is_valid = indices >= 0
    validity = None if is_valid.all() else _bits(is_valid)
    data = b"".join([encoded[index] for index in indices.tolist()])
    buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.string(), len(indices), buffers)


def _validity(values: Sequence[Any]) -> pa.Buffer | None:
    if None not in values:
        return None
    return _bits(np.fromiter((value is not None for value in values), bool, len(values)))


def _bits(flags: np.ndarray) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def _text_buffers(values: Sequence[str | None]) -> list[pa.Buffer]:
    joined = "\0".join([*(value or "" for value in values), ""]).encode()
    ends = np.flatnonzero(np.frombuffer(joined, np.uint8) == 0)
    if len(ends) == len(values):
        data, ends = joined.replace(b"\0", b""), ends - np.arange(len(ends))
    else:  # there is a 0 in one of them
        texts = [value.encode() if value else b"" for value in values]
        data, ends = b"".join(texts), np.cumsum([len(text) for text in texts])
    offsets = np.append(0, ends).astype(np.int32)
    return [pa.py_buffer(offsets), pa.py_buffer(data)]


__all__ = ["BUFFER_BYTES", "ChunkHasher", "FileDigest", "HashedChunk"]

_FILE_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # O_NONBLOCK: opening a pipe does not wait
_FOLDER_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY


class _FolderError(Exception):
    def __init__(self, reason: OSError) -> None:
        super().__init__(reason)
        self.reason = reason


class ChunkHasher:
    """Hashes chunks; thread-safe.

    Attributes:
        root: The image root; opened read-only.
        follow_symlinks: Whether symbolic links are followed.
        file_flags: Flags that files are opened with.
        algorithm: Hash algorithm.
        compiled: Reads the regular files of a chunk; None without the compiled extension.
        reader: Reads all other files, one by one.
        cache: Hashes of earlier runs; None: no cache.
        recheck: Fraction of the cached files to re-read anyway, 0 to 1.
        files: Opens containers below the root.
        is_remote: Whether another machine's clock sets the times of files (network file systems).
        compares_inodes: Whether inodes and status-change times are reliable.
        is_stopped: Set it to stop chunks in progress at their next file.
        layout: Where the class of an image comes from.
        indices: Where the indices of compressed tars are kept; None: nowhere.
        prefetches: Set it to read ahead all files of a chunk before the first one is read.
    """

    only_ends = False
    """Whether only head and tail of a file are hashed unless more is needed (quick runs)."""
    num_ahead = 0
    """Containers that are opened before their turn."""
    caches_known = True
    """Whether files found in the cache are written to the new cache."""

    def __init__(
        self,
        root: bytes,
        *,
        algorithm: str,
        follow_symlinks: bool = False,
        layout: SourceLayout = CLASS_FOLDERS,
        is_remote: bool = False,
        recheck: float = 0.0,
    ) -> None:
        no_follow = 0 if follow_symlinks else os.O_NOFOLLOW
        self.root = root.rstrip(b"/") + b"/"
        self.follow_symlinks = follow_symlinks
        self.is_stopped = False
        self.prefetches = False
        self.recheck = recheck
        self.is_remote = is_remote
        self.compares_inodes = not is_remote
        self.cache: HashCache | None = None
        self.indices: IndexFolder | None = None
        self.layout = layout
        self.file_flags = _FILE_FLAGS | no_follow
        self.files: ContainerFiles = DiskFiles(self.root, self.file_flags)
        self.reader = FileReader(algorithm, self.file_flags)
        self.algorithm = algorithm
        self.compiled = compiled_reader_for(algorithm)
        self._folder_flags = _FOLDER_FLAGS | no_follow

    def __getstate__(self) -> dict[str, Any]:
        # what is valid on this machine only
        return {
            **vars(self),
            "cache": None,
            "indices": None,
            "compiled": None,
        }  # valid on this machine only

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.compiled = compiled_reader_for(self.algorithm)

    @property
    def is_concurrent(self) -> bool:
        """Whether threads run in parallel: one call without the interpreter's lock per chunk."""
        return self.compiled is not None

    def walker(self) -> Walker:
        """Return what lists the source."""
        walker = Walker(self.root, follow_symlinks=self.follow_symlinks)
        if self.compiled:
            walker.list_files = self.compiled.list_files
        return walker

    def __call__(self, chunk: Chunk) -> HashedChunk:
        """Hash the entries of *chunk*.

        Raises:
            OSError: This process has run out of file descriptors or memory.
        """
        if chunk.container is not None and chunk.container.superseded_by:
            superseded_by = problem_of_superseded(self.files, chunk.container)
            return HashedChunk("", chunk.fraction, problems=[superseded_by])
        if chunk.container is not None and chunk.container.kind == TAR:
            return self._hash_tar(chunk.container, chunk.fraction)
        if chunk.container is not None:
            return self._hash_container(chunk.container, chunk.fraction)
        if self.layout.name != CLASS_FOLDERS.name:
            return HashedChunk("", chunk.fraction, problems=_outside_containers(chunk))
        return self._hash_folder(chunk)

    def _hash_folder(self, chunk: Chunk) -> HashedChunk:
        folder = printable(chunk.folder)
        done = HashedChunk(self.layout.class_of(folder), chunk.fraction)
        if all(problem for _, problem in chunk.entries):
            done.problems += [problem for _, problem in chunk.entries if problem]
            return done
        try:
            with self.open_folder(chunk) as files:
                self._hash_entries(chunk, files, done)
        except _FolderError as error:
            for name, problem in chunk.entries:
                done.problems.append(problem or problem_from(chunk.folder + name, error.reason))
        return done

    @contextmanager
    def open_folder(self, chunk: Chunk) -> Iterator[ChunkFiles]:
        """Yield the files of *chunk* that are to be read.

        Raises:
            _FolderError: Their folder cannot be opened.
        """
        try:
            descriptor = os.open(self.root + chunk.folder, self._folder_flags)
        except OSError as error:
            raise _FolderError(error) from error
        try:
            yield ChunkFiles(descriptor, chunk.names_to_read)
        finally:
            os.close(descriptor)

    def _hash_tar(self, container: ContainerRange, fraction: float) -> HashedChunk:
        try:
            file = self.files.open(container.path)
        except OSError as error:
            return HashedChunk("", fraction, problems=[problem_from(container.name, error)])
        read_at = self.cache.now() if self.cache else 0
        with file:
            status = file.status
            known = self._cached_members(container, file)
            if known and random.random() >= self.recheck:  # noqa: S311
                chunks = self._known_chunks(container, fraction, known)
                return _joined(iter(self._noted(container, status, chunks, read_at)))

            digest = partial(self._digest_member, mtime_ns=status.st_mtime_ns)
            save = partial(self._save_index, container, file)
            found = hash_container(container, file, digest, lambda: self.is_stopped, save)
            first = next(found)  # after the container is read completely
        parts = chain((first,), found)
        chunks = (self._members_chunk(container, fraction, members) for members in parts)
        if self.cache and not self.is_stopped and is_small(container, status):
            held = self._noted(container, status, chunks, read_at)
            held[0].silently_changed = differing_members(known, held)
            chunks = iter(held)
        return _joined(chunks)

    def _digest_member(self, content: memoryview | bytes, mtime_ns: int) -> FileDigest | bytes:
        view = memoryview(content)
        if self.compiled and not self.only_ends and len(view) < WHOLE_BYTES:
            row = self.compiled.describe(view, mtime_ns)
            if row is not None:
                return row
        digest, facts = self.reader.describe(content, view)
        if facts.format in NOT_IMAGES:
            raise UnusableError(*no_image(facts))
        if len(view) >= WHOLE_BYTES:
            facts = facts._replace(content_digest=None, has_end=None)
        probe = self.reader.probe_of(view) if self.only_ends else None
        return FileDigest(len(view), mtime_ns, digest, facts, probe=probe)

    def _hash_container(self, container: ContainerRange, fraction: float) -> HashedChunk:
        path = container.path.decode()
        try:
            file = self.files.open(container.path)
        except OSError as error:
            return HashedChunk("", fraction, problems=[problem_from(container.name, error)])
        read_at = self.cache.now() if self.cache else 0
        with file:
            status = file.status
            key = cache_key(
                container, status, self.layout.cached_by, is_remote=not self.compares_inodes
            )
            known = cached_chunks(self.cache, key, status, path, fraction) if self.cache else []
            if self.cache and known and random.random() >= self.recheck:  # noqa: S311
                cache_chunks(self.cache, key, status, known, read_at)
                return _joined(iter(known))
            items = self.layout.read(container.kind, file, path)
            digest = partial(self._digest_member, mtime_ns=status.st_mtime_ns)
            found = hash_items(items, path, digest, lambda: self.is_stopped)
            first = next(found)  # after the container is read completely
            if file.status != status:
                problem = Problem(path, ProblemKind.CHANGED_WHILE_READ, "")
                return HashedChunk("", fraction, problems=[problem])
        chunks = chunks_of_items(chain([first], found), path, fraction)
        if self.cache and not self.is_stopped and is_small(container, status):
            held = list(chunks)
            cache_chunks(self.cache, key, status, held, read_at)
            held[0].silently_changed = differing_members(known, held)
            chunks = iter(held)
        return _joined(chunks)

    def _noted(
        self,
        container: ContainerRange,
        status: FileStatus,
        chunks: Iterator[HashedChunk],
        read_at: int,
    ) -> list[HashedChunk]:
        held = list(chunks)
        if self.cache:
            cache_members(
                self.cache,
                container,
                status,
                held,
                is_remote=not self.compares_inodes,
                read_at=read_at,
            )
        return held

    def _known_chunks(
        self, container: ContainerRange, fraction: float, known: Sequence[KnownMembers]
    ) -> Iterator[HashedChunk]:
        for folder, paths, storages, files in known:
            yield HashedChunk(
                self.layout.class_of(folder),
                fraction,
                paths=paths,
                files=files,
                num_known=len(files),
                container=container.path.decode(),
                offsets=files.array["inode"].tolist(),
                storages=storages if any(storages) else (),
            )

    def _members_chunk(
        self,
        container: ContainerRange,
        fraction: float,
        members: HashedMembers[FileDigest | bytes],
    ) -> HashedChunk:
        files = FileRows.of(members.digests)
        return HashedChunk(
            self.layout.class_of(members.folder),
            fraction,
            paths=[members.folder + name for name in members.names],
            files=files,
            num_bytes_read=int(files.array["num_bytes"].sum()),
            problems=members.problems,
            container=container.path.decode(),
            offsets=members.offsets,
            storages=members.storages,
        )

    def _cached_members(self, container: ContainerRange, file: ArchiveFile) -> list[KnownMembers]:
        """Return what earlier runs read; nothing if reading it again would make its index."""
        is_indexed = not self.indices or not self.indices.lacks(container.path.decode(), file)
        if self.cache is None or not is_indexed:
            return []
        return cached_members(
            self.cache, container, file.status, is_remote=not self.compares_inodes
        )

    def _save_index(self, container: ContainerRange, file: ArchiveFile, index: GzipIndex) -> None:
        if self.indices:
            self.indices.save(container.path.decode(), file, index)

    def _hash_entries(self, chunk: Chunk, files: ChunkFiles, done: HashedChunk) -> None:
        read_at = self.cache.now() if self.cache else 0
        before = self._find_known(files, chunk.folder)
        self.prefetch(files, only_ends=self.only_ends)
        is_known = files.are_done
        self.read(files, only_ends=self.only_ends)
        changed = files.differing(before) if before is not None else []
        done.silently_changed = [(chunk.folder + name).decode() for name in changed]
        done.num_known = int(is_known.sum())
        done.num_bytes_read = int(bytes_read(files.rows[files.are_done & ~is_known]).sum())
        self.read_more(files, done)
        noted = files.put_into(done, chunk)
        if self.cache and (self.caches_known or done.num_known < len(noted.names)):
            self.cache.add(chunk.folder, noted, read_at)

    def _find_known(self, files: ChunkFiles, folder: bytes) -> Rows | None:
        """Mark files as done that are unchanged since an earlier run.

        Returns:
            Rows of cached files that are re-read anyway; None if there are none.
        """
        if self.cache is None:
            return None
        known = self.cache.recall(folder, files.names[0], files.names[-1])
        if not known.names:
            return None
        files.take_known(known)
        self.check(files)
        return files.forget_some(self.recheck)

    def check(self, files: ChunkFiles) -> None:
        """Mark cached files as done that have not changed."""
        by_all = self.compares_inodes
        if self.compiled:
            self.compiled.check(files, self.file_flags, by_all=by_all)
        else:
            files.check(follow_symlinks=self.follow_symlinks, by_all=by_all)

    def prefetch(self, files: ChunkFiles, *, only_ends: bool) -> None:
        """Start reading ahead the files that are to be read, if `prefetches` is set."""
        if self.prefetches and self.compiled:
            self.compiled.prefetch(files, self.file_flags, only_ends=only_ends)
        elif self.prefetches:
            for index in files.indices_to_do():
                self.reader.prefetch(files.names[index], files.folder, only_ends=only_ends)

    def read(self, files: ChunkFiles, *, only_ends: bool) -> None:
        """Read the files that are to be read: completely, or only head and tail."""
        if self.compiled and not self.is_stopped:
            self.compiled.read(files, self.file_flags, only_ends=only_ends)
        read = self.reader.probe if only_ends else self.reader.digest
        for index in files.indices_to_do():
            if self.is_stopped:
                break
            files.put(index, read(files.names[index], files.folder))

    def read_more(self, files: ChunkFiles, done: HashedChunk) -> None:
        """Read more of *files* after that; for quick runs."""


def _outside_containers(chunk: Chunk) -> list[Problem]:
    """Return what is wrong with plain files of a source whose images are in containers."""
    return [
        problem
        or Problem(printable(chunk.folder + name), ProblemKind.LABEL_MISSING, "in no container")
        for name, problem in chunk.entries
    ]


def _joined(chunks: Iterator[HashedChunk]) -> HashedChunk:
    """Return the first of *chunks* with the others as its `more`."""
    done = next(chunks)
    done.more = chunks
    return done


_BATCH_ROWS = 4_096
_DIGESTS = {"digest": HAS_DIGEST, "content_digest": HAS_CONTENT, "probe": HAS_PROBE}


def digest_rows(chunks: Sequence[HashedChunk]) -> pa.Table:
    """Return the files of *chunks* as rows."""
    # Three times as fast as `np.concatenate`.
    rows = np.frombuffer(b"".join([chunk.files.array.tobytes() for chunk in chunks]), ROW)
    columns = {**file_columns(rows), **_columns_of_chunks(chunks)}
    arrays = [columns[field.name] for field in DIGESTS.schema]
    return pa.Table.from_arrays(arrays, schema=DIGESTS.schema)


def file_columns(rows: Rows) -> dict[str, pa.Array]:
    """Return the columns of `digests.parquet` that describe the content of files."""
    types = {field.name: field.type for field in DIGESTS.schema}
    columns = {
        name: array_of_numbers(rows[name], types[name], have(rows, flag))
        for name, flag in _DIGESTS.items()
    }
    for name in ("num_bytes", "mtime_ns"):
        columns[name] = array_of_numbers(rows[name], types[name])
    has_facts = have(rows, HAS_FACTS)
    for name in ("width", "height", "components"):
        numbers = rows[name].astype(np.int32)
        columns[name] = array_of_numbers(numbers, types[name], has_facts & (numbers != 0))
    looked = have(rows, LOOKED_FOR_END)
    columns["has_end"] = array_of_numbers(have(rows, SAW_END), types["has_end"], looked)
    columns["format"] = array_of_texts(FORMATS, _indices(rows["format"], has_facts))
    return columns


def _columns_of_chunks(chunks: Sequence[HashedChunk]) -> dict[str, pa.Array]:
    num_files = [len(chunk.files) for chunk in chunks]
    in_container = np.repeat([chunk.container is not None for chunk in chunks], num_files)
    offsets = [at for chunk in chunks for at in chunk.offsets or [0] * len(chunk.files)]
    return {
        "path": arrow_array([path for chunk in chunks for path in chunk.paths], pa.string()),
        "wnid": _per_row([chunk.wnids or chunk.wnid for chunk in chunks], num_files),
        "container": _per_row([chunk.container for chunk in chunks], num_files),
        "offset": array_of_numbers(np.array(offsets, np.int64), pa.int64(), in_container),
        "storage": _per_row([chunk.storages or None for chunk in chunks], num_files),
        "source_split": _per_row([chunk.source_split for chunk in chunks], num_files),
    }


def _per_row(values: Sequence[str | Sequence[str | None] | None], num_rows: list[int]) -> pa.Array:
    """Return a string column.

    Args:
        values: Of each chunk: the value of all its rows, or those of each.
        num_rows: Of each chunk.
    """
    if all(value is None for value in values):
        return pa.nulls(sum(num_rows), pa.string())
    if not all(value is None or isinstance(value, str) for value in values):
        rows = [
            [value] * count if value is None or isinstance(value, str) else value
            for value, count in zip(values, num_rows, strict=True)
        ]
        return arrow_array(list(chain.from_iterable(rows)), pa.string())
    is_valid = np.repeat([value is not None for value in values], num_rows)
    chunk = np.repeat(np.arange(len(values)), num_rows)
    return array_of_texts([str(value or "") for value in values], _indices(chunk, is_valid))


def _indices(numbers: NDArray[np.integer], is_valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return *numbers*, -1 where they are not valid."""
    return np.where(is_valid, numbers.astype(np.int64), -1)


def problem_rows(problems: Sequence[Problem]) -> pa.Table:
    """Return *problems* as rows of `problems.parquet`."""
    columns = zip(*problems, strict=True)
    arrays = [arrow_array(list(map(str, column)), pa.string()) for column in columns]
    return pa.Table.from_arrays(arrays, schema=PROBLEMS.schema)


class RowWriter:
    """Collects hashed chunks and writes them in batches."""

    def __init__(self, digests: ManifestWriter, problems: ManifestWriter) -> None:
        self._digests = digests
        self._problems = problems
        self._chunks: list[HashedChunk] = []
        self._num_waiting = 0

    def add(self, chunk: HashedChunk) -> None:
        """Add a hashed chunk."""
        self._chunks.append(chunk)
        self._num_waiting += len(chunk.files) + len(chunk.problems)
        if self._num_waiting >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the collected chunks."""
        if digests := [chunk for chunk in self._chunks if chunk.files]:
            self._digests.write(digest_rows(digests))
        if problems := [problem for chunk in self._chunks for problem in chunk.problems]:
            self._problems.write(problem_rows(problems))
        self._chunks = []
        self._num_waiting = 0


_NUM_WORKERS = 8
_NUM_LOCKED_WORKERS = 2  # more would wait for the interpreter's lock
_NUM_REMOTE_WORKERS = 32  # opening a file takes a round trip

_CHUNKS_PER_WORKER = 4
_WAITS, _WAITING_S = 3.0, 0.02
"""A chunk waited for input if its wall time is this multiple of its CPU time, and that many seconds
longer; shorter waits are for the interpreter's lock."""
_PATIENCE = 16
"""Chunks per worker without a disk read after which files are considered cached."""

Engine = Callable[[ChunkHasher, Iterator[Chunk], int], Iterator[HashedChunk]]
"""(hasher, chunks, number of workers) -> hashed chunks, in order."""


class Hasher(Protocol):
    """Hashes chunks, thread-safe: a `ChunkHasher`, or one for URLs."""

    is_stopped: bool
    prefetches: bool
    is_remote: bool

    @property
    def is_concurrent(self) -> bool:
        """Whether threads run in parallel: most work is done without the interpreter's lock."""

    def __call__(self, chunk: Chunk, /) -> HashedChunk:
        """Hash *chunk*."""


def suitable_workers(hasher: ChunkHasher) -> int:
    """Return the number of chunks to read concurrently."""
    if hasher.is_remote:
        return _NUM_REMOTE_WORKERS
    return _NUM_WORKERS if hasher.is_concurrent else _NUM_LOCKED_WORKERS


class _Pace:
    """Estimates from the times of chunks whether files are cached or waited for."""

    def __init__(self, num_workers: int, *, is_remote: bool = False) -> None:
        self.is_waiting = is_remote
        self._is_remote = is_remote
        self._patience = num_workers * _PATIENCE
        self._num_cached = 0

    def note(self, wall_s: float, cpu_s: float, num_disk_reads: int) -> None:
        """Add the times of a chunk, of its thread, and its number of disk reads."""
        if num_disk_reads or wall_s > max(_WAITS * cpu_s, cpu_s + _WAITING_S):
            self.is_waiting = True
        self._num_cached = 0 if num_disk_reads else self._num_cached + 1
        if self._num_cached > self._patience:
            self.is_waiting = self._is_remote
            self._num_cached = 0

    def measured(self, hasher: Hasher, chunk: Chunk) -> HashedChunk:
        """Hash *chunk* and add its times."""
        wall, cpu, reads = time.perf_counter(), time.thread_time(), _num_disk_reads()
        done = hasher(chunk)
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
        self.note(wall, cpu, _num_disk_reads() - reads)
        return done


def hash_in_threads(
    hasher: Hasher, chunks: Iterator[Chunk], num_workers: int
) -> Iterator[HashedChunk]:
    """Hash *chunks* in threads; yield them in order.

    Args:
        hasher: Shared by all threads.
        chunks: Consumed a bounded number ahead.
        num_workers: Most chunks that are read concurrently.
    """
    under_way: deque[Future[HashedChunk]] = deque()
    pace = _Pace(num_workers, is_remote=hasher.is_remote)
    num_few = min(num_workers, machine.num_threads())
    with (  # a pool starts its threads when needed
        ThreadPoolExecutor(num_few, thread_name_prefix="hash") as few,
        ThreadPoolExecutor(num_workers, thread_name_prefix="hash") as many,
    ):
        try:
            for chunk in chunks:
                hasher.prefetches = pace.is_waiting
                waits = pace.is_waiting or chunk.container is not None
                if not hasher.is_concurrent and not waits:
                    while under_way:
                        yield under_way.popleft().result()
                    yield pace.measured(hasher, chunk)
                    continue
                pool, num_threads = (many, num_workers) if waits else (few, num_few)
                under_way.append(pool.submit(pace.measured, hasher, chunk))
                while len(under_way) >= num_threads * _CHUNKS_PER_WORKER:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            hasher.is_stopped = True
            few.shutdown(cancel_futures=True)
            many.shutdown(cancel_futures=True)


def _num_disk_reads() -> int:
    """Return the number of disk reads of this thread so far; 0 where unknown."""
    who = getattr(resource, "RUSAGE_THREAD", None)  # Linux
    return resource.getrusage(who).ru_inblock if who is not None else 0
