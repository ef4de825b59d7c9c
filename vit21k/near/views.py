"""Ways in which a copy may show a picture: mirrored, cropped.  Each is a pair of small matrices.

A thumbnail X seen through a view is ``rows @ X @ cols.T``.  To find a crop of a picture, the
picture itself is looked at through a handful of views, and each is compared with the others'
thumbnails as they are.
"""

from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit21k.near.fingerprint import THUMB_SIDE


class View(NamedTuple):
    """A window of the picture, stretched to the whole.

    Attributes:
        is_mirrored: Left and right change places.
        width, height: Share of the picture's width and height that the window has.
        left, top: Share of what is cut off that lies on the left, and at the top.
    """

    is_mirrored: bool = False
    width: float = 1.0
    height: float = 1.0
    left: float = 0.5
    top: float = 0.5


AS_IS = View()


def matrices(view: View) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the matrices of a view: rows (T x T) and cols (T x T)."""
    rows = _window(view.height, view.top)
    cols = _window(view.width, view.left)
    return rows, np.ascontiguousarray(cols[::-1]) if view.is_mirrored else cols


@cache
def _window(share: float, before: float) -> NDArray[np.float32]:
    """Return the matrix that stretches a window of *share* of T pixels to T: area means."""
    start = (1 - share) * before * THUMB_SIDE
    edges = start + share * np.arange(THUMB_SIDE + 1)
    pixel = np.arange(THUMB_SIDE)
    covered = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    matrix: NDArray[np.float32] = (covered.clip(0) / share).astype(np.float32)
    return matrix


def crops(shares: tuple[float, ...], places: tuple[float, ...]) -> list[View]:
    """Return the view as is, then windows of each share at each place, not mirrored."""
    windows = [
        View(width=share, height=share, left=left, top=top)
        for share, left, top in product(shares, places, places)
    ]
    return [AS_IS, *windows]


def mirrored(views: list[View]) -> list[View]:
    """Return *views* with left and right changed."""
    return [view._replace(is_mirrored=True) for view in views]
