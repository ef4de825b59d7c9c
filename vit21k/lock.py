"""One writer per folder: a lock that is released when its holder ends."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vit21k.errors import LockedError

_NAME = ".lock"
_SECOND_TRY_SECONDS = 0.05
_TRIES = 100


@contextmanager
def locked(folder: Path, *, command: str, wait: bool = False) -> Iterator[None]:
    """Lock *folder* for this process until the block ends or the process ends.

    Args:
        folder: Created if missing, and removed again if the block fails before it writes anything
            there.  The lock is on the file ``.lock`` in it, which is not removed.
        command: Command of the holder, shown to other processes.
        wait: Wait for another holder to end, instead of raising.

    Raises:
        LockedError: Another process holds it; the message names the process.
    """
    made = _make(folder)
    descriptor = _open(folder, wait=wait)
    try:
        note = {"command": command, "pid": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(note).encode(), 0)
        yield
    except BaseException:
        _remove_if_empty(made)
        raise
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Return whether a process holds *folder* now.

    It takes a shared lock and releases it immediately.
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


def _make(folder: Path) -> list[Path]:
    """Create *folder*; return the created folders, the deepest first."""
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    folder.mkdir(parents=True, exist_ok=True)
    return made


def _remove_if_empty(made: list[Path]) -> None:
    """Remove the folders *made* again, if they contain only the lock."""
    with suppress(OSError):
        if made and [path.name for path in made[0].iterdir()] == [_NAME]:
            (made[0] / _NAME).unlink()
        for folder in made:
            folder.rmdir()


def _open(folder: Path, *, wait: bool) -> int:
    """Return a descriptor of the held lock."""
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            descriptor = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if _is_held(descriptor, folder, wait=wait):
                return descriptor
            os.close(descriptor)
        # Another process has just removed the folder that it created.
        folder.mkdir(parents=True, exist_ok=True)
    raise LockedError(f"`{folder}` is repeatedly created and removed by other processes")


def _is_held(descriptor: int, folder: Path, *, wait: bool) -> bool:
    """Take the lock; return whether its file still exists."""
    try:
        _take(descriptor, wait=wait)
    except BlockingIOError:
        holder = _holder(descriptor)
        os.close(descriptor)
        raise LockedError(
            f"`{folder}` is in use by {holder}",
            hint="wait for it to end, or use another folder",
        ) from None
    except BaseException:
        os.close(descriptor)
        raise
    return os.fstat(descriptor).st_nlink > 0


def _take(descriptor: int, *, wait: bool) -> None:
    """Take the lock; try twice, as the first attempt may have met `is_locked`."""
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
