"""File -> digest: the bytes of one file, read once, by whichever worker takes its chunk.

Performance: what Python adds to the kernel's copy is 3 to 4 us a file.  It is that little because
a worker opens a folder once and its files relative to it, reads into one buffer that it keeps
(`os.read(fd, 1 MiB)` would allocate and fault in a new one for every file), and digests in one
call.  Reading, and digesting of larger pieces, release the interpreter's lock.
"""

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import xxhash

from vit21k.archives.part import ArchivePart
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.prep.archive_digest import DigestedMembers, UnusableError, digest_part
from vit21k.prep.large_buffers import large_buffer
from vit21k.prep.picture_facts import NOT_IMAGES, Buffer, PictureFacts, picture_facts
from vit21k.prep.walk import Chunk, printable, problem_from

BUFFER_BYTES = 1 << 20
"""Nearly every image of ImageNet-21K (mean 92 kB) fits, and is read with one call."""

WHOLE_BYTES = 32 << 20
"""What is larger goes through the buffer in pieces, without a content digest."""

_FILE_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # no waiting for a pipe's other end
_FOLDER_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY
_NUM_TRIES = 2
_NO_LIMIT = 1 << 62


class Hasher(Protocol):
    """What `hashlib` and `xxhash` give."""

    def update(self, content: memoryview, /) -> None:
        """Take in more content."""

    def digest(self) -> bytes:
        """Return the digest of all content so far."""


class Algorithm(NamedTuple):
    """A digest of 16 bytes.

    Attributes:
        at_once: Digest of content that is all there.
        piecewise: Makes a hasher for content that comes in pieces.
    """

    at_once: Callable[[memoryview], bytes]
    piecewise: Callable[[], Hasher]


def _md5() -> Hasher:
    return hashlib.md5(usedforsecurity=False)


def _blake2b() -> Hasher:
    return hashlib.blake2b(digest_size=16)


ALGORITHMS = {
    "xxh3_128": Algorithm(xxhash.xxh3_128_digest, xxhash.xxh3_128),
    "md5": Algorithm(lambda data: hashlib.md5(data, usedforsecurity=False).digest(), _md5),
    "blake2b_128": Algorithm(lambda data: hashlib.blake2b(data, digest_size=16).digest(), _blake2b),
}
"""By the name that is stored in the manifests.

At 14.2 million files the odds that any two different ones collide by chance are 3e-25 (128 bits).
xxh3_128 and md5 can be made to collide on purpose, blake2b_128 cannot.
"""


class FileDigest(NamedTuple):
    """What is known of a file that was read to its end without it changing."""

    num_bytes: int
    mtime_ns: int
    digest: bytes
    facts: PictureFacts
    ctime_ns: int = 0
    inode: int = 0


