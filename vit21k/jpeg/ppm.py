"""Pixels as they are, behind a header of one line: PPM, which Pillow and webdataset read."""

import re

import numpy as np
from numpy.typing import NDArray

_HEADER = re.compile(rb"P6\n(\d{1,6}) (\d{1,6})\n255\n")
_COLOURS = 3


def to_ppm(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """Return RGB *pixels_HWC* as a file."""
    height, width, _ = pixels_HWC.shape
    return b"P6\n%d %d\n255\n" % (width, height) + pixels_HWC.tobytes()


def parse_ppm(content: bytes) -> NDArray[np.uint8] | None:
    """Return the RGB pixels (H, W, 3) of what `to_ppm` wrote, not copied; None if it is no such."""
    if not (match := _HEADER.match(content)):
        return None
    width, height = int(match[1]), int(match[2])
    if len(content) - match.end() != width * height * _COLOURS:
        return None
    pixels = np.frombuffer(content, dtype=np.uint8, offset=match.end())
    return pixels.reshape(height, width, _COLOURS)
