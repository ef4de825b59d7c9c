"""Write a file or a folder atomically: readers see the old one or the new one.

Partial files are next to their destination as ``.<name>.<host>-<pid>.partial``.  Those of killed
processes are removed by the next writer of the same destination.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_SUFFIX = ".partial"


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes *path* when the block ends without an exception.

    The bytes are on disk (fsync) before the name moves, and the name before the call returns.

    Args:
        path: Destination; its folder is created if missing.  A device, such as `/dev/null`, is
            written to directly, as it must not be replaced by a file.

    Raises:
        OSError: The disk is full or failing; *path* is unchanged.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as file:
            yield file
        return
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def write_atomic(path: Path, content: bytes) -> None:
    """Write *content* to *path* atomically."""
    with atomic_file(path) as file:
        file.write(content)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a folder that becomes *path* when the block ends without an exception.

    Every file written into it (no sub-folders) is on disk before the name moves.

    Raises:
        FileExistsError: *path* exists; a folder cannot be replaced atomically.
        OSError: The disk is full or failing; *path* is not created.
    """
    partial = _partial(path)
    if path.exists():
        raise FileExistsError(f"`{path}` already exists")
    partial.mkdir()
    try:
        yield partial
        for file in partial.iterdir():
            _sync(file, os.O_RDONLY)
        _sync(partial, os.O_RDONLY | os.O_DIRECTORY)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(path.parent, os.O_RDONLY | os.O_DIRECTORY)


def _partial(path: Path) -> Path:
    """Return the temporary name for *path*; create its folder and remove stale partial files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    prefix = f".{path.name}.{host}-"
    for left in path.parent.glob(f"{_glob_escape(prefix)}*{_SUFFIX}"):
        if not _is_alive(left.name.removeprefix(prefix).removesuffix(_SUFFIX)):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(f"{prefix}{os.getpid()}{_SUFFIX}")


def _glob_escape(text: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)


def _is_alive(pid: str) -> bool:
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
