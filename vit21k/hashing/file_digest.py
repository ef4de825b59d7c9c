"""File -> digest: the bytes of one file, read once.

Performance: what Python adds to the kernel's copy is 3 to 4 us a file.  It is that little because
files are opened relative to their folder, read into one buffer that each thread keeps
(`os.read(fd, 1 MiB)` would allocate and fault in a new one for every file), and digested in one
call.  Reading, and digesting of larger pieces, release the interpreter's lock.
"""

import os
import stat
import threading
from collections.abc import Callable
from typing import NamedTuple

import xxhash

from vit21k.hashing.algorithms import ALGORITHMS
from vit21k.hashing.large_buffers import large_buffer
from vit21k.hashing.picture_facts import NOT_IMAGES, Buffer, PictureFacts, picture_facts, tiff_facts
from vit21k.manifest.problems import ProblemKind

BUFFER_BYTES = 1 << 20
"""Nearly every image of ImageNet-21K (mean 92 kB) fits, and is read with one call."""

WHOLE_BYTES = 32 << 20
"""What is larger goes through the buffer in pieces, without a content digest."""

PROBE_BYTES = 4096
"""Read of either end of a file by a quick run: a page."""

_NUM_TRIES = 2
_NO_LIMIT = 1 << 62
_buffers = threading.local()


class FileDigest(NamedTuple):
    """What is known of a file that did not change while it was read.

    Attributes:
        num_bytes: Its size.
        mtime_ns: When it was modified.
        digest: Of all bytes; None after a quick look at both ends.
        facts: What the bytes say; None likewise.
        ctime_ns: When its status changed.
        inode: Its number.
        probe: Digest of both ends, by a quick run.
    """

    num_bytes: int
    mtime_ns: int
    digest: bytes | None
    facts: PictureFacts | None
    ctime_ns: int = 0
    inode: int = 0
    probe: bytes | None = None


class _Content(NamedTuple):
    """What reading a file gave: all of `FileDigest` that is of its bytes."""

    num_bytes: int
    digest: bytes | None
    facts: PictureFacts | None
    probe: bytes | None = None


Flaw = tuple[ProblemKind, str]
"""What is wrong with a file, and a detail."""


