"""Augmentation policies on uint8 images: RandAugment, AutoAugment, 3-Augment and their kind."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Interpolation = Literal["bicubic", "bilinear"]

Amount = Callable[[float, int, int], float]
Scale = Mapping[str, Amount]

_TOP = 10.0
_BINS = 9.0  # AutoAugment's ten levels are 0 to 9


def _none(_level: float, _sign: int, _side: int) -> float:
    return 0.0


def _rotation_degrees(level: float, sign: int, _side: int) -> float:
    return sign * level / _TOP * 30.0


def _shear(level: float, sign: int, _side: int) -> float:
    return sign * level / _TOP * 0.3


def _enhance(level: float, _sign: int, _side: int) -> float:
    return level / _TOP * 1.8 + 0.1


def _enhance_increasing(level: float, sign: int, _side: int) -> float:
    return max(0.1, 1.0 + sign * level / _TOP * 0.9)


def _translate_share(level: float, sign: int, side: int) -> float:
    return sign * level / _TOP * 0.45 * side


def _bits(level: float, _sign: int, _side: int) -> float:
    return int(level / _TOP * 4)


def _threshold(level: float, _sign: int, _side: int) -> float:
    return min(256, int(level / _TOP * 256))


def _addition(level: float, _sign: int, _side: int) -> float:
    return min(128, int(level / _TOP * 110))


_UNSCALED: Scale = {"auto_contrast": _none, "equalize": _none, "invert": _none}

STANDARD: Scale = {
    **_UNSCALED,
    "rotate": _rotation_degrees,
    "posterize": _bits,
    "solarize": _threshold,
    "solarize_add": _addition,
    "color": _enhance,
    "contrast": _enhance,
    "brightness": _enhance,
    "sharpness": _enhance,
    "shear_x": _shear,
    "shear_y": _shear,
    "translate_x": _translate_share,
    "translate_y": _translate_share,
}
"""timm's and MindCV's RandAugment: colours at level 5 are nearly as they were."""

INCREASING: Scale = {
    **STANDARD,
    "posterize": lambda level, sign, side: 4 - _bits(level, sign, side),
    "solarize": lambda level, sign, side: 256 - _threshold(level, sign, side),
    "color": _enhance_increasing,
    "contrast": _enhance_increasing,
    "brightness": _enhance_increasing,
    "sharpness": _enhance_increasing,
}
"""The same with ``inc1``, as DeiT and MMPretrain: more is always more."""

BIG_VISION: Scale = {
    **_UNSCALED,
    "rotate": _rotation_degrees,
    "posterize": _bits,
    "solarize": lambda level, _sign, _side: int(level / _TOP * 256),
    "color": _enhance,
    "contrast": _enhance,
    "brightness": _enhance,
    "sharpness": _enhance,
    "shear_x": _shear,
    "shear_y": _shear,
    "translate_x": lambda level, sign, _side: sign * level / _TOP * 100.0,
    "translate_y": lambda level, sign, _side: sign * level / _TOP * 100.0,
    "cutout": lambda level, _sign, _side: int(level / _TOP * 40),
    "solarize_add": lambda level, _sign, _side: int(level / _TOP * 110),
}
"""big_vision's RandAugment (pp/archive/autoaugment.py), in its order; levels go beyond 10."""

