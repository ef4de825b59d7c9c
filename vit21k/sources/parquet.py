"""Parquet files with image bytes: all images with their labels, and random access to one.

An image in a page that is not compressed is located by its offset in the file, as a member of a
tar is.  Any other is located by its row: pyarrow decodes the row group up to it.

Memory: 32 MiB for each processor, or what one thread needs: a page as it is stored, the same
decompressed, and a batch of rows, 4 MiB or the largest image.
Source of the format: https://parquet.apache.org/docs/file-format/
"""

import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from itertools import islice, repeat
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vit21k.errors import ImageError
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.sources.container import (
    ByteSource,
    ContainerItems,
    LabelOptions,
)
from vit21k.sources.parquet_format import (
    DICTIONARY,
    HOP_BYTES,
    ColumnChunk,
    Footer,
    plain_values,
    read_pages,
)
from vit21k.sources.rows import (
    DAMAGE,
    MEMORY,
    ArrowFile,
    Budget,
    DamagedError,
    RowItems,
    Value,
    bytes_of,
    columns_with_images,
    flaw_from,
    names_and_labels,
    values_of,
)
from vit21k.sources.tar import (
    MAX_RATIO,
    RATIO_COUNTS_FROM,
    SeekableSource,
    Window,
)

_BATCH_BYTES = 1 << 22
_MAX_BATCH_ROWS = 256
_MAX_SHARED = 16  # rows of a batch that refer to the largest value of a dictionary, as a guess
_BUFFER_BYTES = 1 << 20


_Row = tuple[Value | None, Any, Any]
"""A row: its image, what that was called, and its label or labels."""


def read_parquet(source: ByteSource, path: str, labels: LabelOptions) -> ContainerItems:
    """Yield the images of a Parquet file, and what is wrong with its rows and row groups.

    Args:
        source: The file.
        path: Of the file, relative to the root.
        labels: Where the class of an image comes from.

    Raises:
        LayoutError: Its columns are ambiguous, or its labels have no names.
        OSError: It cannot be read.
    """
    try:
        reader = _Reader(source, path, labels)
    except DAMAGE as error:
        yield Problem(path, *flaw_from(error))
        return
    for group in range(reader.num_groups):
        try:
            yield from reader.items(group)
        except DAMAGE as error:
            flaw = flaw_from(error, f"row group {group}: ")
            yield Problem(path, *flaw)
            if flaw[0] is ProblemKind.ARCHIVE_BOMB:
                return


class _Reader:
    """Reads the images of a file, row group by row group."""

    def __init__(self, source: ByteSource, path: str, labels: LabelOptions) -> None:
        self._file = OpenParquet(source)
        self._footer = self._file.footer
        self._columns = columns_with_images(self._file.schema, labels, path)
        self._items = RowItems(self._columns, labels, path)
        self._num_unpacked = 0
        self.num_groups = len(self._footer.row_starts) - 1

    def items(self, group: int) -> ContainerItems:
        """Yield the images of a row group."""
        start, stop = self._footer.row_starts[group : group + 2]
        number = start
        for row in islice(self._rows(group), stop - start):
            if row[0] is not None:
                self._count(row[0].num_bytes)
            yield self._items.item(number, *row)
            number += 1
        if number < stop:
            raise DamagedError(f"holds {number - start:,} of {stop - start:,} rows")

    def _rows(self, group: int) -> Iterator[_Row]:
        leaf, others = self._columns.leaf, self._columns.others
        chunk = self._footer.chunks(group, [leaf])[0]
        if chunk.is_plain:
            values = plain_values(self._file.window(chunk.start), chunk.end, chunk.level)
            for value, (name, label) in zip(values, self._cells(group, others), strict=False):
                yield value, name, label
            return
        for batch in self._file.batches(group, [leaf, *others], MEMORY):
            values = values_of(bytes_of(batch[self._columns.image]))
            yield from zip(values, *names_and_labels(batch, self._columns), strict=True)

    def _cells(self, group: int, leaves: Sequence[str]) -> Iterator[tuple[Any, Any]]:
        """Yield name and label of each row of a row group."""
        if not leaves:
            yield from repeat((None, None))
        for batch in self._file.batches(group, leaves):
            yield from zip(*names_and_labels(batch, self._columns), strict=True)

    def _count(self, num_bytes: int) -> None:
        """Count what was unpacked, and end a bomb: a value that many rows refer to."""
        self._num_unpacked += num_bytes
        if self._num_unpacked > max(MAX_RATIO * self._file.num_bytes, RATIO_COUNTS_FROM):
            raise DamagedError("unpacks to over 100 times its size", ProblemKind.ARCHIVE_BOMB)


