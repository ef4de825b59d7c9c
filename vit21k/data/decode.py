"""Decode an image file to RGB, by the same policy in every command."""

import ctypes
import io
import logging
import zlib
from collections import Counter
from functools import cache

import numpy as np
from PIL import Image, UnidentifiedImageError, _imaging
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from vit21k.errors import ImageError
from vit21k.manifest.problems import ProblemKind

MAX_PIXELS = 89_478_485
"""Pillow's own limit, 256 MB of RGBA: more is treated as a decompression bomb."""

MAX_SIDE = 1 << 24
"""Pixels along a side: Pillow's rows end at 2**31 bits."""

MAX_JPEG_SIDE = 65_500
"""libjpeg's limit; the format itself ends at 65,535."""

MAX_SECONDS = 5.0
"""Estimated time that decoding one file may take."""

MAX_BYTES = 1 << 30
"""Estimated memory that decoding one file may take, in addition to the file."""

MAX_UNPACKED_BYTES = 64 << 20
"""Limit of gzip'd images, as in `vit21k hash`: larger ones are refused."""

MESSAGES: Counter[str] = Counter()
"""Messages of libtiff and Pillow's log since the process began, counted by their format string.
By default, both print to the terminal."""

_GZIP_START = b"\x1f\x8b"
_JPEG_START = b"\xff\xd8\xff"
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_SIGNS_OF_TRUNCATION = ("truncated", "unexpected end", "not enough", "eof", "broken data stream")
_WHITE_IS_ZERO, _BITS_TAG, _PHOTOMETRIC_TAG, _ORIENTATION_TAG = 0, 258, 262, 274
_BAND_PIXELS = 1 << 20
_GIF_HEADER_BYTES = 2 << 20
_DECODED_BYTES = 8 << 30  # Pillow 11 reads 64 KiB for each strip of a TIFF, however short

# Seconds a pixel, by Pillow's decoder: from images of 36 megapixels on one core of 2.5 GHz, doubled
# at least.  The last five run in Python.
_PIXEL_SECONDS = {
    "jpeg": 15e-9,
    "zip": 50e-9,
    "gif": 25e-9,
    "raw": 10e-9,
    "webp": 50e-9,
    "libtiff": 50e-9,
    "bmp_rle": 250e-9,
    "ppm_plain": 1e-6,
    "ppm": 3.5e-6,
}
_BYTE_SECONDS = 25e-9
_JPEG_BLOCK_SECONDS = 12e-9  # of each scan
_JPEG_SCAN_SECONDS = 5e-6
_ARITHMETIC_FACTOR = 10
_READ_SECONDS = 3e-6  # a call of Pillow's parsers in Python

# Bytes a pixel in addition to the image itself, by decoder.
_PIXEL_BYTES = {"webp": 18, "bmp_rle": 3, "ppm_plain": 8, "ppm": 8, "libtiff": 4, "gif": 4}
_WIDE_MODE_BYTES = 4
_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_COEFFICIENT_BLOCK_BYTES = 128


def decode_rgb(
    content: bytes, *, max_pixels: int = MAX_PIXELS, max_seconds: float = MAX_SECONDS
) -> Image.Image:
    """Decode a file to an RGB image.

    Args:
        content: The file.
        max_pixels: Larger images are refused before decoding.
        max_seconds: Images with a longer estimated decoding time are refused.

    Raises:
        ImageError: Whatever is wrong: not an image, truncated, of pixels without a known range, or
            beyond the budget of `open_image`.
    """
    image = open_image(content, max_pixels=max_pixels, max_seconds=max_seconds)
    try:
        image.load()
        return _to_rgb(image)
    except Exception as error:
        raise _image_error(error) from error


def open_image(
    content: bytes, *, max_pixels: int = MAX_PIXELS, max_seconds: float = MAX_SECONDS
) -> ImageFile:
    """Read the header of a file; refuse images that need too much time or memory to decode.

    Args:
        content: The file.
        max_pixels: Larger images are refused.
        max_seconds: Images with a longer estimated decoding time are refused.

    Returns:
        Pillow's image, not decoded yet.

    Raises:
        ImageError: It is not an image, or beyond the budget; `kind` says which.
    """
    if not content:
        raise ImageError("the file is empty", kind=ProblemKind.EMPTY)
    try:
        content = _unpacked(content)
        image = _opened(content)
        _check_cost(image, content, max_pixels, max_seconds)
    except Exception as error:
        raise _image_error(error) from error
    return image


def is_readable_jpeg(content: bytes) -> bool:
    """Return whether Pillow can read the header of a JPEG file, and it is within the budget."""
    try:
        return isinstance(open_image(content), _JpegImage)
    except ImageError:
        return False


