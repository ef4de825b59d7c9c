"""Thumbnails -> hashes of 256 bits: the signs of their 256 lowest spatial frequencies.

As in pHash (Zauner 2010) the picture is described by a cosine transform, of which the signs are
kept.  What differs: four times the bits; the transform is taken through a view (`views.py`), so
that a mirrored or cropped copy can be met half-way; and the 63 lowest frequencies, which copying
changes least, lie in the first word as 7 bands of 9 bits, dealt out in turn, for the search.

Dimensions: N pictures, T pixels along a side.
"""

import numpy as np
from numpy.typing import NDArray

from vit21k.near.fingerprint import THUMB_SIDE
from vit21k.near.views import AS_IS, View, matrices

NUM_BITS = 256
NUM_WORDS = NUM_BITS // 64
NUM_BANDS = 7
BAND_BITS = 9

_SIDE = 17  # frequencies along a side of which the lowest are taken
_BATCH_ROWS = 8_192


def hash_bits(thumbs_NTT: NDArray[np.uint8], view: View = AS_IS) -> NDArray[np.uint64]:
    """Return the hash of each thumbnail, seen through *view*.

    Returns:
        Shape (N, 4): 256 bits as four numbers.
    """
    words = np.empty((len(thumbs_NTT), NUM_WORDS), dtype=np.uint64)
    for start in range(0, len(thumbs_NTT), _BATCH_ROWS):
        batch = slice(start, start + _BATCH_ROWS)
        words[batch] = _pack(coefficients(thumbs_NTT[batch], view) > 0)
    return words


def coefficients(thumbs_NTT: NDArray[np.uint8], view: View = AS_IS) -> NDArray[np.float32]:
    """Return the 256 lowest frequencies of each thumbnail, in the order of the bits."""
    rows, cols = matrices(view)
    left, right = _COSINES @ rows, (_COSINES @ cols).T
    plane = left @ (thumbs_NTT.astype(np.float32) @ right)
    chosen: NDArray[np.float32] = plane.reshape(len(thumbs_NTT), -1)[:, _ORDER]
    return chosen


def distance(one_N4: NDArray[np.uint64], other_N4: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """Return in how many bits the hashes differ, pair by pair."""
    bits_N: NDArray[np.uint16] = np.bitwise_count(one_N4 ^ other_N4).sum(axis=1, dtype=np.uint16)
    return bits_N


def keys(words_N4: NDArray[np.uint64], table: tuple[int, ...]) -> NDArray[np.uint64]:
    """Return the named bands of each hash, one after the other, as one number."""
    low_N = words_N4[:, 0]
    key_N = np.zeros(len(words_N4), dtype=np.uint64)
    for band in table:
        key_N <<= np.uint64(BAND_BITS)
        key_N |= (low_N >> np.uint64(BAND_BITS * band)) & np.uint64((1 << BAND_BITS) - 1)
    return key_N


def _pack(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    octets = np.packbits(bits, axis=1, bitorder="little")
    return np.ascontiguousarray(octets).view(np.uint64)


def _cosines() -> NDArray[np.float32]:
    """Return the first rows of the cosine transform, (F + 1) x T."""
    frequency = np.arange(_SIDE)[:, None]
    place = np.arange(THUMB_SIDE) + 0.5
    return np.cos(np.pi * frequency * place / THUMB_SIDE).astype(np.float32)


def _order() -> NDArray[np.int64]:
    """Return which coefficient each bit is the sign of: the lowest, the mean left out."""
    down, across = np.divmod(np.arange(_SIDE * _SIDE), _SIDE)
    by_frequency = np.argsort(down**2 + across**2, kind="stable")[1 : NUM_BITS + 1]
    in_bands = by_frequency[: NUM_BANDS * BAND_BITS].reshape(BAND_BITS, NUM_BANDS).T.reshape(-1)
    return np.concatenate([in_bands, by_frequency[len(in_bands) :]])


_COSINES = _cosines()
_ORDER = _order()
