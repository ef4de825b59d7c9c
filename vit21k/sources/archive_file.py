"""An open container on a disk: one file, or the parts of a multi-part tar, read as one."""

import io
import os
import stat
from bisect import bisect_right
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from vit21k.errors import printable
from vit21k.manifest.archive_names import find_parts, is_first_part

GZIP_START = b"\x1f\x8b"

OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
"""No waiting for a pipe's other end."""


class FileStatus(NamedTuple):
    """What changes when a file is written to; of several parts the sum of sizes, the last times."""

    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_ino: int


class ArchiveFile(io.RawIOBase):
    """A container that is open for reading; closed with its last reference.

    `read_at` and `read_into` are thread-safe; the methods of a file object are not.

    Attributes:
        name: Its path, for messages.
        num_bytes: Its size when it was opened.
    """

    def __init__(self, path: bytes | str, flags: int = OPEN_FLAGS) -> None:
        """Open it.

        Args:
            path: Of a file, or of the first part of a multi-part tar.
            flags: To open it with.

        Raises:
            OSError: It, or one of its parts, cannot be opened.
        """
        super().__init__()
        self._descriptors: list[int] = []
        self._at = 0
        self.name = printable(path)
        for part in part_paths(os.fsencode(path)):
            self._descriptors.append(os.open(part, flags))
        sizes = [os.fstat(descriptor).st_size for descriptor in self._descriptors]
        self._starts = list(accumulate(sizes, initial=0))
        self.num_bytes = self._starts.pop()

    def close(self) -> None:
        """Close it."""
        super().close()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    @property
    def status(self) -> FileStatus:
        """Its current facts, from the system."""
        all_of = [os.fstat(descriptor) for descriptor in self._descriptors]
        return FileStatus(
            sum(one.st_size for one in all_of),
            max(one.st_mtime_ns for one in all_of),
            max(one.st_ctime_ns for one in all_of),
            all_of[0].st_ino,
        )

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file, and not a folder or a pipe."""
        return stat.S_ISREG(os.fstat(self._descriptors[0]).st_mode)

    @property
    def is_gzip(self) -> bool:
        """Whether it begins like a gzip file."""
        return self.read_at(len(GZIP_START), 0) == GZIP_START

    @property
    def descriptor(self) -> int | None:
        """Its file descriptor; None if it has several parts."""
        return self._descriptors[0] if len(self._descriptors) == 1 else None

    def advise(self, advice: int) -> None:
        """Say how it will be read, such as `os.POSIX_FADV_RANDOM`."""
        for descriptor in self._descriptors:
            os.posix_fadvise(descriptor, 0, 0, advice)

    def can_jump(self) -> bool:
        """Return True: any offset may be read next."""
        return True

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill *view*, or a part of it, from *offset*; return the number of bytes, 0 at the end."""
        index = bisect_right(self._starts, offset) - 1
        return os.preadv(self._descriptors[index], [view], offset - self._starts[index])

    def read_at(self, num_bytes: int, offset: int) -> bytes:
        """Return *num_bytes* from *offset*, fewer where the file ends."""
        index = bisect_right(self._starts, offset) - 1
        content = os.pread(self._descriptors[index], num_bytes, offset - self._starts[index])
        if len(content) == num_bytes or (index == len(self._descriptors) - 1 and not content):
            return content
        view = memoryview(bytearray(max(min(num_bytes, self.num_bytes - offset), 0)))
        end = 0
        while end < len(view) and (num_read := self.read_into(view[end:], offset + end)):
            end += num_read
        return bytes(view[:end])

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move to *offset*; return the new position."""
        self._at = (
            offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.num_bytes}[whence]
        )
        return self._at

    def tell(self) -> int:
        """Return the position."""
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Fill *buffer*, or a part of it; return the number of bytes, 0 at the end."""
        num_read = self.read_into(memoryview(buffer), self._at)
        self._at += num_read
        return num_read


class ContainerFiles(Protocol):
    """Files below an image root: `DiskFiles`, or `remote.RemoteTree`."""

    def open(self, path: bytes) -> ArchiveFile:
        """Open a file; of a multi-part tar, all parts.

        Raises:
            OSError: It cannot be opened.
        """

    def size(self, path: bytes) -> int | None:
        """Return the size of a regular file in bytes; None if there is none."""


class DiskFiles:
    """Files below *root*, which ends in `/`; opened with *flags*."""

    def __init__(self, root: bytes, flags: int = OPEN_FLAGS) -> None:
        self._root = root
        self._flags = flags

    def open(self, path: bytes) -> ArchiveFile:
        """Open a file; of a multi-part tar, all parts.

        Raises:
            OSError: It cannot be opened.
        """
        return ArchiveFile(self._root + path, self._flags)

    def size(self, path: bytes) -> int | None:
        """Return the size of a regular file in bytes; None if there is none."""
        try:
            status = os.stat(self._root + path)  # noqa: PTH116 (bytes)
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None


def part_paths(path: bytes) -> list[bytes]:
    """Return the paths of all parts of a multi-part tar; of another file its own.

    Raises:
        OSError: Its folder cannot be listed.
    """
    folder, slash, name = path.rpartition(b"/")
    if not is_first_part(name):
        return [path]
    parts = find_parts(os.listdir(folder or b"."))  # noqa: PTH208 (bytes)
    return [folder + slash + part for part in parts.of_first.get(name, [name])]
