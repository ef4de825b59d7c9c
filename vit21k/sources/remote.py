"""Objects behind an fsspec URL: listed, read by ranges or as streams; errors are retried.

Every back end has its own exceptions.  All of them, short answers included, are retried with
exponential back-off, and reported as `OSError` afterwards: an object that cannot be read is an
entry of `problems.parquet`, as a file of a failing disk is.
"""

import errno
import io
import os
import random
import re
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import reduce
from itertools import accumulate, groupby
from operator import xor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

import xxhash

from vit21k.errors import ImageTreeError, MissingExtraError, UsageError
from vit21k.manifest.archive_names import find_parts, is_first_part
from vit21k.sources.archive_file import ArchiveFile, FileStatus

NUM_CONNECTIONS = 64
"""Requests at a time, of one process to one server."""

NUM_TRIES = 7
FIRST_DELAY_S, _MAX_DELAY_S = 0.25, 8.0
"""Back-off: 0.25, 0.5, 1, 2, 4, 8 seconds, each with 50 % jitter."""

_TIMEOUT_S = 120
"""For one request, of at most `MERGED_BYTES`: 70 kB/s."""

MERGE_GAP_BYTES = 64 << 10
"""Ranges closer than this are read by one request: the latency costs more than the bytes."""

MERGED_BYTES = 8 << 20
_HOP_BYTES, _PIECE_BYTES, _NUM_AHEAD = 64 << 10, 4 << 20, 4
"""A stream begins with pieces of 64 kB, 256 kB and 1 MB: hopping between headers stays cheap."""


class ObjectEndsError(OSError):
    """An object ends before the range that is asked for: it has changed, or the range is wrong."""


_TAGS = ("ETag", "etag", "md5Hash", "blob_id", "Content-MD5", "Digest", "generation")
_TIMES = ("mtime", "LastModified", "updated", "last_modified", "created", "Last-Modified")
_NOT_RETRIED = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError),
    *(ObjectEndsError, MemoryError),
)
_STATUS_GONE = frozenset((404, 410))
_STATUS_PAST_END = 416
_STATUS_RETRIED = frozenset((408, 425, 429))
_CLIENT_ERRORS = range(400, 500)

T = TypeVar("T")


def is_url(root: object) -> bool:
    """Return whether *root* is a URL for fsspec, and not a folder of this machine."""
    return "://" in str(root)


def refuse_url(path: Path, option: str) -> None:
    """Refuse a URL where images have to be on a disk; as a path it has a slash less.

    Args:
        path: As it was given.
        option: How images behind a URL are named instead.

    Raises:
        UsageError: *path* is a URL.
    """
    found = re.match(r"([a-z][a-z0-9+.-]+):/+(?=[^/])", str(path))
    if found and not path.exists():
        url = f"{found[1]}://{str(path)[found.end() :]}"
        commands = f"`vit21k hash {url} --manifests DIR`, `vit21k relabel --manifests DIR`"
        raise UsageError(f"`{url}` is not on a disk", hint=f"{commands}, and {option}")


class ObjectFacts(NamedTuple):
    """Facts of an object from its server.

    Attributes:
        num_bytes: Its size; None: not said.
        tag: Entity tag or checksum; empty: not said.
        mtime_ns: Modification time, ns since 1970; 0: not said.
    """

    num_bytes: int | None
    tag: str
    mtime_ns: int

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> "ObjectFacts":
        """Read fsspec's *info* of an object."""
        tag = next((str(info[name]) for name in _TAGS if info.get(name)), "")
        return cls(info.get("size"), tag, _nanoseconds(info))

    @property
    def is_version(self) -> bool:
        """Whether other content has other facts, whenever it is written."""
        return self.num_bytes is not None and bool(self.tag)

    @property
    def is_known(self) -> bool:
        """Whether a change of the object would show."""
        return self.num_bytes is not None and bool(self.tag or self.mtime_ns)

    @property
    def tag_number(self) -> int:
        """The tag as 64 bits; 0: none."""
        return xxhash.xxh3_64_intdigest(self.tag.encode()) if self.tag else 0

    def is_same(self, other: "ObjectFacts") -> bool:
        """Return whether the object has not changed; listings may round times."""
        if self.tag and other.tag:
            return (self.num_bytes, self.tag) == (other.num_bytes, other.tag)
        return (self.num_bytes, self.mtime_ns) == (other.num_bytes, other.mtime_ns)


