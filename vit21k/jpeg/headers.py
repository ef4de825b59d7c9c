"""The marker segments of a JPEG file, up to its entropy-coded data.

Source: ITU-T T.81, Annex B.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

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
    """Where a marker segment lies: content[start:end], the marker included."""

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
        segment: Where it lies.
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
