"""Containers of labelled images (WebDataset shards, zips, Parquet files) -> rows in path order.

A reader yields the images of a container in the container's order.  They are hashed as they
come, and sorted: in memory, or in the temporary folder if there are very many.
"""

import heapq
import pickle
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby, islice
from typing import NamedTuple, Self

import numpy as np

from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.prep.file_digest import FileDigest
from vit21k.prep.hash_archives import UnusableError, in_temporary_folder
from vit21k.prep.hash_cache import HashCache
from vit21k.prep.scan import FileRows, HashedChunk, NamedRows
from vit21k.sources.archive_file import FileStatus
from vit21k.sources.container import ContainerImage, ContainerItems
from vit21k.sources.folders import problem_from

Digest = Callable[[memoryview | bytes], FileDigest | bytes]
"""Returns what is known of an image, or its packed row; may raise `UnusableError`."""

_RUN_ROWS = 1 << 16
_PIECE_ROWS = 1 << 10
_CHUNK_ROWS = 1 << 12
_IN_MEMORY_BYTES = 1 << 25


class Row(NamedTuple):
    """An image in a container, or a path whose last image is of no use.

    Attributes:
        path: Relative to the root.
        number: Counts the images of the container, in its order.
        offset: As in `ContainerImage`.
        num_bytes: Size of the image.
        labels: Its classes.
        storage: As in `ContainerImage`.
        split: Published split.
        file: What is known of it; None if it is of no use.
    """

    path: bytes
    number: int
    offset: int
    num_bytes: int
    labels: tuple[str, ...]
    storage: str | None
    split: str | None
    file: FileDigest | bytes | None


