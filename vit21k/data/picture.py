"""The bytes of an image file -> a picture that gives the pixels of any region of it.

A random crop needs half of a picture on average.  A plain JPEG is decoded down to the last row of
the crop and no further, by simplejpeg if it is installed (`pip install 'vit21k[train]'`), else by
Pillow.  Both are libjpeg-turbo, and neither takes a short cut, so that the pixels are those of
`decode_rgb`, bit by bit, whichever is installed.  Anything that is not plain, or whose decoding
fails, goes to `decode_rgb`: it alone decides what is decoded and what is refused.

Legend: H W pixels, C colours.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit21k.data.decode import MAX_PIXELS, decode_rgb, is_readable_jpeg
from vit21k.data.jpeg_frame import JpegFrame, cut_below, find_frame
from vit21k.errors import ImageError

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

Box = tuple[int, int, int, int]
"""Left, top, right, bottom; right and bottom are outside."""

_LEFT_OVER = "extraneous bytes before marker 0xd9"
"""What libjpeg says when it skips to the end of the image."""


class Picture(ABC):
    """A picture of known size, of which a part may be asked for; by any thread.

    Attributes:
        size: (width, height) in pixels.
    """

    size: tuple[int, int]

    @abstractmethod
    def region(self, box: Box) -> NDArray[np.uint8]:
        """Return the RGB pixels of a box within the picture as (H, W, 3), in any strides.

        Raises:
            ImageError: The file is damaged.
        """

    def image(self) -> Image.Image:
        """Return all of it, RGB.

        Raises:
            ImageError: The file is damaged.
        """
        return Image.fromarray(np.ascontiguousarray(self.region((0, 0, *self.size))))


class DecodedPicture(Picture):
    """A picture that is in memory."""

    def __init__(self, image: Image.Image) -> None:
        self.size = image.size
        self._image = image

    def region(self, box: Box) -> NDArray[np.uint8]:
        """Return the RGB pixels of a box as (H, W, 3)."""
        return np.array(self._image.crop(box))

    def image(self) -> Image.Image:
        """Return all of it, RGB."""
        return self._image


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
            pixels_HWC = _decode_rows(self._content, self._frame, bottom)
        except ImageError:
            return DecodedPicture(decode_rgb(self._content)).region(box)
        return pixels_HWC[top:bottom, left:right]

    def image(self) -> Image.Image:
        """Return all of it, RGB."""
        return decode_rgb(self._content)


def open_picture(content: bytes) -> Picture:
    """Return the picture in a file; plain JPEGs are decoded when a region is asked for.

    Raises:
        ImageError: As `decode_rgb`; or later, when a region is asked for.
    """
    frame = find_frame(content)
    if frame and frame.width * frame.height <= MAX_PIXELS and is_readable_jpeg(content):
        return JpegPicture(content, frame)
    return DecodedPicture(decode_rgb(content))


def decode_jpeg(content: bytes) -> NDArray[np.uint8]:
    """Return the RGB pixels (H, W, 3) of a JPEG file, by the fastest decoder there is.

    Raises:
        ImageError: It is damaged, or cannot be decoded.
    """
    if simplejpeg is None:
        return np.array(decode_rgb(content))
    try:
        pixels_HWC: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "RGB")
    except ValueError as error:
        raise ImageError(f"it cannot be decoded: {error}") from error
    return pixels_HWC


def _decode_rows(content: bytes, frame: JpegFrame, row: int) -> NDArray[np.uint8]:
    """Return the pixels above *row*, and perhaps some below it.

    Raises:
        ImageError: It is damaged, or cannot be decoded.
    """
    cut, height = cut_below(content, frame, row)
    if height == frame.height or simplejpeg is None:
        return decode_jpeg(cut)
    pixels_HWC = np.empty((height, frame.width, 3), dtype=np.uint8)
    try:
        simplejpeg.decode_jpeg(cut, "RGB", buffer=pixels_HWC)
    except ValueError as error:
        # The first warning, or a failure after it.  What is left over below a cut is as it should
        # be; anything else is damage.
        if _LEFT_OVER not in str(error):
            raise ImageError(f"it cannot be decoded: {error}") from error
    return pixels_HWC
