"""What a loader reads: pictures by row, wherever they lie."""

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


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
