"""Rewrite JPEGs losslessly with restart markers, which divide an image into tiles."""

import ctypes
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from vit21k._native import NoExtensionError, extension

SOI, EOI, SOS, DQT, DHT, DRI, DNL, COM = 0xD8, 0xD9, 0xDA, 0xDB, 0xC4, 0xDD, 0xDC, 0xFE
RST0 = 0xD0
APP0, APP14, APP15 = 0xE0, 0xEE, 0xEF
_SOF = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, 0xCC}
_SEQUENTIAL = frozenset({0xC0, 0xC1})
_START = b"\xff\xd8\xff"
_MAX_SAMPLING = 4
_MAX_BLOCKS = 10  # of an MCU of several components: B.2.3
_MAX_COMPONENTS = 4
_BLOCK = 8

KINDS_OF_FRAME = {0xC2: "progressive", 0xC9: "arithmetic coding", 0xCA: "arithmetic coding"}


class NotTileableError(Exception):
    """The file is not a JPEG, or cannot have restart markers; the argument is the reason."""


class Segment(NamedTuple):
    """A marker segment: content[start:end], including the marker."""

    marker: int
    start: int
    end: int


class Component(NamedTuple):
    """A colour component of a frame: its sampling factors, 1 to 4, and its identifier."""

    identifier: int
    h: int
    v: int


