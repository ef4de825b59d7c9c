"""Arrays that live in files, for what is as long as a data set and asked for in another order.

The system writes them out when it needs the memory, and drops them with the last reference: the
files have no name, so that nothing is left of them, however a run ends.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def scratch_array(folder: Path, dtype: np.dtype[Any], length: int) -> NDArray[Any]:
    """Return an array of *length* zeros, mapped from a file in *folder*.

    Its blocks are reserved at once: a disk that is full later would be a signal, not an exception.

    Raises:
        OSError: The disk is full or failing.
    """
    if not length:
        return np.zeros((0, *dtype.shape), dtype.base)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, length * dtype.itemsize)
        except OSError as error:  # it does not say where
            raise OSError(error.errno, error.strerror, str(folder)) from error
        mapped = np.memmap(file, dtype.base, mode="r+", shape=(length, *dtype.shape))
    # A plain array: what a `memmap` adds to each access costs more than the access.
    return np.asarray(mapped)
