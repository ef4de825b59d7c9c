"""Tars -> digests of their members, in one pass over the bytes."""

import os
import pickle
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Generic, NamedTuple, Self, TypeVar

import numpy as np

from vit21k.errors import TemporaryFolderError, printable
from vit21k.manifest.archive_names import (
    archive_stem,
    is_first_part,
    is_gzip_name,
    is_zip_name,
)
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.prep.hash_cache import HashCache
from vit21k.prep.scan import FileRows, HashedChunk, NamedRows
from vit21k.sources.archive_file import ArchiveFile, ContainerFiles, FileStatus
from vit21k.sources.container import TAR, ContainerRange
from vit21k.sources.folders import Chunk, is_image_name, problem_from
from vit21k.sources.gzip_tar import GZIP, GzipIndex, GzipStream, flaw_of_stream, unpack
from vit21k.sources.tar import (
    BLOCK_BYTES,
    MAX_MEMBER_BYTES,
    WINDOW_BYTES,
    BombError,
    Member,
    Window,
    read_members,
)
from vit21k.sources.zip import ZipMember, read_zip_members


def flaw_of_class_tar(name: bytes) -> tuple[ProblemKind, str] | None:
    """Return the flaw of a class tar by its name; None if there is none."""
    if name.startswith(b".") or b"/." in name:
        return ProblemKind.HIDDEN, ""
    if is_gzip_name(name) or is_zip_name(name) or is_first_part(name):
        kind = "a zip" if is_zip_name(name) else "a part" if is_first_part(name) else "compressed"
        return ProblemKind.ARCHIVE_TOO_DEEP, f"{kind}, inside another archive"
    try:
        name.decode()
    except UnicodeDecodeError:
        return ProblemKind.NAME_NOT_UTF8, ""
    return None


def flaw_of_name(path: bytes) -> tuple[ProblemKind, str] | None:
    """Return why a member cannot be an image of a class, by its path."""
    name = path.rpartition(b"/")[2]
    if archive_stem(name) is not None:
        return ProblemKind.ARCHIVE_TOO_DEEP, ""
    if name.startswith(b".") or b"/." in path:
        return ProblemKind.HIDDEN, ""
    if not is_image_name(name):
        return ProblemKind.OTHER_SUFFIX, ""
    try:
        path.decode()
    except UnicodeDecodeError:
        return ProblemKind.NAME_NOT_UTF8, ""
    if b"/" not in path:
        return ProblemKind.NOT_IN_CLASS_FOLDER, ""
    return None


def flaw_of_size(num_bytes: int) -> tuple[ProblemKind, str] | None:
    """Return the flaw of a member by its size; None if there is none."""
    if num_bytes > MAX_MEMBER_BYTES:
        return ProblemKind.MEMBER_TOO_LARGE, f"{num_bytes:,} bytes"
    return None if num_bytes else (ProblemKind.EMPTY, "")


_Item = TypeVar("_Item")

_HELD_ITEMS = 64
_IN_MEMORY_BYTES = 1 << 25


