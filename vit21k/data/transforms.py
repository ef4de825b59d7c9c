"""Transform image files to uint8 batches: random crops, or resize and center crop.

Two decoders give the same pixels.  `CropDecoder` (crop.c of the compiled extension) decodes,
resizes, crops and flips many images with one call, without the interpreter's lock: baseline JPEGs,
with or without restart markers, and the raw images of `vit21k pack --raw`.  What it refuses, and
all files where the extension was not built, are decoded by Pillow in full (`decode_rgb`), then
cropped and resized by torch (training) or Pillow (evaluation).

Dimensions: B images of a batch, C colours, H W pixels.
"""

import ctypes
import math
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vit21k._native import NoExtensionError, Variant, extension, variants
from vit21k.data.augment import Interpolation, Policy, augment_in_place
from vit21k.data.decode import MAX_JPEG_SIDE, MAX_PIXELS, MAX_SIDE, is_readable_jpeg
from vit21k.errors import ImageError, UsageError

_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
_NUM_TRIES = 10
_PADDING = 4
_LARGEST = 255.0
_FLIP, _TOP, _LEFT, _FIRST_TRY = range(4)


Box = tuple[int, int, int, int]
"""Left, top, right, bottom; right and bottom are outside."""


class Crop(NamedTuple):
    """A window of a resized box of an image.

    Attributes:
        box: The box that is resized.
        is_flipped: Whether the result is flipped horizontally.
        resized: Width and height of the resized box; None: those of the result.
        window: Left and top of the result in that.
        takes_columns_first: They are resized before rows, and rounded to 8 bits in between.
        shift: Columns and rows by which the result begins later; edges are reflected.
    """

    box: Box
    is_flipped: bool = False
    resized: tuple[int, int] | None = None
    window: tuple[int, int] = (0, 0)
    takes_columns_first: bool = False
    shift: tuple[int, int] = (0, 0)


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
        num_uniforms: How many numbers one image takes.
        resampling: Library whose pixels these are.

    Source: torchvision's `RandomResizedCrop`, tries and fallback included.
    """

    num_uniforms = _FIRST_TRY + 2 * _NUM_TRIES
    resampling: "Resampling" = "torch"

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
        uniforms: NDArray[np.float64],
        out: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Return the image as (3, H, W), written to *out* if given.

        Args:
            image: RGB.
            uniforms: `num_uniforms` random values, 0 <= x < 1.
            out: (3, H, W) uint8 to write to.

        Raises:
            ImageError: The aspect ratio is too extreme to resize the complete image.
        """
        return _written(self._cut(image, self.crop(image.size, uniforms.tolist())), out)

    def _cut(self, image: Image.Image, crop: Crop) -> NDArray[np.uint8]:
        size = (self.img_size, self.img_size)
        image_CHW = resample(np.array(image.crop(crop.box)), size, self.interpolation)
        if crop.is_flipped:
            image_CHW = image_CHW.flip(2)  # torch's: a copy of NumPy's reversed view takes longer
        return image_CHW.numpy()

    def crop(self, size: tuple[int, int], uniforms: Sequence[float]) -> Crop:
        """Return the crop of an image of (width, height), from its `num_uniforms` random values."""
        box = crop_box(size, uniforms, scale=self.crop_scale, ratio=self.crop_ratio)
        return Crop(box, uniforms[_FLIP] < self.hflip)


