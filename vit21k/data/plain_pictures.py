"""Plain JPEGs and raw pictures of a batch, by compiled code: many files with two calls of it.

What it leaves out is decoded in the ordinary way, to the same pixels; so nothing hangs on it.

Dimensions: B images of a batch, C colours, H W pixels.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vit21k.compiled import NoCompilerError
from vit21k.data.decode import MAX_PIXELS, is_readable_jpeg
from vit21k.jpeg.crops import Crop, CropDecoder, PlainPicture, Resampling, crop_decoder


def compiled_crops() -> CropDecoder | None:
    """Return what crops many pictures at a time; None where there is no compiler."""
    try:
        return crop_decoder()
    except NoCompilerError:
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
    """Return whether `open_picture` would take the file for the same, too."""
    if picture.width * picture.height > MAX_PIXELS:
        return False
    return not picture.has_odd_metadata or is_readable_jpeg(content)
