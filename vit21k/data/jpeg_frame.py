"""Where a JPEG file keeps its frame header, and the same file with fewer rows.

A decoder reads a file from the top.  With a smaller height in the frame header it stops at that
row, and everything below costs nothing: no entropy decoding, no transform, no colour conversion.
That holds for files of one scan; in progressive ones, each scan begins at the top again.
"""

from typing import NamedTuple

_START_OF_SCAN = 0xDA
_NO_LENGTH = frozenset([0x01, *range(0xD0, 0xD8)])
_PROGRESSIVE = 0xC2
_HUFFMAN_FRAMES = frozenset([0xC0, 0xC1, _PROGRESSIVE])  # baseline and extended are sequential
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those are tables, and reserved
_BITS = 8
_COLOURS = (1, 3)
_END_OF_IMAGE = b"\xff\xd9"

_CONTEXT_ROWS = 2
"""Rows below a row that its colours are interpolated from."""


class JpegFrame(NamedTuple):
    """The frame header of a plain JPEG: 8 bits, grey or three colours, Huffman-coded.

    Attributes:
        height_at: Where in the file the two bytes of the height are.
        width: Pixels.
        height: Pixels.
        num_colours: 1 or 3.
        is_one_scan: Whether all of it comes from top to bottom, once.
    """

    height_at: int
    width: int
    height: int
    num_colours: int
    is_one_scan: bool


def find_frame(content: bytes) -> JpegFrame | None:
    """Return the frame of a plain JPEG that has its end; None for anything else."""
    frame, place = None, 2
    while content[place : place + 1] == b"\xff" and place + 4 <= len(content):
        marker = content[place + 1]
        if marker == _START_OF_SCAN:
            return _checked(content, place, frame)
        if marker in _FRAMES:
            if frame or marker not in _HUFFMAN_FRAMES:
                return None
            frame = _frame_at(content, place)
            if not frame:
                return None
        place += _segment_bytes(content, place)
    return None


def cut_below(content: bytes, frame: JpegFrame, row: int) -> tuple[bytes, int]:
    """Return the file without what is below *row*, and how many rows it has then.

    The rows above *row* decode to the same pixels as ever.  What cannot be cut comes back whole.
    """
    height = row + _CONTEXT_ROWS
    if height >= frame.height or not frame.is_one_scan:
        return content, frame.height
    after = frame.height_at + 2
    cut = b"".join((content[: frame.height_at], height.to_bytes(2, "big"), content[after:]))
    return cut, height


def _segment_bytes(content: bytes, place: int) -> int:
    """Return the length of the segment at *place*, its marker included; 1 for a fill byte."""
    marker = content[place + 1]
    if marker == 0xFF:  # noqa: PLR2004 (a marker may begin with any number of these)
        return 1
    if marker in _NO_LENGTH:
        return 2
    return 2 + int.from_bytes(content[place + 2 : place + 4], "big")


def _frame_at(content: bytes, place: int) -> JpegFrame | None:
    header = content[place + 4 : place + 10]
    if len(header) < 6 or header[0] != _BITS or header[5] not in _COLOURS:  # noqa: PLR2004
        return None
    height, width = int.from_bytes(header[1:3], "big"), int.from_bytes(header[3:5], "big")
    if not width or not height:
        return None
    return JpegFrame(place + 5, width, height, header[5], content[place + 1] != _PROGRESSIVE)


def _checked(content: bytes, scan_at: int, frame: JpegFrame | None) -> JpegFrame | None:
    """Return the frame if the file has an end; with what its first scan says."""
    # What is cut off is never decoded: only the end after it says that it is there.
    if not frame or content.rfind(_END_OF_IMAGE, scan_at) < 0:
        return None
    has_all_colours = content[scan_at + 4 : scan_at + 5] == bytes([frame.num_colours])
    return frame._replace(is_one_scan=frame.is_one_scan and has_all_colours)
