"""Pages of a Parquet file: their headers, and values that are stored as they are.

pyarrow has no interface to pages.  Their headers tell whether a column chunk unpacks to far too
much before it is decoded, and where an image lies in the file that is not compressed.

Source of the format: https://parquet.apache.org/docs/file-format/data-pages/ and Thrift's compact
protocol, https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit21k.manifest.problems import ProblemKind
from vit21k.sources.rows import Value
from vit21k.sources.tar import MAX_MEMBER_BYTES, Flaw, Window

_DATA, DICTIONARY, _DATA_V2 = 0, 2, 3
_PLAIN, _RLE = 0, 3
_MAX_HEADER_BYTES = 1 << 16
HOP_BYTES = 1 << 12
"""Read at a time where only headers are wanted."""

_MAX_DEPTH = 8
_SEVEN_BITS = 0x7F
_BOOLS, _INTS, _TEXT, _STRUCT = (1, 2), (4, 5, 6), 8, 12  # types of fields


class DamagedError(Exception):
    """The content of a file makes no sense, or unpacks to far too much."""

    def __init__(self, detail: str, kind: ProblemKind = ProblemKind.ARCHIVE_DAMAGED) -> None:
        super().__init__(detail)
        self.flaw: Flaw = kind, detail


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
        fields, length = _parse_struct(head, 0, _MAX_DEPTH)
        page = _page_of(fields, window.offset - num_read + length)
    except (LookupError, TypeError, ValueError):
        window.give_back(num_read)
        return None
    window.give_back(num_read - length)
    return page


def _page_of(fields: Mapping[int, Any], offset: int) -> Page:
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


def _parse_struct(head: memoryview, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a struct in Thrift's compact protocol, by their ids, and its end."""
    fields: dict[int, Any] = {}
    field = 0
    while byte := head[at]:
        at += 1
        if byte >> 4:
            field += byte >> 4
        else:
            field, at = _parse_int(head, at)
        fields[field], at = _parse_field(head, at, byte & 15, depth)
    return fields, at + 1


def _parse_field(head: memoryview, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in _BOOLS:
        return kind == _BOOLS[0], at
    if kind in _INTS:
        return _parse_int(head, at)
    if kind == _TEXT:
        length, at = _parse_varint(head, at)
        return None, at + length
    if kind == _STRUCT and depth:
        return _parse_struct(head, at, depth - 1)
    raise ValueError("page headers have no such field")


def _parse_int(head: memoryview, at: int) -> tuple[int, int]:
    number, at = _parse_varint(head, at)
    return number >> 1 ^ -(number & 1), at


def _parse_varint(head: memoryview, at: int) -> tuple[int, int]:
    """Return the number at *at*, and where it ends."""
    number = 0
    for shift in range(0, 64, 7):
        byte = head[at]
        at += 1
        number |= (byte & _SEVEN_BITS) << shift
        if byte <= _SEVEN_BITS:
            return number, at
    raise ValueError("a number of more than 64 bits")


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
