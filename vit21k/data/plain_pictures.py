"""Plain JPEGs and raw pictures of a batch, by compiled code: many files with two calls of it.

What it leaves out is decoded in the ordinary way, to the same pixels; so nothing hangs on it.

Dimensions: B images of a batch, C colours, H W pixels.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vit21k._native import NoExtensionError
from vit21k.data.decode import MAX_JPEG_SIDE, MAX_PIXELS, MAX_SIDE, is_readable_jpeg
from vit21k.jpeg.crops import Crop, CropDecoder, PlainPicture, Resampling, crop_decoder

_JPEG_START = b"\xff\xd8"
_LONG_BYTES = 16 << 20
"""A JPEG of fewer bytes that is decoded from top to bottom is within the budget of `open_image`."""


def compiled_crops() -> CropDecoder | None:
    """Return what crops many pictures at a time; None where the extension was not built."""
    try:
        return crop_decoder()
    except NoExtensionError:
        return None


def fill_plain(
    decoder: CropDecoder,
    contents: Mapping[int, bytes],
    images_BCHW: NDArray[np.uint8],
    crop_of: Callable[[int, tuple[int, int]], Crop | None],
    mode: Literal["bicubic", "bilinear"],
    resampling: Resampling,
) -> set[int]:
    """Write crops of plain pictures to their places of the batch; return these places.

    Args:
        decoder: From `compiled_crops`.
        contents: Files, by place in the batch.
        images_BCHW: The batch.
        crop_of: (place, (width, height)) -> what is wanted; None: it is left out.
        mode: How pixels are resampled.
        resampling: Whose way of that.
    """
    crops: dict[int, Crop] = {}
    for place, picture in zip(contents, decoder.measure(list(contents.values())), strict=True):
        if picture and _is_allowed(picture, contents[place]):
            crop = crop_of(place, (picture.width, picture.height))
            if crop:
                crops[place] = crop
    are_filled = decoder.crop(
        [contents[place] for place in crops],
        list(crops.values()),
        images_BCHW,
        list(crops),
        mode,
        resampling,
    )
    return {place for place, is_filled in zip(crops, are_filled, strict=True) if is_filled}


def _is_allowed(picture: PlainPicture, content: bytes) -> bool:
    """Return whether `open_picture` would accept the file, too."""
    if picture.width * picture.height > MAX_PIXELS:
        return False
    is_jpeg = content.startswith(_JPEG_START)
    if max(picture.width, picture.height) > (MAX_JPEG_SIDE if is_jpeg else MAX_SIDE):
        return False
    may_be_refused = picture.has_odd_metadata or len(content) > _LONG_BYTES
    return not (is_jpeg and may_be_refused) or is_readable_jpeg(content)
