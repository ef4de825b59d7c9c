"""Image files -> small JPEG pictures inside the page, within a budget of bytes."""

import base64
import io
from collections.abc import Callable

from PIL import Image

from vit21k.data.decode import decode_rgb
from vit21k.data.unread import why_unread
from vit21k.errors import ImageError

_QUALITY = 70

UNREAD, UNDECODED = "could not be read", "cannot be decoded"
"""What stands in place of the address of a picture that cannot be shown."""


class ThumbBudget:
    """Makes `data:` addresses of pictures until its bytes are spent.

    Attributes:
        num_bytes_left: What may still be spent, in bytes of the page.
        unread: Why pictures could not be read.
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes_left = num_bytes
        self.unread: list[str] = []

    def thumb(self, read: Callable[[], bytes], side: int) -> str | None:
        """Return the address of a picture of at most *side* pixels.

        Args:
            read: Gives the content of the file.
            side: Of the longer side.

        Returns:
            None if the budget is spent; `UNREAD` or `UNDECODED` if the picture cannot be shown.
        """
        if self.num_bytes_left <= 0:
            return None
        try:
            content = read()
        except (ImageError, OSError) as error:
            self.unread.append(why_unread(error))
            return UNREAD
        try:
            jpeg = base64.b64encode(small_jpeg(content, side)).decode()
        except ImageError:
            return UNDECODED
        address = f"data:image/jpeg;base64,{jpeg}"
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