@dataclass(frozen=True)
class Frame:
    """Content of an SOF segment.

    Attributes:
        width: Pixels.
        height: Pixels.
        components: In the order of the file.
        segment: The segment.
    """

    width: int
    height: int
    components: tuple[Component, ...]
    segment: Segment

    @property
    def mcu_size(self) -> tuple[int, int]:
        """Width and height of an MCU in pixels; with one component: a block."""
        if len(self.components) == 1:
            return _BLOCK, _BLOCK
        h = max(component.h for component in self.components)
        v = max(component.v for component in self.components)
        return _BLOCK * h, _BLOCK * v

    @property
    def mcus(self) -> tuple[int, int]:
        """Number of MCUs, across and down."""
        width, height = self.mcu_size
        return -(-self.width // width), -(-self.height // height)


@dataclass
class Jpeg:
    """A sequential Huffman-coded JPEG of one scan.

    Attributes:
        frame: Size and components.
        segments: All segments before the entropy-coded data, SOS last.
        restart_interval: MCUs between restart markers; 0: none.
        scan_start: Offset of the entropy-coded data.
    """

    frame: Frame
    segments: list[Segment] = field(default_factory=list)
    restart_interval: int = 0
    scan_start: int = 0


def parse_jpeg(content: bytes) -> Jpeg:
    """Read the segments of *content* before its entropy-coded data.

    Raises:
        NotTileableError: It is not a sequential Huffman-coded JPEG of 8 bits whose first scan has
            all components.
    """
    if not content.startswith(_START):
        raise NotTileableError("not a JPEG")
    segments: list[Segment] = []
    frame: Frame | None = None
    restart_interval, position = 0, 2
    while True:
        segment = _segment(content, position)
        segments.append(segment)
        position = segment.end
        if segment.marker in _SOF:
            frame = _frame(content, segment, frame)
        elif segment.marker == DRI:
            restart_interval = int.from_bytes(content[segment.start + 4 : segment.end])
        elif segment.marker == SOS:
            break
    if frame is None or content[segment.start + 4] != len(frame.components):
        raise NotTileableError("several scans")
    return Jpeg(frame, segments, restart_interval, segment.end)


def _segment(content: bytes, position: int) -> Segment:
    """Return the segment at *position*, after any fill bytes."""
    if content[position : position + 1] != b"\xff":
        raise NotTileableError("damaged headers")
    while content[position + 1 : position + 2] == b"\xff":
        position += 1
    head = content[position : position + 4]
    num_bytes = int.from_bytes(head[2:])
    end = position + 2 + num_bytes
    if len(head) < 4 or num_bytes < 2 or end > len(content) or head[1] < 0xC0:  # noqa: PLR2004
        raise NotTileableError("damaged headers")
    if RST0 <= head[1] <= EOI:
        raise NotTileableError("damaged headers")
    return Segment(head[1], position, end)


def _frame(content: bytes, segment: Segment, before: Frame | None) -> Frame:
    if before is not None:
        raise NotTileableError("several frames")
    if segment.marker not in _SEQUENTIAL:
        raise NotTileableError(KINDS_OF_FRAME.get(segment.marker, "an unusual kind of JPEG"))
    body = content[segment.start + 4 : segment.end]
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:  # noqa: PLR2004
        raise NotTileableError("damaged headers")
    if body[0] != _BLOCK:
        raise NotTileableError("12 bits per channel")
    components = tuple(
        Component(body[at], body[at + 1] >> 4, body[at + 1] & 15) for at in range(6, len(body), 3)
    )
    height, width = int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
    if not width or not height or not 1 <= len(components) <= _MAX_COMPONENTS:
        raise NotTileableError("damaged headers")
    if any(not (1 <= c.h <= _MAX_SAMPLING and 1 <= c.v <= _MAX_SAMPLING) for c in components):
        raise NotTileableError("damaged headers")
    if len(components) > 1 and sum(c.h * c.v for c in components) > _MAX_BLOCKS:
        raise NotTileableError("damaged headers")
    return Frame(width, height, components, segment)


def decides_pixels(segment: Segment) -> bool:
    """Return whether a decoder needs *segment*.

    APP0 and APP14 define the colour space; other APPn and comments are metadata.
    """
    is_app = APP0 <= segment.marker <= APP15
    return segment.marker in (APP0, APP14) or not (is_app or segment.marker == COM)


_NO_MEMORY, _NO_SPACE = -3, -4
_NUM_SLOTS = 4  # Huffman tables of a kind (DC, AC) that a JPEG may have
_COUNT_BYTES = 17  # of a table: number of codes of each length; the first is unused
_TABLE_BYTES = _COUNT_BYTES + 256
_Tables = ctypes.c_uint8 * (_TABLE_BYTES * 2 * _NUM_SLOTS)


class _Layout(ctypes.Structure):
    """MCUs of a scan: their number, restart intervals, and the tables of each component."""

    _fields_ = (
        ("mcus_x", ctypes.c_int32),
        ("mcus_y", ctypes.c_int32),
        ("restart_in", ctypes.c_int32),  # MCUs between restart markers; 0: none
        ("restart_out", ctypes.c_int32),
        ("num_blocks", ctypes.c_int32),
        ("component", ctypes.c_int32 * _MAX_BLOCKS),
        ("dc_slot", ctypes.c_int32 * _NUM_SLOTS),
        ("ac_slot", ctypes.c_int32 * _NUM_SLOTS),
    )


def require_recoder() -> None:
    """Check that the compiled recoder is installed.

    Raises:
        NoExtensionError: There is no compiled extension.
    """
    try:
        extension()
    except NoExtensionError as error:
        hint = f"{error.hint}; or make a pack with `--raw --short-side N`, which does not need it"
        raise NoExtensionError(error.message, hint=hint) from error


def _recode(data: bytes, layout: _Layout, tables: bytearray) -> bytes:
    """Return the entropy-coded *data* with other restart markers; replace *tables*.

    Thread-safe; it releases the GIL.
    """
    num_restarts = layout.mcus_x * layout.mcus_y // layout.restart_out
    capacity = 2 * len(data) + 8 * num_restarts + 1024
    out = ctypes.create_string_buffer(capacity)
    num_bytes = _recoder()(
        data, len(data), ctypes.byref(layout), _Tables.from_buffer(tables), out, capacity
    )
    if num_bytes == _NO_MEMORY:
        raise MemoryError
    if num_bytes == _NO_SPACE:
        raise NotTileableError("it would be twice as large")
    if num_bytes < 0:
        raise NotTileableError("damaged data")
    return ctypes.string_at(out, num_bytes)


@cache
def _recoder() -> Any:
    """Return the function of recode.c."""
    function = extension().recode
    function.restype = ctypes.c_long
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.POINTER(_Layout),
        ctypes.POINTER(_Tables),
        ctypes.c_void_p,
        ctypes.c_size_t,
    ]
    return function


TILE_MCUS = 8
"""Preferred width of a tile.  With half of it the file grows by 1 %."""

_MIN_TILE, _MAX_TILE = 3, 16


