"""What `vit21k pack` writes -> pictures of which only the part that is asked for is decoded.

Legend: H W pixels, C colours.
"""

import numpy as np
from numpy.typing import NDArray

from vit21k.data.decode import MAX_JPEG_SIDE, MAX_PIXELS, MAX_SIDE, decode_rgb
from vit21k.data.picture import DecodedPicture, Picture, decode_jpeg
from vit21k.errors import ImageError
from vit21k.jpeg.crops import Box
from vit21k.jpeg.ppm import parse_ppm
from vit21k.jpeg.tiles import TileJpeg, parse_tile_jpeg

_GREY, _RGB = 1, 3  # components; of four, `decode_rgb` alone knows what they mean


class TilePicture(Picture):
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
            return DecodedPicture(decode_rgb(self._content)).region(box)

    def _tiles_of(self, box: Box) -> NDArray[np.uint8]:
        left, top, right, bottom = box
        cut = self._tiles.cut(box)
        if cut is None:
            return decode_jpeg(self._content, size=self.size)[top:bottom, left:right]
        left, right = left - cut.left, right - cut.left
        top, bottom = top - cut.top, bottom - cut.top
        return decode_jpeg(cut.content, size=cut.size)[top:bottom, left:right]


class RawPicture(Picture):
    """Pixels that are in memory."""

    def __init__(self, pixels_HWC: NDArray[np.uint8]) -> None:
        height, width, _ = pixels_HWC.shape
        self.size = (width, height)
        self._pixels_HWC = pixels_HWC

    def region(self, box: Box) -> NDArray[np.uint8]:
        """Return the RGB pixels of a box as (H, W, 3), not copied."""
        left, top, right, bottom = box
        return self._pixels_HWC[top:bottom, left:right]


def open_packed(content: bytes) -> Picture | None:
    """Return the image in a member of a pack; None if `decode_rgb` is to decide."""
    if (pixels_HWC := parse_ppm(content)) is not None:
        height, width, _ = pixels_HWC.shape
        is_allowed = width * height <= MAX_PIXELS and max(width, height) <= MAX_SIDE
        return RawPicture(pixels_HWC) if is_allowed else None
    tiles = parse_tile_jpeg(content)
    if tiles is None or tiles.num_components not in (_GREY, _RGB):
        return None
    width, height = tiles.size
    is_allowed = width * height <= MAX_PIXELS and max(tiles.size) <= MAX_JPEG_SIDE
    return TilePicture(content, tiles) if is_allowed else None