@dataclass
class DigestedChunk:
    """What became of a chunk: rows of `digests.parquet` and of `problems.parquet`, in path order.

    Attributes:
        wnid: Name of the folder all files lie in.
        fraction: Share of the tree up to here.
        archive: The archive they lie in; None for files of their own.
        offsets: Where each begins in the archive.
        more: What comes after it in the same archive, in other folders.
    """

    wnid: str
    fraction: float
    paths: list[str] = field(default_factory=list)
    files: list[FileDigest] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    archive: str | None = None
    offsets: list[int] = field(default_factory=list)
    more: Iterable["DigestedChunk"] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes read."""
        return sum(file.num_bytes for file in self.files)

    @property
    def num_bad(self) -> int:
        """Problems, without what was merely left out."""
        return sum(not problem.kind.is_left_out for problem in self.problems)


class ChunkDigester:
    """Digests chunks; any number of threads may share it.

    Attributes:
        root: The image root.  Everything below it is only ever opened for reading.
        follow_symlinks: Whether symbolic links are opened too.
        file_flags: What it opens files with.
        is_stopped: Set it to have the chunks under way end at their next file, unfinished.
    """

    def __init__(self, root: bytes, *, algorithm: str, follow_symlinks: bool = False) -> None:
        no_follow = 0 if follow_symlinks else os.O_NOFOLLOW
        self.root = root.rstrip(b"/") + b"/"
        self.follow_symlinks = follow_symlinks
        self.is_stopped = False
        self._algorithm = ALGORITHMS[algorithm]
        self.file_flags = self._file_flags = _FILE_FLAGS | no_follow
        self._folder_flags = _FOLDER_FLAGS | no_follow
        self._buffers = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_buffers"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _buffers=threading.local())

    def __call__(self, chunk: Chunk) -> DigestedChunk:
        """Return what became of each entry of *chunk*.

        Raises:
            OSError: This process has run out of file descriptors or memory.
        """
        if chunk.archive is not None:
            return self._digest_archive(chunk.archive, chunk.fraction)
        folder = printable(chunk.folder)
        done = DigestedChunk(folder[:-1].rpartition("/")[2], chunk.fraction)
        if all(problem for _, problem in chunk.entries):
            done.problems += [problem for _, problem in chunk.entries if problem]
            return done
        try:
            descriptor = os.open(self.root + chunk.folder, self._folder_flags)
        except OSError as error:
            for name, problem in chunk.entries:
                done.problems.append(problem or problem_from(chunk.folder + name, error))
            return done
        try:
            self._digest_entries(chunk, descriptor, folder, done)
        finally:
            os.close(descriptor)
        return done

    def _digest_archive(self, part: ArchivePart, fraction: float) -> DigestedChunk:
        try:
            descriptor = os.open(self.root + part.archive, self._file_flags)
        except OSError as error:
            return DigestedChunk("", fraction, problems=[problem_from(part.name, error)])
        try:
            mtime_ns = os.fstat(descriptor).st_mtime_ns

            def digest_member(content: memoryview) -> FileDigest:
                digest, facts = self.describe(content, content)
                if facts.format in NOT_IMAGES:
                    raise UnusableError(*_no_image(facts))
                if len(content) >= WHOLE_BYTES:
                    facts = facts._replace(content_digest=None, has_end=None)
                return FileDigest(len(content), mtime_ns, digest, facts)

            found = digest_part(part, descriptor, digest_member, lambda: self.is_stopped)
            first = next(found)  # by then all is read
        finally:
            os.close(descriptor)
        done = _members_chunk(part, fraction, first)
        done.more = (_members_chunk(part, fraction, members) for members in found)
        return done

    def _digest_entries(
        self, chunk: Chunk, descriptor: int, folder: str, done: DigestedChunk
    ) -> None:
        for name, known_problem in chunk.entries:
            if self.is_stopped:
                return
            if known_problem:
                done.problems.append(known_problem)
                continue
            found = self._digest_file(name, descriptor)
            if isinstance(found, FileDigest):
                done.paths.append(folder + name.decode())
                done.files.append(found)
            elif isinstance(found, OSError):
                done.problems.append(problem_from(chunk.folder + name, found))
            else:
                done.problems.append(Problem(folder + name.decode(), *found))

    def _digest_file(
        self, name: bytes, folder: int
    ) -> FileDigest | OSError | tuple[ProblemKind, str]:
        """Read a file to its end; once more if it changed meanwhile."""
        try:
            for _ in range(_NUM_TRIES):
                descriptor = os.open(name, self._file_flags, dir_fd=folder)
                try:
                    before = os.fstat(descriptor)
                    if not stat.S_ISREG(before.st_mode):
                        return ProblemKind.NOT_A_REGULAR_FILE, ""
                    limit = before.st_size + BUFFER_BYTES if before.st_size else _NO_LIMIT
                    num_bytes, digest, facts = self._digest_content(descriptor, before.st_size)
                    after = os.fstat(descriptor)
                finally:
                    os.close(descriptor)
                if _version(before) == _version(after) and num_bytes <= limit:
                    return _checked(num_bytes, after, digest, facts)
        except OSError as error:
            return error
        return ProblemKind.CHANGED_WHILE_READ, ""

    def _digest_content(self, descriptor: int, size: int) -> tuple[int, bytes, PictureFacts]:
        """Return size, digest and facts of all that can be read.

        The size that the system gives is not trusted: for files of /proc, and some network file
        systems, it is 0.
        """
        if BUFFER_BYTES <= size < WHOLE_BYTES:
            with large_buffer(size + 1) as buffer:
                return self._digest_with(buffer, descriptor, size)
        return self._digest_with(self._buffer(), descriptor, size)

    def _digest_with(
        self, buffer: bytearray, descriptor: int, size: int
    ) -> tuple[int, bytes, PictureFacts]:
        view = memoryview(buffer)
        num_bytes = 0
        while num_bytes < len(buffer):
            num_read = os.readv(descriptor, [view[num_bytes:]])
            if not num_read:
                return num_bytes, *self.describe(buffer, view[:num_bytes])
            num_bytes += num_read
        limit = size + BUFFER_BYTES if size else _NO_LIMIT
        facts = picture_facts(buffer, view)._replace(content_digest=None, has_end=None)
        return *self._digest_rest(descriptor, view, limit), facts

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

    def _buffer(self) -> bytearray:
        """Return this thread's buffer."""
        if not hasattr(self._buffers, "bytes"):
            self._buffers.bytes = bytearray(BUFFER_BYTES)
        buffer: bytearray = self._buffers.bytes
        return buffer


def _members_chunk(
    part: ArchivePart, fraction: float, members: DigestedMembers[FileDigest]
) -> DigestedChunk:
    return DigestedChunk(
        members.folder[:-1].rpartition("/")[2],
        fraction,
        paths=[members.folder + name for name in members.names],
        files=members.digests,
        problems=members.problems,
        archive=part.archive.decode(),
        offsets=members.offsets,
    )


def _version(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _no_image(facts: PictureFacts) -> tuple[ProblemKind, str]:
    return ProblemKind.NOT_AN_IMAGE, f"its first bytes are those of {facts.format}"


def _checked(
    num_bytes: int, status: os.stat_result, digest: bytes, facts: PictureFacts
) -> FileDigest | tuple[ProblemKind, str]:
    """Return the digest, unless there was nothing, or less than there should be, to digest."""
    if num_bytes < status.st_size:
        return ProblemKind.UNREADABLE, f"only {num_bytes:,} of {status.st_size:,} bytes"
    if not num_bytes:
        return ProblemKind.EMPTY, ""
    if facts.format in NOT_IMAGES:
        return _no_image(facts)
    return FileDigest(
        num_bytes, status.st_mtime_ns, digest, facts, status.st_ctime_ns, status.st_ino
    )
