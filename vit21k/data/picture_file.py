"""The bytes of an image file -> a picture, decoded when and as far as its pixels are asked for.

A random crop needs half of a picture on average.  A plain JPEG is decoded down to the last row of
the crop and no further.  Anything that is not plain, or whose decoding fails, goes to `decode_rgb`:
it alone decides what is decoded and what is refused.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit21k.data.decode import decode_rgb, is_readable_jpeg
from vit21k.data.jpeg_frame import JpegFrame, cut_below, find_frame
from vit21k.data.packed_picture import open_packed
from vit21k.data.picture import DecodedPicture, Picture, decode_jpeg
from vit21k.errors import ImageError
from vit21k.jpeg.crops import Box


class JpegPicture(Picture):
    """A plain JPEG, not decoded yet."""

    def __init__(self, content: bytes, frame: JpegFrame) -> None:
        self.size = (frame.width, frame.height)
        self._content = content
        self._frame = frame

    def region(self, box: Box) -> NDArray[np.uint8]:
        """Return the RGB pixels of a box as (H, W, 3)."""
        left, top, right, bottom = box
        try:
            pixels_HWC = self._decode_rows(bottom)
        except ImageError:
            return DecodedPicture(decode_rgb(self._content)).region(box)
        return pixels_HWC[top:bottom, left:right]

    def image(self) -> Image.Image:
        """Return all of it, RGB."""
        return decode_rgb(self._content)

    def _decode_rows(self, bottom: int) -> NDArray[np.uint8]:
        cut, height = cut_below(self._content, self._frame, bottom)
        size = (self._frame.width, height)
        return decode_jpeg(cut, size=size, may_leave_over=height < self._frame.height)


def open_picture(content: bytes) -> Picture:
    """Return the picture in a file; plain JPEGs are decoded when a region is asked for.

    Raises:
        ImageError: As `decode_rgb`; or later, when a region is asked for.
    """
    if packed := open_packed(content):
        return packed
    frame = find_frame(content)
    if frame and is_readable_jpeg(content):
        return JpegPicture(content, frame)
    return DecodedPicture(decode_rgb(content))
