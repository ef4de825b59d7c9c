"""The format of Parquet files: footers, headers of pages, and values that are stored as they are.

pyarrow has no interface to pages.  Their headers show whether a column chunk unpacks to far too
much before it is decoded, and where an image is in a file that is not compressed.  pyarrow shows
the footer, but ends the process where that contradicts itself.

Source of the format: https://parquet.apache.org/docs/file-format/ and Thrift's compact protocol,
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit21k.manifest.problems import ProblemKind
from vit21k.sources.rows import DamagedError, Value
from vit21k.sources.tar import MAX_MEMBER_BYTES, SeekableSource, Window

# ---- Thrift

_BOOLS, _BYTE, _INTS, _DOUBLE, _BYTES, _LISTS, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, (9, 10), 12
_MAX_DEPTH = 16
_SEVEN_BITS, _LONG_LIST = 0x7F, 15

Fields = dict[int, Any]
"""Of a struct, by their ids."""

_MALFORMED = (AttributeError, LookupError, TypeError, ValueError, RuntimeError)
"""What the use of fields of other types raises; of generators, `RuntimeError`."""


def parse_struct(data: memoryview, at: int = 0, depth: int = _MAX_DEPTH) -> tuple[Fields, int]:
    """Return the fields of the struct at *at* of *data*, and where it ends.

    Raises:
        LookupError: It ends too early.
        ValueError: It is no struct.
    """
    fields: Fields = {}
    field = 0
    while byte := data[at]:
        at += 1
        if byte >> 4:
            field += byte >> 4
        else:
            field, at = _parse_int(data, at)
        if byte & 15 in _BOOLS:
            fields[field] = byte & 15 == _BOOLS[0]
        else:
            fields[field], at = _parse_value(data, at, byte & 15, depth)
    return fields, at + 1


def _parse_value(data: memoryview, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in _INTS:
        return _parse_int(data, at)
    if kind == _BYTES:
        length, at = _parse_varint(data, at)
        return data[at : at + length], at + length
    if kind == _STRUCT and depth:
        return parse_struct(data, at, depth - 1)
    if kind in _LISTS and depth:
        return _parse_list(data, at, depth - 1)
    if kind in (*_BOOLS, _BYTE):  # items of a list
        return data[at], at + 1
    if kind == _DOUBLE:
        return None, at + 8
    raise ValueError(f"no field of type {kind} is known")


def _parse_list(data: memoryview, at: int, depth: int) -> tuple[list[Any], int]:
    length, kind = data[at] >> 4, data[at] & 15
    at += 1
    if length == _LONG_LIST:
        length, at = _parse_varint(data, at)
    if length > len(data) - at:
        raise LookupError("a list that ends too late")
    items = []
    for _ in range(length):
        item, at = _parse_value(data, at, kind, depth)
        items.append(item)
    return items, at


def _parse_int(data: memoryview, at: int) -> tuple[int, int]:
    number, at = _parse_varint(data, at)
    return number >> 1 ^ -(number & 1), at


def _parse_varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number at *at*, and where it ends."""
    number = 0
    for shift in range(0, 64, 7):
        byte = data[at]
        at += 1
        number |= (byte & _SEVEN_BITS) << shift
        if byte <= _SEVEN_BITS:
            return number, at
    raise ValueError("a number of more than 64 bits")


# ---- the footer

_MAGIC, _ENCRYPTED = b"PAR1", b"PARE"
_TAIL_BYTES = 8
_MAX_FOOTER_BYTES = 1 << 27
_UNCOMPRESSED, _BYTE_ARRAY = 0, 6
_OPTIONAL, _REPEATED = 1, 2
_PLAIN, _RLE, _BIT_PACKED = 0, 3, 4
_MAX_LEVEL = 3


class ColumnChunk(NamedTuple):
    """The values of a column in a row group.

    Attributes:
        leaf: Name of the column, with those of the columns that it is a field of: `image.bytes`.
        start: Where its first page begins in the file.
        end: Where its last page ends.
        num_values: How many there are, nulls included.
        level: Definition level of a value that is no null.
        is_plain: They are bytes that are stored as they are.
    """

    leaf: str
    start: int
    end: int
    num_values: int
    level: int
    is_plain: bool


class _Leaf(NamedTuple):
    """A column that has no fields: its name, and how values in it can be missing or repeated."""

    name: str
    level: int
    is_repeated: bool


