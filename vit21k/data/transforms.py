"""RGB pictures -> uint8 arrays of one size.

Normalisation is not here: batches travel as uint8, a quarter of the bytes, and are normalised on
the device.  Nothing is drawn here either: a random crop is a pure function of numbers it is given.

Dimensions: C colours, H W pixels.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit21k.data.decode import MAX_PIXELS
from vit21k.data.picture import DecodedPicture, Picture
from vit21k.data.resample import resample
from vit21k.errors import ImageError, UsageError
from vit21k.jpeg.crops import Crop

Interpolation = Literal["bicubic", "bilinear"]

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
_NUM_TRIES = 10
_FLIP, _TOP, _LEFT, _FIRST_TRY = range(4)


class TrainTransform:
    """A random crop, resized, and flipped with probability *hflip*.

    Only what the crop needs is decoded.  Resizing is antialiased; `resample` says how near Pillow's
    it is.  (JPEG's decoding at a fraction of the size, Pillow's `draft`, is not used: it changes
    pixels, and ImageNet's pictures are rarely large enough for it.)

    Args:
        img_size: Height and width of the result.
        crop_scale: Smallest and largest area of the crop, as fractions of the picture.
        crop_ratio: Smallest and largest width / height of the crop; its logarithm is uniform.
        interpolation: How pixels are resampled.
        hflip: Probability of a flip.

    Attributes:
        num_draws: How many numbers one picture takes.

    Source: torchvision's `RandomResizedCrop`, tries and fallback included.
    """

    num_draws = _FIRST_TRY + 2 * _NUM_TRIES

    def __init__(
        self,
        img_size: int,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: Interpolation = "bicubic",
        hflip: float = 0.5,
    ) -> None:
        self.img_size = img_size
        self.crop_scale = crop_scale
        self.crop_ratio = crop_ratio
        self.hflip = hflip
        self.interpolation = interpolation

    def __call__(
        self,
        picture: Picture | Image.Image,
        draws: NDArray[np.float64],
        out: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Return the picture as (3, H, W), written to *out* if that is given.

        Args:
            picture: Decoded or not; of Pillow's, RGB.
            draws: `num_draws` uniform numbers, 0 <= x < 1.
            out: (3, H, W) uint8 to write to.

        Raises:
            ImageError: It was not decoded yet, and is damaged.
        """
        picture = DecodedPicture(picture) if isinstance(picture, Image.Image) else picture
        crop = self.crop(picture.size, draws.tolist())
        size = (self.img_size, self.img_size)
        image_CHW = resample(picture.region(crop.box), size, self.interpolation)
        if crop.is_flipped:
            image_CHW = image_CHW.flip(2)  # torch's: a copy of NumPy's reversed view takes longer
        return _written(image_CHW.numpy(), out)

    def crop(self, size: tuple[int, int], draws: Sequence[float]) -> Crop:
        """Return what is taken of a picture of (width, height), by its `num_draws` numbers."""
        box = crop_box(size, draws, scale=self.crop_scale, ratio=self.crop_ratio)
        return Crop(box, draws[_FLIP] < self.hflip)


class EvalTransform:
    """The whole image or its middle, resized to one size by Pillow: torchvision's to the pixel.

    Args:
        img_size: Height and width of the result.
        resize: Resize the shorter side (squash: both) to this first; None: to *img_size*.
        mode: "center_crop" is torchvision's `Resize(resize)` and `CenterCrop(img_size)`, to the
            pixel; "squash" resizes height and width to *img_size* each, as Google and PLSC do when
            they finetune.
        interpolation: How pixels are resampled.
        margin: What becomes of half a pixel where the crop begins: "round" to the even number, as
            torchvision and timm do, or "floor", as transformers does.

    Raises:
        UsageError: *resize* is smaller than *img_size*.
    """

    def __init__(
        self,
        img_size: int,
        resize: int | None = None,
        mode: Literal["center_crop", "squash"] = "center_crop",
        interpolation: Interpolation = "bicubic",
        margin: Literal["round", "floor"] = "round",
    ) -> None:
        if resize is not None and resize < img_size:
            raise UsageError(
                f"images cannot be resized to {resize} pixels before a crop of {img_size}",
                hint=f"take {img_size} or more",
            )
        self.img_size = img_size
        self.resize = resize or img_size
        self.mode = mode
        self.interpolation = interpolation
        self._half = round if margin == "round" else math.floor

    def __call__(
        self, image: Image.Image, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Return the RGB picture as (3, H, W), written to *out* if that is given.

        Raises:
            ImageError: The picture is so long a strip that it would not fit into memory.
        """
        crop = self.crop(image.size)
        left, top = crop.window
        image = image.resize(crop.resized or image.size, _RESAMPLING[self.interpolation])
        image = image.crop((left, top, left + self.img_size, top + self.img_size))
        return _written(np.asarray(image).transpose(2, 0, 1), out)

    def crop(self, size: tuple[int, int]) -> Crop:
        """Return what is made of a picture of (width, height).

        Raises:
            ImageError: It is so long a strip that it would not fit into memory.
        """
        width, height = self._resized(size)
        left, top = (self._half((side - self.img_size) / 2) for side in (width, height))
        return Crop((0, 0, *size), resized=(width, height), window=(left, top))

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (width, height) with the shorter side resized; the other is rounded down."""
        if self.mode == "squash":
            return self.resize, self.resize
        short, long = sorted(size)
        long = int(self.resize * long / short)
        if self.resize * long > MAX_PIXELS:
            raise ImageError(f"{size[0]} x {size[1]} pixels are too long a strip to resize")
        return (self.resize, long) if size[0] <= size[1] else (long, self.resize)


def crop_box(
    size: tuple[int, int],
    draws: Sequence[float],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Return a random crop as (left, top, right, bottom).

    Up to ten times an area and a ratio are tried; if none fits, the crop is the largest one in the
    middle whose ratio is allowed.

    Args:
        size: (width, height) of the picture.
        draws: As `TrainTransform` takes them: flip, top, left, then area and ratio of each try.
        scale: Smallest and largest area, as fractions of the picture.
        ratio: Smallest and largest width / height.
    """
    width, height = size
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for index in range(_FIRST_TRY, _FIRST_TRY + 2 * _NUM_TRIES, 2):
        area = width * height * (scale[0] + draws[index] * (scale[1] - scale[0]))
        aspect = math.exp(log_low + draws[index + 1] * (log_high - log_low))
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(draws[_TOP] * (height - h + 1))
            left = int(draws[_LEFT] * (width - w + 1))
            return left, top, left + w, top + h
    return _middle_box(size, ratio)


def _middle_box(size: tuple[int, int], ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    width, height = w, h = size
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _written(image_CHW: NDArray[np.uint8], out: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    if out is None:
        return np.ascontiguousarray(image_CHW)
    np.copyto(out, image_CHW)
    return out
