"""Rewrite JPEGs losslessly with restart markers, which divide an image into tiles."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

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
    """This JPEG cannot be given restart markers, or is none; the argument says why."""


class Segment(NamedTuple):
    """Offsets of a marker segment: content[start:end], the marker included."""

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
    """What SOF says.

    Attributes:
        width: Pixels.
        height: Pixels.
        components: In the order of the file.
        segment: Its offsets.
    """

    width: int
    height: int
    components: tuple[Component, ...]
    segment: Segment

    @property
    def mcu_size(self) -> tuple[int, int]:
        """Width and height in pixels of what is coded at a time; of one component: a block."""
        if len(self.components) == 1:
            return _BLOCK, _BLOCK
        h = max(component.h for component in self.components)
        v = max(component.v for component in self.components)
        return _BLOCK * h, _BLOCK * v

    @property
    def mcus(self) -> tuple[int, int]:
        """How many of them there are, across and down."""
        width, height = self.mcu_size
        return -(-self.width // width), -(-self.height // height)


@dataclass
class Jpeg:
    """A sequential Huffman-coded JPEG of one scan.

    Attributes:
        frame: Size and components.
        segments: All segments before the entropy-coded data, SOS last.
        restart_interval: MCUs between restart markers; 0: none.
        scan_start: Where the entropy-coded data begin.
    """

    frame: Frame
    segments: list[Segment] = field(default_factory=list)
    restart_interval: int = 0
    scan_start: int = 0


def parse_jpeg(content: bytes) -> Jpeg:
    """Read the segments of *content* up to its entropy-coded data, which are not looked at.

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
    """Return the segment at *position*, where fill bytes may come first."""
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
        raise NotTileableError("12 bits a channel")
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


NUM_SLOTS = 4
"""Huffman tables of a kind (DC, AC) that a JPEG may have."""


class Table(NamedTuple):
    """A Huffman table as DHT stores it.

    Attributes:
        counts: 17 bytes: how many codes of each length there are; the first is not used.
        values: Their values, by length.
    """

    counts: bytes
    values: bytes


class Layout(NamedTuple):
    """The MCUs of a scan.

    Attributes:
        mcus_x: How many a row has.
        mcus_y: How many rows there are.
        restart_in: MCUs between restart markers as it is; 0: none.
        restart_out: ... as it is to be.
        blocks: Component of each block of an MCU.
        dc_slot: Which DC table each component uses.
        ac_slot: Which AC table.
    """

    mcus_x: int
    mcus_y: int
    restart_in: int
    restart_out: int
    blocks: tuple[int, ...]
    dc_slot: tuple[int, ...]
    ac_slot: tuple[int, ...]


def decides_pixels(segment: Segment) -> bool:
    """Return whether a decoder needs *segment*.

    APP0 and APP14 say how colours are stored; other APPn and comments are metadata.
    """
    is_app = APP0 <= segment.marker <= APP15
    return segment.marker in (APP0, APP14) or not (is_app or segment.marker == COM)


_NO_MEMORY, _NO_ROOM = -3, -4


class _Layout(ctypes.Structure):
    """`Layout` of recode.c."""

    _fields_ = (
        ("mcus_x", ctypes.c_int32),
        ("mcus_y", ctypes.c_int32),
        ("restart_in", ctypes.c_int32),
        ("restart_out", ctypes.c_int32),
        ("num_blocks", ctypes.c_int32),
        ("component", ctypes.c_int32 * _MAX_BLOCKS),
        ("dc_slot", ctypes.c_int32 * NUM_SLOTS),
        ("ac_slot", ctypes.c_int32 * NUM_SLOTS),
    )


_TABLE_BYTES = 17 + 256
_Tables = ctypes.c_uint8 * (_TABLE_BYTES * 2 * NUM_SLOTS)


