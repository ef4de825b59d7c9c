"""RGB images -> uint8 arrays of one size: random crops, or resize and center crop."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vit21k._native import NoExtensionError
from vit21k.data.decode import MAX_JPEG_SIDE, MAX_PIXELS, MAX_SIDE, is_readable_jpeg
from vit21k.errors import ImageError, UsageError
from vit21k.jpeg.crops import Crop, CropDecoder, PlainImage, Resampling, crop_decoder

Interpolation = Literal["bicubic", "bilinear"]

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
_NUM_TRIES = 10
_FLIP, _TOP, _LEFT, _FIRST_TRY = range(4)


def resample(pixels_HWC: NDArray[np.uint8], size: tuple[int, int], mode: str) -> Tensor:
    """Resize an RGB image to a tensor (3, height, width), antialiased, by torch's uint8 kernel.

    Args:
        pixels_HWC: Contiguous and writeable.
        size: (height, width) of the result.
        mode: "bilinear" or "bicubic".
    """
    image_1CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None]
    return F.interpolate(image_1CHW, size, mode=mode, antialias=True)[0]


class TrainTransform:
    """A random crop, resized, and flipped with probability *hflip*.

    JPEG's decoding at a fraction of the size, Pillow's `draft`, is not used: it changes pixels, and
    ImageNet's images are rarely large enough for it.

    Args:
        img_size: Height and width of the result.
        crop_scale: Smallest and largest area of the crop, as fractions of the image.
        crop_ratio: Smallest and largest width / height of the crop; its logarithm is uniform.
        interpolation: How pixels are resampled.
        hflip: Probability of a flip.

    Attributes:
        num_draws: How many numbers one image takes.

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
        image: Image.Image,
        draws: NDArray[np.float64],
        out: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Return the image as (3, H, W), written to *out* if that is given.

        Args:
            image: RGB.
            draws: `num_draws` uniform numbers, 0 <= x < 1.
            out: (3, H, W) uint8 to write to.
        """
        crop = self.crop(image.size, draws.tolist())
        size = (self.img_size, self.img_size)
        image_CHW = resample(np.array(image.crop(crop.box)), size, self.interpolation)
        if crop.is_flipped:
            image_CHW = image_CHW.flip(2)  # torch's: a copy of NumPy's reversed view takes longer
        return _written(image_CHW.numpy(), out)

    def crop(self, size: tuple[int, int], draws: Sequence[float]) -> Crop:
        """Return what is taken of an image of (width, height), by its `num_draws` numbers."""
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
        """Return the RGB image as (3, H, W), written to *out* if that is given.

        Raises:
            ImageError: The image is so long a strip that it would not fit into memory.
        """
        crop = self.crop(image.size)
        left, top = crop.window
        image = image.resize(crop.resized or image.size, _RESAMPLING[self.interpolation])
        image = image.crop((left, top, left + self.img_size, top + self.img_size))
        return _written(np.asarray(image).transpose(2, 0, 1), out)

    def crop(self, size: tuple[int, int]) -> Crop:
        """Return what is made of an image of (width, height).

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
        size: (width, height) of the image.
        draws: As `TrainTransform` takes them: flip, top, left, then area and ratio of each try.
        scale: Smallest and largest area, as fractions of the image.
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


_JPEG_START = b"\xff\xd8"
_LONG_BYTES = 16 << 20
"""A JPEG of fewer bytes that is decoded from top to bottom is within the budget of `open_image`."""


def compiled_crops() -> CropDecoder | None:
    """Return what crops many images at a time; None where the extension was not built."""
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
    """Write crops of plain images to their places of the batch; return these places.

    Args:
        decoder: From `compiled_crops`.
        contents: Files, by place in the batch.
        images_BCHW: The batch.
        crop_of: (place, (width, height)) -> what is wanted; None: it is skipped.
        mode: How pixels are resampled.
        resampling: Whose way of that.
    """
    crops: dict[int, Crop] = {}
    for place, image in zip(contents, decoder.measure(list(contents.values())), strict=True):
        if image and _is_allowed(image, contents[place]):
            crop = crop_of(place, (image.width, image.height))
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


def _is_allowed(image: PlainImage, content: bytes) -> bool:
    """Return whether `decode_rgb` accepts the header of the file as well."""
    if image.width * image.height > MAX_PIXELS:
        return False
    is_jpeg = content.startswith(_JPEG_START)
    if max(image.width, image.height) > (MAX_JPEG_SIDE if is_jpeg else MAX_SIDE):
        return False
    may_be_refused = image.has_odd_metadata or len(content) > _LONG_BYTES
    return not (is_jpeg and may_be_refused) or is_readable_jpeg(content)


@dataclass(frozen=True)
class ResizedImages:
    """Images of a batch.  Two ways lead to the same pixels, to the bit.

    `fill` takes many images with two calls of compiled code, and skips what is neither a
    plain JPEG nor raw, or damaged in any way; calling the instance takes one image of any kind.

    Attributes:
        transform: What is done to each.
        decoder: The compiled code; None: `fill` fills nothing.
    """

    transform: EvalTransform
    decoder: CropDecoder | None = None

    def __call__(self, image: Image.Image, index: int, out: NDArray[np.uint8]) -> None:
        """Write the image at a place of the batch to *out* (3, H, W).

        Raises:
            ImageError: The image is too long a strip.
        """
        self.transform(image, out)

    def fill(self, contents: Mapping[int, bytes], images_BCHW: NDArray[np.uint8]) -> set[int]:
        """Write plain images to their places of the batch; return these places.

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
        except ImageError:  # it is raised again when the image is decoded in the ordinary way
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