class SimpleCropTransform(TrainTransform):
    """Resize the shorter side, reflect the edges by 4 pixels, crop at random, flip at random.

    Args:
        img_size: Height and width of the result; 5 or more.
        interpolation: How pixels are resampled, by Pillow.
        hflip: Probability of a flip.

    Source: facebookresearch/deit, augment.py, `--src` (DeiT III on ImageNet-21K): torchvision's
    `Resize(img_size)`, `RandomCrop(img_size, padding=4, padding_mode="reflect")`.
    """

    num_uniforms = _FIRST_TRY
    resampling: "Resampling" = "pillow"

    def __init__(
        self, img_size: int, interpolation: Interpolation = "bicubic", hflip: float = 0.5
    ) -> None:
        super().__init__(img_size, interpolation=interpolation, hflip=hflip)
        self._resize = EvalTransform(img_size, interpolation=interpolation)

    def _cut(self, image: Image.Image, crop: Crop) -> NDArray[np.uint8]:
        (left, top), side = crop.window, self.img_size
        image = image.resize(crop.resized or image.size, _RESAMPLING[self.interpolation])
        image_CHW = np.array(image.crop((left, top, left + side, top + side))).transpose(2, 0, 1)
        if crop.is_flipped:
            image_CHW = image_CHW[:, :, ::-1]
        return shifted(image_CHW, crop.shift)

    def crop(self, size: tuple[int, int], uniforms: Sequence[float]) -> Crop:
        """Return the crop of an image of (width, height), from its `num_uniforms` random values.

        Raises:
            ImageError: The aspect ratio is so extreme that the result would not fit into memory.
        """
        width, height = resized = self._resize.resized(size)
        left, columns = self._start(width, uniforms[_LEFT])
        top, rows = self._start(height, uniforms[_TOP])
        is_flipped = uniforms[_FLIP] < self.hflip
        return Crop(
            (0, 0, *size),
            is_flipped,
            resized,
            (left, top),
            _takes_columns_first(size, resized),
            (-columns if is_flipped else columns, rows),
        )

    def _start(self, length: int, uniform: float) -> tuple[int, int]:
        """Return where a crop of a side begins within the image, and by how much it is beyond."""
        last = length - self.img_size
        start = int(uniform * (last + 2 * _PADDING + 1)) - _PADDING
        inside = min(max(start, 0), last)
        return inside, start - inside