def _nanoseconds(info: Mapping[str, Any]) -> int:
    time = next((info[name] for name in _TIMES if info.get(name)), 0.0)
    if isinstance(time, str):
        time = _parse_time(time)
    if isinstance(time, datetime):
        time = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return round(time * 1e6) * 1000


def _parse_time(text: str) -> datetime | float:
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            return parse(text)
        except ValueError:
            continue
    return 0.0


class RemoteEntry(NamedTuple):
    """What a folder of a listing holds.

    Attributes:
        name: In that folder.
        is_folder: Whether it is a folder.
        facts: Of an object; without a size where listings have none.
    """

    name: str
    is_folder: bool
    facts: ObjectFacts


class Range(NamedTuple):
    """Bytes of an object.

    Attributes:
        path: Relative to the tree.
        start: Offset of the first byte.
        end: Offset after the last byte.
    """

    path: str
    start: int
    end: int


class RemoteTree:
    """The objects below a URL; thread-safe.

    Attributes:
        url: Without a slash at its end.
        only: The one object of it that counts; None: all.
        listed: Facts of objects to open, as far as they were listed.
    """

    def __init__(self, url: str, *, only: str | None = None, num_tries: int = NUM_TRIES) -> None:
        """Connect.

        Args:
            url: Of a folder.
            only: The one object of it that counts.
            num_tries: How often a request is tried before its error counts.

        Raises:
            MissingExtraError: The fsspec package of this kind of URL is not installed.
            ImageTreeError: fsspec does not know such URLs.
        """
        self.url = url.rstrip("/")
        self.only = only
        self.listed: dict[str, ObjectFacts] = {}
        self._num_tries = num_tries
        self._files, root = _connect(url)
        self._root = root.rstrip("/")
        self._quotes = "http" in self._files.protocol
        self._options = {"timeout": _TIMEOUT_S} if self._files.async_impl else {}
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(NUM_CONNECTIONS, thread_name_prefix="remote")

    def close(self) -> None:
        """Give up what is not read yet."""
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def entries(self, folder: str = "") -> list[RemoteEntry]:
        """Return what *folder* holds; nothing if it cannot be listed, which the walk reports.

        Raises:
            OSError: The tree itself cannot be listed.
        """
        try:
            return self.listing(folder)
        except OSError:
            if not folder:
                raise
            return []

    def listing(self, folder: str = "") -> list[RemoteEntry]:
        """Return what *folder* holds, in any order.

        Raises:
            OSError: It cannot be listed.
        """
        if self.only is not None:
            return [RemoteEntry(self.only, False, self.facts(self.only))]
        place = self._place(folder)
        infos = self._retried(lambda: self._files.ls(place, detail=True))
        return [
            RemoteEntry(name, info["type"] == "directory", ObjectFacts.of(info))
            for info in infos
            # An empty object stands for the folder itself; pages link to other folders, too.
            if (name := self._name_in(place, info["name"].rstrip("/")))
        ]

    def facts(self, path: str = "") -> ObjectFacts:
        """Ask for the facts of an object.

        Raises:
            OSError: They cannot be had.
        """
        return ObjectFacts.of(self._retried(lambda: self._files.info(self._place(path))))

    def facts_of(self, paths: Sequence[str]) -> dict[str, ObjectFacts | None]:
        """Return the facts of objects, None for those that are not there; folders are listed.

        Raises:
            OSError: The server does not answer.
        """
        facts: dict[str, ObjectFacts | None] = {}
        for folder in sorted({path.rpartition("/")[0] for path in paths}):
            prefix = f"{folder}/" if folder else ""
            facts |= {prefix + entry.name: entry.facts for entry in self.listing(folder)}
        unknown = [path for path in paths if (found := facts.get(path)) and not found.is_version]
        facts |= zip(unknown, self._pool.map(self.facts, unknown), strict=True)
        return {path: facts.get(path) for path in paths}

    def completed(self, paths: Sequence[str], listed: Sequence[ObjectFacts]) -> list[ObjectFacts]:
        """Return *listed*; where a listing has no sizes, the server's facts of each object."""

        def complete(path: str, facts: ObjectFacts) -> ObjectFacts:
            try:
                return self.facts(path)
            except OSError:  # reading it fails, too
                return facts

        if all(facts.num_bytes is not None for facts in listed):
            return list(listed)
        return list(self._pool.map(complete, paths, listed))

    def is_folder(self, path: str = "") -> bool:
        """Return whether any object is below *path*.

        Raises:
            OSError: The server does not answer.
        """
        try:
            return bool(self._retried(lambda: self._files.isdir(self._place(path))))
        except FileNotFoundError:
            return False

    def is_object(self, path: str = "") -> bool:
        """Return whether there is an object at *path*.

        Raises:
            OSError: The server does not answer.
        """
        return bool(self._retried(lambda: self._files.isfile(self._place(path))))

    def read(self, path: str, num_bytes: int | None = None) -> bytes:
        """Return the content of an object, by one request.

        Args:
            path: Relative to the tree.
            num_bytes: Its size; a shorter or longer answer is an error.

        Raises:
            OSError: It cannot be read.
        """
        return self._retried(lambda: self._exact(path, num_bytes))

    def read_range(self, path: str, start: int, end: int) -> bytes:
        """Return bytes *start* to *end* of an object, by one request.

        Raises:
            OSError: They cannot be read, or the object ends before.
        """
        if start == end:
            return b""
        return self._retried(lambda: self._exact(path, end - start, start, end))

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call *function*, which reads by single requests, in the background."""
        return self._pool.submit(function, *arguments)

    def submit_range(self, path: str, start: int, end: int) -> Future[bytes]:
        """Read a range in the background."""
        return self._pool.submit(self.read_range, path, start, end)

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes | OSError]:
        """Return the bytes of each of *ranges*, or why they cannot be read.

        Neighbours are merged into one request; requests run concurrently.
        """
        merged = merge_ranges(ranges)
        futures = [
            self.submit_range(ranges[group[0]].path, ranges[group[0]].start, _end(ranges, group))
            for group in merged
        ]
        found: list[bytes | OSError] = [b""] * len(ranges)
        for group, future in zip(merged, futures, strict=True):
            for index, content in self._split(ranges, group, future):
                found[index] = content
        return found

    def open(self, path: str | bytes) -> "RemoteFile":
        """Open an object as a stream with read-ahead; of a multi-part tar, all parts.

        Raises:
            OSError: It is not there, or its size is not known.
        """
        path = os.fsdecode(path)
        folder, slash, name = path.rpartition("/")
        names = [name]
        if is_first_part(os.fsencode(name)):
            parts = find_parts(os.fsencode(entry.name) for entry in self.listing(folder))
            found = parts.of_first.get(os.fsencode(name), [])
            names = [os.fsdecode(part) for part in found] or names
        paths = [folder + slash + one for one in names]
        return RemoteFile(self, {one: self._known_facts(one) for one in paths})

    def _known_facts(self, path: str) -> ObjectFacts:
        listed = self.listed.get(path)
        if listed is None or listed.num_bytes is None:  # pages have no sizes
            return self.facts(path)
        return listed

    def size(self, path: str | bytes) -> int | None:
        """Return the size of an object in bytes; None if there is none."""
        try:
            return self.facts(os.fsdecode(path)).num_bytes
        except FileNotFoundError:
            return None

    def _split(
        self, ranges: Sequence[Range], group: Sequence[int], future: Future[bytes]
    ) -> Iterator[tuple[int, bytes | OSError]]:
        """Yield what each range of a request got; where it failed, each is read by itself."""
        try:
            content = future.result()
        except OSError as error:
            for index in group:
                yield index, (error if len(group) == 1 else self._one(ranges[index]))
            return
        start = ranges[group[0]].start
        for index in group:
            yield index, content[ranges[index].start - start : ranges[index].end - start]

    def _one(self, wanted: Range) -> bytes | OSError:
        try:
            return self.read_range(*wanted)
        except OSError as error:
            return error

    def _exact(
        self, path: str, num_bytes: int | None, start: int | None = None, end: int | None = None
    ) -> bytes:
        wanted = {} if end is None else {"start": start, "end": end}
        try:
            content: bytes = self._files.cat_file(self._place(path), **wanted, **self._options)
        except OSError as error:
            if error.errno == errno.EINVAL:  # s3fs: the range is not satisfiable
                raise ObjectEndsError(errno.EIO, str(error)) from error
            raise
        if num_bytes is None or len(content) == num_bytes:
            return content
        detail = f"the server sent {len(content):,} of {num_bytes:,} bytes"
        if end is not None and (self.facts(path).num_bytes or end) < end:
            raise ObjectEndsError(errno.EIO, detail)
        raise OSError(errno.EIO, detail)

    def _retried(self, request: Callable[[], T]) -> T:
        """Return what *request* gives; errors that may pass are retried."""
        delay = FIRST_DELAY_S
        for _ in range(self._num_tries - 1):
            try:
                return request()
            except Exception as error:  # each back end has its own
                if not _may_pass(_cause(error)):
                    raise _as_os_error(_cause(error)) from error
            if self._stopped.wait(delay * random.uniform(0.5, 1.5)):  # noqa: S311
                break
            delay = min(2 * delay, _MAX_DELAY_S)
        try:
            return request()
        except Exception as error:
            raise _as_os_error(_cause(error)) from error

    def _place(self, path: str) -> str:
        """Return the name by which fsspec knows *path*."""
        path = quote(path) if self._quotes else path
        return f"{self._root}/{path}".rstrip("/")

    def _name_in(self, place: str, name: str) -> str:
        """Return the name of an entry in the folder *place*; empty if it is elsewhere."""
        inner = name.removeprefix(f"{place}/")
        if inner == name or "/" in inner or (self._quotes and inner[:1] == "?"):
            return ""
        return unquote(inner, errors="surrogateescape") if self._quotes else inner


def _connect(url: str) -> tuple[Any, str]:
    """Return the file system of *url*, and the path in it."""
    try:
        import fsspec  # noqa: PLC0415

        files, root = fsspec.core.url_to_fs(url, **_options_for(url, fsspec.config.conf))
    except ImportError as error:
        raise MissingExtraError(
            f"`{url}` cannot be read: {error}", hint="`pip install 'vit21k[s3]'`"
        ) from None
    except ValueError as error:
        raise ImageTreeError(f"`{url}` cannot be read: {error}") from error
    return files, root


def _options_for(url: str, configured: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a file system: no stale listings, no retries below ours."""
    options: dict[str, Any] = {"use_listings_cache": False}
    protocol = url.partition("://")[0]
    if protocol in {"s3", "s3a"}:
        ours = {"max_pool_connections": NUM_CONNECTIONS, "retries": {"max_attempts": 0}}
        theirs = configured.get(protocol, {}).get("config_kwargs", {})
        options["config_kwargs"] = {**ours, **theirs}
        options["max_concurrency"] = 1  # one request for an object, not one for each 50 MB
    return options


