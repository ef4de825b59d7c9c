"""The bytes of an image file -> an RGB picture, by one policy for training, eval and predict.

| the file holds | what is done |
|---|---|
| grey, palette, CMYK | converted to RGB by Pillow, without colour profiles |
| transparency | dropped: the colours below it are kept |
| 16 bits a channel | the high 8 are kept |
| several pictures | the first one |
| an EXIF orientation | not applied, as in torchvision and timm: ImageNet's labels do not need it |
| floating-point pixels | refused |
| a gzip'd picture | the picture in it, as `vit21k hash` takes it (ImageNet-21K has 26 of those) |

Formats are those that `vit21k hash` takes; the content counts, not the file's suffix.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from vit21k.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is decoded; PPM is for packs of pixels.  Pillow knows more, some of which start programs."""

MAX_PIXELS = 89_478_485
"""Pillow's own limit, 256 MB of RGBA: more is taken for a decompression bomb."""

MAX_UNPACKED_BYTES = 64 << 20
"""Of gzip'd pictures, as in `vit21k hash`: what unpacks to more is refused."""

_JPEG_START = b"\xff\xd8\xff"
_GZIP_START = b"\x1f\x8b"
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")

# What Pillow's parsers raise on bytes that are not what they say.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def decode_rgb(content: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a file in full to an RGB picture.

    Args:
        content: The file.
        max_pixels: A picture of more is refused before it is decoded.

    Raises:
        ImageError: Not an image, truncated, of floating-point pixels, or too large.
    """
    if not content:
        raise ImageError("the file is empty")
    try:
        image = _open(_unpacked(content))
        num_pixels = image.width * image.height
        if num_pixels > max_pixels:
            raise ImageError(f"{image.width} x {image.height} pixels are more than {max_pixels:,}")
        image.load()
        return _to_rgb(image)
    except _DAMAGE as error:
        raise ImageError(_reason(error)) from error


def is_readable_jpeg(content: bytes) -> bool:
    """Return whether Pillow can read the header of a JPEG file."""
    try:
        return isinstance(_open(content), _JpegImage)
    except _DAMAGE:
        return False


class _JpegImage(JpegImageFile):
    """A JPEG file whose EXIF segment is not parsed: it decides nothing here, and may be broken."""

    def _read_dpi_from_exif(self) -> None:
        pass


def _unpacked(content: bytes) -> bytes:
    """Return what is in gzip'd bytes, other bytes as they are."""
    if not content.startswith(_GZIP_START):
        return content
    unpacker = zlib.decompressobj(wbits=31)
    unpacked = unpacker.decompress(content, MAX_UNPACKED_BYTES)
    if not unpacker.eof:
        raise ImageError("it is gzip'd, and truncated or too large")
    return unpacked


def _open(content: bytes) -> Image.Image:
    """Read the header.  JPEG, nearly every file, skips Pillow's search for a format."""
    file = io.BytesIO(content)
    if not content.startswith(_JPEG_START):
        return Image.open(file, formats=FORMATS)
    image = _JpegImage(file)
    image.decodermaxblock = len(content)  # one call of the decoder, without the GIL
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ImageError("floating-point pixels have no known range")
    if image.mode in _SIXTEEN_BIT_MODES:
        high_byte = np.asarray(image).clip(0, 0xFFFF) >> 8
        image = Image.fromarray(high_byte.astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image of a known format"
    return f"it cannot be decoded: {error or type(error).__name__}"