def shifted(image_CHW: NDArray[np.uint8], shift: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the image from the column and row *shift* on, continued by reflection.

    Args:
        image_CHW: Height and width are over the shifts.
        shift: Columns and rows, each positive or negative.
    """
    columns, rows = (
        np.abs(last - np.abs(last - np.arange(by, last + by + 1)))
        for last, by in zip((image_CHW.shape[2] - 1, image_CHW.shape[1] - 1), shift, strict=True)
    )
    return image_CHW[:, rows[:, None], columns]


class EvalTransform:
    """The complete image or its center, resized by Pillow, with the pixels of torchvision.

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
        """Return the RGB image as (3, H, W), written to *out* if given.

        Raises:
            ImageError: The aspect ratio is so extreme that the result would not fit into memory.
        """
        crop = self.crop(image.size)
        left, top = crop.window
        image = image.resize(crop.resized or image.size, _RESAMPLING[self.interpolation])
        image = image.crop((left, top, left + self.img_size, top + self.img_size))
        return _written(np.asarray(image).transpose(2, 0, 1), out)

    def crop(self, size: tuple[int, int]) -> Crop:
        """Return the crop of an image of (width, height).

        Raises:
            ImageError: The aspect ratio is so extreme that the result would not fit into memory.
        """
        width, height = self.resized(size)
        left, top = (self._half((side - self.img_size) / 2) for side in (width, height))
        return Crop((0, 0, *size), resized=(width, height), window=(left, top))

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (width, height) with the shorter side resized; the other is rounded down.

        Raises:
            ImageError: The aspect ratio is so extreme that the result would not fit into memory.
        """
        if self.mode == "squash":
            return self.resize, self.resize
        short, long = sorted(size)
        long = int(self.resize * long / short)
        if self.resize * long > MAX_PIXELS:
            raise ImageError(
                f"{size[0]} x {size[1]} pixels: the aspect ratio is too extreme to resize"
            )
        return (self.resize, long) if size[0] <= size[1] else (long, self.resize)


def crop_box(
    size: tuple[int, int],
    uniforms: Sequence[float],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """Return a random crop as (left, top, right, bottom).

    Ten areas and ratios are tried; if none fits, the crop is the largest centered one with an
    allowed ratio.

    Args:
        size: (width, height) of the image.
        uniforms: As `TrainTransform` takes them: flip, top, left, then area and ratio of each try.
        scale: Smallest and largest area, as fractions of the image.
        ratio: Smallest and largest width / height.
    """
    width, height = size
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for index in range(_FIRST_TRY, _FIRST_TRY + 2 * _NUM_TRIES, 2):
        area = width * height * (scale[0] + uniforms[index] * (scale[1] - scale[0]))
        aspect = math.exp(log_low + uniforms[index + 1] * (log_high - log_low))
        w = round(math.sqrt(area * aspect))
        h = round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(uniforms[_TOP] * (height - h + 1))
            left = int(uniforms[_LEFT] * (width - w + 1))
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


def normalise(images_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 images as float32: ``(x / 255 - mean) / std`` for each colour."""
    scale = [1 / (_LARGEST * deviation) for deviation in std]
    shift = [-centre / deviation for centre, deviation in zip(mean, std, strict=True)]
    scale_C11 = torch.tensor(scale, device=images_BCHW.device).view(-1, 1, 1)
    shift_C11 = torch.tensor(shift, device=images_BCHW.device).view(-1, 1, 1)
    return torch.addcmul(shift_C11, images_BCHW.float(), scale_C11)


_DONE = 0
_FACTS, _NUMBERS = 3, 10  # int32 of an image, of a crop
_PRECISIONS = {"torch": 0, "pillow": 22}  # bits of a weight's fraction; 0: found for each

Resampling = Literal["torch", "pillow"]
"""Antialiased resampling of uint8, bit-identical to that library."""


class HeaderFacts(NamedTuple):
    """Header of an image that the compiled code supports.

    Attributes:
        width: Pixels.
        height: Pixels.
        has_unusual_metadata: Another reader may refuse its metadata.
    """

    width: int
    height: int
    has_unusual_metadata: bool


class CropDecoder:
    """The functions of crop.c; thread-safe."""

    def __init__(self, library: ctypes.CDLL, variant: Variant) -> None:
        names = ("new_decoder", "free_decoder", "measure", "crop_all")
        self._threads = threading.local()
        self._new, self._free, self._measure, self._crop_all = (
            getattr(library, f"{name}_{variant}") for name in names
        )
        place, number = ctypes.c_void_p, ctypes.c_int
        self._new.restype, self._new.argtypes = place, []
        self._free.restype, self._free.argtypes = None, [place]
        self._measure.restype = self._crop_all.restype = None
        self._measure.argtypes = [place, place, number, place]
        self._crop_all.argtypes = [place] * 4 + [number] * 4 + [place] * 2

    def measure(self, contents: Sequence[bytes]) -> list[HeaderFacts | None]:
        """Return the header of each file; None for files that are not supported."""
        num = len(contents)
        facts = (ctypes.c_int32 * (_FACTS * num))()
        self._measure(*_as_c(contents), num, facts)
        rows = zip(*[iter(facts)] * _FACTS, strict=True)
        return [HeaderFacts(w, h, bool(unusual)) if w else None for w, h, unusual in rows]

    def crop(
        self,
        contents: Sequence[bytes],
        crops: Sequence[Crop],
        images_BCHW: NDArray[np.uint8],
        indices: Sequence[int],
        mode: str,
        resampling: Resampling = "torch",
    ) -> list[bool]:
        """Write each crop to the batch; return whether each succeeded.

        Args:
            contents: Supported files.
            crops: Crop of each.
            images_BCHW: Contiguous, square.
            indices: Index of each crop in the batch.
            mode: "bilinear" or "bicubic".
            resampling: Library to match; torch's only for complete boxes.
        """
        num = len(contents)
        if not num:
            return []
        size, is_bicubic = images_BCHW.shape[-1], mode == "bicubic"
        numbers = [number for crop in crops for number in _numbers(crop, size)]
        first, step = images_BCHW.ctypes.data, images_BCHW.strides[0]
        outs = (ctypes.c_void_p * num)(*(first + step * index for index in indices))
        statuses = (ctypes.c_int32 * num)()
        crops_C = (ctypes.c_int32 * (_NUMBERS * num))(*numbers)
        how = (size, is_bicubic, _PRECISIONS[resampling])
        self._crop_all(self._decoder(), *_as_c(contents), crops_C, num, *how, outs, statuses)
        return [status == _DONE for status in statuses]

    def _decoder(self) -> int:
        """Return the decoder of this thread: tables and an arena."""
        if not hasattr(self._threads, "decoder"):
            self._threads.decoder = _Decoder(self._new(), self._free)
        address: int = self._threads.decoder.address
        return address


class _Decoder:
    """Memory of a thread, freed when the thread ends."""

    def __init__(self, address: int | None, free: Callable[[int], None]) -> None:
        if not address:
            raise MemoryError
        self.address = address
        weakref.finalize(self, free, address).atexit = False


def _numbers(crop: Crop, size: int) -> tuple[int, ...]:
    resized = crop.resized or (size, size)
    return (*crop.box, *resized, *crop.window, crop.is_flipped, crop.takes_columns_first)


def _as_c(contents: Sequence[bytes]) -> tuple[Any, Any]:
    num = len(contents)
    return (ctypes.c_char_p * num)(*contents), (ctypes.c_int64 * num)(*map(len, contents))


@cache
def crop_decoder(variant: Variant | None = None) -> CropDecoder:
    """Return the compiled decoder.

    Args:
        variant: One of `variants()`; default: the fastest that this processor can run.

    Raises:
        NoExtensionError: There is no compiled extension.
    """
    return CropDecoder(extension(), variant or variants()[0])


_JPEG_START = b"\xff\xd8"
_LONG_BYTES = 16 << 20
"""A JPEG of fewer bytes that is decoded from top to bottom is within the budget of `open_image`."""


def compiled_crops() -> CropDecoder | None:
    """Return the compiled decoder; None without the compiled extension."""
    try:
        return crop_decoder()
    except NoExtensionError:
        return None


def fill_fast(
    decoder: CropDecoder,
    contents: Mapping[int, bytes],
    images_BCHW: NDArray[np.uint8],
    crop_of: Callable[[int, tuple[int, int]], Crop | None],
    mode: Literal["bicubic", "bilinear"],
    resampling: Resampling,
) -> set[int]:
    """Write the crops of supported files to the batch; return their indices.

    Args:
        decoder: From `compiled_crops`.
        contents: Files, by index in the batch.
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


def _is_allowed(image: HeaderFacts, content: bytes) -> bool:
    """Return whether `decode_rgb` accepts the header of the file as well."""
    if image.width * image.height > MAX_PIXELS:
        return False
    is_jpeg = content.startswith(_JPEG_START)
    if max(image.width, image.height) > (MAX_JPEG_SIDE if is_jpeg else MAX_SIDE):
        return False
    may_be_refused = image.has_unusual_metadata or len(content) > _LONG_BYTES
    return not (is_jpeg and may_be_refused) or is_readable_jpeg(content)


@dataclass(frozen=True)
class RandomCrops:
    """Random crops of a batch, by either decoder, bit-identical.

    `fill` makes many with two calls of compiled code, and skips files that it does not support or
    that are damaged; calling the instance takes one decoded image.

    Attributes:
        transform: Crop and flip.
        uniforms_BD: Random values of each image: those of the transform, then of the policy.
        policy: What is done to a crop; None: nothing.
        decoder: The compiled code; None: `fill` fills nothing.
    """

    transform: TrainTransform
    uniforms_BD: NDArray[np.float64]
    policy: Policy | None = None
    decoder: CropDecoder | None = None

    def __call__(self, image: Image.Image, index: int, out: NDArray[np.uint8]) -> None:
        """Write the crop of the image at an index of the batch to *out* (3, H, W)."""
        self.transform(image, self.uniforms_BD[index], out)
        self._finish(index, out)

    def fill(self, contents: Mapping[int, bytes], images_BCHW: NDArray[np.uint8]) -> set[int]:
        """Write the crops of supported files to the batch; return their indices.

        Args:
            contents: Files, by index in the batch.
            images_BCHW: The batch.
        """
        if not self.decoder:
            return set()
        mode, resampling = self.transform.interpolation, self.transform.resampling
        crops: dict[int, Crop] = {}

        def crop_of(place: int, size: tuple[int, int]) -> Crop | None:
            with suppress(ImageError):  # raised again when Pillow decodes the image
                crops[place] = self.transform.crop(size, self.uniforms_BD[place].tolist())
            return crops.get(place)

        filled = fill_fast(self.decoder, contents, images_BCHW, crop_of, mode, resampling)
        for place in filled:
            if any(crops[place].shift):
                images_BCHW[place] = shifted(images_BCHW[place], crops[place].shift)
            self._finish(place, images_BCHW[place])
        return filled

    def _finish(self, index: int, image_CHW: NDArray[np.uint8]) -> None:
        if self.policy:
            uniforms = self.uniforms_BD[index, self.transform.num_uniforms :].tolist()
            augment_in_place(image_CHW, self.policy, uniforms)


@dataclass(frozen=True)
class ResizedImages:
    """Resized images of a batch, by either decoder, bit-identical.

    `fill` makes many with two calls of compiled code, and skips files that it does not support or
    that are damaged; calling the instance takes one decoded image.

    Attributes:
        transform: What is done to each.
        decoder: The compiled code; None: `fill` fills nothing.
    """

    transform: EvalTransform
    decoder: CropDecoder | None = None

    def __call__(self, image: Image.Image, index: int, out: NDArray[np.uint8]) -> None:
        """Write the image at an index of the batch to *out* (3, H, W).

        Raises:
            ImageError: The aspect ratio is too extreme.
        """
        self.transform(image, out)

    def fill(self, contents: Mapping[int, bytes], images_BCHW: NDArray[np.uint8]) -> set[int]:
        """Write the images that the compiled code can resize to the batch; return their indices.

        Args:
            contents: Files, by index in the batch.
            images_BCHW: The batch.
        """
        if not self.decoder:
            return set()
        mode = self.transform.interpolation
        return fill_fast(self.decoder, contents, images_BCHW, self._crop, mode, "pillow")

    def _crop(self, _place: int, size: tuple[int, int]) -> Crop | None:
        try:
            crop = self.transform.crop(size)
        except ImageError:  # raised again when Pillow decodes the image
            return None
        columns_first = _takes_columns_first(size, crop.resized or size)
        return crop._replace(takes_columns_first=columns_first)


def _takes_columns_first(size: tuple[int, int], resized: tuple[int, int]) -> bool:
    """Return whether Pillow resizes columns before rows: if it reduces rows by much more.

    Source: `ImagingResampleInner` in Resample.c of Pillow 13.
    """
    rows_less, columns_less = size[1] - resized[1], size[0] - resized[0]
    return rows_less > 0 and rows_less > 2 * columns_less and _pillow_orders_passes()


@cache
def _pillow_orders_passes() -> bool:
    """Return whether this version of Pillow does so, as 13.0 and later; detected by rounding."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 5, 3), dtype=np.uint8)
    image, how = Image.fromarray(noise), Image.Resampling.BICUBIC
    in_two = image.resize((image.width, 4), how).resize((6, 4), how)
    return np.array_equal(np.asarray(image.resize((6, 4), how)), np.asarray(in_two))