class Spool(Generic[_Item]):
    """Stores items: the first as objects, the next 32 MiB pickled, others in an unnamed file.

    Raises:
        TemporaryFolderError: The file cannot be created, written or read.
    """

    def __init__(self) -> None:
        self._held: list[_Item] = []
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115
        self._entries: list[tuple[bytes, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # unwritten data is not needed any more
            self._file.close()

    def add(self, key: bytes, item: _Item) -> None:
        """Store *item*."""
        if len(self._held) < _HELD_ITEMS:
            self._held.append(item)
            self._entries.append((key, -len(self._held)))
        else:
            packed = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
            with in_temporary_folder():
                self._entries.append((key, self._file.tell()))
                self._file.write(packed)

    def in_order(self) -> Iterator[_Item]:
        """Yield the items sorted by key; nothing can be added afterwards."""
        for _, position in sorted(self._entries):
            if position < 0:
                yield self._held[-position - 1]
                continue
            with in_temporary_folder():
                self._file.seek(position)
                item: _Item = pickle.load(self._file)  # noqa: S301 (what `add` has just written)
            yield item


@contextmanager
def in_temporary_folder() -> Iterator[None]:
    """Turn an `OSError` of the temporary file into an error that names its folder."""
    try:
        yield
    except OSError as error:
        raise TemporaryFolderError(
            f"the temporary folder `{tempfile.gettempdir()}`: {error.strerror or error}",
            hint="free some space there, or name another folder: `TMPDIR=/big/disk vit21k ...`",
        ) from error


_Digest = TypeVar("_Digest")


class UnusableError(Exception):
    """The content of a member cannot be used."""

    def __init__(self, kind: ProblemKind, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


class Outcome(NamedTuple, Generic[_Digest]):
    """What became of a member.

    Attributes:
        offset: Of its data in the container, as `storage` defines it.
        storage: As in the schema.
        found: Its digest, or why there is none.
    """

    offset: int
    storage: str | None
    found: _Digest | UnusableError


@dataclass
class HashedMembers(Generic[_Digest]):
    """Hashed members of one folder, by name; or problems, with an empty folder.

    Attributes:
        folder: Relative to the image root; ends in ``/``.
        names: In that folder.
        outcomes: What became of each.
        number: Counts the items of one tar, in the order of the tar.
        class_tar: Name, without suffix, of the class tar that holds them, if any.
        class_tar_offset: Its offset.
    """

    folder: str
    names: list[str] = field(default_factory=list)
    outcomes: list[Outcome[_Digest]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    number: int = 0
    class_tar: bytes = b""
    class_tar_offset: int = -1

    def add(self, name: str, outcome: Outcome[_Digest]) -> None:
        """Add a member."""
        self.names.append(name)
        self.outcomes.append(outcome)

    @property
    def digests(self) -> list[_Digest]:
        """Digests of the members that have one."""
        return [one.found for one in self.outcomes if not isinstance(one.found, UnusableError)]

    @property
    def offsets(self) -> list[int]:
        """Offset of each."""
        return [one.offset for one in self.outcomes]

    @property
    def storages(self) -> list[str | None]:
        """Storage of each; empty if all are stored as they are."""
        storages = [one.storage for one in self.outcomes]
        return storages if any(storages) else []

    @property
    def first_path(self) -> str:
        """The path of the first."""
        return self.folder + self.names[0]

    @property
    def last_path(self) -> str:
        """The path of the last."""
        return self.folder + self.names[-1]


def by_folder(
    found: dict[bytes, Outcome[_Digest]], number: int
) -> Iterator[HashedMembers[_Digest]]:
    """Yield outcomes by path, folder by folder."""
    for folder, paths in groupby(sorted(found), key=_folder_of):
        members: HashedMembers[_Digest] = HashedMembers(folder.decode(), number=number)
        for path in paths:
            members.add(path[len(folder) :].decode(), found[path])
        yield members


def disjoint(
    runs: Iterable[HashedMembers[_Digest]], on_duplicate: Callable[[bytes, int], None]
) -> Iterator[HashedMembers[_Digest]]:
    """Yield the members of *runs*, which are ordered by their first paths, in path order.

    Args:
        runs: In memory is one of them, or as many as overlap.
        on_duplicate: Called with path and offset of a member that a later one replaces.
    """
    waiting: list[HashedMembers[_Digest]] = []
    last_path = ""
    for run in runs:
        if run.first_path > last_path:
            yield from _merged(waiting, on_duplicate)
            waiting = []
        waiting.append(run)
        last_path = max(last_path, run.last_path)
    yield from _merged(waiting, on_duplicate)


def _merged(
    runs: list[HashedMembers[_Digest]], on_duplicate: Callable[[bytes, int], None]
) -> Iterator[HashedMembers[_Digest]]:
    if len(runs) < 2:  # noqa: PLR2004
        yield from runs
        return
    found: dict[bytes, Outcome[_Digest]] = {}
    for run in sorted(runs, key=lambda run: run.number):
        for name, outcome in zip(run.names, run.outcomes, strict=True):
            path = (run.folder + name).encode()
            if path in found:
                on_duplicate(path, found[path].offset)
            found[path] = outcome
    yield from by_folder(found, runs[0].number)


def _folder_of(path: bytes) -> bytes:
    return path[: path.rfind(b"/") + 1]


RUN_MEMBERS = 8192
"""Members held before they are spooled at the next folder."""

_DAMAGE = (EOFError, zlib.error, BombError, OSError)


def hash_container(
    container: ContainerRange,
    file: ArchiveFile,
    digest: Callable[[memoryview], _Digest],
    is_stopped: Callable[[], bool] = lambda: False,
    on_index: Callable[[GzipIndex], None] = lambda _index: None,
) -> Iterator[HashedMembers[_Digest]]:
    """Yield the members of a tar or zip folder by folder, in path order, after it is read.

    Problems that belong to no folder come last.

    Args:
        container: A tar, a class tar in one, or a zip.
        file: It, or the tar that holds it.
        digest: Hashes the content of a member; may raise `UnusableError`.
        is_stopped: Called after each member: whether to stop early.
        on_index: Called with the index of a compressed tar, if one is made.
    """
    return _ContainerHasher(container, file, digest, is_stopped, on_index).run()


_ContentOf = Callable[[Member | ZipMember], memoryview | bytes]
"""Returns the content of a member; may raise `UnusableError`."""


class _ContainerHasher(Generic[_Digest]):
    def __init__(
        self,
        container: ContainerRange,
        file: ArchiveFile,
        digest: Callable[[memoryview], _Digest],
        is_stopped: Callable[[], bool],
        on_index: Callable[[GzipIndex], None],
    ) -> None:
        self._container = container
        self._file = file
        self._storage: str | None = None
        self._digest = digest
        self._is_stopped = is_stopped
        self._on_index = on_index
        self._problems: list[Problem] = []
        self._class_tars: dict[bytes, int] = {}
        self._num_runs = 0

    def run(self) -> Iterator[HashedMembers[_Digest]]:
        before = self._file.status
        with Spool[HashedMembers[_Digest]]() as spool:
            for members in self._read_to_the_damage():
                spool.add(members.first_path.encode(), members)
            if self._file.status == before:
                runs = filter(self._is_of_last_class_tar, spool.in_order())
                for members in disjoint(runs, self._list_duplicate):
                    if (good := self._without_flaws(members)).names:
                        yield good
            else:
                self._list(self._container.name, ProblemKind.CHANGED_WHILE_READ)
        yield HashedMembers("", problems=sorted(self._problems))

    def _read_to_the_damage(self) -> Iterator[HashedMembers[_Digest]]:
        """Yield what can be read; list the damage that ends it, if any.

        The consumer of the items runs outside of the `try`: its errors are not damage of the tar.
        """
        try:
            yield from self._read()
        except _DAMAGE as error:
            self._problems.append(self._problem_from(error))

    def _is_of_last_class_tar(self, members: HashedMembers[_Digest]) -> bool:
        return self._class_tars.get(members.class_tar, -1) == members.class_tar_offset

    def _without_flaws(self, members: HashedMembers[_Digest]) -> HashedMembers[_Digest]:
        """Return the usable of *members*; list the others."""
        if not any(isinstance(outcome.found, UnusableError) for outcome in members.outcomes):
            return members
        good: HashedMembers[_Digest] = HashedMembers(members.folder)
        for name, outcome in zip(members.names, members.outcomes, strict=True):
            if isinstance(outcome.found, UnusableError):
                path = (members.folder + name).encode()
                self._list(path, outcome.found.kind, outcome.found.detail)
            else:
                good.add(name, outcome)
        return good

    def _read(self) -> Iterator[HashedMembers[_Digest]]:
        container = self._container
        if is_zip_name(container.path):
            members = read_zip_members(self._file, _may_be_image)
            yield from self._read_members(members, container.folder, _content_of_zip)
            return
        if self._file.is_gzip:
            yield from self._read_compressed()
            return
        self._file.advise(os.POSIX_FADV_SEQUENTIAL)
        end = self._file.num_bytes if container.end is None else container.end
        window_bytes = max(min(end - container.start, WINDOW_BYTES), BLOCK_BYTES)
        window = Window(self._file, container.start, window_bytes=window_bytes)
        yield from self._read_tar(window, container.folder, end, is_inner=container.is_class_tar)

    def _read_compressed(self) -> Iterator[HashedMembers[_Digest]]:
        self._storage = GZIP
        with closing(unpack(self._file)) as stream:
            window = Window(stream)
            yield from self._read_tar(window, self._container.folder, None, is_inner=False)
            while not self._is_stopped() and len(window.take(WINDOW_BYTES)):
                pass  # something follows the end of the tar
            if stream.index is not None:
                self._on_index(stream.index)

    def _read_tar(
        self, window: Window, folder: bytes, end: int | None, *, is_inner: bool
    ) -> Iterator[HashedMembers[_Digest]]:
        """Yield the class tars in the tar at *window* as they come, and its own members last."""

        def content_of(member: Member | ZipMember) -> memoryview:
            return _content_at(window, member)

        def read_class_tar(stem: bytes, member: Member) -> Iterator[HashedMembers[_Digest]]:
            return self._read_class_tar(window, folder, stem, member)

        members = read_members(window, end)
        inner = None if is_inner else read_class_tar
        return self._read_members(members, folder, content_of, inner)

    def _read_members(
        self,
        members: Iterable[Member | ZipMember],
        folder: bytes,
        content_of: _ContentOf,
        read_class_tar: Callable[[bytes, Member], Iterator[HashedMembers[_Digest]]] | None = None,
    ) -> Iterator[HashedMembers[_Digest]]:
        found: dict[bytes, Outcome[_Digest]] = {}
        last_path = b""
        try:
            for member in members:
                if self._is_stopped():
                    return
                stem = archive_stem(member.name)
                if stem is not None and read_class_tar and isinstance(member, Member):
                    yield from read_class_tar(stem, member)
                    continue
                path = self._path_of(member.name, folder)
                if len(found) >= RUN_MEMBERS and not _are_siblings(path, last_path):
                    yield from self._run_of(found)
                    found = {}
                last_path = path
                self._take(path, member, content_of, found)
        except _DAMAGE:
            yield from self._run_of(found)
            raise
        yield from self._run_of(found)

    def _read_class_tar(
        self, window: Window, folder: bytes, stem: bytes, member: Member
    ) -> Iterator[HashedMembers[_Digest]]:
        path, by_name = folder + member.name, flaw_of_class_tar(member.name)
        if by_name is not None:
            self._list(path, *(member.flaw or by_name))
            return
        if stem in self._class_tars:
            self._list_duplicate(path, self._class_tars[stem])
        self._class_tars[stem] = member.offset
        if member.flaw is not None:
            self._list(path, *member.flaw)
            return
        end = member.offset + member.num_bytes
        for members in self._read_tar(window, folder + stem + b"/", end, is_inner=True):
            members.class_tar, members.class_tar_offset = stem, member.offset
            yield members

    def _take(
        self,
        path: bytes,
        member: Member | ZipMember,
        content_of: _ContentOf,
        found: dict[bytes, Outcome[_Digest]],
    ) -> None:
        """Put into *found* what became of *member*; list it if it cannot be an image by its name.

        A member that is of no use replaces an earlier one of its name, too.
        """
        by_name = flaw_of_name(path) if member.name else member.flaw
        if by_name is not None:
            self._list(path, *(member.flaw or by_name))
            return
        if path in found:
            self._list_duplicate(path, found[path].offset)
        storage = member.storage if isinstance(member, ZipMember) else self._storage
        try:
            content = memoryview(content_of(member))
            found[path] = Outcome(member.offset, storage, self._digest(content))
        except UnusableError as error:
            found[path] = Outcome(member.offset, storage, error)

    def _path_of(self, name: bytes, folder: bytes) -> bytes:
        if not name:
            return self._container.name
        if folder or b"/" in name:
            return folder + name
        # The image root is this archive, and the image is at its top: its class is the archive.
        archive = self._container.path.rpartition(b"/")[2]
        return (archive_stem(archive) or archive) + b"/" + name

    def _run_of(self, found: dict[bytes, Outcome[_Digest]]) -> Iterator[HashedMembers[_Digest]]:
        self._num_runs += 1
        return by_folder(found, self._num_runs)

    def _list_duplicate(self, path: bytes, offset: int) -> None:
        self._list(path, ProblemKind.DUPLICATE_MEMBER, f"at offset {offset:,}")

    def _problem_from(self, error: Exception) -> Problem:
        if isinstance(error, OSError):
            return problem_from(self._container.name, error)
        return Problem(printable(self._container.name), *flaw_of_stream(error))

    def _list(self, path: bytes, kind: ProblemKind, detail: str = "") -> None:
        self._problems.append(Problem(printable(path), kind, detail))


def _content_at(window: Window, member: Member | ZipMember) -> memoryview:
    """Return the content of a member of the tar at *window*."""
    flaw = member.flaw or flaw_of_size(member.num_bytes)
    if flaw is not None:
        raise UnusableError(*flaw)
    content = window.take(member.num_bytes)
    if len(content) < member.num_bytes:
        detail = f"has {len(content):,} of {member.num_bytes:,} bytes"
        raise UnusableError(ProblemKind.ARCHIVE_TRUNCATED, detail)
    return content


def _content_of_zip(member: Member | ZipMember) -> memoryview | bytes:
    if member.flaw is not None:
        raise UnusableError(*member.flaw)
    return member.content if isinstance(member, ZipMember) else b""


def _may_be_image(name: bytes) -> bool:
    return flaw_of_name(b"folder/" + name) is None


def _are_siblings(path: bytes, other: bytes) -> bool:
    return path.rpartition(b"/")[0] == other.rpartition(b"/")[0]


_EVERYTHING = (b"", b"\xff")
MAX_BYTES = 4 << 30
"""Largest container that is cached: its rows, 600 bytes a member, are held in memory."""

_STORED_AS = b"//"
"""Between path and storage of a cached member; no path has it."""


class KnownMembers(NamedTuple):
    """Cached members of one folder.

    Attributes:
        folder: Relative to the root; ends in `/`.
        paths: Of the members.
        storages: Of the members, as in the schema.
        files: Their rows; `inode` holds the offset.
    """

    folder: str
    paths: list[str]
    storages: list[str | None]
    files: FileRows


def is_small(container: ContainerRange, status: FileStatus) -> bool:
    """Return whether the rows of *container* fit in memory."""
    return (
        status.st_size if container.end is None else container.end - container.start
    ) <= MAX_BYTES


def cached_members(
    cache: HashCache, container: ContainerRange, status: FileStatus, *, is_remote: bool
) -> list[KnownMembers]:
    """Return the cached members of *container*; none if it has changed."""
    key = cache_key(container, status, is_remote=is_remote)
    known = cache.recall(key, *_EVERYTHING)
    if (known.rows["mtime_ns"] != status.st_mtime_ns).any():
        return []  # it was modified too recently when it was read
    members = []
    start = 0
    pairs = [name.partition(_STORED_AS)[::2] for name in known.names]
    for folder, same in groupby(pairs, key=lambda pair: _folder_of(pair[0])):
        paths, storages = zip(*same, strict=True)
        found = KnownMembers(
            folder.decode(),
            [path.decode() for path in paths],
            [storage.decode() or None for storage in storages],
            FileRows(known.rows[start : start + len(paths)]),
        )
        members.append(found)
        start += len(paths)
    return members


def differing_members(
    known: Iterable[KnownMembers | HashedChunk], chunks: Sequence[HashedChunk]
) -> list[str]:
    """Return the paths of members whose digest in *chunks* differs from that in *known*."""
    before = {
        path: digest
        for one in known
        for path, digest in zip(one.paths, one.files.array["digest"].tolist(), strict=True)
    }
    return [
        path
        for chunk in chunks
        if before
        for path, digest in zip(chunk.paths, chunk.files.array["digest"].tolist(), strict=True)
        if before.get(path, digest) != digest
    ]


def cache_members(
    cache: HashCache,
    container: ContainerRange,
    status: FileStatus,
    chunks: Sequence[HashedChunk],
    *,
    is_remote: bool,
    read_at: int,
) -> None:
    """Cache the members of *container*: all those in *chunks*, which were read after *read_at*."""
    if any(chunk.problems for chunk in chunks):
        return
    names = [name for chunk in chunks for name in _cached_names(chunk)]
    rows = np.concatenate([chunk.files.array for chunk in chunks])
    rows["ctime_ns"] = status.st_ctime_ns
    rows["inode"] = [offset for chunk in chunks for offset in chunk.offsets]
    cache.add(cache_key(container, status, is_remote=is_remote), NamedRows(names, rows), read_at)


def _cached_names(chunk: HashedChunk) -> list[bytes]:
    paths = [path.encode() for path in chunk.paths]
    if not chunk.storages:
        return paths
    pairs = zip(paths, chunk.storages, strict=True)
    return [path + _STORED_AS + storage.encode() if storage else path for path, storage in pairs]


def cache_key(
    container: ContainerRange, status: FileStatus, options: str = "", *, is_remote: bool
) -> bytes:
    """Return what identifies *container* in the cache; no folder's path begins with a slash.

    Args:
        container: A container, or a class tar in one.
        status: Of the file.
        options: What its rows depend on, besides the header.
        is_remote: Whether inodes and status-change times mean nothing.
    """
    version = [str(status.st_size), str(status.st_mtime_ns)]
    version += [] if is_remote else [str(status.st_ctime_ns), str(status.st_ino)]
    text = " ".join([*version, options] if options else version)
    return b"/%b/%b" % (container.name, text.encode())


_HOP_BYTES = 4096
"""Bytes to read at a time when skipping from header to header."""


_Ranges = list[ContainerRange | Problem]


def with_class_tars(
    chunks: Iterable[Chunk], files: ContainerFiles, num_ahead: int = 0
) -> Iterator[Chunk]:
    """Yield *chunks*, with a chunk for each class tar in place of that of the tar that holds them.

    Args:
        chunks: Of a walk.
        files: Of the image root.
        num_ahead: Chunks whose tars are opened before their turn, concurrently.
    """
    fraction = 0.0
    for chunk, found in _with_ranges(chunks, files, num_ahead):
        ends = [one.end for one in found or () if isinstance(one, ContainerRange)]
        num_bytes = max((end for end in ends if end is not None), default=None)
        for container in found or ():
            if isinstance(container, Problem):
                yield Chunk(chunk.folder, [(b"", container)], chunk.fraction)
            else:
                share = container.end / num_bytes if container.end and num_bytes else 1.0
                done = fraction + share * (chunk.fraction - fraction)
                yield Chunk(chunk.folder, [], done, container)
        if found is None:
            yield chunk
        fraction = chunk.fraction


def _with_ranges(
    chunks: Iterable[Chunk], files: ContainerFiles, num_ahead: int
) -> Iterator[tuple[Chunk, _Ranges | None]]:
    """Yield each chunk, and the ranges of the tar that it is."""
    waiting: deque[tuple[Chunk, Future[_Ranges | None]]] = deque()
    with ThreadPoolExecutor(max(num_ahead, 1), thread_name_prefix="class-tars") as pool:
        for chunk in chunks:
            if not num_ahead:
                yield chunk, _ranges_in(files, chunk)
                continue
            waiting.append((chunk, pool.submit(_ranges_in, files, chunk)))
            if len(waiting) > num_ahead:
                first, ranges = waiting.popleft()
                yield first, ranges.result()
        for chunk, ranges in waiting:
            yield chunk, ranges.result()


def _ranges_in(files: ContainerFiles, chunk: Chunk) -> _Ranges | None:
    container = chunk.container
    if container is None or container.superseded_by or container.kind != TAR:
        return None
    return class_tars_of(files, container)


def class_tars_of(files: ContainerFiles, whole: ContainerRange) -> _Ranges:
    """Return the class tars in a tar, or the tar itself; and problems of them, in path order.

    Args:
        files: Of the image root.
        whole: A tar.
    """
    if is_zip_name(whole.path):
        return [whole]
    try:
        with files.open(whole.path) as file:
            if file.is_gzip:
                return [whole]
            file.advise(os.POSIX_FADV_RANDOM)
            found = _class_tars(Window(file, window_bytes=_HOP_BYTES))
    except OSError as error:
        return [problem_from(whole.path, error)]
    return _ranges_of(found, whole) if found else [whole]


def _class_tars(window: Window) -> list[Member] | None:
    """Return the members of a tar of tars; None for any other tar."""
    found = []
    for member in read_members(window):
        if member.name and archive_stem(member.name) is None:
            return None
        found.append(member)
    return found if any(member.flaw is None for member in found) else None


def _ranges_of(found: list[Member], whole: ContainerRange) -> list[ContainerRange | Problem]:
    parts: dict[bytes, list[ContainerRange | Problem]] = {}
    last_of = {
        archive_stem(member.name): member
        for member in found
        if flaw_of_class_tar(member.name) is None
    }
    for member in found:
        name = whole.folder + member.name if member.name else whole.path
        stem = archive_stem(member.name) or b""
        flaw = member.flaw or flaw_of_class_tar(member.name)
        if flaw is None and last_of[stem] is not member:
            flaw = ProblemKind.DUPLICATE_MEMBER, f"at offset {member.offset:,}"
        if flaw is not None:
            parts.setdefault(name, []).append(Problem(printable(name), *flaw))
            continue
        end = member.offset + member.num_bytes
        folder = whole.folder + stem + b"/"
        container = ContainerRange(whole.path, name, folder, member.offset, end)
        parts.setdefault(folder, []).append(container)
    return [container for name in sorted(parts) for container in parts[name]]


_SIZE_OF_GZIP = 4  # at its end: the decompressed size modulo 2**32
_SHOWN = 3


class _Images(NamedTuple):
    """The images of a tar.

    Attributes:
        sizes: By path, as if the tar were unpacked to a folder of its name.
        damage: Why the list may be incomplete; empty if it is complete.
    """

    sizes: dict[bytes, int]
    damage: str = ""


def problem_of_superseded(files: ContainerFiles, container: ContainerRange) -> Problem:
    """Return the problem of *container*, which is skipped because of its `superseded_by`.

    Args:
        files: Of the image root.
        container: With a `superseded_by`.
    """
    try:
        if container.superseded_by.endswith(b"/"):
            images = _images_of(files, container.path, container.folder)
            missing = [path for path, size in images.sizes.items() if not _is_at(files, path, size)]
        else:
            if _unpacks_to(files, container.path, container.superseded_by):
                return Problem(printable(container.path), ProblemKind.ALREADY_UNPACKED, "")
            images = _images_of(files, container.path, container.folder)
            others = _images_of(files, container.superseded_by, container.folder).sizes
            missing = [path for path, size in images.sizes.items() if others.get(path) != size]
    except OSError as error:
        return problem_from(container.path, error)
    if not missing and not images.damage:
        return Problem(printable(container.path), ProblemKind.ALREADY_UNPACKED, "")
    detail = _detail(missing, images, printable(container.superseded_by))
    return Problem(printable(container.path), ProblemKind.ARCHIVE_DIFFERS, detail)


def _detail(missing: list[bytes], images: _Images, superseded_by: str) -> str:
    parts = [images.damage] if images.damage else []
    if missing:
        names = ", ".join(printable(path) for path in missing[:_SHOWN])
        more = ", ..." if len(missing) > _SHOWN else ""
        parts.append(
            f"{len(missing):,} of its {len(images.sizes):,} images are not in "
            f"`{superseded_by}`, or have another size there: {names}{more}; unpack it again, or "
            "move one of the two away"
        )
    return "; ".join(parts)


def _images_of(files: ContainerFiles, archive: bytes, folder: bytes) -> _Images:
    """Return the images of a tar and of the class tars in it; of equal names the last."""
    sizes: dict[bytes, int] = {}
    try:
        with files.open(archive) as file:
            if is_zip_name(archive):
                damage = _add_images_of_zip(file, folder, sizes)
            elif file.is_gzip:
                window = Window(GzipStream(file.read_at))
                damage = _add_images(window, folder, None, files, sizes)
            else:
                file.advise(os.POSIX_FADV_RANDOM)
                window = Window(file, window_bytes=_HOP_BYTES)
                damage = _add_images(window, folder, None, files, sizes)
    except (EOFError, zlib.error, BombError) as error:
        return _Images(sizes, f"cannot be read to its end ({type(error).__name__})")
    return _Images(sizes, damage)


def _add_images_of_zip(file: ArchiveFile, folder: bytes, sizes: dict[bytes, int]) -> str:
    """Add the images of a zip to *sizes*; return its damage."""
    damage = ""
    for member in read_zip_members(file, lambda _name: False):
        if not member.name and member.flaw:
            damage = member.flaw[1]
        elif flaw_of_name(folder + member.name) is None and member.flaw is None:
            sizes[folder + member.name] = member.num_bytes
    return damage


def _add_images(
    window: Window,
    folder: bytes,
    end: int | None,
    files: ContainerFiles,
    sizes: dict[bytes, int],
) -> str:
    """Add the images of the tar at *window* to *sizes*; return its damage."""
    damage = ""
    for member in read_members(window, end):
        if not member.name:
            damage = damage or (member.flaw[1] if member.flaw else "")
            continue
        path = folder + member.name
        stem = archive_stem(member.name)
        if stem is not None and end is None and not _is_at(files, path, member.num_bytes):
            if member.flaw is None:
                inner_end = member.offset + member.num_bytes
                inner = _add_images(window, folder + stem + b"/", inner_end, files, sizes)
                damage = damage or inner
        elif stem is None and flaw_of_name(path) is None:
            sizes.pop(path, None)
            if member.flaw is None:
                sizes[path] = member.num_bytes
    return damage


def _is_at(files: ContainerFiles, path: bytes, size: int) -> bool:
    """Return whether a member was unpacked to *path*, or without a repeated folder name."""
    return any(files.size(other) == size for other in [path, *_without_one_folder(path)])


def _without_one_folder(path: bytes) -> list[bytes]:
    """Return *path* without one of two nested folders of the same name, for each such pair."""
    parts = path.split(b"/")
    return [
        b"/".join(parts[:index] + parts[index + 1 :])
        for index in range(len(parts) - 2)
        if parts[index] == parts[index + 1]
    ]


def _unpacks_to(files: ContainerFiles, compressed: bytes, plain: bytes) -> bool:
    """Return whether the size in the trailer of a gzip file is that of *plain*."""
    with files.open(compressed) as file, files.open(plain) as other:
        if not file.is_gzip:
            return False
        stored = file.read_at(_SIZE_OF_GZIP, file.num_bytes - _SIZE_OF_GZIP)
        return int.from_bytes(stored, "little") == other.num_bytes % 2**32
