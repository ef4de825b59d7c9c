"""A picture that gives the pixels of any region of it, and the fastest decoder of JPEG.

That is simplejpeg if it is installed (`pip install 'vit21k[train]'`), else Pillow.  Both are
libjpeg-turbo, and neither takes a short cut: the pixels are those of `decode_rgb`, bit by bit,
whichever is installed.

Legend: H W pixels, C colours.
"""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit21k.data.decode import decode_rgb
from vit21k.errors import ImageError
from vit21k.jpeg.crops import Box

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

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


def decode_jpeg(
    content: bytes, *, size: tuple[int, int] | None = None, may_leave_over: bool = False
) -> NDArray[np.uint8]:
    """Return the RGB pixels (H, W, 3) of a JPEG file.

    Args:
        content: The file, of one scan or in full.
        size: (width, height), if it is known.
        may_leave_over: There may be more data than rows; *size* must be known then.

    Raises:
        ImageError: It is damaged, or cannot be decoded.
    """
    if simplejpeg is None:
        return np.array(decode_rgb(content))
    pixels_HWC = np.empty((size[1], size[0], 3), dtype=np.uint8) if size else None
    try:
        decoded_HWC: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "RGB", buffer=pixels_HWC)
    except Exception as error:
        # What is said is the first warning, or a failure after it.  Pixels are complete then.
        if may_leave_over and pixels_HWC is not None and _LEFT_OVER in str(error):
            return pixels_HWC
        raise ImageError(f"it cannot be decoded: {error}") from error
    return decoded_HWC
