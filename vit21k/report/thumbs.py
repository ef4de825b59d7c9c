"""Image files -> small JPEG pictures inside the page, within a budget of bytes."""

import base64
import io
from collections.abc import Callable

from PIL import Image

from vit21k.data.decode import decode_rgb
from vit21k.errors import ImageError

_QUALITY = 70


class ThumbBudget:
    """Makes `data:` addresses of pictures until its bytes are spent.

    Attributes:
        num_bytes_left: What may still be spent, in bytes of the page.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes_left = num_bytes

    def thumb(self, read: Callable[[], bytes], side: int) -> str | None:
        """Return the address of a picture of at most *side* pixels.

        Args:
            read: Gives the content of the file.
            side: Of the longer side.

        Returns:
            None if the budget is spent; an empty string if the picture cannot be shown.
        """
        if self.num_bytes_left <= 0:
            return None
        try:
            address = (
                f"data:image/jpeg;base64,{base64.b64encode(small_jpeg(read(), side)).decode()}"
            )
        except (ImageError, OSError):
            return ""
        self.num_bytes_left -= len(address)
        return address


def small_jpeg(content: bytes, side: int) -> bytes:
    """Return the picture, no larger than *side* pixels, as a JPEG without metadata.

    Raises:
        ImageError: It is not an image, or damaged.
    """
    image = decode_rgb(content)
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