class OpenParquet:
    """An open Parquet file.

    Attributes:
        footer: Its metadata of column chunks.
        schema: Its columns, as Arrow has them.
        num_bytes: Its size.
    """

    def __init__(self, source: ByteSource) -> None:
        """Read the footer of *source*.

        Raises:
            DamagedError: It is no Parquet file; so do the other exceptions of `DAMAGE` say.
            OSError: It cannot be read.
        """
        self._source = SeekableSource(source)
        self.num_bytes = self._source.num_bytes
        self.footer = Footer(self._source)
        self._file = pq.ParquetFile(
            ArrowFile(self._source), buffer_size=_BUFFER_BYTES, page_checksum_verification=True
        )
        self.schema: pa.Schema = self._file.schema_arrow

    def window(self, offset: int) -> Window:
        """Return a window at *offset* of the file."""
        return Window(self._source, offset)

    def batches(
        self, group: int, leaves: Sequence[str], memory: Budget | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield columns of a row group, as many rows at a time as fit into memory.

        Args:
            group: Its number.
            leaves: Names of columns, or of fields of columns, which come without the others.
            memory: What is needed is taken of it until the last batch; None: it is not counted.

        Raises:
            DamagedError: Its pages make no sense, or unpack to far too much.
        """
        num_rows, num_bytes = self._plan(self.footer.chunks(group, leaves))
        with memory.taken(num_bytes) if memory else nullcontext():
            yield from self._file.iter_batches(
                num_rows, row_groups=[group], columns=leaves, use_threads=False
            )

    def _plan(self, chunks: Sequence[ColumnChunk]) -> tuple[int, int]:
        """Return how many rows of *chunks* to decode at a time, and the memory that it takes."""
        per_row, largest = 1, 0
        for chunk in chunks:
            window = Window(self._source, chunk.start, window_bytes=HOP_BYTES)
            pages = list(read_pages(window, chunk.end))
            num_bytes = sum(page.unpacked_bytes for page in pages)
            if num_bytes > max(MAX_RATIO * (chunk.end - chunk.start), RATIO_COUNTS_FROM):
                detail = f"{chunk.end - chunk.start:,} bytes unpack to {num_bytes:,}"
                raise DamagedError(detail, ProblemKind.ARCHIVE_BOMB)
            shared = sum(page.unpacked_bytes for page in pages if page.kind == DICTIONARY)
            per_row += num_bytes // max(chunk.num_values, 1) + shared // _MAX_SHARED
            page_bytes = (page.num_bytes + page.unpacked_bytes for page in pages)
            largest = max(largest, *page_bytes, 0)
        num_rows = min(max(_BATCH_BYTES // per_row, 1), _MAX_BATCH_ROWS)
        return num_rows, largest + num_rows * per_row


# ---- random access

_GROUP_BYTES = 1 << 27
_CACHE_BYTES = 1 << 28
_CHANGED = "the file has changed since it was hashed; run `vit21k hash` again"


class ParquetRows:
    """Reads single rows of a Parquet file; thread-safe.

    Decoded rows are kept, 128 MiB of a row group and 256 MiB of all files together, so that rows
    that are read in their order are decoded once.
    """

    def __init__(self, open_file: Callable[[], ByteSource]) -> None:
        """Make an instance for a file, which is opened when a row is first read."""
        self._open_file = open_file
        self._lock = threading.Lock()
        self._source: ByteSource | None = None

    def __del__(self) -> None:
        if self._source is not None:
            self._source.close()

    @cached_property
    def _file(self) -> OpenParquet:
        if self._source is None:
            self._source = self._open_file()
        return OpenParquet(self._source)

    def read(self, column: str, row: int, num_bytes: int | None = None) -> bytes:
        """Return the image in a *row* of the file, from a *column* of structs or bytes.

        Args:
            column: Its name.
            row: Its number in the file.
            num_bytes: How many it has; None: any number.

        Raises:
            ImageError: There is none, or its row group is damaged.
            OSError: It cannot be read.
        """
        try:
            with self._lock:
                content = self._read(column, row)
        except DAMAGE as error:
            raise _image_error(error) from error
        if content is None or num_bytes not in (None, len(content)):
            raise ImageError(f"row {row:,} holds another image, or none", hint=_CHANGED)
        return content

    def _read(self, column: str, row: int) -> bytes | None:
        starts = self._file.footer.row_starts
        group = bisect_right(starts, row) - 1
        if not 0 <= group < len(starts) - 1:
            return None
        decoded = _decoded_groups.get(
            (self, column, group), lambda: _DecodedGroup(partial(self._decode, column, group))
        )
        content = decoded.read(row - starts[group])
        _decoded_groups.trim()
        return content

    def _decode(self, column: str, group: int) -> Iterator[pa.Array]:
        """Yield the images of a row group, some rows at a time."""
        is_struct = pa.types.is_struct(self._file.schema.field(column).type)
        for batch in self._file.batches(group, [f"{column}.bytes" if is_struct else column]):
            yield bytes_of(batch[column])


class _DecodedGroup:
    """Rows of a row group, decoded as far as they were asked for; of a large one the last ones."""

    def __init__(self, decode: Callable[[], Iterator[pa.Array]]) -> None:
        self._decode = decode
        self._restart()

    def _restart(self) -> None:
        self._coming = self._decode()
        self._held: deque[pa.Array] = deque()
        self._start = self._stop = self.num_bytes = 0

    def read(self, row: int) -> bytes | None:
        """Return the image in *row* of the group; None if there is none."""
        if row < self._start:
            self._restart()
        while row >= self._stop:
            if (coming := next(self._coming, None)) is None:
                return None
            self._hold(coming)
        row -= self._start
        for images in self._held:
            if row < len(images):
                content: bytes | None = images[row].as_py()
                return content
            row -= len(images)
        return None

    def _hold(self, images: pa.Array) -> None:
        self._held.append(images)
        self._stop += len(images)
        self.num_bytes += images.nbytes
        while self.num_bytes > _GROUP_BYTES and len(self._held) > 1:
            oldest = self._held.popleft()
            self._start += len(oldest)
            self.num_bytes -= oldest.nbytes


class _DecodedGroups:
    """The decoded row groups of all files, those used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._groups: OrderedDict[Hashable, _DecodedGroup] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], _DecodedGroup]) -> _DecodedGroup:
        """Return the group called *key*, which *make* makes if need be."""
        with self._lock:
            group = self._groups.pop(key, None) or make()
            self._groups[key] = group
        return group

    def trim(self) -> None:
        """Forget those that were not used for the longest time, if all are too large."""
        with self._lock:
            num_bytes = sum(group.num_bytes for group in self._groups.values())
            while num_bytes > _CACHE_BYTES and len(self._groups) > 1:
                _, oldest = self._groups.popitem(last=False)
                num_bytes -= oldest.num_bytes


_decoded_groups = _DecodedGroups()


def _image_error(error: Exception) -> ImageError:
    _, detail = flaw_from(error)
    return ImageError(f"its Parquet file is damaged: {detail}", hint=_CHANGED)
