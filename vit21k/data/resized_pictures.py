"""What evaluation does to the pictures of a batch: whole ones, resized, and their middle.

Dimensions: B images of a batch, C colours, H W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit21k.data.picture import Picture
from vit21k.data.plain_pictures import fill_plain
from vit21k.data.transforms import EvalTransform
from vit21k.errors import ImageError
from vit21k.jpeg.crops import Crop, CropDecoder


@dataclass(frozen=True)
class ResizedPictures:
    """Pictures of a batch.  Two ways lead to the same pixels, to the bit.

    `fill` takes many pictures with two calls of compiled code, and leaves out what is neither a
    plain JPEG nor raw, or damaged in any way; calling the instance takes one picture of any kind.

    Attributes:
        transform: What is done to each.
        decoder: The compiled code; None: `fill` fills nothing.
    """

    transform: EvalTransform
    decoder: CropDecoder | None = None

    def __call__(self, picture: Picture, index: int, out: NDArray[np.uint8]) -> None:
        """Write the picture at a place of the batch to *out* (3, H, W).

        Raises:
            ImageError: The picture is damaged, or too long a strip.
        """
        self.transform(picture.image(), out)

    def fill(self, contents: Mapping[int, bytes], images_BCHW: NDArray[np.uint8]) -> set[int]:
        """Write plain pictures to their places of the batch; return these places.

        Args:
            contents: Files, by place in the batch.
            images_BCHW: The batch.
        """
        if not self.decoder:
            return set()
        mode = self.transform.interpolation
        return fill_plain(self.decoder, contents, images_BCHW, self._crop, mode, "pillow")

    def _crop(self, _place: int, size: tuple[int, int]) -> Crop | None:
        try:
            crop = self.transform.crop(size)
        except ImageError:  # it is raised again when the picture is decoded in the ordinary way
            return None
        columns_first = _takes_columns_first(size, crop.resized or size)
        return crop._replace(takes_columns_first=columns_first)


def _takes_columns_first(size: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Return whether Pillow resizes columns before rows: where it lessens rows by far more.

    Source: `ImagingResampleInner` in Resample.c of Pillow 13.
    """
    rows_less, columns_less = size[1] - resized[1], size[0] - resized[0]
    return rows_less > 0 and rows_less > 2 * columns_less and _pillow_ever_does()


@cache
def _pillow_ever_does() -> bool:
    """Return whether this Pillow does that, as from 13.0 on; it shows in what is rounded."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 5, 3), dtype=np.uint8)
    image, how = Image.fromarray(noise), Image.Resampling.BICUBIC
    in_two = image.resize((image.width, 4), how).resize((6, 4), how)
    return np.array_equal(np.asarray(image.resize((6, 4), how)), np.asarray(in_two))
