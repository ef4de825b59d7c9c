"""Cut the tiles that cover a crop out of a tile JPEG, as a smaller JPEG file for any decoder."""

from typing import NamedTuple

import numpy as np

from vit21k.pack.tiles import (
    DRI,
    EOI,
    RST0,
    SOS,
    Jpeg,
    NotTileableError,
    decides_pixels,
    parse_jpeg,
)

CHROMA_MARGIN = 2
"""Pixels around a crop that its own depend on: chroma is interpolated between two samples."""

_LEAST_WIDTH = 5
"""Pixels: of narrower images libjpeg does not interpolate chroma."""

_RESTARTS = [bytes([0xFF, RST0 + index]) for index in range(8)]
_END = bytes([0xFF, EOI])
_DRI = bytes([0xFF, DRI, 0, 4])
_SOS = bytes([0xFF, SOS])

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are the first that are outside."""


class Cut(NamedTuple):
    """A part of an image.

    Attributes:
        content: A JPEG file.
        left: Where its first column of pixels is in the whole image.
        top: Where its first row is.
        size: (width, height) in pixels.
    """

    content: bytes
    left: int
    top: int
    size: tuple[int, int]


class TileJpeg:
    """A tile JPEG, of which parts can be cut out.

    Attributes:
        size: (width, height) in pixels.
        num_components: Colours, as they are stored.
    """

    def __init__(self, content: bytes, jpeg: Jpeg, per_row: int) -> None:
        """Make an instance; *per_row* is how many tiles a row has."""
        frame = jpeg.frame
        self.size = (frame.width, frame.height)
        self.num_components = len(frame.components)
        self._content, self._jpeg, self._per_row = content, jpeg, per_row
        self._num_rows = frame.mcus[1]
        width, self._tile_height = frame.mcu_size
        self._tile_width = width * jpeg.restart_interval

    def cut(self, box: Box, margin: int = CHROMA_MARGIN) -> Cut | None:
        """Return a JPEG of the tiles that cover *box*; None if the whole has to be decoded.

        Its pixels inside *box* are those of the whole image's decoding.

        Args:
            box: The crop.
            margin: Pixels around the crop that have to be right too, `CHROMA_MARGIN` among them.
        """
        left, top, right, bottom = box
        columns = _covering(left - margin, right + margin, self._tile_width, self._per_row)
        rows = _covering(top - margin, bottom + margin, self._tile_height, self._num_rows)
        if columns and self.size[0] - columns.start * self._tile_width < _LEAST_WIDTH:
            columns = range(max(columns.start - 1, 0), columns.stop)
        is_all = len(columns) == self._per_row and len(rows) == self._num_rows
        if is_all or not columns or not rows:
            return None
        starts = _tile_starts(self._content, self._jpeg.scan_start, self._per_row * self._num_rows)
        if starts is None:
            return None
        content, number = self._content, 0
        left, top = columns.start * self._tile_width, rows.start * self._tile_height
        right = min(columns.stop * self._tile_width, self.size[0])
        bottom = min(rows.stop * self._tile_height, self.size[1])
        size = (right - left, bottom - top)
        parts = [self._head(size)]
        for first in range(rows.start * self._per_row, rows.stop * self._per_row, self._per_row):
            for tile in range(first + columns.start, first + columns.stop):
                parts += (content[starts[tile] : starts[tile + 1] - 2], _RESTARTS[number & 7])
                number += 1
        parts[-1] = _END
        return Cut(b"".join(parts), left, top, size)

    def _head(self, size: tuple[int, int]) -> bytes:
        """Return all that comes before the tiles, without metadata, with the *size* of the cut."""
        content, start = self._content, self._jpeg.frame.segment.start
        width, height = size
        parts = [content[:2]]
        for segment in self._jpeg.segments:
            if segment.start == start:
                parts.append(content[start : start + 5] + height.to_bytes(2) + width.to_bytes(2))
                parts.append(content[start + 9 : segment.end])
            elif decides_pixels(segment):
                parts.append(content[segment.start : segment.end])
        return b"".join(parts)


def parse_tile_jpeg(content: bytes) -> TileJpeg | None:
    """Return *content* as a tile JPEG; None if it is anything else."""
    if content.find(_DRI, 0, content.find(_SOS)) < 0:  # most files have none, which is soon seen
        return None
    try:
        jpeg = parse_jpeg(content)
    except NotTileableError:
        return None
    if not jpeg.restart_interval:
        return None
    per_row, rest = divmod(jpeg.frame.mcus[0], jpeg.restart_interval)
    return None if rest else TileJpeg(content, jpeg, per_row)


def _covering(start: int, stop: int, size: int, number: int) -> range:
    """Return which of *number* stretches of *size* pixels cover *start* to *stop*."""
    return range(max(start // size, 0), min(-(-stop // size), number))


def _tile_starts(content: bytes, scan_start: int, num_tiles: int) -> list[int] | None:
    """Return where each tile begins, and two bytes after where the last one ends.

    None if there are not as many as there should be.
    """
    data = np.frombuffer(content, dtype=np.uint8, offset=scan_start)
    is_ff = data[:-1] == 0xFF
    after = np.flatnonzero(is_ff) + 1
    marker = data[after]
    is_real = (marker != 0) & (marker != 0xFF)
    after, marker = after[is_real][:num_tiles], marker[is_real][:num_tiles]
    numbers = np.arange(num_tiles - 1) & 7
    if len(after) < num_tiles or marker[-1] != EOI or (marker[:-1] != RST0 + numbers).any():
        return None
    return [scan_start, *(after + (scan_start + 1)).tolist()]
