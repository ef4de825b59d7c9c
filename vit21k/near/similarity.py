"""Thumbnails -> are they the same picture?  The second look at every pair that near hashes bring.

Both thumbnails are sharpened, so that what counts is detail and not where it is light and dark;
each is looked at through every window that a cropped copy may show, and compared with the other as
it is and mirrored; the best correlation counts.

Dimensions: P pairs, T pixels along a side, D = pixels but for the margin.
"""

import numpy as np
from numpy.typing import NDArray

from vit21k.near.fingerprint import THUMB_SIDE
from vit21k.near.views import AS_IS, View, crops, matrices

VIEWS = crops((0.97, 0.94, 0.91), (0.0, 0.5, 1.0))
"""The windows; the places are the same from both sides, so that mirroring adds none."""

_BATCH_ROWS = 512
_BLUR_DEVIATION = 2.0  # pixels: of the blur that is taken off
_MARGIN = 2  # pixels at the border, where a blur knows too little


def similarity(one_PTT: NDArray[np.uint8], other_PTT: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return how alike the pictures of each pair are: 1 the same, about 0 unrelated.

    The order of a pair makes no difference: either may be a crop of the other.
    """
    best_P = np.full(len(one_PTT), -1, dtype=np.float32)
    for start in range(0, len(one_PTT), _BATCH_ROWS):
        batch = slice(start, start + _BATCH_ROWS)
        one_BTT, other_BTT = _sharpened(one_PTT[batch]), _sharpened(other_PTT[batch])
        best_P[batch] = np.maximum(_best(one_BTT, other_BTT), _best(other_BTT, one_BTT))
    return best_P


def _best(seen_PTT: NDArray[np.float32], still_PTT: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the best correlation of *still_PTT*, plain or mirrored, with a view of *seen_PTT*."""
    still_PD = _unit(still_PTT, AS_IS)
    mirrored_PD = _unit(np.ascontiguousarray(still_PTT[:, :, ::-1]), AS_IS)
    best_P = np.full(len(seen_PTT), -1, dtype=np.float32)
    for view in VIEWS:
        seen_PD = _unit(seen_PTT, view)
        for plain_PD in (still_PD, mirrored_PD):
            np.maximum(best_P, np.einsum("pd,pd->p", seen_PD, plain_PD), out=best_P)
    return best_P


def _sharpened(thumbs_PTT: NDArray[np.uint8]) -> NDArray[np.float32]:
    thumbs = thumbs_PTT.astype(np.float32)
    fine_PTT: NDArray[np.float32] = thumbs - _through(thumbs, _BLUR, _BLUR)
    return fine_PTT


def _unit(fine_PTT: NDArray[np.float32], view: View) -> NDArray[np.float32]:
    """Return the sharpened thumbnails through *view*, of zero mean and unit length."""
    rows, cols = matrices(view)
    inner = slice(_MARGIN, THUMB_SIDE - _MARGIN)
    detail_PD = _through(fine_PTT, rows[inner], cols[inner]).reshape(len(fine_PTT), -1)
    detail_PD -= detail_PD.mean(axis=1, keepdims=True)
    length_P = np.sqrt(np.einsum("pd,pd->p", detail_PD, detail_PD))
    detail_PD /= np.maximum(length_P, 1e-3)[:, None]
    return detail_PD


def _through(
    thumbs_PTT: NDArray[np.float32], rows: NDArray[np.float32], cols: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return ``rows @ thumb @ cols.T`` of each: as two products of large matrices."""
    size = len(thumbs_PTT)
    across = (thumbs_PTT.reshape(-1, THUMB_SIDE) @ cols.T).reshape(size, THUMB_SIDE, -1)
    turned = np.ascontiguousarray(across.swapaxes(1, 2)).reshape(-1, THUMB_SIDE)
    seen = (turned @ rows.T).reshape(size, len(cols), len(rows))
    seen_PTT: NDArray[np.float32] = np.ascontiguousarray(seen.swapaxes(1, 2))
    return seen_PTT


def _blur() -> NDArray[np.float32]:
    """Return a Gaussian blur along one side, T x T."""
    offset = np.subtract.outer(np.arange(THUMB_SIDE), np.arange(THUMB_SIDE))
    weight = np.exp(-0.5 * (offset / _BLUR_DEVIATION) ** 2)
    matrix: NDArray[np.float32] = (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


_BLUR = _blur()