class Footer:
    """The metadata at the end of a Parquet file.

    Attributes:
        row_starts: Number of the first row of each row group, and of all rows.
    """

    def __init__(self, source: SeekableSource) -> None:
        """Read the footer of *source*.

        Raises:
            DamagedError: There is none, or it makes no sense.
            OSError: It cannot be read.
        """
        self._num_bytes = source.num_bytes
        with _as_damage("its footer makes no sense"):
            fields, _ = parse_struct(memoryview(_footer_of(source)))
            self._leaves = list(_leaves(iter(fields[2])))
            self._groups: list[Fields] = fields[4]
            self.row_starts = [0, *accumulate(group[3] for group in self._groups)]
        num_rows = self.row_starts[-1]
        if sorted(self.row_starts) != self.row_starts or num_rows > self._num_bytes:
            detail = f"{num_rows:,} rows in {self._num_bytes:,} bytes"
            raise DamagedError(detail, ProblemKind.ARCHIVE_BOMB)

    def chunks(self, group: int, names: Sequence[str]) -> list[ColumnChunk]:
        """Return the chunks of columns in a row group.

        Args:
            group: Its number.
            names: Of leaves, or of columns whose fields count.

        Raises:
            DamagedError: There is no such column, or its extent makes no sense.
        """
        with _as_damage("the footer makes no sense"):
            columns = zip(self._leaves, self._groups[group][1], strict=True)
            chunks = [
                self._chunk(leaf, column)
                for leaf, column in columns
                if any(f"{leaf.name}.".startswith(f"{name}.") for name in names)
            ]
        if len(chunks) < len(names):
            raise DamagedError("a column is missing")
        return chunks

    def _chunk(self, leaf: _Leaf, column: Fields) -> ColumnChunk:
        about = column[3]
        data_start, dictionary_start = about[9], about.get(11) or 0
        start = dictionary_start if 0 < dictionary_start < data_start else data_start
        end = start + about[7]
        if not 0 < start <= end <= self._num_bytes or 1 in column:
            raise DamagedError(f"column `{leaf.name}` is said to be at offset {start:,} to {end:,}")
        is_plain = (
            about[4] == _UNCOMPRESSED
            and about[1] == _BYTE_ARRAY
            and set(about[2]) <= {_PLAIN, _RLE, _BIT_PACKED}
            and start == data_start
            and leaf.level <= _MAX_LEVEL
            and not leaf.is_repeated
        )
        return ColumnChunk(leaf.name, start, end, about[5], leaf.level, is_plain)


@contextmanager
def _as_damage(detail: str) -> Iterator[None]:
    """Turn what parsing raises into a `DamagedError`."""
    try:
        yield
    except _MALFORMED as error:
        raise DamagedError(detail) from error


def _footer_of(source: SeekableSource) -> bytes:
    tail_at = source.num_bytes - _TAIL_BYTES
    tail = source.read(_TAIL_BYTES, max(tail_at, 0))
    if tail[4:] != _MAGIC:
        is_encrypted = tail[4:] == _ENCRYPTED
        detail = "it is encrypted" if is_encrypted else "it does not end like a Parquet file"
        raise DamagedError(detail, ProblemKind.ARCHIVE_TRUNCATED)
    num_bytes = int.from_bytes(tail[:4], "little")
    if num_bytes > min(tail_at, _MAX_FOOTER_BYTES):
        raise DamagedError(f"its footer is said to have {num_bytes:,} bytes")
    return source.read(num_bytes, tail_at - num_bytes)


def _leaves(elements: Iterator[Fields], parent: _Leaf | None = None) -> Iterator[_Leaf]:
    """Yield the leaves of a schema, which is stored depth first, from its next element on."""
    element = next(elements)
    kind = element.get(3)
    name = bytes(element[4]).decode()
    if parent is None:
        this = _Leaf("", 0, False)
    else:
        level = parent.level + (kind in (_OPTIONAL, _REPEATED))
        path = f"{parent.name}.{name}" if parent.name else name
        this = _Leaf(path, level, parent.is_repeated or kind == _REPEATED)
    num_fields = element.get(5) or 0
    if not num_fields:
        yield this
    for _ in range(num_fields):
        yield from _leaves(elements, this)


# ---- pages

_DATA, DICTIONARY, _DATA_V2 = 0, 2, 3
_MAX_HEADER_BYTES = 1 << 16
HOP_BYTES = 1 << 12
"""Read at a time where only headers are wanted."""


class Page(NamedTuple):
    """A page of a column chunk.

    Attributes:
        num_bytes: In the file, after its header.
        unpacked_bytes: When decompressed, as its header says.
        num_values: Nulls included.
        encoding: Of its values.
        level_encoding: Of the levels, which say what is null; None: there are none.
        levels_bytes: Of the definition levels; None: a number before them says it.
    """

    kind: int
    offset: int
    num_bytes: int
    unpacked_bytes: int
    num_values: int
    encoding: int
    level_encoding: int | None
    levels_bytes: int | None


