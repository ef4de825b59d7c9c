"""How large the maps inside a model are, from its arguments alone; needs no torch."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any


def is_pit(args: Mapping[str, Any]) -> bool:
    """Return whether *args* are a PiT's."""
    return "base_dims" in args


def grid_side(args: Mapping[str, Any]) -> int:
    """Return how many patches lie along a side of the image, in the first block."""
    if is_pit(args):
        return int((args["img_size"] - args["patch_size"]) // args["stride"]) + 1
    side = args["img_size"]
    if args["resnet_layers"] is not None:
        side = resnet_sides(side, args["resnet_layers"])[-1]
    return int(side // args["patch_size"])


def resnet_sides(img_size: int, layers: Sequence[int]) -> list[int]:
    """Return the sides of a ResNet's maps: after the root, its pooling, and every stage.

    Strides keep a partial last step ("SAME" padding).
    """
    root = ceil(img_size / 2)
    sides = [root, ceil(root / 2)]
    for stage in range(len(layers)):
        sides.append(sides[-1] if stage == 0 else ceil(sides[-1] / 2))
    return sides


def pit_widths(args: Mapping[str, Any]) -> list[int]:
    """Return the width of a token in each stage of a PiT."""
    return [base * heads for base, heads in zip(args["base_dims"], args["heads"], strict=True)]


def pit_sides(args: Mapping[str, Any]) -> list[int]:
    """Return the side of the map in each stage of a PiT: a pooling halves it, rounding up."""
    sides = [grid_side(args)]
    while len(sides) < len(args["depth"]):
        sides.append((sides[-1] - 1) // 2 + 1)
    return sides
