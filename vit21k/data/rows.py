"""What a loader reads: pictures by row, wherever they lie."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vit21k.data.picture import Picture, open_picture


@runtime_checkable
class PictureRows(Protocol):
    """Pictures in an order.  `Pictures` are those of a manifest.

    Dimensions: B images, L labels of them.
    """

    def __len__(self) -> int:
        """Return how many there are."""

    def path(self, row: int) -> str:
        """Return what a picture is called."""

    def read_bytes(self, row: int) -> bytes:
        """Return the content of its file.

        Raises:
            ImageError: It cannot be had.
        """

    def labels_of(self, rows_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return label_rows_L and label_ids_L of a batch; empty where labels are not known."""


@runtime_checkable
class RegionRows(PictureRows, Protocol):
    """Pictures that know a shorter way to a region of one than to read and decode its file."""

    def open_picture(self, row: int) -> Picture:
        """Return a picture, to be decoded by region; from any thread.

        Raises:
            ImageError: It cannot be had, or (later) is damaged.
        """


def opener_of(pictures: PictureRows) -> Callable[[int], Picture]:
    """Return what opens a picture by row: the rows' own way, or by the bytes of the file."""
    if isinstance(pictures, RegionRows):
        return pictures.open_picture
    return lambda row: open_picture(pictures.read_bytes(row))
