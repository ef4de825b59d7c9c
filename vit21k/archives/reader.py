"""Archive, offset and size -> the bytes of a member; for any number of threads."""

import errno
import os
import resource
import threading
from collections import OrderedDict

from vit21k.archives.names import is_gzip
from vit21k.errors import ImageError, UnreadableImageError

MAX_OPEN = 256
"""Archives kept open at most: a quarter of what Linux lets a process have."""

_TOO_MANY = frozenset({errno.EMFILE, errno.ENFILE})

GZIP_HINT = (
    "a member of a compressed archive cannot be read without all that come before it; unpack the "
    "outer layer (`gunzip -k FILE.tar.gz`), and run `vit21k hash` on the .tar again"
)


class _OpenFile:
    """A descriptor that is closed when nobody uses it any more."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ArchiveReader:
    """Reads members of the archives below *root*, a limited number of which it keeps open."""

    def __init__(self, root: str, *, max_open: int | None = None) -> None:
        self._root = root
        self._max_open = _suitable_max() if max_open is None else max_open
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()

    def read(self, archive: str, offset: int, num_bytes: int) -> bytes:
        """Return *num_bytes* of *archive*, a path relative to the root, from *offset*.

        Raises:
            UnreadableImageError: The archive is not there.
            ImageError: It is compressed, or shorter than that.
            OSError: It cannot be read.
        """
        file = self._file(archive)  # held: whoever closes it must wait
        parts = []
        while num_bytes:
            part = os.pread(file.descriptor, num_bytes, offset)
            if not part:
                raise ImageError(
                    f"`{archive}` ends before its member does",
                    hint="it has changed since it was hashed; run `vit21k hash` again",
                )
            parts.append(part)
            offset += len(part)
            num_bytes -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _file(self, archive: str) -> _OpenFile:
        with self._lock:
            file = self._open.pop(archive, None) or self._opened(archive)
            self._open[archive] = file  # the last one used
            if len(self._open) > self._max_open:
                self._open.popitem(last=False)
        return file

    def _opened(self, archive: str) -> _OpenFile:
        try:
            file = self._open_file(f"{self._root}/{archive}")
        except (FileNotFoundError, NotADirectoryError):
            raise UnreadableImageError(
                f"the archive `{archive}` is not there",
                hint="if the image tree has moved, say where it is now with `--root`",
            ) from None
        if is_gzip(file.descriptor):
            raise ImageError(f"`{archive}` is compressed", hint=GZIP_HINT)
        return file

    def _open_file(self, path: str) -> _OpenFile:
        """Open a file; where the process may open no more, close those kept open first."""
        try:
            return _OpenFile(path)
        except OSError as error:
            if error.errno not in _TOO_MANY or not self._open:
                raise
        self._max_open = max(len(self._open) // 2, 1)
        self._open.clear()
        return _OpenFile(path)


def _suitable_max() -> int:
    """Return how many archives to keep open: a quarter of what this process may open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPEN if limit == resource.RLIM_INFINITY else max(min(MAX_OPEN, limit // 4), 1)