class _Sorter:
    """Sorts rows: the last ones in memory, others as sorted runs in an unnamed file.

    Raises:
        TemporaryFolderError: That file cannot be made, written or read.
    """

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115
        self._runs: list[list[int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what it has not written yet no longer counts
            self._file.close()

    def add(self, row: Row) -> None:
        """Add *row*."""
        self._rows.append(row)
        if len(self._rows) == _RUN_ROWS:
            self._spill()

    def in_order(self) -> Iterator[Row]:
        """Yield all rows by path, those of one path in their order."""
        self._rows.sort(key=_order)
        return heapq.merge(*map(self._read, self._runs), self._rows, key=_order)

    def _spill(self) -> None:
        self._rows.sort(key=_order)
        offsets = []
        with in_temporary_folder():
            for start in range(0, len(self._rows), _PIECE_ROWS):
                offsets.append(self._file.tell())
                piece = self._rows[start : start + _PIECE_ROWS]
                pickle.dump(piece, self._file, pickle.HIGHEST_PROTOCOL)
        self._runs.append(offsets)
        self._rows = []

    def _read(self, offsets: Sequence[int]) -> Iterator[Row]:
        for place in offsets:
            with in_temporary_folder():
                self._file.seek(place)
                piece: list[Row] = pickle.load(self._file)  # noqa: S301 (what `_spill` wrote)
            yield from piece


def _order(row: Row) -> tuple[bytes, int]:
    return row.path, row.number


def hash_items(
    items: ContainerItems,
    container: str,
    digest: Digest,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Iterator[list[Row] | list[Problem]]:
    """Yield the images of a container by path, and last what is wrong with it.

    All is read before the first is yielded.  Of images with one path the last one counts, even if
    it is of no use.

    Args:
        items: Of a reader.
        container: Its path, for the problem that an error of the system is.
        digest: Of an image's content.
        is_stopped: Asked after each item whether to end, unfinished.

    Raises:
        OSError: This process has run out of file descriptors or memory.
    """
    problems: list[Problem] = []
    with _Sorter() as sorter:
        for number, item in enumerate(_to_the_error(items, container)):
            if is_stopped():
                break
            row = _row_of(item, number, digest, problems)
            if row is not None:
                sorter.add(row)
        rows = _last_of_each(sorter.in_order(), problems)
        while part := list(islice(rows, _CHUNK_ROWS)):
            yield part
    yield sorted(problems)


def _to_the_error(items: ContainerItems, container: str) -> ContainerItems:
    """Yield *items*; an error of the system ends them, and is listed."""
    try:
        yield from items
    except OSError as error:
        yield problem_from(container.encode(), error)


def _row_of(
    item: ContainerImage | Problem, number: int, digest: Digest, problems: list[Problem]
) -> Row | None:
    """Return the row of *item*, if it has one; add what is wrong with it to *problems*."""
    if isinstance(item, Problem):
        problems.append(item)
        is_of_no_use = not item.kind.is_skipped and item.kind is not ProblemKind.DUPLICATE_MEMBER
        return Row(item.path.encode(), number, 0, 0, (), None, None, None) if is_of_no_use else None
    labels = (item.label,) if isinstance(item.label, str) else tuple(sorted(item.label or ()))
    file = None
    if not labels:
        problems.append(Problem(item.path, ProblemKind.UNLABELLED, ""))
    else:
        try:
            file = digest(item.content)
        except UnusableError as error:
            problems.append(Problem(item.path, error.kind, error.detail))
    where = item.path.encode(), number, item.offset, item.num_bytes
    return Row(*where, labels, item.storage, item.split, file)


def _last_of_each(rows: Iterator[Row], problems: list[Problem]) -> Iterator[Row]:
    """Yield the last of *rows* with each path, if it is of use; the others are listed."""
    for _, same in groupby(rows, key=lambda row: row.path):
        *earlier, last = same
        for row in earlier:
            if row.file is not None:
                detail = f"at offset {row.offset:,}"
                problems.append(Problem(row.path.decode(), ProblemKind.DUPLICATE_MEMBER, detail))
        if last.file is not None:
            yield last


def chunks_of_items(
    items: Iterator[list[Row] | list[Problem]], container: str, fraction: float
) -> Iterator[HashedChunk]:
    """Yield what `hash_items` yields as chunks: one for each run of rows of the same split.

    A row with several labels becomes as many rows.
    """
    for rows in items:
        problems = [item for item in rows if isinstance(item, Problem)]
        if problems or not rows:
            yield HashedChunk("", fraction, problems=problems, container=container)
            continue
        images = [row for row in rows if isinstance(row, Row)]
        for split, same in groupby(images, key=lambda row: row.split):
            yield _chunk_of(list(same), split, container, fraction)


def _chunk_of(
    rows: Sequence[Row], split: str | None, container: str, fraction: float
) -> HashedChunk:
    each = [(row, label) for row in rows for label in row.labels]
    has_storage = any(row.storage for row in rows)
    return HashedChunk(
        "",
        fraction,
        paths=[row.path.decode() for row, _ in each],
        files=FileRows.of(row.file for row, _ in each if row.file),
        num_bytes_read=sum(row.num_bytes for row in rows),
        container=container,
        offsets=[row.offset for row, _ in each],
        wnids=[label for _, label in each],
        storages=[row.storage for row, _ in each] if has_storage else (),
        source_split=split,
    )


_SEPARATOR = b"\x1f"
_EVERYTHING = (b"", b"\xff")


def cache_chunks(
    cache: HashCache,
    key: bytes,
    status: FileStatus,
    chunks: Sequence[HashedChunk],
    read_at: int,
) -> None:
    """Cache the rows of a container, all of them in *chunks*, unless something is wrong with it."""
    if any(chunk.problems for chunk in chunks):
        return
    names = [name for chunk in chunks for name in _cached_names(chunk)]
    rows = np.concatenate([chunk.files.array for chunk in chunks])
    rows["ctime_ns"] = status.st_ctime_ns
    rows["inode"] = [offset for chunk in chunks for offset in chunk.offsets]
    cache.add(key, NamedRows(names, rows), read_at)


def _cached_names(chunk: HashedChunk) -> Iterator[bytes]:
    storages = chunk.storages or [None] * len(chunk.paths)
    for wnid, storage, path in zip(chunk.wnids, storages, chunk.paths, strict=True):
        fields = (wnid, storage or "", chunk.source_split or "", path)
        yield _SEPARATOR.join(field.encode() for field in fields)


def cached_chunks(
    cache: HashCache, key: bytes, status: FileStatus, container: str, fraction: float
) -> list[HashedChunk]:
    """Return the rows of a container that an earlier run cached; none unless they are all."""
    names, rows = cache.recall(key, *_EVERYTHING)
    if (rows["mtime_ns"] != status.st_mtime_ns).any():
        return []  # it had changed too shortly before
    found = [
        (path, split.decode(), wnid.decode(), storage.decode() or None, index)
        for index, name in enumerate(names)
        for wnid, storage, split, path in [name.split(_SEPARATOR, 3)]
    ]
    found.sort()
    chunks = []
    for split, same in groupby(found, key=lambda one: one[1]):
        paths, _, wnids, storages, indices = zip(*same, strict=True)
        files = FileRows(rows[list(indices)])
        chunks.append(
            HashedChunk(
                "",
                fraction,
                paths=[path.decode() for path in paths],
                files=files,
                num_known=len(files),
                container=container,
                offsets=files.array["inode"].tolist(),
                wnids=wnids,
                storages=storages if any(storages) else (),
                source_split=split or None,
            )
        )
    return chunks
