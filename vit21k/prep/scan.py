"""Chunk of files -> rows with digests and image facts, by the compiled scanner or in Python."""

import ctypes
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from random import random
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from vit21k._native import NoExtensionError, extension
from vit21k.manifest.problems import Problem
from vit21k.prep.file_digest import (
    BUFFER_BYTES,
    PROBE_BYTES,
    FileDigest,
    Flaw,
    ImageFacts,
    thread_buffer,
)
from vit21k.sources.folders import Chunk, problem_from

_ROW = struct.Struct("<qqqQ16s16s16sBIIBB")
_MTIME, _MTIME_AT = struct.Struct("<q"), 8
ROW = np.dtype(
    [
        ("num_bytes", "<i8"),
        ("mtime_ns", "<i8"),
        ("ctime_ns", "<i8"),
        ("inode", "<u8"),
        ("digest", "V16"),
        ("content_digest", "V16"),
        ("probe", "V16"),
        ("format", "u1"),
        ("width", "<u4"),  # 0: unknown, as with the next two
        ("height", "<u4"),
        ("components", "u1"),
        ("flags", "u1"),
    ]
)
"""Packed; the same layout as `Row` in image_facts.h and `_ROW`."""

FORMATS = ("unknown", "jpeg", "png", "gif", "webp", "bmp", "tiff", "gzip", "ppm")
"""By their index in a row."""

HAS_DIGEST, HAS_CONTENT, HAS_PROBE, HAS_FACTS, SAW_END, LOOKED_FOR_END = (
    1 << bit for bit in range(6)
)
_NONE = bytes(16)
_NO_FACTS = ImageFacts(None, "unknown")

Rows = NDArray[np.void]
"""An array of `ROW`."""