def _cause(error: BaseException) -> BaseException:
    """Return the error of the server behind *error*: fsspec's HTTP reports all as not found."""
    cause = error.__cause__
    is_http = cause is not None and type(cause).__module__.startswith("aiohttp")
    if isinstance(error, FileNotFoundError) and cause is not None and is_http:
        return error if getattr(cause, "status", None) in _STATUS_GONE else cause
    return error


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, _NOT_RETRIED):
        return False
    status = getattr(error, "status", None)
    return status not in _CLIENT_ERRORS or status in _STATUS_RETRIED


def _as_os_error(error: BaseException) -> OSError:
    """Return *error* as one of the system, in the words of the back end."""
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return error
    text = str(error) or type(error).__name__
    if getattr(error, "status", None) == _STATUS_PAST_END:
        return ObjectEndsError(errno.EIO, text)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, text)
    if isinstance(error, PermissionError):
        return PermissionError(errno.EACCES, text)
    return OSError(errno.EIO, f"{text} ({type(error).__name__})")


def merge_ranges(ranges: Sequence[Range]) -> list[list[int]]:
    """Return the indices of *ranges*, grouped into requests."""
    merged: list[list[int]] = []
    for _, order in groupby(sorted(range(len(ranges)), key=ranges.__getitem__), key=_path(ranges)):
        start = end = -1
        for index in order:
            wanted = ranges[index]
            is_near = start >= 0 and wanted.start - end <= MERGE_GAP_BYTES
            if is_near and wanted.end - start <= MERGED_BYTES:
                merged[-1].append(index)
                end = max(end, wanted.end)
            else:
                merged.append([index])
                start, end = wanted.start, wanted.end
    return merged