class CompiledRecoder:
    """`recode` of recode.c; for any number of threads, which do not wait for one another."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._recode = library.recode
        self._recode.restype = ctypes.c_long
        self._recode.argtypes = [
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.POINTER(_Layout),
            ctypes.POINTER(_Tables),
            ctypes.c_void_p,
            ctypes.c_size_t,
        ]

    def __call__(
        self, data: memoryview, layout: Layout, tables: list[Table]
    ) -> tuple[bytes, list[Table]]:
        """Return the recoded data and the new tables, as `vit21k.pack.tiles.recode` does."""
        source = bytes(data)
        packed = _Tables.from_buffer(bytearray(b"".join(map(_packed, tables))))
        num_restarts = layout.mcus_x * layout.mcus_y // layout.restart_out
        capacity = 2 * len(source) + 8 * num_restarts + 1024
        out = ctypes.create_string_buffer(capacity)
        num_bytes = self._recode(
            source, len(source), ctypes.byref(_as_c(layout)), ctypes.byref(packed), out, capacity
        )
        if num_bytes == _NO_MEMORY:
            raise MemoryError
        if num_bytes == _NO_ROOM:
            raise NotTileableError("it would be twice as large")
        if num_bytes < 0:
            raise NotTileableError("damaged data")
        return ctypes.string_at(out, num_bytes), _unpacked(bytes(packed))


def _as_c(layout: Layout) -> _Layout:
    made = _Layout(*layout[:4], len(layout.blocks))
    made.component[: len(layout.blocks)] = layout.blocks
    made.dc_slot[: len(layout.dc_slot)] = layout.dc_slot
    made.ac_slot[: len(layout.ac_slot)] = layout.ac_slot
    return made


def _packed(table: Table) -> bytes:
    return table.counts + table.values[:256].ljust(256, b"\0")


def _unpacked(packed: bytes) -> list[Table]:
    tables = []
    for start in range(0, len(packed), _TABLE_BYTES):
        counts = packed[start : start + 17]
        tables.append(Table(counts, packed[start + 17 : start + 17 + sum(counts)]))
    return tables


@cache
def compiled_recoder() -> CompiledRecoder:
    """Return the compiled recoder.

    Raises:
        NoExtensionError: There is no compiled extension.
    """
    try:
        return CompiledRecoder(extension())
    except NoExtensionError as error:
        hint = f"{error.hint}; or make a pack with `--raw --short-side N`, which needs none of it"
        raise NoExtensionError(error.message, hint=hint) from error


Recode = Callable[[memoryview, Layout, list[Table]], tuple[bytes, list[Table]]]

TILE_MCUS = 8
"""Width of a tile that is aimed at.  With half of it the file grows by a hundredth."""

_MIN_TILE, _MAX_TILE = 3, 16
_NO_TABLE = Table(bytes(17), b"")


def tile_jpeg(content: bytes, recode: Recode, *, keep_metadata: bool = False) -> bytes:
    """Return *content* as a tile JPEG.

    Args:
        content: A JPEG file; what follows its end marker is skipped.
        recode: What `compiled_recoder` returned.
        keep_metadata: Keep EXIF, colour profiles and comments, which decide no pixel.

    Raises:
        NotTileableError: It is progressive, arithmetic, of several scans, damaged, or no JPEG.
    """
    jpeg = parse_jpeg(content)
    mcus_x, mcus_y = jpeg.frame.mcus
    interval = tile_width(mcus_x)
    tables = _tables(content, jpeg)
    layout = _layout(content, jpeg, interval)
    end = content.rfind(bytes([0xFF, EOI]), jpeg.scan_start)
    if end < 0 or mcus_x * mcus_y > 64 * (len(content) - jpeg.scan_start):
        raise NotTileableError("damaged data")
    data, new_tables = recode(memoryview(content)[jpeg.scan_start : end + 2], layout, tables)
    *heads, sos = jpeg.segments
    kept = [
        content[segment.start : segment.end]
        for segment in heads
        if segment.marker not in (DHT, DRI) and (keep_metadata or decides_pixels(segment))
    ]
    new = [_stored(new_tables), bytes([0xFF, DRI, 0, 4]) + interval.to_bytes(2)]
    scan = [content[sos.start : sos.end], data, bytes([0xFF, EOI])]
    return b"".join([content[:2], *kept, *new, *scan])


def tile_width(mcus: int) -> int:
    """Return how many MCUs a tile is to have: a divisor of *mcus*, those of a row.

    The one nearest to `TILE_MCUS`; a complete row where none is near.
    """
    divisors = [k for k in range(_MIN_TILE, min(_MAX_TILE, mcus) + 1) if mcus % k == 0]
    return min(divisors, key=lambda k: max(k / TILE_MCUS, TILE_MCUS / k), default=mcus)


def _tables(content: bytes, jpeg: Jpeg) -> list[Table]:
    """Return the tables in force: four for DC, then four for AC."""
    tables = [_NO_TABLE] * (2 * NUM_SLOTS)
    for segment in jpeg.segments:
        if segment.marker != DHT:
            continue
        position = segment.start + 4
        while position < segment.end:
            kind, slot = content[position] >> 4, content[position] & 15
            counts = b"\0" + content[position + 1 : position + 17]
            end = position + 17 + sum(counts)
            if kind > 1 or slot >= NUM_SLOTS or end > segment.end:
                raise NotTileableError("damaged headers")
            tables[kind * NUM_SLOTS + slot] = Table(counts, content[position + 17 : end])
            position = end
    return tables


def _layout(content: bytes, jpeg: Jpeg, interval: int) -> Layout:
    components = jpeg.frame.components
    sos = jpeg.segments[-1]
    body = content[sos.start + 5 : sos.end]
    if len(body) != 2 * len(components) + 3 or body[-3:] != b"\0\x3f\0":
        raise NotTileableError("an unusual kind of JPEG")
    if any(body[2 * i] != each.identifier for i, each in enumerate(components)):
        raise NotTileableError("an unusual kind of JPEG")
    slots = body[1 : 2 * len(components) : 2]
    if any(slot >> 4 >= NUM_SLOTS or slot & 15 >= NUM_SLOTS for slot in slots):
        raise NotTileableError("damaged headers")
    counts = [each.h * each.v for each in components] if len(components) > 1 else [1]
    return Layout(
        *jpeg.frame.mcus,
        restart_in=jpeg.restart_interval,
        restart_out=interval,
        blocks=tuple(i for i, count in enumerate(counts) for _ in range(count)),
        dc_slot=tuple(slot >> 4 for slot in slots),
        ac_slot=tuple(slot & 15 for slot in slots),
    )


def _stored(tables: list[Table]) -> bytes:
    """Return DHT with those that are used."""
    body = b"".join(
        bytes([index // NUM_SLOTS << 4 | index % NUM_SLOTS]) + table.counts[1:] + table.values
        for index, table in enumerate(tables)
        if table.values
    )
    return bytes([0xFF, DHT]) + (len(body) + 2).to_bytes(2) + body
