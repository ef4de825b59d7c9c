"""Rows of Parquet and Arrow files -> images with their classes, or what is wrong with them."""

import io
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from vit21k.errors import LayoutError
from vit21k.machine import num_threads
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.sources.columns import COLUMN, Columns, columns_of, holds_images, is_text
from vit21k.sources.container import (
    PARQUET,
    UNLABELLED,
    ContainerImage,
    ContainerItem,
    LabelOptions,
    flaw_of_class_name,
    split_of,
)
from vit21k.sources.folders import suffix_of
from vit21k.sources.tar import MAX_MEMBER_BYTES, Flaw, SeekableSource

_NUM_SHOWN = 8
_MAX_NAME_BYTES = 200


class DamagedError(Exception):
    """The content of a file makes no sense, or unpacks to far too much."""

    def __init__(self, detail: str, kind: ProblemKind = ProblemKind.ARCHIVE_DAMAGED) -> None:
        super().__init__(detail)
        self.flaw: Flaw = kind, detail


DAMAGE = (DamagedError, pa.ArrowException, OSError, ValueError, LookupError, TypeError)
"""What reading a malformed file raises; `OSError` without a number is Arrow's."""


def flaw_from(error: Exception, where: str = "") -> Flaw:
    """Describe the damage of a file from an exception of `DAMAGE`.

    Raises:
        OSError: *error* itself, where it is one of the system.
    """
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    kind, detail = ProblemKind.ARCHIVE_DAMAGED, (str(error).splitlines() or [""])[0]
    if isinstance(error, DamagedError):
        kind, detail = error.flaw
    return kind, where + (detail or type(error).__name__)


class Budget:
    """Memory that threads share."""

    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = self._num_left = num_bytes
        self._has_changed = threading.Condition()

    @contextmanager
    def taken(self, num_bytes: int) -> Iterator[None]:
        """Take *num_bytes* for the time of the block, all if there are fewer; wait for them."""
        num_bytes = min(num_bytes, self._num_bytes)
        with self._has_changed:
            self._has_changed.wait_for(lambda: self._num_left >= num_bytes)
            self._num_left -= num_bytes
        try:
            yield
        finally:
            with self._has_changed:
                self._num_left += num_bytes
                self._has_changed.notify_all()


MEMORY = Budget((32 << 20) * max(num_threads(), 2))
"""Of the threads that decode rows: more of them than processors are only in each other's way."""


class ArrowFile(io.RawIOBase):
    """A source as Arrow reads it: with reads that are complete, and not longer than the file."""

    def __init__(self, source: SeekableSource) -> None:
        self._source = source
        self._offset = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to *offset*."""
        ends = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._source.num_bytes}
        self._offset = ends[whence] + offset
        return self._offset

    def read(self, size: int = -1) -> bytes:
        """Return the next *size* bytes, fewer if the file ends."""
        left = max(self._source.num_bytes - self._offset, 0)
        content = self._source.read(left if size < 0 else min(size, left), self._offset)
        self._offset += len(content)
        return content


class Value(NamedTuple):
    """The bytes of an image.

    Attributes:
        offset: In the file; None: they are not stored as they are.
        num_bytes: How many.
        content: None: they are more than any image has.
    """

    offset: int | None
    num_bytes: int
    content: memoryview | None

    @classmethod
    def of(cls, content: memoryview, offset: int | None = None) -> Self:
        """Return *content* as a value."""
        is_too_large = len(content) > MAX_MEMBER_BYTES
        return cls(offset, len(content), None if is_too_large else content)


class RowItems:
    """Makes an image, or a problem, of each row of one file."""

    def __init__(self, columns: Columns, labels: LabelOptions, path: str) -> None:
        """Make an instance.

        Args:
            columns: Of the file.
            labels: What the user says.
            path: Of the file, relative to the root.

        Raises:
            LayoutError: The class is to be found in the path, which has no such folder.
        """
        self._labels = Labels(columns, labels, path)
        self._storage = PARQUET + columns.image
        self._path = path
        self._split = split_of(path)

    def item(self, number: int, value: Value | None, name: Any, label: Any) -> ContainerItem:
        """Return what is in row *number*.

        Args:
            number: Of the row in the file, from 0.
            value: Its image; None if it has none.
            name: What the image was called, as `cells_of` has it.
            label: Cell of the label column.

        Raises:
            LayoutError: Its label has no name, as far as is known.
        """
        shown = _shown_name(name)
        content = b"" if value is None or value.content is None else value.content
        end = f"/{shown}" if shown else f".{suffix_of(content) or 'jpg'}"
        path = f"{self._path}/{number:08}{end}"
        if value is None:
            kind = ProblemKind.IMAGE_NOT_STORED if name else ProblemKind.EMPTY
            return Problem(path, kind, "" if shown is None else f"`{shown}`")
        if not content:
            kind = ProblemKind.MEMBER_TOO_LARGE if value.num_bytes else ProblemKind.EMPTY
            return Problem(path, kind, f"{value.num_bytes:,} bytes")
        try:
            names = self._labels.of(label)
        except LabelError as error:
            return Problem(path, ProblemKind.LABEL_MISSING, str(error))
        size, split = value.num_bytes, self._split
        if value.offset is None:
            return ContainerImage(path, names, number, size, self._storage, content, split)
        return ContainerImage(path, names, value.offset, size, None, content, split)


def _shown_name(name: Any) -> str | None:
    """Return the last part of the path that an image was stored with; None if it is of no use."""
    last = name.replace(b"\\", b"/").rpartition(b"/")[2] if isinstance(name, bytes) else b""
    text = last.decode(errors="replace")
    is_fine = text.isprintable() and text[:1] != "." and len(last) <= _MAX_NAME_BYTES
    return text if text and is_fine and text.encode() == last else None


def columns_with_images(schema: pa.Schema, labels: LabelOptions, path: str) -> Columns:
    """Return where the file at *path* holds images and labels.

    Raises:
        DamagedError: It has no column that may hold images; or its columns are not those that
            were detected in others.
        LayoutError: It is not clear which, or they are not those that the user says.
    """
    if not holds_images(schema):
        raise DamagedError("no column holds the bytes of images", ProblemKind.NOT_AN_IMAGE)
    try:
        return columns_of(schema, labels, path)
    except LayoutError as error:
        if not labels.is_detected:
            raise
        raise DamagedError(error.message, ProblemKind.LABEL_MISSING) from error


def bytes_of(column: pa.Array) -> pa.Array:
    """Return the bytes in a column of images: its field `bytes`, or itself."""
    if pa.types.is_struct(column.type):
        import pyarrow.compute as pc  # noqa: PLC0415 (takes long)

        column = pc.struct_field(column, "bytes")
    return column.cast(pa.large_binary()) if pa.types.is_binary_view(column.type) else column


def values_of(
    column: pa.Array, offset_of: Callable[[int], int] | None = None
) -> Iterator[Value | None]:
    """Yield the values of a binary *column* without copying them; None for nulls.

    Args:
        column: As `bytes_of` returns it.
        offset_of: Returns where in its file the byte at an address is stored; None: nowhere.
    """
    _, starts, data = column.buffers()
    dtype = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    edges = np.frombuffer(starts or b"", dtype)[column.offset :].tolist()
    content = memoryview(data or b"").cast("B")  # Arrow's are of signed numbers
    base = offset_of(data.address) if offset_of and data else None
    for place, is_valid in enumerate(column.is_valid().to_pylist()):
        start, stop = edges[place : place + 2]
        at = None if base is None else base + start
        yield Value.of(content[start:stop], at) if is_valid else None


def names_and_labels(batch: pa.RecordBatch, columns: Columns) -> tuple[list[Any], list[Any]]:
    """Return what the images of *batch* were called, and the cells of their labels."""
    names = labels = [None] * batch.num_rows
    if columns.has_path:
        import pyarrow.compute as pc  # noqa: PLC0415 (takes long)

        names = cells_of(pc.struct_field(batch[columns.image], "path"))
    if columns.label is not None:
        labels = cells_of(batch[columns.label])
    return names, labels


def cells_of(column: pa.Array) -> list[Any]:
    """Return the cells of a column of labels or paths; text as bytes, which may not be UTF-8."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if is_text(column.type):
        column = column.cast(pa.large_binary())
    cells: list[Any] = column.to_pylist()
    return cells