def _path(ranges: Sequence[Range]) -> Callable[[int], str]:
    return lambda index: ranges[index].path


def _end(ranges: Sequence[Range], group: Sequence[int]) -> int:
    return max(ranges[index].end for index in group)


class _Piece(NamedTuple):
    start: int
    end: int
    content: Future[bytes]


class RemoteFile(ArchiveFile):
    """An object as a seekable stream, read ahead of its use; several parts are read as one.

    Attributes:
        facts: Those of each part when it was opened.
    """

    def __init__(self, tree: "RemoteTree", parts: Mapping[str, ObjectFacts]) -> None:
        """Open the objects *parts* of *tree*.

        Raises:
            OSError: The server does not say how large they are.
        """
        io.RawIOBase.__init__(self)
        self.name = next(iter(parts))
        self.facts = parts
        self._tree = tree
        self._at = 0
        self._descriptors = []
        sizes = [facts.num_bytes for facts in parts.values()]
        if None in sizes:
            raise OSError(errno.EIO, "the server does not say how large it is")
        self._starts = list(accumulate((size or 0 for size in sizes), initial=0))
        self.num_bytes = self._starts.pop()
        self._lock = threading.Lock()
        self._pieces: deque[_Piece] = deque()
        self._next = 0
        self._piece_bytes = _HOP_BYTES
        self._is_read = False
        is_known = all(facts.is_known for facts in parts.values())
        self._nonce = 0 if is_known else random.getrandbits(64)

    @property
    def status(self) -> FileStatus:
        """Size, time and entity tag (as inode); the server is asked once something was read."""
        facts, nonce = list(self.facts.values()), self._nonce
        if self._is_read:
            try:
                now = [self._tree.facts(path) for path in self.facts]
            except OSError:  # unknown, and so equal to no other
                now, nonce = facts, random.getrandbits(64)
            is_same = all(one.is_same(other) for one, other in zip(facts, now, strict=True))
            facts = facts if is_same else now
        return FileStatus(
            sum(one.num_bytes or 0 for one in facts),
            max(one.mtime_ns for one in facts),
            0,
            reduce(xor, (one.tag_number for one in facts), nonce),
        )

    @property
    def is_regular(self) -> bool:
        """Return True."""
        return True

    @property
    def descriptor(self) -> int | None:
        """None."""
        return None

    def advise(self, advice: int) -> None:
        """Do nothing: reading ahead depends on what is read."""

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill *view*, or a part of it, from *offset*; return the number of bytes, 0 at the end.

        Raises:
            OSError: The object cannot be read.
        """
        if offset >= self.num_bytes or not len(view):
            return 0
        with self._lock:
            piece = self._piece_at(offset)
        part = piece.content.result()[offset - piece.start :][: len(view)]
        view[: len(part)] = part
        return len(part)

    def read_at(self, num_bytes: int, offset: int) -> bytes:
        """Return *num_bytes* from *offset*, fewer where the object ends."""
        view = memoryview(bytearray(max(min(num_bytes, self.num_bytes - offset), 0)))
        end = 0
        while end < len(view):
            end += self.read_into(view[end:], offset + end)
        return bytes(view)

    def close(self) -> None:
        """Give up what is read ahead."""
        io.RawIOBase.close(self)
        while self._pieces:
            self._pieces.popleft().content.cancel()

    def _piece_at(self, offset: int) -> _Piece:
        """Return the piece that holds *offset*, with others in progress after it."""
        self._is_read = True
        while self._pieces and self._pieces[0].end <= offset:
            self._pieces.popleft()
        if not self._pieces or offset < self._pieces[0].start:
            if offset != self._next:
                self._piece_bytes = _HOP_BYTES
            self._pieces.clear()  # another thread may wait for one of them
            self._next = offset
        num_ahead = _NUM_AHEAD if self._piece_bytes > _PIECE_BYTES // 8 else 1
        while len(self._pieces) < num_ahead and self._next < self.num_bytes:
            self._pieces.append(self._read_ahead())
            self._piece_bytes = min(4 * self._piece_bytes, _PIECE_BYTES)
        return self._pieces[0]

    def _read_ahead(self) -> _Piece:
        """Begin to read the next piece, which ends with its part."""
        index = bisect_right(self._starts, self._next) - 1
        start, first = self._next, self._starts[index]
        part_end = [*self._starts[1:], self.num_bytes][index]
        self._next = min(start + self._piece_bytes, part_end)
        path = list(self.facts)[index]
        content = self._tree.submit_range(path, start - first, self._next - first)
        return _Piece(start, self._next, content)
