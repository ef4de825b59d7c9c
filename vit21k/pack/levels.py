"""Levels of a pack: how images are re-encoded, as a function of their bytes.

| level | result | loss |
|---|---|---|
| `AsIs` | the file | none |
| `Lossless` | a tile JPEG (`vit21k.pack.tiles`), or the file if it cannot be tiled | none |
| `Resized` | a tile JPEG of a given short side | detail, and JPEG compression |
| `Raw` | uint8 pixels of a given short side | detail |
"""

import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from vit21k.data.decode import MAX_JPEG_SIDE, decode_rgb
from vit21k.errors import ImageError
from vit21k.pack.tiles import NotTileableError, tile_jpeg, tile_width
from vit21k.sources.folders import suffix_of

TILES, AS_IS, RESIZED, RAW = "tiles", "as_is", "resized", "raw"
"""Form of a packed image: a lossless tile JPEG; the unchanged file; a smaller JPEG; pixels."""

_GZIP_START = b"\x1f\x8b"
_MCU = 16  # pixels of an MCU with chroma of half the size


class Packed(NamedTuple):
    """A packed image.

    Attributes:
        content: The file.
        suffix: Suffix of its name, without the dot.
        form: `TILES`, `AS_IS`, `RESIZED` or `RAW`.
        note: Why the file is unchanged; None if it is not.
        size: (width, height) in pixels.
    """

    content: bytes
    suffix: str
    form: str
    note: str | None
    size: tuple[int, int]


class PackLevel(Protocol):
    """Re-encodes images; thread-safe."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What the bytes depend on, as JSON values."""

    def __call__(self, content: bytes) -> Packed:
        """Re-encode the image in the file *content*.

        Raises:
            ImageError: It cannot be decoded.
        """


@dataclass(frozen=True)
class AsIs:
    """The image file itself, if it can be decoded."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What the bytes depend on."""
        return {"level": "as_is"}

    def __call__(self, content: bytes) -> Packed:
        """Decode an image, for its size.

        Raises:
            ImageError: It cannot be decoded.
        """
        image = decode_rgb(content)
        content = _unpacked(content)
        return Packed(content, suffix_of(content) or "bin", AS_IS, None, image.size)


@dataclass(frozen=True)
class Lossless:
    """Every coefficient, with restart markers.

    Attributes:
        keep_metadata: Keep EXIF, colour profiles and comments.
    """

    keep_metadata: bool = False

    @property
    def options(self) -> Mapping[str, Any]:
        """What the bytes depend on."""
        return {"level": "lossless", "keep_metadata": self.keep_metadata}

    def __call__(self, content: bytes) -> Packed:
        """Tile a JPEG, and check that it decodes to the same pixels.

        Raises:
            ImageError: It cannot be decoded.
        """
        image = decode_rgb(content)
        content = _unpacked(content)
        try:
            tiled = tile_jpeg(content, keep_metadata=self.keep_metadata)
            if _same_pixels(image, tiled):
                return Packed(tiled, "jpg", TILES, None, image.size)
            note = "its tiles would not decode to the same pixels"
        except NotTileableError as error:
            note = str(error)
        return Packed(content, suffix_of(content) or "bin", AS_IS, note, image.size)


@dataclass(frozen=True)
class Resized:
    """JPEG of a given short side, tiled; smaller images are tiled without resizing.

    Attributes:
        short_side: Pixels; the other side is rounded down, as in torchvision's `Resize`.
        quality: JPEG quality, 1 to 100.
    """

    short_side: int
    quality: int

    @property
    def options(self) -> Mapping[str, Any]:
        """What the bytes depend on, including the encoder."""
        encoder = f"libjpeg-turbo {features.version_feature('libjpeg_turbo')}"
        return {
            "level": "short_side",
            "short_side": self.short_side,
            "quality": self.quality,
            "encoder": encoder,
        }

    def __call__(self, content: bytes) -> Packed:
        """Decode an image, resize and encode it.

        Raises:
            ImageError: It cannot be decoded.
        """
        image = decode_rgb(content)
        if min(image.size) <= self.short_side:
            try:
                tiled = tile_jpeg(_unpacked(content))
                if _same_pixels(image, tiled):
                    return Packed(tiled, "jpg", TILES, None, image.size)
            except NotTileableError:
                pass  # such as a PNG: it is encoded below
        small = _shrunk(image, self.short_side)
        if max(small.size) > MAX_JPEG_SIDE:
            note = f"a side of {max(small.size):,} pixels is too long for a JPEG"
            content = _unpacked(content)
            return Packed(content, suffix_of(content) or "bin", AS_IS, note, image.size)
        return Packed(self._encoded(small), "jpg", RESIZED, None, small.size)

    def _encoded(self, image: Image.Image) -> bytes:
        file = io.BytesIO()
        image.save(
            file,
            "JPEG",
            quality=self.quality,
            subsampling="4:2:0",
            optimize=True,
            restart_marker_blocks=tile_width(-(-image.width // _MCU)),
        )
        return file.getvalue()


@dataclass(frozen=True)
class Raw:
    """RGB pixels, without compression.

    Attributes:
        short_side: Pixels; smaller images are not resized.
    """

    short_side: int

    @property
    def options(self) -> Mapping[str, Any]:
        """What the bytes depend on."""
        return {"level": "raw", "short_side": self.short_side}

    def __call__(self, content: bytes) -> Packed:
        """Decode an image and resize it.

        Raises:
            ImageError: It cannot be decoded.
        """
        image = _shrunk(decode_rgb(content), self.short_side)
        pixels_HWC = np.asarray(image)
        return Packed(to_ppm(pixels_HWC), "ppm", RAW, None, image.size)


def to_ppm(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """Return RGB *pixels_HWC* as a PPM file."""
    height, width, _ = pixels_HWC.shape
    return b"P6\n%d %d\n255\n" % (width, height) + pixels_HWC.tobytes()


def _shrunk(image: Image.Image, short_side: int) -> Image.Image:
    """Return *image* resized to this short side, antialiased, unless it is smaller."""
    short, long = sorted(image.size)
    if short <= short_side:
        return image
    long = int(short_side * long / short)
    size = (short_side, long) if image.width <= image.height else (long, short_side)
    return image.resize(size, Image.Resampling.BICUBIC)


def _same_pixels(image: Image.Image, content: bytes) -> bool:
    try:
        again = decode_rgb(content)
    except ImageError:
        return False
    return again.size == image.size and again.tobytes() == image.tobytes()


def _unpacked(content: bytes) -> bytes:
    """Return the content of a gzip'd image, whose size was checked when it was decoded."""
    return zlib.decompress(content, wbits=31) if content.startswith(_GZIP_START) else content