class LabelError(Exception):
    """A label is not one of the classes."""


class Labels:
    """Names the classes of images."""

    def __init__(self, columns: Columns, labels: LabelOptions, path: str) -> None:
        """Make an instance for one file.

        Args:
            columns: Of the file.
            labels: What the user says.
            path: Of the file, relative to the root.

        Raises:
            LayoutError: The class is to be found in the path, which has no such folder.
        """
        self._columns = columns
        self._options = labels
        self._path = path
        self._of_path = _class_in_path(path, labels.label_from) if columns.label is None else None

    def of(self, cell: Any) -> str | tuple[str, ...] | None:
        """Return the class, or classes, that a *cell* of the label column names; None if none.

        Raises:
            LabelError: It names none of the classes of its file.
            LayoutError: It is a number, and there is no list of names; or no list of labels.
        """
        if self._of_path is not None:
            return self._of_path
        if not isinstance(cell, list):
            return self._name_of(cell)
        names = [name for name in map(self._name_of, cell) if name is not None]
        if len(set(names)) < len(names) and not isinstance(cell[0], str):
            raise LayoutError(
                f"a row of `{self._path}` has a label twice: {_shown(cell)}; are these not class "
                "indices, but a 0 or 1 for each class?",
                hint=f"name another column: `--label-from {COLUMN}NAME`",
            )
        distinct = tuple(dict.fromkeys(names))
        return distinct if len(distinct) > 1 else next(iter(distinct), None)

    def _name_of(self, cell: Any) -> str | None:
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return None
        if isinstance(cell, bytes | str):
            return self._checked(cell if isinstance(cell, str) else _text_of(cell))
        if cell != int(cell):
            raise LabelError(f"{cell} is no class index")
        index, names = int(cell), self._columns.class_names
        if not self._columns.is_declared or names is None:
            return self._options.name_of_index(index, self._path)
        if index == UNLABELLED:
            return None
        if not 0 <= index < len(names):
            raise LabelError(f"class index {index}, of {len(names):,} classes")
        return self._checked(names[index])

    def _checked(self, name: str) -> str:
        if flaw := flaw_of_class_name(name):
            raise LabelError(flaw)
        return name


def _text_of(cell: bytes) -> str:
    return cell.decode(errors="backslashreplace")


def _shown(cell: list[Any]) -> str:
    return f"{cell}" if len(cell) <= _NUM_SHOWN else f"{cell[:_NUM_SHOWN]}"[:-1] + ", ...]"


def _class_in_path(path: str, label_from: str | None) -> str:
    """Return the class of the images in the file at *path*, which is a folder of its name."""
    *folders, name = path.split("/")
    parts = [*folders, name.rpartition(".")[0] or name]
    place = {"folder": -1, "parent": -2, "top": 0}[label_from or "folder"]
    if len(parts) < -place:
        raise LayoutError(
            f"`{path}` is in no folder below the root",
            hint="`--label-from folder` takes the name of the file for the class of its images",
        )
    return parts[place]
