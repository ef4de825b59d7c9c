"""The operations that augmentation policies are made of: an RGB picture and an amount -> a picture.

They are Pillow's, as in the code of every recipe that names them.  torchvision's functions are the
same calls on a Pillow picture; on tensors they know no bicubic rotation, and equalising, sharpening
and rotating take 1.3 to 6 times as long.
"""

from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

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