class _MeteredFile(io.BytesIO):
    """The bytes of a file, with a budget of reads for Pillow's parsers.

    These are Python loops over the structure of a file: chunks, tags that point to the same data
    repeatedly, runs of pixels.  The number of calls bounds their time, the number of bytes the
    memory of a header.

    Attributes:
        bytes_left: That may still be read.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._reads_left = int(MAX_SECONDS / _READ_SECONDS)
        self.bytes_left = 4 * len(content) + (1 << 20)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read from the file.

        Raises:
            ImageError: The budget is used up.
        """
        part = super().read(size)
        self._reads_left -= 1
        self.bytes_left -= len(part)
        if self._reads_left < 0 or self.bytes_left < 0:
            raise ImageError(
                "its header or its runs of pixels take too long to read",
                kind=ProblemKind.TOO_SLOW_TO_DECODE,
            )
        return part


class _CountingHandler(logging.Handler):
    """Counts what Pillow logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Count a message."""
        MESSAGES[str(record.msg)] += 1


logging.getLogger("PIL").addHandler(_CountingHandler(logging.WARNING))


class _JpegImage(JpegImageFile):
    """A JPEG file whose EXIF segment is not parsed: it is not needed, and may be malformed."""

    def _read_dpi_from_exif(self) -> None:
        pass


class _TiffImage(TiffImageFile):
    """A TIFF file whose orientation is ignored, like that of the other formats."""

    def _setup(self) -> None:
        self.tag_v2.pop(_ORIENTATION_TAG, None)
        super()._setup()  # type: ignore[no-untyped-call, unused-ignore]

    def load_end(self) -> None:
        """Do not transform the pixels."""


_KINDS: tuple[tuple[bytes | tuple[bytes, ...], type[ImageFile]], ...] = (
    (_JPEG_START, _JpegImage),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"RIFF", WebPImageFile),
    (b"BM", BmpImageFile),
    ((b"GIF87a", b"GIF89a"), GifImageFile),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0"), _TiffImage),
    (tuple(b"P" + kind for kind in (b"1", b"2", b"3", b"4", b"5", b"6", b"f", b"0")), PpmImageFile),
)
"""Supported formats; PPM is for raw packs.  Pillow has more, some of which start programs."""


def _unpacked(content: bytes) -> bytes:
    """Return the content of gzip'd bytes; other bytes unchanged."""
    if not content.startswith(_GZIP_START):
        return content
    unpacker = zlib.decompressobj(wbits=31)
    kind = ProblemKind.NOT_AN_IMAGE
    try:
        unpacked = unpacker.decompress(content, MAX_UNPACKED_BYTES)
    except zlib.error as error:
        raise ImageError(f"it cannot be decoded: {error}", kind=kind) from error
    if not unpacker.eof:
        raise ImageError("it is gzip'd, and truncated or too large", kind=kind)
    return unpacked


def _opened(content: bytes) -> ImageFile:
    """Read the header, with the plugin for the first bytes."""
    plugin = next((plugin for start, plugin in _KINDS if content.startswith(start)), None)
    if plugin is None:
        raise UnidentifiedImageError
    if plugin is _TiffImage:
        _count_libtiff_messages()
    file = _MeteredFile(content)
    if plugin is GifImageFile:  # Pillow up to 12 joins comments up in quadratic time
        file.bytes_left = _GIF_HEADER_BYTES
    image = plugin(file)
    file.bytes_left = _DECODED_BYTES
    if plugin is _JpegImage:
        image.decodermaxblock = len(content)  # one call of the decoder, without the GIL
    return image


def _check_cost(image: ImageFile, content: bytes, max_pixels: int, max_seconds: float) -> None:
    """Refuse an image whose header exceeds the budget.

    Raises:
        ImageError: It exceeds the budget.
    """
    size = f"{image.width} x {image.height} pixels"
    num_pixels = image.width * image.height
    if num_pixels > max_pixels:
        raise ImageError(f"{size} are more than {max_pixels:,}", kind=ProblemKind.TOO_MANY_PIXELS)
    max_side = MAX_JPEG_SIDE if isinstance(image, _JpegImage) else MAX_SIDE
    if max(image.size) > max_side:
        raise ImageError(
            f"{size}: a side is longer than {max_side:,}", kind=ProblemKind.TOO_MANY_PIXELS
        )
    codec = (
        "webp" if isinstance(image, WebPImageFile) else image.tile[0][0] if image.tile else "raw"
    )
    seconds = num_pixels * _PIXEL_SECONDS.get(codec, 50e-9) + len(content) * _BYTE_SECONDS
    num_bytes = num_pixels * (_bytes_a_pixel(image) + _PIXEL_BYTES.get(codec, 0))
    if isinstance(image, TiffImageFile) and codec == "libtiff":  # a strip may be all of it
        num_bytes += num_pixels * sum(_bits_of(image)) // 8
    if isinstance(image, _JpegImage):
        more_seconds, more_bytes = _cost_of_scans(image, content)
        seconds, num_bytes = seconds + more_seconds, num_bytes + more_bytes
    if seconds > max_seconds:
        raise ImageError(
            f"decoding its {size} would take about {seconds:.0f} s, more than {max_seconds:g} s",
            kind=ProblemKind.TOO_SLOW_TO_DECODE,
        )
    if num_bytes > MAX_BYTES:
        raise ImageError(
            f"decoding its {size} would take about {num_bytes / 1e6:,.0f} MB, more than "
            f"{MAX_BYTES / 1e6:,.0f} MB",
            kind=ProblemKind.TOO_MUCH_MEMORY,
        )


