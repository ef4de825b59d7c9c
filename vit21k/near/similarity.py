"""Thumbnails -> are they the same picture?  The second look at every pair that near hashes bring.

Both thumbnails are sharpened, so that what counts is detail and not where it is light and dark;
one is looked at through every view that a mirrored or cropped copy may have; and the best
correlation over the views counts.

Dimensions: P pairs, T pixels along a side, D = T x T.
"""

import numpy as np
from numpy.typing import NDArray

from vit21k.near.fingerprint import THUMB_SIDE
from vit21k.near.views import AS_IS, View, crops, matrices, mirrored

_SHARES = (0.97, 0.94, 0.91)
_PLACES = (0.0, 0.5, 1.0)
_CROPS = crops(_SHARES, _PLACES)
VIEWS = _CROPS + mirrored(_CROPS)

_BATCH_ROWS = 2_048
_WIDE = 2.0  # pixels: the deviation of the blur that is taken off
_MARGIN = 2  # pixels at the border, where a blur knows too little


def similarity(one_PTT: NDArray[np.uint8], other_PTT: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return how alike the pictures of each pair are: 1 the same, about 0 unrelated.

    The order of a pair makes no difference: either may be a crop of the other.
    """
    best_P = np.full(len(one_PTT), -1, dtype=np.float32)
    for start in range(0, len(one_PTT), _BATCH_ROWS):
        batch = slice(start, start + _BATCH_ROWS)
        one, other = one_PTT[batch].astype(np.float32), other_PTT[batch].astype(np.float32)
        best_P[batch] = np.maximum(_best(one, other), _best(other, one, with_whole=False))
    return best_P


def _best(
    seen_PTT: NDArray[np.float32], still_PTT: NDArray[np.float32], *, with_whole: bool = True
) -> NDArray[np.float32]:
    """Return the best correlation of *still_PTT* with *seen_PTT* through any view."""
    still_PD = _detail(still_PTT, AS_IS)
    views = VIEWS if with_whole else [view for view in VIEWS if view.width < 1]
    best_P = np.full(len(seen_PTT), -1, dtype=np.float32)
    for view in views:
        correlation_P = np.einsum("pd,pd->p", _detail(seen_PTT, view), still_PD)
        np.maximum(best_P, correlation_P, out=best_P)
    return best_P


def _detail(thumbs_PTT: NDArray[np.float32], view: View) -> NDArray[np.float32]:
    """Return the sharpened thumbnails through *view*, of zero mean and unit length."""
    rows, cols = matrices(view)
    seen = rows @ thumbs_PTT @ cols.T
    fine = seen - _BLUR @ seen @ _BLUR.T
    inner = slice(_MARGIN, THUMB_SIDE - _MARGIN)
    detail_PD = fine[:, inner, inner].reshape(len(seen), -1)
    detail_PD = detail_PD - detail_PD.mean(axis=1, keepdims=True)
    length_P1 = np.linalg.norm(detail_PD, axis=1, keepdims=True)
    unit_PD: NDArray[np.float32] = detail_PD / np.maximum(length_P1, 1e-3)
    return unit_PD


def _blur() -> NDArray[np.float32]:
    """Return a Gaussian blur along one side, T x T."""
    offset = np.subtract.outer(np.arange(THUMB_SIDE), np.arange(THUMB_SIDE))
    weight = np.exp(-0.5 * (offset / _WIDE) ** 2)
    matrix: NDArray[np.float32] = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


_BLUR = _blur()