AUTO: Scale = {
    **_UNSCALED,
    "rotate": lambda level, sign, _side: sign * level / _BINS * 30.0,
    "posterize": lambda level, _sign, _side: 8 - round(level / _BINS * 4),
    "solarize": lambda level, _sign, _side: -(-256 * (_BINS - level) // _BINS),
    "color": lambda level, sign, _side: 1.0 + sign * level / _BINS * 0.9,
    "contrast": lambda level, sign, _side: 1.0 + sign * level / _BINS * 0.9,
    "sharpness": lambda level, sign, _side: 1.0 + sign * level / _BINS * 0.9,
    "shear_x": lambda level, sign, _side: sign * level / _BINS * 0.3,
}
"""AutoAugment's levels of 0 to 9, as in the paper, torchvision and MMPretrain."""

AUTO_ONE_WAY: Scale = {**AUTO, "rotate": lambda level, _sign, _side: level / _BINS * 30.0}
"""The same in PaddleViT and the package `randaugment`, whose rotations all go one way."""

RANDAUGMENT: Scale = {
    "invert": _none,
    "cutout": lambda level, _sign, _side: round(level / _BINS * 20) // 2,
    "sharpness": AUTO["sharpness"],
    "auto_contrast": _none,
    "posterize": AUTO["posterize"],
    "shear_x": AUTO["shear_x"],
    "translate_x": lambda level, sign, side: sign * level / _BINS * 150 / 331 * side,
    "translate_y": lambda level, sign, side: sign * level / _BINS * 150 / 331 * side,
    "shear_y": AUTO["shear_x"],
    "rotate": AUTO_ONE_WAY["rotate"],
    "equalize": _none,
    "contrast": AUTO["contrast"],
    "color": AUTO["color"],
    "solarize": AUTO["solarize"],
    "brightness": AUTO["color"],
}
"""The package `randaugment` 1.0.2, which MIIL uses, in its order: levels are 1 to 9."""


_SIZE_OF_TABLE = 256
_MIDDLE = 128
_ALL_BITS = 8


class Canvas(NamedTuple):
    """What geometric operations resample with, and fill the empty corners with."""

    resampling: Image.Resampling
    fill: tuple[int, int, int]


Op = Callable[[Image.Image, float, Canvas], Image.Image]


def _auto_contrast(image: Image.Image, _amount: float, _canvas: Canvas) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, _amount: float, _canvas: Canvas) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, _amount: float, _canvas: Canvas) -> Image.Image:
    return ImageOps.invert(image)


def _rotate(image: Image.Image, degrees: float, canvas: Canvas) -> Image.Image:
    return image.rotate(degrees, resample=canvas.resampling, fillcolor=canvas.fill)


def _posterize(image: Image.Image, bits: float, _canvas: Canvas) -> Image.Image:
    """Keep the first bits of every value; 0 of them give black, which Pillow has come to refuse."""
    if bits >= _ALL_BITS:
        return image
    mask = -1 << (_ALL_BITS - int(bits))
    return image.point(3 * [value & mask for value in range(_SIZE_OF_TABLE)])


def _solarize(image: Image.Image, threshold: float, _canvas: Canvas) -> Image.Image:
    return ImageOps.solarize(image, int(threshold))


def _solarize_add(image: Image.Image, addition: float, _canvas: Canvas) -> Image.Image:
    """Lighten the dark half of the values."""
    table = [
        min(_SIZE_OF_TABLE - 1, value + int(addition)) if value < _MIDDLE else value
        for value in range(_SIZE_OF_TABLE)
    ]
    return image.point(3 * table)


def _color(image: Image.Image, factor: float, _canvas: Canvas) -> Image.Image:
    return ImageEnhance.Color(image).enhance(factor)


def _contrast(image: Image.Image, factor: float, _canvas: Canvas) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def _brightness(image: Image.Image, factor: float, _canvas: Canvas) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def _sharpness(image: Image.Image, factor: float, _canvas: Canvas) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(factor)


def _shear_x(image: Image.Image, factor: float, canvas: Canvas) -> Image.Image:
    return _affine(image, (1, factor, 0, 0, 1, 0), canvas)


def _shear_y(image: Image.Image, factor: float, canvas: Canvas) -> Image.Image:
    return _affine(image, (1, 0, 0, factor, 1, 0), canvas)


def _translate_x(image: Image.Image, pixels: float, canvas: Canvas) -> Image.Image:
    return _affine(image, (1, 0, pixels, 0, 1, 0), canvas)


def _translate_y(image: Image.Image, pixels: float, canvas: Canvas) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, pixels), canvas)


