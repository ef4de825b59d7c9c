"""A decoded picture -> what it is compared by: a digest of its pixels, and a small grey thumbnail.

Dimensions: N pictures, T pixels along a thumbnail's side.
"""

import struct
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray
from PIL import Image

from vit21k.data.decode import decode_rgb

THUMB_SIDE = 32
THUMB_BYTES = THUMB_SIDE * THUMB_SIDE
_BATCH_ROWS = 8_192

FLAT_DEVIATION = 2.0
"""A thumbnail whose grey values deviate less than this, of 255, shows nothing to compare."""


class Fingerprint(NamedTuple):
    """What a picture is compared by.

    Attributes:
        pixel_digest: Of the decoded pixels and the size; equal for lossless copies in any format.
        thumb_TT: Luma, squashed to a square; uint8.
    """

    pixel_digest: bytes
    thumb_TT: NDArray[np.uint8]


def fingerprint(content: bytes) -> Fingerprint:
    """Return the fingerprint of an image file.

    Raises:
        ImageError: It is not an image, or damaged.
    """
    image = decode_rgb(content)
    return Fingerprint(pixel_digest(image), thumbnail(image))


def pixel_digest(image: Image.Image) -> bytes:
    """Return 16 bytes that two RGB pictures share if they have the same size and pixels."""
    digest = xxhash.xxh3_128(struct.pack("<II", image.width, image.height))
    digest.update(image.tobytes())
    return digest.digest()


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """Return the picture's luma as a square of `THUMB_SIDE` pixels.

    The mean over the area of each pixel: what re-encoding and resizing change least.
    """
    grey = image.convert("L").resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX)
    return np.asarray(grey, dtype=np.uint8)


def is_flat(thumbs_NTT: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which thumbnails show nothing: one colour, or nearly."""
    flat_N = np.empty(len(thumbs_NTT), dtype=bool)
    for start in range(0, len(thumbs_NTT), _BATCH_ROWS):
        batch = thumbs_NTT[start : start + _BATCH_ROWS].reshape(-1, THUMB_BYTES)
        flat_N[start : start + len(batch)] = batch.std(axis=1) < FLAT_DEVIATION
    return flat_N