def tile_jpeg(content: bytes, *, keep_metadata: bool = False) -> bytes:
    """Return *content* as a tile JPEG.

    Args:
        content: A JPEG file; bytes after its end marker are skipped.
        keep_metadata: Keep EXIF, colour profiles and comments.

    Raises:
        NotTileableError: It is progressive, arithmetic, of several scans, damaged, or not a JPEG.
        NoExtensionError: There is no compiled extension.
    """
    jpeg = parse_jpeg(content)
    mcus_x, mcus_y = jpeg.frame.mcus
    interval = tile_width(mcus_x)
    tables = _tables(content, jpeg)
    layout = _layout(content, jpeg, interval)
    end = content.rfind(bytes([0xFF, EOI]), jpeg.scan_start)
    if end < 0 or mcus_x * mcus_y > 64 * (len(content) - jpeg.scan_start):
        raise NotTileableError("damaged data")
    data = _recode(content[jpeg.scan_start : end + 2], layout, tables)
    *heads, sos = jpeg.segments
    kept = [
        content[segment.start : segment.end]
        for segment in heads
        if segment.marker not in (DHT, DRI) and (keep_metadata or decides_pixels(segment))
    ]
    new = [_stored(tables), bytes([0xFF, DRI, 0, 4]) + interval.to_bytes(2)]
    scan = [content[sos.start : sos.end], data, bytes([0xFF, EOI])]
    return b"".join([content[:2], *kept, *new, *scan])


def tile_width(mcus: int) -> int:
    """Return the width of a tile in MCUs: a divisor of *mcus*, the width of a row.

    The one nearest to `TILE_MCUS`; a complete row if none is near.
    """
    divisors = [k for k in range(_MIN_TILE, min(_MAX_TILE, mcus) + 1) if mcus % k == 0]
    return min(divisors, key=lambda k: max(k / TILE_MCUS, TILE_MCUS / k), default=mcus)


def _tables(content: bytes, jpeg: Jpeg) -> bytearray:
    """Return the Huffman tables: four for DC, then four for AC."""
    tables = bytearray(_TABLE_BYTES * 2 * _NUM_SLOTS)
    for segment in jpeg.segments:
        if segment.marker != DHT:
            continue
        position = segment.start + 4
        while position < segment.end:
            kind, slot = content[position] >> 4, content[position] & 15
            counts = b"\0" + content[position + 1 : position + 17]
            end = position + 17 + sum(counts)
            if kind > 1 or slot >= _NUM_SLOTS or end > segment.end:
                raise NotTileableError("damaged headers")
            table = (counts + content[position + 17 : end])[:_TABLE_BYTES].ljust(
                _TABLE_BYTES, b"\0"
            )
            start = (kind * _NUM_SLOTS + slot) * _TABLE_BYTES
            tables[start : start + _TABLE_BYTES] = table
            position = end
    return tables


def _layout(content: bytes, jpeg: Jpeg, interval: int) -> _Layout:
    components = jpeg.frame.components
    sos = jpeg.segments[-1]
    body = content[sos.start + 5 : sos.end]
    if len(body) != 2 * len(components) + 3 or body[-3:] != b"\0\x3f\0":
        raise NotTileableError("an unusual kind of JPEG")
    if any(body[2 * i] != each.identifier for i, each in enumerate(components)):
        raise NotTileableError("an unusual kind of JPEG")
    slots = body[1 : 2 * len(components) : 2]
    if any(slot >> 4 >= _NUM_SLOTS or slot & 15 >= _NUM_SLOTS for slot in slots):
        raise NotTileableError("damaged headers")
    counts = [each.h * each.v for each in components] if len(components) > 1 else [1]
    blocks = [index for index, count in enumerate(counts) for _ in range(count)]
    layout = _Layout(*jpeg.frame.mcus, jpeg.restart_interval, interval, len(blocks))
    layout.component[: len(blocks)] = blocks
    layout.dc_slot[: len(slots)] = [slot >> 4 for slot in slots]
    layout.ac_slot[: len(slots)] = [slot & 15 for slot in slots]
    return layout


def _stored(tables: bytearray) -> bytes:
    """Return the DHT segment of the tables that are used."""
    body = b""
    for index in range(2 * _NUM_SLOTS):
        table = bytes(tables[index * _TABLE_BYTES : (index + 1) * _TABLE_BYTES])
        if num_values := sum(table[:_COUNT_BYTES]):
            slot = index // _NUM_SLOTS << 4 | index % _NUM_SLOTS
            body += bytes([slot]) + table[1 : _COUNT_BYTES + num_values]
    return bytes([0xFF, DHT]) + (len(body) + 2).to_bytes(2) + body