class FileReader:
    """Reads and digests files; any number of threads may share it."""

    def __init__(self, algorithm: str, flags: int) -> None:
        """Make an instance.

        Args:
            algorithm: A key of `algorithms.ALGORITHMS`.
            flags: To open files with.
        """
        self._algorithm = ALGORITHMS[algorithm]
        self._flags = flags

    def digest(self, name: bytes, folder: int) -> FileDigest | OSError | Flaw:
        """Read a file to its end; once more if it changed meanwhile.

        Args:
            name: Relative to the folder.
            folder: Descriptor of the folder.
        """
        return self._try(name, folder, self._digest_content)

    def probe(self, name: bytes, folder: int) -> FileDigest | OSError | Flaw:
        """Read both ends of a file only, unless that is all of it, or it is no JPEG."""
        return self._try(name, folder, self._probe_content)

    def ask_for(self, name: bytes, folder: int, *, only_ends: bool) -> None:
        """Have the system fetch a file, the first part of a large one, or both ends of it.

        It is not waited for.
        """
        self._advise(name, folder, _ends if only_ends else lambda _size: [(0, BUFFER_BYTES)])

    def _advise(
        self, name: bytes, folder: int, parts_of: Callable[[int], list[tuple[int, int]]]
    ) -> None:
        try:
            descriptor = os.open(name, self._flags, dir_fd=folder)
        except OSError:
            return  # reading it will say why
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                for start, num_bytes in parts_of(status.st_size):
                    os.posix_fadvise(descriptor, start, num_bytes, os.POSIX_FADV_WILLNEED)
        except OSError:
            return
        finally:
            os.close(descriptor)

    def _try(
        self,
        name: bytes,
        folder: int,
        read: Callable[[int, int], _Content],
    ) -> FileDigest | OSError | Flaw:
        try:
            for _ in range(_NUM_TRIES):
                descriptor = os.open(name, self._flags, dir_fd=folder)
                try:
                    before = os.fstat(descriptor)
                    if not stat.S_ISREG(before.st_mode):
                        return ProblemKind.NOT_A_REGULAR_FILE, ""
                    limit = before.st_size + BUFFER_BYTES if before.st_size else _NO_LIMIT
                    content = read(descriptor, before.st_size)
                    after = os.fstat(descriptor)
                finally:
                    os.close(descriptor)
                if _version(before) == _version(after) and content.num_bytes <= limit:
                    return _checked(content, after)
        except OSError as error:
            return error
        return ProblemKind.CHANGED_WHILE_READ, ""

    def _digest_content(self, descriptor: int, size: int) -> _Content:
        """Digest all that can be read.

        The size that the system gives is not trusted: for files of /proc, and some network file
        systems, it is 0.
        """
        if BUFFER_BYTES <= size < WHOLE_BYTES:
            with large_buffer(size + 1) as buffer:
                return self._digest_with(buffer, descriptor, size)
        return self._digest_with(thread_buffer(), descriptor, size)

    def _digest_with(self, buffer: bytearray, descriptor: int, size: int) -> _Content:
        view = memoryview(buffer)
        num_bytes = 0
        while num_bytes < len(buffer):
            num_read = os.readv(descriptor, [view[num_bytes:]])
            num_bytes += num_read
            if not num_read or num_bytes == size:  # `_try` sees whether it has grown
                return _Content(num_bytes, *self.describe(buffer, view[:num_bytes]))
        limit = size + BUFFER_BYTES if size else _NO_LIMIT
        facts = picture_facts(buffer, view)._replace(content_digest=None, has_end=None)
        if facts.format == "tiff":  # its directory may be anywhere
            facts = tiff_facts(lambda place, num: os.pread(descriptor, num, place))
        return _Content(*self._digest_rest(descriptor, view, limit), facts)

    def _probe_content(self, descriptor: int, size: int) -> _Content:
        if size <= 2 * PROBE_BYTES:
            content = self._digest_content(descriptor, size)
            whole = memoryview(thread_buffer())[: content.num_bytes]
            return content._replace(probe=self.probe_of(whole))
        buffer = thread_buffer()
        view = memoryview(buffer)[: 2 * PROBE_BYTES]
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # else the kernel reads on
        num_read = os.preadv(descriptor, [view[:PROBE_BYTES]], 0)
        num_read += os.preadv(descriptor, [view[PROBE_BYTES:]], size - PROBE_BYTES)
        if num_read < len(view):
            return _Content(num_read, None, None)
        probe = xxhash.xxh3_128_digest(view)
        if buffer.startswith(b"\xff\xd8\xff"):
            return _Content(size, None, None, probe)
        return self._digest_content(descriptor, size)._replace(probe=probe)

    def probe_of(self, content: memoryview) -> bytes:
        """Return the probe of a file, or of a member of an archive, with this *content*."""
        if len(content) <= 2 * PROBE_BYTES:
            return xxhash.xxh3_128_digest(content)
        hasher = xxhash.xxh3_128(content[:PROBE_BYTES])
        hasher.update(content[-PROBE_BYTES:])
        return hasher.digest()

    def describe(self, buffer: Buffer, view: memoryview) -> tuple[bytes, PictureFacts]:
        """Return digest and facts of the bytes in *view*, with which *buffer* begins."""
        return self._algorithm.at_once(view), picture_facts(buffer, view)

    def _digest_rest(self, descriptor: int, buffer: memoryview, limit: int) -> tuple[int, bytes]:
        """Return size and digest of a file of which *buffer* holds the first part."""
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        hasher = self._algorithm.piecewise()
        num_bytes = num_read = len(buffer)
        while num_read and num_bytes <= limit:
            hasher.update(buffer[:num_read])
            num_read = os.readv(descriptor, [buffer])
            num_bytes += num_read
        return num_bytes, hasher.digest()


def thread_buffer() -> bytearray:
    """Return this thread's buffer, of `BUFFER_BYTES`."""
    try:
        buffer: bytearray = _buffers.bytes
    except AttributeError:
        buffer = _buffers.bytes = bytearray(BUFFER_BYTES)
    return buffer


def _ends(size: int) -> list[tuple[int, int]]:
    return [(0, PROBE_BYTES), (max(size - PROBE_BYTES, 0), PROBE_BYTES)]


def _version(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def no_image(facts: PictureFacts) -> tuple[ProblemKind, str]:
    """Return what is wrong with a file that is certainly not an image."""
    return ProblemKind.NOT_AN_IMAGE, f"its first bytes are those of {facts.format}"


def _checked(content: _Content, status: os.stat_result) -> FileDigest | Flaw:
    """Return the digest, unless there was nothing, or less than there should be, to digest."""
    num_bytes, digest, facts, probe = content
    if num_bytes < status.st_size:
        return ProblemKind.UNREADABLE, f"only {num_bytes:,} of {status.st_size:,} bytes"
    if not num_bytes:
        return ProblemKind.EMPTY, ""
    if facts is not None and facts.format in NOT_IMAGES:
        return no_image(facts)
    return FileDigest(
        num_bytes, status.st_mtime_ns, digest, facts, status.st_ctime_ns, status.st_ino, probe
    )