def _grayscale(image: Image.Image, _amount: float, _canvas: Canvas) -> Image.Image:
    return image.convert("L").convert("RGB")


def _gaussian_blur(image: Image.Image, radius: float, _canvas: Canvas) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def _affine(image: Image.Image, matrix: tuple[float, ...], canvas: Canvas) -> Image.Image:
    """Take each pixel from the place that *matrix*, about the top left corner, sends it to."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        matrix,
        resample=canvas.resampling,
        fillcolor=canvas.fill,
    )


def paste_square(
    image: Image.Image, center: tuple[int, int], half: int, canvas: Canvas
) -> Image.Image:
    """Fill a square of side ``2 * half``, cut off at the border: Cutout."""
    x, y = center
    image = image.copy()
    image.paste(canvas.fill, (max(0, x - half), max(0, y - half), x + half, y + half))
    return image


OPS: dict[str, Op] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "grayscale": _grayscale,
    "gaussian_blur": _gaussian_blur,
}
"""By name; amounts are degrees, bits kept, thresholds, factors (1: as it is) or pixels."""


PolicyName = Literal[
    "rand", "rand_increasing", "rand_big_vision", "rand_miil", "auto", "auto_mmpretrain",
    "auto_paddle", "three_augment",
]  # fmt: skip

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_GREY = (128, 128, 128)
_LARGEST = 255
_TOP_LEVEL = 10.0
_HALF = 0.5


class Policy(Protocol):
    """Does something random to an image.

    Attributes:
        num_uniforms: How many numbers one image takes.
    """

    num_uniforms: int

    def __call__(self, image: Image.Image, uniforms: Sequence[float]) -> Image.Image:
        """Return the RGB image, changed; *uniforms* are uniform, 0 <= x < 1."""


def augment_in_place(
    pixels_CHW: NDArray[np.uint8], policy: Policy, uniforms: Sequence[float]
) -> None:
    """Apply *policy* to a uint8 image."""
    image = Image.merge("RGB", [Image.fromarray(channel) for channel in pixels_CHW])
    changed = policy(image, uniforms)
    if changed is not image:
        for channel, band in zip(pixels_CHW, changed.split(), strict=True):
            np.copyto(channel, np.asarray(band))


class RandAugment:
    """Some operations out of many, each at about the same magnitude.

    With timm's scales an operation is carried out half of the time, at a level drawn about the
    magnitude and kept within 0 to 10; with big_vision's always, at the magnitude, and that may be
    more than 10.

    Args:
        scale: The operations, and what a level is in each.
        num_ops: How many, one after the other; the same one may come twice.
        magnitude: Mean level.
        magnitude_std: Standard deviation of the level.
        rate: How often a chosen operation is carried out.
        canvas: What to resample with, and the colour of empty corners.

    Source: `rand_augment_transform` in timm/data/auto_augment.py;
    `distort_image_with_randaugment` in big_vision/pp/archive/autoaugment.py.
    """

    _uniforms_per_op = 7  # which, whether, level (2), sign, place of a cutout (2)

    def __init__(
        self,
        scale: Scale,
        *,
        num_ops: int,
        magnitude: float,
        magnitude_std: float,
        rate: float,
        canvas: Canvas,
    ) -> None:
        self._ops = list(scale.items())
        self._magnitude = magnitude
        self._std = magnitude_std
        self._rate = rate
        self._canvas = canvas
        self.num_uniforms = num_ops * self._uniforms_per_op

    def __call__(self, image: Image.Image, uniforms: Sequence[float]) -> Image.Image:
        """Return the image after every chosen operation."""
        for start in range(0, self.num_uniforms, self._uniforms_per_op):
            which, whether, radius, angle, sign, x, y = uniforms[
                start : start + self._uniforms_per_op
            ]
            if whether >= self._rate:
                continue
            name, amount_of = self._ops[int(which * len(self._ops))]
            amount = amount_of(self._level(radius, angle), _sign(sign), image.width)
            if name == "cutout":
                center = int(x * image.width), int(y * image.height)
                image = paste_square(image, center, int(amount), self._canvas)
            else:
                image = OPS[name](image, amount, self._canvas)
        return image

    def _level(self, radius: float, angle: float) -> float:
        """Return a normal draw about the magnitude (Box and Muller), or the magnitude itself."""
        if not self._std:
            return self._magnitude
        normal = math.sqrt(-2 * math.log1p(-radius)) * math.cos(2 * math.pi * angle)
        return min(max(self._magnitude + self._std * normal, 0.0), _TOP_LEVEL)


class AutoAugment:
    """One of the 25 pairs of operations that were found for ImageNet.

    Args:
        canvas: What to resample with, and the colour of empty corners.
        rotation: The same for rotations; None: *canvas*.
        scale: What a level is in each operation.

    Source: table 9 of arXiv:1805.09501, as in torchvision, MMPretrain and paddle_pit.
    """

    num_uniforms = 5  # which pair; whether and sign of both

    def __init__(
        self,
        canvas: Canvas,
        *,
        rotation: Canvas | None = None,
        scale: Scale = AUTO,
    ) -> None:
        self._canvas = canvas
        self._rotation = rotation or canvas
        self._scale = scale

    def __call__(self, image: Image.Image, uniforms: Sequence[float]) -> Image.Image:
        """Return the image after one pair of operations."""
        pair = IMAGENET_PAIRS[int(uniforms[0] * len(IMAGENET_PAIRS))]
        for (name, rate, level), whether, sign in zip(
            pair, uniforms[1::2], uniforms[2::2], strict=True
        ):
            if whether < rate:
                amount = self._scale[name](level, _sign(sign), image.width)
                canvas = self._rotation if name == "rotate" else self._canvas
                image = OPS[name](image, amount, canvas)
        return image


class MiilRandAugment:
    """Two operations out of 15, each carried out half of the time at a level of 1 to 9.

    Source: `RandAugment` and `SubPolicy` of the package randaugment 1.0.2, which MIIL's
    data_loader.py imports.
    """

    num_uniforms = 12  # twice: which, whether, level, sign, place of a cutout (2)

    _canvas = Canvas(Image.Resampling.NEAREST, _GREY)
    _sheared = Canvas(Image.Resampling.BICUBIC, _GREY)
    _cut_out = Canvas(Image.Resampling.NEAREST, (125, 122, 113))

    def __call__(self, image: Image.Image, uniforms: Sequence[float]) -> Image.Image:
        """Return the image after both operations."""
        scale = list(RANDAUGMENT.items())
        for which, whether, level, sign, x, y in (uniforms[:6], uniforms[6:]):
            if whether >= _HALF:
                continue
            name, amount_of = scale[int(which * len(scale))]
            amount = amount_of(1 + int(level * 9), _sign(sign), image.width)
            if name == "cutout":
                center = int(x * image.width), int(y * image.height)
                image = paste_square(image, center, int(amount), self._cut_out)
            else:
                canvas = self._sheared if name.startswith("shear") else self._canvas
                image = OPS[name](image, amount, canvas)
        return image


class CutoutFirst:
    """A square of one random colour, cut off at the border, and then another policy.

    Args:
        share: Of the image's side that the square has.
        policy: What is done next; None: nothing.

    Source: MIIL's `CutoutPIL` (Pillow draws the last row and column as well).
    """

    _own_uniforms = 5  # centre (2), colour (3)

    def __init__(self, share: float, policy: Policy | None) -> None:
        self._share = share
        self._policy = policy
        self.num_uniforms = self._own_uniforms + (policy.num_uniforms if policy else 0)

    def __call__(self, image: Image.Image, uniforms: Sequence[float]) -> Image.Image:
        """Return the image with the square, and after the other policy."""
        x, y, *color = uniforms[: self._own_uniforms]
        half = int(self._share * image.width + _HALF) // 2
        x, y = int(x * image.width), int(y * image.height)
        image = image.copy()
        red, green, blue = (int(value * (_LARGEST + 1)) for value in color)
        box = (max(0, x - half), max(0, y - half), x + half + 1, y + half + 1)
        image.paste((red, green, blue), box)
        return self._policy(image, uniforms[self._own_uniforms :]) if self._policy else image


class ThreeAugment:
    """Grey, solarised or blurred; then brightness, contrast and saturation, in a random order.

    Args:
        color_jitter: Each factor is between 1 - this and 1 + this.

    Source: DeiT III (arXiv:2204.07118), `new_data_aug_generator` in deit/augment.py.
    """

    num_uniforms = 6  # which, radius, order, three factors

    def __init__(self, color_jitter: float) -> None:
        self._jitter = color_jitter
        self._canvas = Canvas(Image.Resampling.BICUBIC, _GREY)

    def __call__(self, image: Image.Image, uniforms: Sequence[float]) -> Image.Image:
        """Return the image, grey, solarised or blurred, and jittered."""
        which, radius, order, *factors = uniforms
        name, amount = (("grayscale", 0.0), ("solarize", 128.0), ("gaussian_blur", _blur(radius)))[
            int(which * 3)
        ]
        image = OPS[name](image, amount, self._canvas)
        if self._jitter:
            for place in _ORDERS[int(order * len(_ORDERS))]:
                factor = 1 + self._jitter * (2 * factors[place] - 1)
                image = OPS[_JITTERED[place]](image, factor, self._canvas)
        return image


def policy_named(
    name: PolicyName,
    *,
    num_ops: int,
    magnitude: float,
    magnitude_std: float,
    color_jitter: float,
    mean: Sequence[float],
    interpolation: Interpolation,
) -> Policy:
    """Return the policy that a recipe names.

    Args:
        name: Which.
        num_ops: Of a RandAugment.
        magnitude: Of a RandAugment.
        magnitude_std: Of a RandAugment of timm's kind.
        color_jitter: Of 3-Augment.
        mean: Colour of empty corners, 0 to 1; big_vision's are grey.
        interpolation: What rotating and shearing resamples with; big_vision takes the nearest.

    MMPretrain's AutoAugment is built before its `hparams` are merged: corners are grey, and only
    shearing is bicubic.
    """
    red, green, blue = (min(_LARGEST, round(_LARGEST * value)) for value in mean)
    canvas = Canvas(_RESAMPLING[interpolation], (red, green, blue))
    nearest = Canvas(Image.Resampling.NEAREST, _GREY)
    others: dict[str, Policy] = {
        "auto": AutoAugment(canvas),
        "auto_mmpretrain": AutoAugment(Canvas(Image.Resampling.BICUBIC, _GREY), rotation=nearest),
        "auto_paddle": AutoAugment(nearest, scale=AUTO_ONE_WAY),
        "rand_miil": MiilRandAugment(),
        "three_augment": ThreeAugment(color_jitter),
    }
    if name in others:
        return others[name]
    big_vision = name == "rand_big_vision"
    return RandAugment(
        _SCALES[name],
        num_ops=num_ops,
        magnitude=magnitude,
        magnitude_std=0.0 if big_vision else magnitude_std,
        rate=1.0 if big_vision else _HALF,
        canvas=nearest if big_vision else canvas,
    )


def _sign(draw: float) -> int:
    return -1 if draw > _HALF else 1


def _blur(draw: float) -> float:
    """Return a radius of 0.1 to 2 pixels."""
    return 0.1 + 1.9 * draw


_SCALES: Mapping[str, Scale] = {
    "rand": STANDARD,
    "rand_increasing": INCREASING,
    "rand_big_vision": BIG_VISION,
}
_JITTERED = ("brightness", "contrast", "color")
_ORDERS = tuple(permutations(range(len(_JITTERED))))

IMAGENET_PAIRS: tuple[tuple[tuple[str, float, int], ...], ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 0)),
    (("color", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("auto_contrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)
"""Name, rate and level of both operations of each pair."""
