"""A level of 0 to 10 and a sign -> the amount of an operation, by each published scale.

Each scale maps the name of an operation in `picture_ops.OPS` to ``amount(level, sign, side)``,
where the sign is 1 or -1 and the side is that of the picture, in pixels.
"""

from collections.abc import Callable, Mapping

Amount = Callable[[float, int, int], float]
Scale = Mapping[str, Amount]

_TOP = 10.0
_BINS = 9.0  # AutoAugment's ten levels are 0 to 9


def _none(_level: float, _sign: int, _side: int) -> float:
    return 0.0


def _rotate(level: float, sign: int, _side: int) -> float:
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

PLAIN: Scale = {
    **_UNSCALED,
    "rotate": _rotate,
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
    **PLAIN,
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
    "rotate": _rotate,
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
