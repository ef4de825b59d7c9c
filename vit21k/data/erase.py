"""Random erasing: which boxes of which pictures.

Dimensions: B images.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit21k.data.draws import uniform_draws
from vit21k.data.mix64 import derive_key

EraseFill = Literal["pixel", "zero"]

_STREAM = 0x6572617365  # keeps these draws apart from those of the crops
_WHETHER, _TOP, _LEFT, _FIRST_TRY = range(4)
_NUM_TRIES = 10
_AREA = (0.02, 1 / 3)
_LOG_RATIO = (math.log(0.3), math.log(1 / 0.3))


class ErasedBox(NamedTuple):
    """A box of a picture: which, where in pixels, and the seed of what is put there."""

    image: int
    top: int
    bottom: int
    left: int
    right: int
    noise_seed: int


@dataclass(frozen=True, kw_only=True)
class Eraser:
    """Draws what is erased: in some pictures a box of 2 % to a third of the area.

    Attributes:
        seed: Seed of the run.
        rate: How many of the pictures.
        fill: "pixel": normal noise for every value; "zero": the mean colour.

    Source: `RandomErasing` in timm/data/random_erasing.py; its modes `pixel` and `const`.
    MMPretrain's `rand` with a fill deviation is `pixel`.
    """

    seed: int
    rate: float
    fill: EraseFill

    def boxes(self, positions_B: NDArray[np.int64], side: int) -> list[ErasedBox]:
        """Return what is erased in the pictures at *positions_B* of the run, of *side* pixels."""
        key = derive_key(_STREAM, self.seed)
        draws = uniform_draws(key, positions_B, _FIRST_TRY + 2 * _NUM_TRIES)
        found = []
        for index in np.flatnonzero(draws[:, _WHETHER] < self.rate).tolist():
            box = _box(draws[index].tolist(), side)
            if box is not None:
                noise_seed = derive_key(key, int(positions_B[index])) >> 1
                found.append(ErasedBox(index, *box, noise_seed))
        return found


def _box(draws: list[float], side: int) -> tuple[int, int, int, int] | None:
    """Return top, bottom, left and right, or None if none of the tries fits."""
    for column in range(_FIRST_TRY, _FIRST_TRY + 2 * _NUM_TRIES, 2):
        area = side * side * (_AREA[0] + draws[column] * (_AREA[1] - _AREA[0]))
        ratio = math.exp(_LOG_RATIO[0] + draws[column + 1] * (_LOG_RATIO[1] - _LOG_RATIO[0]))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if height < side and width < side:
            top = int(draws[_TOP] * (side - height + 1))
            left = int(draws[_LEFT] * (side - width + 1))
            return top, top + height, left, left + width
    return None
