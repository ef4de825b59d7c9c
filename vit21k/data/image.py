"""An image that decodes only the region that is asked for, and how it is resized."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vit21k.data.decode import MAX_JPEG_SIDE, MAX_PIXELS, MAX_SIDE, decode_rgb, is_readable_jpeg
from vit21k.errors import ImageError
from vit21k.jpeg.crops import parse_ppm
from vit21k.jpeg.tiles import TileJpeg, parse_tile_jpeg


def resample(pixels_HWC: NDArray[np.uint8], size: tuple[int, int], mode: str) -> Tensor:
    """Return the image as a tensor (3, height, width), of its own memory.

    Args:
        pixels_HWC: RGB, in any strides.
        size: (height, width) of the result.
        mode: "bilinear" or "bicubic".
    """
    if not (pixels_HWC.flags.c_contiguous and pixels_HWC.flags.writeable):
        pixels_HWC = pixels_HWC.copy()
    image_1CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None]
    return F.interpolate(image_1CHW, size, mode=mode, antialias=True)[0]


_START_OF_SCAN = 0xDA
_NO_LENGTH = frozenset([0x01, *range(0xD0, 0xD8)])
_PROGRESSIVE = 0xC2
_HUFFMAN_FRAMES = frozenset([0xC0, 0xC1, _PROGRESSIVE])  # baseline and extended are sequential
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those are tables, and reserved
_BITS = 8
_COLOURS = (1, 3)
_END_OF_IMAGE = b"\xff\xd9"

_CONTEXT_ROWS = 2
"""Rows below a row that its colours are interpolated from."""


class JpegFrame(NamedTuple):
    """The frame header of a plain JPEG: 8 bits, grey or three colours, Huffman-coded.

    Attributes:
        height_at: Where in the file the two bytes of the height are.
        width: Pixels.
        height: Pixels.
        num_colours: 1 or 3.
        is_one_scan: Whether all of it comes from top to bottom, once.
    """

    height_at: int
    width: int
    height: int
    num_colours: int
    is_one_scan: bool


def find_frame(content: bytes) -> JpegFrame | None:
    """Return the frame of a plain JPEG that has its end; None for anything else."""
    frame, place = None, 2
    while content[place : place + 1] == b"\xff" and place + 4 <= len(content):
        marker = content[place + 1]
        if marker == _START_OF_SCAN:
            return _checked(content, place, frame)
        if marker in _FRAMES:
            if frame or marker not in _HUFFMAN_FRAMES:
                return None
            frame = _frame_at(content, place)
            if not frame:
                return None
        place += _segment_bytes(content, place)
    return None


def cut_below(content: bytes, frame: JpegFrame, row: int) -> tuple[bytes, int]:
    """Return the file without what is below *row*, and how many rows it has then.

    The rows above *row* decode to the same pixels as ever.  What cannot be cut comes back whole.
    """
    height = row + _CONTEXT_ROWS
    if height >= frame.height or not frame.is_one_scan:
        return content, frame.height
    after = frame.height_at + 2
    cut = b"".join((content[: frame.height_at], height.to_bytes(2, "big"), content[after:]))
    return cut, height


def _segment_bytes(content: bytes, place: int) -> int:
    """Return the length of the segment at *place*, its marker included; 1 for a fill byte."""
    marker = content[place + 1]
    if marker == 0xFF:  # noqa: PLR2004 (a marker may begin with any number of these)
        return 1
    if marker in _NO_LENGTH:
        return 2
    return 2 + int.from_bytes(content[place + 2 : place + 4], "big")


def _frame_at(content: bytes, place: int) -> JpegFrame | None:
    header = content[place + 4 : place + 10]
    if len(header) < 6 or header[0] != _BITS or header[5] not in _COLOURS:  # noqa: PLR2004
        return None
    height, width = int.from_bytes(header[1:3], "big"), int.from_bytes(header[3:5], "big")
    if not width or not height:
        return None
    return JpegFrame(place + 5, width, height, header[5], content[place + 1] != _PROGRESSIVE)


def _checked(content: bytes, scan_at: int, frame: JpegFrame | None) -> JpegFrame | None:
    """Return the frame if the file has an end; with what its first scan says."""
    # What is cut off is never decoded: only the end after it says that it is there.
    if not frame or content.rfind(_END_OF_IMAGE, scan_at) < 0:
        return None
    has_all_colours = content[scan_at + 4 : scan_at + 5] == bytes([frame.num_colours])
    return frame._replace(is_one_scan=frame.is_one_scan and has_all_colours)


try:
    import simplejpeg
except ImportError:
    simplejpeg = None

Box = tuple[int, int, int, int]
"""Left, top, right, bottom; right and bottom are outside."""

_LEFT_OVER = "extraneous bytes before marker 0xd9"
"""What libjpeg says when it skips to the end of the image."""


class LazyImage(ABC):
    """An image of known size, of which a part may be asked for; by any thread.

    Attributes:
        size: (width, height) in pixels.
    """

    size: tuple[int, int]

    @abstractmethod
    def region(self, box: Box) -> NDArray[np.uint8]:
        """Return the RGB pixels of a box within the image as (H, W, 3), in any strides.

        Raises:
            ImageError: The file is damaged.
        """

    def image(self) -> Image.Image:
        """Return all of it, RGB.

        Raises:
            ImageError: The file is damaged.
        """
        return Image.fromarray(np.ascontiguousarray(self.region((0, 0, *self.size))))


class DecodedImage(LazyImage):
    """An image that is in memory."""

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


_GREY, _RGB = 1, 3  # components; of four, `decode_rgb` alone knows what they mean


class TileImage(LazyImage):
    """A JPEG with restart markers: a region is decoded from the tiles that cover it."""

    def __init__(self, content: bytes, tiles: TileJpeg) -> None:
        self.size = tiles.size
        self._content = content
        self._tiles = tiles

    def region(self, box: Box) -> NDArray[np.uint8]:
        """Return the RGB pixels of a box as (H, W, 3).

        Raises:
            ImageError: The file is damaged.
        """
        try:
            return self._tiles_of(box)
        except ImageError:  # or what only looks like it: one policy decides
            return DecodedImage(decode_rgb(self._content)).region(box)

    def _tiles_of(self, box: Box) -> NDArray[np.uint8]:
        left, top, right, bottom = box
        cut = self._tiles.cut(box)
        if cut is None:
            return decode_jpeg(self._content, size=self.size)[top:bottom, left:right]
        left, right = left - cut.left, right - cut.left
        top, bottom = top - cut.top, bottom - cut.top
        return decode_jpeg(cut.content, size=cut.size)[top:bottom, left:right]


class RawImage(LazyImage):
    """Pixels that are in memory."""

    def __init__(self, pixels_HWC: NDArray[np.uint8]) -> None:
        height, width, _ = pixels_HWC.shape
        self.size = (width, height)
        self._pixels_HWC = pixels_HWC

    def region(self, box: Box) -> NDArray[np.uint8]:
        """Return the RGB pixels of a box as (H, W, 3), not copied."""
        left, top, right, bottom = box
        return self._pixels_HWC[top:bottom, left:right]


def open_packed(content: bytes) -> LazyImage | None:
    """Return the image in a member of a pack; None if `decode_rgb` is to decide."""
    if (pixels_HWC := parse_ppm(content)) is not None:
        height, width, _ = pixels_HWC.shape
        is_allowed = width * height <= MAX_PIXELS and max(width, height) <= MAX_SIDE
        return RawImage(pixels_HWC) if is_allowed else None
    tiles = parse_tile_jpeg(content)
    if tiles is None or tiles.num_components not in (_GREY, _RGB):
        return None
    width, height = tiles.size
    is_allowed = width * height <= MAX_PIXELS and max(tiles.size) <= MAX_JPEG_SIDE
    return TileImage(content, tiles) if is_allowed else None


class JpegImage(LazyImage):
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
            return DecodedImage(decode_rgb(self._content)).region(box)
        return pixels_HWC[top:bottom, left:right]

    def image(self) -> Image.Image:
        """Return all of it, RGB."""
        return decode_rgb(self._content)

    def _decode_rows(self, bottom: int) -> NDArray[np.uint8]:
        cut, height = cut_below(self._content, self._frame, bottom)
        size = (self._frame.width, height)
        return decode_jpeg(cut, size=size, may_leave_over=height < self._frame.height)


def lazy_image(content: bytes) -> LazyImage:
    """Return the image in a file; plain JPEGs are decoded when a region is asked for.

    Raises:
        ImageError: As `decode_rgb`; or later, when a region is asked for.
    """
    if packed := open_packed(content):
        return packed
    frame = find_frame(content)
    if frame and is_readable_jpeg(content):
        return JpegImage(content, frame)
    return DecodedImage(decode_rgb(content))
