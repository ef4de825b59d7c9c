"""Buffers for large files: as many at a time as fit a fixed amount of memory."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

MAX_BYTES = 48 << 20
"""Of all of them together, in this process."""

_changed = threading.Condition()
_taken: list[int] = []


@contextmanager
def large_buffer(num_bytes: int) -> Iterator[bytearray]:
    """Yield a buffer for the time of the block; wait until there is room for it.

    Args:
        num_bytes: Not more than `MAX_BYTES`.
    """
    with _changed:
        _changed.wait_for(lambda: sum(_taken) + num_bytes <= MAX_BYTES)
        _taken.append(num_bytes)
    try:
        yield bytearray(num_bytes)
    finally:
        with _changed:
            _taken.remove(num_bytes)
            _changed.notify_all()
