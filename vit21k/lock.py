"""One writer per folder: a lock that dies with its holder."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vit21k.errors import LockedError

_NAME = ".lock"
_SECOND_TRY_SECONDS = 0.05


@contextmanager
def locked(folder: Path, *, command: str, wait: bool = False) -> Iterator[None]:
    """Hold *folder* for one process until the block ends or the process dies.

    Args:
        folder: Created if need be.  The lock is the file ``.lock`` in it; the file stays, the
            lock does not.
        command: What the holder is doing, shown to whoever is turned away.
        wait: Wait for another holder to end, instead of turning away.

    Raises:
        LockedError: Another process holds it; the message names the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            _take(descriptor, wait=wait)
        except BlockingIOError:
            raise LockedError(
                f"`{folder}` is in use by {_holder(descriptor)}",
                hint="wait for it to end, or work in another folder",
            ) from None
        note = {"command": command, "pid": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(note).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Return whether a process holds *folder* now.

    To know it, the lock is asked for, together with all others who ask, and given back at once.
    """
    try:
        descriptor = os.open(folder / _NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _take(descriptor: int, *, wait: bool) -> None:
    """Take the lock; a second time if the first might have met somebody who only asked."""
    if wait:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(_SECOND_TRY_SECONDS)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(descriptor: int) -> str:
    try:
        note = json.loads(os.pread(descriptor, 4096, 0))
        return f"`vit21k {note['command']}` (process {note['pid']} on {note['host']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