class FileRows(Sequence[FileDigest]):
    """Files in an array of rows; an item is a `FileDigest`.

    Attributes:
        array: Their rows.
    """

    __slots__ = ("array",)

    def __init__(self, array: Rows) -> None:
        self.array = array

    @classmethod
    def of(cls, files: Iterable[FileDigest | bytes]) -> "FileRows":
        """Return *files*, some of which may be packed rows, as rows."""
        packed = (one if isinstance(one, bytes) else _packed(one) for one in files)
        return cls(np.frombuffer(b"".join(packed), ROW))

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> FileDigest: ...
    @overload
    def __getitem__(self, index: slice) -> "FileRows": ...
    def __getitem__(self, index: int | slice) -> "FileDigest | FileRows":
        if isinstance(index, slice):
            return FileRows(self.array[index])
        return _unpacked(_ROW.unpack(self.array[index].tobytes()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def have(self, flag: int) -> NDArray[np.bool_]:
        """Return which of them have a flag, such as `HAS_DIGEST`."""
        return have(self.array, flag)


def have(rows: Rows, flag: int) -> NDArray[np.bool_]:
    """Return which of *rows* have a flag, such as `HAS_DIGEST`."""
    has: NDArray[np.bool_] = rows["flags"] & flag != 0
    return has


def numbers(rows: Rows, column: str) -> NDArray[np.uint64]:
    """Return the digests in *column* as (rows, 2) integers."""
    return np.ascontiguousarray(rows[column]).view("<u8").reshape(-1, 2)


def bytes_read(rows: Rows) -> NDArray[np.int64]:
    """Return how many bytes were read for each of *rows*."""
    return np.where(have(rows, HAS_DIGEST), rows["num_bytes"], 2 * PROBE_BYTES)


def _packed(file: FileDigest) -> bytes:
    facts = file.facts
    flags = HAS_DIGEST if file.digest is not None else 0
    flags |= HAS_PROBE if file.probe is not None else 0
    if facts is None:
        facts = _NO_FACTS
    else:
        flags |= HAS_FACTS
        flags |= HAS_CONTENT if facts.content_digest is not None else 0
        flags |= LOOKED_FOR_END if facts.has_end is not None else 0
        flags |= SAW_END if facts.has_end else 0
    return _ROW.pack(
        file.num_bytes,
        file.mtime_ns,
        file.ctime_ns,
        file.inode,
        file.digest or _NONE,
        facts.content_digest or _NONE,
        file.probe or _NONE,
        FORMATS.index(facts.format),
        facts.width or 0,
        facts.height or 0,
        facts.components or 0,
        flags,
    )


def _unpacked(row: tuple[Any, ...]) -> FileDigest:
    num_bytes, mtime_ns, ctime_ns, inode, digest, content, probe, *rest, flags = row
    format_, width, height, components = rest
    facts = ImageFacts(
        content if flags & HAS_CONTENT else None,
        FORMATS[format_],
        width or None,
        height or None,
        components or None,
        bool(flags & SAW_END) if flags & LOOKED_FOR_END else None,
    )
    return FileDigest(
        num_bytes,
        mtime_ns,
        digest if flags & HAS_DIGEST else None,
        facts if flags & HAS_FACTS else None,
        ctime_ns,
        inode,
        probe if flags & HAS_PROBE else None,
    )


HEAD = struct.Struct("<IHQ")  # bytes of the body, of its label, checksum of the body
_NUM_FILES = struct.Struct("<II")  # files, bytes of the files before they were compressed


class Label(NamedTuple):
    """Label of a record: a range of names in a folder.

    Attributes:
        folder: Path of the folder.
        first: First name.
        last: Last name.
    """

    folder: bytes
    first: bytes
    last: bytes


class NamedRows(NamedTuple):
    """Files of one folder.

    Attributes:
        names: In order.
        rows: Their rows.
    """

    names: Sequence[bytes]
    rows: Rows


NO_ROWS = NamedRows([], np.empty(0, ROW))


@cache
def _codec() -> pa.Codec:
    return pa.Codec("zstd", compression_level=1)


def encode(folder: bytes, files: NamedRows) -> bytes:
    """Return the record of *files*, of which there is at least one."""
    names = files.names
    label = b"\0".join(Label(folder, names[0], names[-1]))
    rows = files.rows.tobytes() + b"\0".join(names)
    packed: bytes = _codec().compress(rows, asbytes=True)
    body = label + _NUM_FILES.pack(len(names), len(rows)) + packed
    head: bytes = HEAD.pack(len(body), len(label), xxhash.xxh3_64_intdigest(body))
    return head + body


def decode_label(text: bytes) -> Label | None:
    """Parse a label; None if it is malformed."""
    parts = text.split(b"\0")
    return Label(*parts) if len(parts) == len(Label._fields) else None


def decode(body: bytes, label_bytes: int, checksum: int) -> NamedRows:
    """Return the files of a record; none if it is damaged."""
    if xxhash.xxh3_64_intdigest(body) != checksum:
        return NO_ROWS
    num_files, num_bytes = _NUM_FILES.unpack_from(body, label_bytes)
    packed = memoryview(body)[label_bytes + _NUM_FILES.size :]
    content = _codec().decompress(packed, num_bytes, asbytes=True)
    end = num_files * ROW.itemsize
    return NamedRows(content[end:].split(b"\0"), np.frombuffer(content[:end], ROW))


@dataclass
class HashedChunk:
    """A hashed chunk: rows of `digests.parquet` and `problems.parquet`, in path order.

    Attributes:
        wnid: The class of all files, unless *wnids* says otherwise.
        fraction: Share of the tree up to here.
        num_bytes_read: Bytes read from files.
        num_known: Files taken from the hash cache.
        silently_changed: Paths of files whose content has changed, but not their size and times.
        container: The container they are in; None for plain files.
        offsets: Where each begins in the container.
        wnids: The class of each file, where they differ.
        storages: How the container stores each, as in `digests.parquet`; empty: all as they are.
        source_split: Published split that all files are from, if any.
        more: The chunks that follow in the same container, of other folders.
    """

    wnid: str
    fraction: float
    paths: list[str] = field(default_factory=list)
    files: FileRows = field(default_factory=lambda: FileRows(NO_ROWS.rows))
    problems: list[Problem] = field(default_factory=list)
    num_bytes_read: int = 0
    num_known: int = 0
    silently_changed: list[str] = field(default_factory=list)
    container: str | None = None
    offsets: list[int] = field(default_factory=list)
    wnids: Sequence[str] = ()
    storages: Sequence[str | None] = ()
    source_split: str | None = None
    more: Iterable["HashedChunk"] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "more": list(self.more)}  # an iterator cannot be pickled

    @property
    def classes(self) -> set[str]:
        """The classes of the files; none if there are no files."""
        return set(self.wnids or [self.wnid]) if self.files else set()

    @property
    def num_bytes(self) -> int:
        """Bytes of the files."""
        return int(self.files.array["num_bytes"].sum())

    @property
    def num_bad(self) -> int:
        """Problems, without skipped entries."""
        return sum(not problem.kind.is_skipped for problem in self.problems)


def with_classes(chunk: HashedChunk, class_of: Callable[[str], str | Problem]) -> HashedChunk:
    """Return *chunk* with the classes that its files have by their paths; without those of none.

    Args:
        chunk: What became of a chunk.
        class_of: Returns the class of the file at a path, or why it has none.
    """
    if not chunk.files:
        return chunk
    found = [class_of(path) for path in chunk.paths]
    kept = [place for place, one in enumerate(found) if isinstance(one, str)]
    problems = [one for one in found if isinstance(one, Problem)]
    return replace(
        chunk,
        paths=[chunk.paths[place] for place in kept],
        files=FileRows(chunk.files.array[kept]),
        problems=sorted([*chunk.problems, *problems]),
        offsets=[chunk.offsets[place] for place in kept] if chunk.offsets else [],
        storages=[chunk.storages[place] for place in kept] if chunk.storages else (),
        wnids=[one for one in found if isinstance(one, str)],
    )


TO_DO, DONE, FLAWED, UNKNOWN = range(4)
"""States of a file; `scan.c` uses the first two and ignores files in the others."""


_VERSION = ("num_bytes", "mtime_ns", "ctime_ns", "inode")
"""Columns that identify a version of a file; on a network file system only the first two."""


class ChunkFiles:
    """Files of one folder.

    Attributes:
        folder: Descriptor of the folder.
        names: Their names, in order; at least one.
        rows: Rows of those that are done.
        states: `TO_DO`, `DONE`, `FLAWED` or `UNKNOWN`.
        flaws: Errors and flaws of those that are `FLAWED`, by index.
    """

    def __init__(self, folder: int, names: Sequence[bytes]) -> None:
        self.folder = folder
        self.names = names
        self.packed_names = b"\0".join(names)
        self.rows: Rows = np.zeros(len(names), ROW)
        self.states: NDArray[np.uint8] = np.zeros(len(names), np.uint8)
        self.flaws: dict[int, OSError | Flaw] = {}

    def __len__(self) -> int:
        return len(self.names)

    @property
    def are_done(self) -> NDArray[np.bool_]:
        """Which of them are done."""
        done: NDArray[np.bool_] = self.states == DONE
        return done

    def indices_to_do(self) -> list[int]:
        """Return the indices of files that are to be read."""
        indices: list[int] = np.flatnonzero(self.states == TO_DO).tolist()
        return indices

    def put(self, index: int, found: FileDigest | bytes | OSError | Flaw) -> None:
        """Store the outcome of the file at *index*; bytes are a packed row."""
        if isinstance(found, FileDigest | bytes):
            self.rows[index] = FileRows.of([found]).array[0]
            self.states[index] = DONE
        else:
            self.flaws[index] = found
            self.states[index] = FLAWED

    def take_known(self, known: NamedRows) -> None:
        """Copy the rows of *known*; files that are not in it become `UNKNOWN`."""
        if known.names == self.names:
            self.rows[:] = known.rows
            return
        index_of = {name: index for index, name in enumerate(known.names)}
        indices = np.array([index_of.get(name, -1) for name in self.names])
        is_known = indices >= 0
        self.rows[is_known] = known.rows[indices[is_known]]
        self.states[~is_known] = UNKNOWN

    def check(self, *, follow_symlinks: bool, by_all: bool) -> None:
        """Mark files as done that have not changed since their rows were made.

        Args:
            follow_symlinks: Compare the targets of symbolic links.
            by_all: Also compare inode and status-change time.
        """
        known = list(zip(*(self.rows[column].tolist() for column in _VERSION), strict=True))
        num_compared = len(_VERSION) if by_all else 2
        for index in self.indices_to_do():
            try:
                now = os.stat(
                    self.names[index], dir_fd=self.folder, follow_symlinks=follow_symlinks
                )
            except OSError:
                continue
            version = now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino
            if version[:num_compared] == known[index][:num_compared]:
                self.states[index] = DONE

    def forget_some(self, recheck: float) -> Rows | None:
        """Mark files to be read: all that are not done and a share of the others.

        Args:
            recheck: That share, 0 to 1.

        Returns:
            Rows of that share, without flags for other files; None if the share is 0.
        """
        if not recheck:
            self.states[self.states != DONE] = TO_DO
            return None
        is_drawn = np.array([random() < recheck for _ in self.names])  # noqa: S311
        before = self.rows.copy()
        before["flags"][~(is_drawn & self.are_done)] = 0
        self.states[is_drawn | ~self.are_done] = TO_DO
        return before

    def done_ones(self) -> NamedRows:
        """Return those that are done."""
        is_done = self.are_done
        if is_done.all():
            return NamedRows(self.names, self.rows)
        names = [name for name, is_in in zip(self.names, is_done.tolist(), strict=True) if is_in]
        return NamedRows(names, self.rows[is_done])

    def problems(self, chunk: Chunk) -> Iterator[Problem]:
        """Yield the problems of *chunk*, whose files these are, in order."""
        if not self.flaws and len(self.names) == len(chunk.entries):
            return
        index = -1
        for name, problem in chunk.entries:
            index += problem is None
            flaw = self.flaws.get(index)
            if problem is not None:
                yield problem
            elif isinstance(flaw, OSError):
                yield problem_from(chunk.folder + name, flaw)
            elif flaw is not None:
                yield Problem((chunk.folder + name).decode(), *flaw)

    def differing(self, before: Rows) -> list[bytes]:
        """Return the names of files that are done and have another digest than in *before*.

        Args:
            before: Earlier rows, without flags where there is none.
        """
        is_other = np.zeros(len(self), bool)
        for column, flag in (("digest", HAS_DIGEST), ("probe", HAS_PROBE)):
            both = have(self.rows, flag) & have(before, flag)
            is_other |= both & (numbers(self.rows, column) != numbers(before, column)).any(axis=1)
        return [self.names[index] for index in np.flatnonzero(self.are_done & is_other).tolist()]

    def put_into(self, done: HashedChunk, chunk: Chunk) -> NamedRows:
        """Add files and problems of *chunk* to *done*; return the files."""
        files = self.done_ones()
        done.problems = list(self.problems(chunk))
        done.files = FileRows(files.rows)
        if files.names:
            separated = b"\0" + chunk.folder
            done.paths = (chunk.folder + separated.join(files.names)).decode().split("\0")
        return files


_ALGORITHM = "xxh3_128"


_SCAN_VERSION = 3
"""Of the functions in scan.c and of `ROW`; the same number is in scan.c."""


class CompiledReader:
    """The functions of scan.c; thread-safe."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Bind the functions of *library*.

        Raises:
            NoExtensionError: The extension is of another version.
        """
        if not hasattr(library, "scan_version") or library.scan_version() != _SCAN_VERSION:
            raise NoExtensionError(
                "the compiled extension is of another version of vit21k",
                hint="install vit21k again; in a checkout, build it as CONTRIBUTING.md says",
            )
        self._buffers = threading.local()
        self._read = library.read_files
        self._check = library.check_files
        self._ask = library.ask_for_files
        self._list = library.list_files
        self._describe = library.describe_bytes
        address, number = ctypes.c_void_p, ctypes.c_int
        names = (number, ctypes.c_char_p, ctypes.c_int64, number, number)
        self._read.argtypes = (*names, address, ctypes.c_int64, address, address)
        self._check.argtypes = (*names, address, address)
        self._ask.argtypes = (*names, address)
        self._list.argtypes = (ctypes.c_char_p, address, ctypes.c_int64)
        self._list.restype = ctypes.c_int64
        self._describe.argtypes = address, ctypes.c_int64, address
        self._read.restype = self._check.restype = self._ask.restype = None

    def list_files(self, folder: bytes) -> list[bytes] | None:
        """Return the names in *folder*, in any order.

        None if it holds other entries than regular files, possible archives or very many files,
        or cannot be read.
        """
        buffer = self._buffer()
        num_bytes = self._list(folder, buffer, BUFFER_BYTES)
        return ctypes.string_at(buffer, num_bytes - 1).split(b"\0") if num_bytes > 0 else None

    def read(self, files: ChunkFiles, open_flags: int, *, only_ends: bool) -> None:
        """Read and mark as done all regular files that are to be read.

        Args:
            files: Of one folder.
            open_flags: Flags of `open`.
            only_ends: Read only head and tail of files that are larger than both.
        """
        args = files.folder, files.packed_names, len(files), open_flags, only_ends
        self._read(
            *args, self._buffer(), BUFFER_BYTES, files.rows.ctypes.data, files.states.ctypes.data
        )

    def prefetch(self, files: ChunkFiles, open_flags: int, *, only_ends: bool) -> None:
        """Start reading ahead the files that are to be read, without waiting.

        Args:
            files: Of one folder.
            open_flags: Flags of `open`.
            only_ends: Only head and tail.
        """
        args = files.folder, files.packed_names, len(files), open_flags, only_ends
        self._ask(*args, files.states.ctypes.data)

    def check(self, files: ChunkFiles, open_flags: int, *, by_all: bool) -> None:
        """Mark files as done that have not changed since their rows were made.

        Args:
            files: Of one folder.
            open_flags: Flags of `open`; `O_NOFOLLOW` counts.
            by_all: Also compare inode and status-change time.
        """
        args = files.folder, files.packed_names, len(files), open_flags, by_all
        self._check(*args, files.rows.ctypes.data, files.states.ctypes.data)

    def describe(self, content: memoryview, mtime_ns: int) -> bytes | None:
        """Return the row of an image in memory; None if it is not on the fast path.

        Args:
            content: Its bytes.  Where they are writable, nobody else may read them meanwhile: they
                are written to, and restored.
            mtime_ns: Of the file that they are from.
        """
        try:
            row: bytearray = self._buffers.row
            address: int = self._buffers.row_address
        except AttributeError:
            row = self._buffers.row = bytearray(ROW.itemsize)
            address = self._buffers.row_address = np.frombuffer(row, np.uint8).ctypes.data
        if content.readonly:  # perhaps mapped from a file
            content = self._copied(content)
        if not self._describe(np.frombuffer(content, np.uint8).ctypes.data, len(content), address):
            return None
        _MTIME.pack_into(row, _MTIME_AT, mtime_ns)
        return bytes(row)

    @staticmethod
    def _copied(content: memoryview) -> memoryview:
        if len(content) > BUFFER_BYTES:
            return memoryview(bytearray(content))
        copy = memoryview(thread_buffer())[: len(content)]
        copy[:] = content
        return copy

    def _buffer(self) -> int:
        """Return the address of this thread's buffer."""
        try:
            address: int = self._buffers.address
        except AttributeError:
            self._buffers.view = (ctypes.c_char * BUFFER_BYTES).from_buffer(thread_buffer())
            address = self._buffers.address = ctypes.addressof(self._buffers.view)
        return address


@cache
def compiled_reader() -> tuple[CompiledReader | None, str | None]:
    """Return the compiled scanner, or None and the reason."""
    try:
        return CompiledReader(extension()), None
    except NoExtensionError as error:
        return None, error.message


def compiled_reader_for(algorithm: str) -> CompiledReader | None:
    """Return the compiled scanner if it supports *algorithm*."""
    return compiled_reader()[0] if algorithm == _ALGORITHM else None