def _bytes_a_pixel(image: ImageFile) -> int:
    """Return the bytes of a pixel as Pillow holds it, and of its copies on the way to RGB."""
    if image.mode == "RGB":
        return _WIDE_MODE_BYTES
    copies = 2 if image.mode == "P" else 1
    return _MODE_BYTES.get(image.mode, _WIDE_MODE_BYTES) + copies * _WIDE_MODE_BYTES


def _cost_of_scans(image: JpegImageFile, content: bytes) -> tuple[float, int]:
    """Return seconds and bytes that the scans of a JPEG add: each visits every block.

    Their number is that of the markers that begin one, an upper bound: the thumbnail in the
    metadata may have some.
    """
    num_scans = content.count(b"\xff\xda")
    layers = [(h, v) for _id, h, v, _table in image.layer]
    mcu_width, mcu_height = 8 * max(h for h, _ in layers), 8 * max(v for _, v in layers)
    num_mcus = -(-image.width // mcu_width) * -(-image.height // mcu_height)
    num_blocks = num_mcus * sum(h * v for h, v in layers)
    seconds = num_scans * (num_blocks * _JPEG_BLOCK_SECONDS + _JPEG_SCAN_SECONDS)
    if b"\xff\xc9" in content or b"\xff\xca" in content:
        seconds = _ARITHMETIC_FACTOR * (seconds + len(content) * _BYTE_SECONDS)
    return seconds, num_blocks * _COEFFICIENT_BLOCK_BYTES if num_scans > 1 else 0


def _to_rgb(image: ImageFile) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise _unknown_range("floating-point pixels")
    if image.mode in _SIXTEEN_BIT_MODES:
        return _high_byte(image).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _high_byte(image: ImageFile) -> Image.Image:
    """Return the high 8 bits of grey pixels of 9 to 16 bits, a band of rows at a time."""
    bits, is_negative = 16, False
    if isinstance(image, TiffImageFile):
        if image.mode == "I":
            raise _unknown_range("signed or 32-bit pixels")
        bits = max(_bits_of(image))
        is_negative = image.tag_v2.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO
    high = Image.new("L", image.size)
    num_rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, num_rows):
        box = (0, top, image.width, min(top + num_rows, image.height))
        band = np.asarray(image.crop(box)).clip(0, (1 << bits) - 1) >> (bits - 8)
        band = 255 - band if is_negative else band
        high.paste(Image.fromarray(band.astype(np.uint8)), box)
    return high


def _bits_of(image: TiffImageFile) -> tuple[int, ...]:
    bits = image.tag_v2.get(_BITS_TAG, (1,))
    return tuple(bits) if isinstance(bits, tuple) else (bits,)


def _unknown_range(pixels: str) -> ImageError:
    return ImageError(f"{pixels} have no known range", kind=ProblemKind.UNSUPPORTED_PIXELS)


def _image_error(error: Exception) -> ImageError:
    """Return what any exception of a decoder means: parsers raise nearly all kinds there are."""
    if isinstance(error, ImageError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return ImageError("it is not an image of a known format", kind=ProblemKind.NOT_AN_IMAGE)
    if isinstance(error, MemoryError):  # what it needs was checked before
        return ImageError(
            "this machine has too little memory left to decode it",
            kind=ProblemKind.TOO_MUCH_MEMORY,
        )
    words = str(error).lower()
    is_cut = isinstance(error, EOFError) or any(sign in words for sign in _SIGNS_OF_TRUNCATION)
    kind = ProblemKind.TRUNCATED_IMAGE if is_cut else ProblemKind.DAMAGED_IMAGE
    return ImageError(f"it cannot be decoded: {error or type(error).__name__}", kind=kind)


@cache
def _count_libtiff_messages() -> object:
    """Let libtiff's messages be counted: by itself it prints them to the terminal.

    Returns:
        The function that libtiff calls, which must be kept; None where it cannot be set.
    """

    def count(_module: bytes | None, message: bytes | None, _values: int | None) -> None:
        MESSAGES[(message or b"").decode("utf-8", "replace")] += 1

    handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)(count)
    try:
        libtiff = ctypes.CDLL(_imaging.__file__)  # Pillow's own: looked up in what it is linked to
        libtiff.TIFFSetErrorHandler(handler)
        libtiff.TIFFSetWarningHandler(handler)
    except (AttributeError, OSError):
        return None
    return handler