def read_pages(window: Window, end: int) -> Iterator[Page]:
    """Yield the pages from *window* to *end*; their content may be taken before the next one.

    Raises:
        DamagedError: A header makes no sense.
    """
    while window.offset < end:
        page = _read_page(window, end, HOP_BYTES // 8) or _read_page(window, end, _MAX_HEADER_BYTES)
        if page is None or not 0 <= page.num_bytes <= end - page.offset or page.num_values < 0:
            raise DamagedError(f"no page at offset {window.offset:,}")
        yield page
        window.go_to(page.offset + page.num_bytes)


def _read_page(window: Window, end: int, max_bytes: int) -> Page | None:
    """Return the page at *window*, which is moved behind its header; None if it has none."""
    head = window.take(min(max_bytes, end - window.offset))
    num_read = len(head)
    try:
        fields, length = parse_struct(head)
        page = _page_of(fields, window.offset - num_read + length)
    except _MALFORMED:
        window.give_back(num_read)
        return None
    window.give_back(num_read - length)
    return page


def _page_of(fields: Fields, offset: int) -> Page:
    """Return what the header of a page says, by the ids of its fields."""
    kind, unpacked_bytes, num_bytes = fields[1], fields[2], fields[3]
    if kind == _DATA_V2:
        about, encoding, level_encoding = fields[8], fields[8][4], _RLE
    else:
        about = fields[7] if kind == DICTIONARY else fields[5]
        encoding, level_encoding = about[2], about.get(3)
    levels_bytes = about[5] if kind == _DATA_V2 else None
    return Page(
        kind, offset, num_bytes, unpacked_bytes, about[1], encoding, level_encoding, levels_bytes
    )


def plain_values(window: Window, end: int, max_level: int) -> Iterator[Value | None]:
    """Yield the values of a column chunk from *window* to *end*; None for nulls.

    Args:
        window: At the first page; none of them is compressed, nor are values in lists.
        end: Of the chunk.
        max_level: Definition level of values that are no nulls.

    Raises:
        DamagedError: The pages make no sense.
    """
    for page in read_pages(window, end):
        if page.kind not in (_DATA, _DATA_V2) or page.encoding != _PLAIN:
            raise DamagedError(f"a page of another kind at offset {page.offset:,}")
        stop = page.offset + page.num_bytes
        for is_valid in _validity(window, page, max_level).tolist():
            yield _next_value(window, stop) if is_valid else None


def _next_value(window: Window, stop: int) -> Value:
    num_bytes = int.from_bytes(window.take(4), "little")
    offset = window.offset
    if num_bytes > stop - offset:
        raise DamagedError(f"a value of {num_bytes:,} bytes at offset {offset:,}")
    if num_bytes > MAX_MEMBER_BYTES:
        window.go_to(offset + num_bytes)
        return Value(offset, num_bytes, None)
    content = window.take(num_bytes)
    if len(content) < num_bytes:
        raise DamagedError("it ends within a value", ProblemKind.ARCHIVE_TRUNCATED)
    return Value(offset, num_bytes, content)


def _validity(window: Window, page: Page, max_level: int) -> NDArray[np.bool_]:
    """Return which values of a page at *window* are no nulls; *window* is moved to the values."""
    num_bytes = page.levels_bytes
    if num_bytes is None:
        num_bytes = int.from_bytes(window.take(4), "little") if max_level else 0
    if not 0 <= num_bytes <= page.num_bytes or (max_level and page.level_encoding != _RLE):
        raise DamagedError(f"no levels that are read at offset {page.offset:,}")
    encoded = window.take(num_bytes)
    if not max_level:
        return np.ones(page.num_values, bool)
    is_valid: NDArray[np.bool_] = (
        _decode_levels(encoded, page.num_values, max_level.bit_length()) == max_level
    )
    return is_valid


def _decode_levels(encoded: memoryview, count: int, width: int) -> NDArray[np.uint8]:
    """Decode Parquet's mixture of runs and packed groups of eight numbers of *width* bits."""
    levels = np.zeros(count, np.uint8)
    weights = (1 << np.arange(width)).astype(np.uint8)
    at = num_done = 0
    while num_done < count:
        header, at = _parse_varint(encoded, at)
        if header & 1:
            packed = np.frombuffer(encoded[at : at + (header >> 1) * width], np.uint8)
            numbers = np.unpackbits(packed, bitorder="little").reshape(-1, width) @ weights
            at += (header >> 1) * width
        else:
            numbers = np.full(min(header >> 1, count - num_done), encoded[at])
            at += 1
        levels[num_done : num_done + len(numbers)] = numbers[: count - num_done]
        num_done += len(numbers)
    return levels
