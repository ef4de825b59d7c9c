"""Objects behind an fsspec URL: listed, read by ranges or as streams; errors are retried.

Every back end has its own exceptions.  All of them, short answers included, are retried with
exponential back-off, and reported as `OSError` afterwards: an object that cannot be read is an
entry of `problems.parquet`, as a file of a failing disk is.
"""

import errno
import io
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import groupby
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from vit21k.errors import ImageTreeError, MissingExtraError

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
"""A stream begins with small pieces, so that hopping from header to header stays cheap."""


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


class ObjectFacts(NamedTuple):
    """What a server says of an object.

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


class Entry(NamedTuple):
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
    """What lies below a URL; thread-safe.

    Attributes:
        url: Without a slash at its end.
    """

    def __init__(self, url: str, *, num_tries: int = NUM_TRIES) -> None:
        """Connect.

        Args:
            url: Of a folder.
            num_tries: How often a request is tried before its error counts.

        Raises:
            MissingExtraError: The fsspec package of this kind of URL is not installed.
            ImageTreeError: fsspec does not know such URLs.
        """
        self.url = url.rstrip("/")
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

    def entries(self, folder: str = "") -> list[Entry]:
        """Return what *folder* holds, in any order.

        Raises:
            OSError: It cannot be listed.
        """
        place = self._place(folder)
        infos = self._retried(lambda: self._files.ls(place, detail=True))
        return [
            Entry(name, info["type"] == "directory", ObjectFacts.of(info))
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
            facts |= {prefix + entry.name: entry.facts for entry in self.entries(folder)}
        unknown = [path for path in paths if (found := facts.get(path)) and not found.is_version]
        facts |= zip(unknown, self._pool.map(self.facts, unknown), strict=True)
        return {path: facts.get(path) for path in paths}

    def is_folder(self, path: str = "") -> bool:
        """Return whether anything lies below *path*.

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

    def open(self, path: str) -> "RemoteFile":
        """Open an object as a stream with read-ahead.

        Raises:
            OSError: It is not there, or its size is not known.
        """
        return RemoteFile(self, path, self.facts(path))

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
        content: bytes = self._files.cat_file(self._place(path), start, end, **self._options)
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
        """Return the name of an entry in the folder *place*; empty if it lies elsewhere."""
        inner = name.removeprefix(f"{place}/")
        if inner == name or "/" in inner or (self._quotes and inner[:1] == "?"):
            return ""
        return unquote(inner) if self._quotes else inner


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


class RemoteFile(io.RawIOBase):
    """A seekable stream of an object, read ahead of its use; for one thread.

    Attributes:
        name: The object's path.
        facts: Those it had when it was opened.
    """

    def __init__(self, tree: RemoteTree, path: str, facts: ObjectFacts) -> None:
        """Open *path* of *tree*.

        Raises:
            OSError: The server does not say how large the object is.
        """
        super().__init__()
        if facts.num_bytes is None:
            raise OSError(errno.EIO, "the server does not say how large it is")
        self.name = path
        self.facts = facts
        self.num_bytes: int = facts.num_bytes
        self._tree = tree
        self._offset = 0
        self._pieces: deque[_Piece] = deque()
        self._next = 0
        self._piece_bytes = _HOP_BYTES

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to *offset*; nothing is read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self.num_bytes}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "seek before the start")
        self._offset = base + offset
        return self._offset

    def readinto(self, buffer: Any) -> int:
        """Fill *buffer*, or a part of it; return how many bytes, 0 at the end.

        Raises:
            OSError: The object cannot be read.
        """
        view = memoryview(buffer).cast("B")
        if self._offset >= self.num_bytes or not len(view):
            return 0
        piece = self._piece_at(self._offset)
        content = piece.content.result()
        part: bytes = content[self._offset - piece.start : self._offset - piece.start + len(view)]
        view[: len(part)] = part
        self._offset += len(part)
        return len(part)

    def is_unchanged(self) -> bool:
        """Ask whether the object is the one that was opened.

        Raises:
            OSError: The server does not answer.
        """
        return self.facts.is_same(self._tree.facts(self.name))

    def close(self) -> None:
        """Give up what is read ahead."""
        self._drop()
        super().close()

    def _piece_at(self, offset: int) -> _Piece:
        """Return the piece that holds *offset*, with others under way after it."""
        while self._pieces and self._pieces[0].end <= offset:
            self._pieces.popleft()
        if not self._pieces or offset < self._pieces[0].start:
            if offset != self._next:
                self._piece_bytes = _HOP_BYTES
            self._drop()
            self._next = offset
        num_ahead = _NUM_AHEAD if self._piece_bytes == _PIECE_BYTES else 1
        while len(self._pieces) < num_ahead and self._next < self.num_bytes:
            end = min(self._next + self._piece_bytes, self.num_bytes)
            future = self._tree.submit_range(self.name, self._next, end)
            self._pieces.append(_Piece(self._next, end, future))
            self._next = end
            self._piece_bytes = min(2 * self._piece_bytes, _PIECE_BYTES)
        return self._pieces[0]

    def _drop(self) -> None:
        while self._pieces:
            self._pieces.popleft().content.cancel()
