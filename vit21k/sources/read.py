"""Read the bytes of images; unreadable files are distinguished from undecodable ones.

The image root is a folder or a URL: `ImageReader` reads images below either.
"""

import errno
import io
import os
import resource
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from vit21k.errors import OUR_OWN_LIMITS, ImageError, ImageTreeError, UnreadableImageError
from vit21k.sources.archive_file import OPEN_FLAGS, ArchiveFile
from vit21k.sources.container import PARQUET, ByteSource, ReadAt
from vit21k.sources.gzip_tar import (
    GZIP,
    MAX_WITHOUT_INDEX_BYTES,
    NEEDS_INDEX_BYTES,
    GzipIndex,
    GzipReader,
    IndexFolder,
    made_index,
    rapidgzip,
    unpack,
)
from vit21k.sources.remote import (
    NUM_CONNECTIONS,
    NUM_TRIES,
    ObjectEndsError,
    Range,
    RemoteTree,
    is_url,
)
from vit21k.sources.tar import WINDOW_BYTES, Window
from vit21k.sources.zip import DEFLATE, read_deflated

if TYPE_CHECKING:
    from vit21k.sources.parquet import ParquetRows

MAX_UNREAD = 100
"""Unreadable files in a row after which the tree is considered gone."""

_NUM_READS = 3

T = TypeVar("T")
Found = TypeVar("Found", bound=bytes | OSError)
Root = str | Path
"""Where images are: a folder of this machine, or a URL."""


def read_again(read: Callable[[int], bytes], row: int) -> bytes:
    """Return `read(row)`; operating system errors are retried.

    Raises:
        ImageError: The file is not there, or its container is too short.
        OSError: It cannot be read repeatedly.
    """
    for _ in range(_NUM_READS - 1):
        try:
            return read(row)
        except OSError:
            continue
    return read(row)


def why_unread(error: ImageError | OSError) -> str:
    """Return why a file cannot be read.

    Raises:
        OSError: *error* itself, if this process has run out of file descriptors or memory.
    """
    if isinstance(error, ImageError):
        return error.message
    if error.errno in OUR_OWN_LIMITS:
        raise error
    return error.strerror or str(error)


def refuse_gone(
    outcomes: Iterable[T], why: Callable[[T], str | None], root: Root, *, is_all: bool = True
) -> Iterator[T]:
    """Yield *outcomes*, unless `MAX_UNREAD` files in a row are unreadable: the tree is gone.

    Unreadable files are held back until a readable one follows.

    Args:
        outcomes: One for each file of a tree, in order.
        why: Returns why the file was not read; None if it was.
        root: Of the tree.
        is_all: These are all of its files: it is gone if none of them was read.

    Raises:
        ImageTreeError: The tree is gone.
    """
    unread: list[T] = []
    is_any_read = not is_all
    for outcome in outcomes:
        if why(outcome) is None:
            is_any_read = True
            yield from unread
            unread.clear()
            yield outcome
        else:
            unread.append(outcome)
            if len(unread) == MAX_UNREAD:
                break
    if unread and (len(unread) == MAX_UNREAD or not is_any_read):
        raise ImageTreeError(
            f"{len(unread):,} images in a row could not be read below `{root}`: {why(unread[-1])}",
            hint="mount that disk, or say where the image tree is now with `--root`; if images "
            "were removed, start again at `vit21k hash`",
        )
    yield from unread


MAX_OPEN = 256
"""Containers kept open at most: a quarter of what Linux lets a process have."""

_TOO_MANY = frozenset({errno.EMFILE, errno.ENFILE})

_GZIP_EXTRA = "`pip install 'vit21k[gzip]'`"
GZIP_HINT = (
    f"{_GZIP_EXTRA}, which reads single images by an index, and run this command again; train on a "
    "pack of them (`vit21k pack`). Or unpack its outer layer (`gunzip -k FILE.tar.gz`), and run "
    "`vit21k hash` on the .tar"
)
_HASH_AGAIN = "run `vit21k hash` again"
MOVED_HINT = "if the image tree has moved, say where it is now with `--root`"

_READ_FLAGS = os.O_RDONLY | os.O_CLOEXEC
_READ_BYTES = 1 << 18  # of a file at once: more than most images have


class Locator(NamedTuple):
    """Where the bytes of an image are; the columns of these names in a manifest.

    Attributes:
        path: Relative to the root.
        container: Path of the tar, zip or Parquet file that holds it; None for a plain file.
        offset: Where it begins in the container, in bytes; in a Parquet file its row.
        num_bytes: Its size; None for a plain file.
        storage: How the container stores it; None: as it is.
    """

    path: str
    container: str | None = None
    offset: int | None = None
    num_bytes: int | None = None
    storage: str | None = None


def open_file(root: Root, path: str, *, num_tries: int = NUM_TRIES) -> io.BufferedReader:
    """Open a file below *root* to be read from its start to its end.

    Args:
        root: A folder or a URL.
        path: Relative to it.
        num_tries: Of each request for a URL.

    Raises:
        OSError: It is not there, or cannot be read.
    """
    if is_url(root):
        return io.BufferedReader(RemoteTree(str(root), num_tries=num_tries).open(path), _READ_BYTES)
    file = Path(root, path).open("rb")  # noqa: SIM115
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return file


def existing_root(hashed: str, root: Root | None) -> str:
    """Return where the images are now.

    Args:
        hashed: Where they were hashed, as a manifest says; empty: not known.
        root: Where they are, if they have moved.

    Raises:
        ImageTreeError: They are not there, or it is not known where.
        OSError: The server of a URL does not answer.
    """
    place = str(root or hashed)
    if not place:
        raise ImageTreeError(
            "the manifest does not say where its images are: it was made from a list",
            hint="say where they are with `--root DIR`",
        )
    if is_url(place) and not RemoteTree(place).is_folder():
        raise ImageTreeError(f"nothing is below `{place}`", hint=MOVED_HINT)
    if not is_url(place) and not Path(place).is_dir():
        raise ImageTreeError(f"the image root `{place}` is not a folder", hint=MOVED_HINT)
    return place


class OpenContainer(NamedTuple):
    """An open container, closed with its last reference.

    Attributes:
        file: It, or what it was unpacked to.
        is_unpacked: Whether it is compressed, and *file* an unnamed temporary file.
        reader: Reads what it unpacks to, if it is compressed and not unpacked.
    """

    file: ArchiveFile
    is_unpacked: bool = False
    reader: GzipReader | None = None


class ImageReader:
    """Reads images below *root*; keeps a limited number of containers open.  Thread-safe.

    Attributes:
        tree: The objects below a URL; None: the root is a folder.
    """

    def __init__(
        self,
        root: Root,
        *,
        max_open: int | None = None,
        unpacks: bool = False,
        manifests: Path | None = None,
    ) -> None:
        """Read below *root*.

        Args:
            root: A folder or URL; empty: paths are relative to the current folder, or absolute.
            max_open: Most containers to keep open; default: a quarter of the descriptors.
            unpacks: Decompress a compressed tar to a temporary file to read an image of it.
            manifests: Folder with the indices of compressed tars; None: they are made anew.
        """
        self.tree = RemoteTree(str(root)) if is_url(root) else None
        self._root = root
        self._prefix = f"{root}/" if str(root) else ""
        self._unpacks = unpacks
        self._indices = IndexFolder(manifests) if manifests else None
        self._max_open = _suitable_max() if max_open is None else max_open
        self._lock = threading.Lock()
        self._open: OrderedDict[str, OpenContainer] = OrderedDict()
        self._parquets: OrderedDict[str, ParquetRows] = OrderedDict()

    def read(
        self,
        path: str,
        container: str | None = None,
        offset: int | None = None,
        num_bytes: int | None = None,
        storage: str | None = None,
    ) -> bytes:
        """Return the bytes of an image; the arguments are the fields of `Locator`.

        Raises:
            UnreadableImageError: The file or the container is not there.
            ImageError: The container is shorter than it was, damaged, or cannot be read at random.
            OSError: It cannot be read.
        """
        if container is None:
            return self._read_object(self.tree, path) if self.tree else self._read_file(path)
        if storage in {None, GZIP}:
            return self._read_range(container, offset or 0, num_bytes or 0, storage)
        if storage == DEFLATE:
            return read_deflated(self._read_at(container), offset or 0, num_bytes or 0)
        if storage.startswith(PARQUET):
            column = storage.removeprefix(PARQUET)
            return self._parquet(container).read(column, offset or 0, num_bytes)
        raise ImageError(
            f"`{path}` is stored as `{storage}`, which this version of vit21k does not read",
            hint="run `vit21k hash` again with this version",
        )

    def read_many(self, locators: Sequence[Locator]) -> "list[bytes | ImageError | OSError]":
        """Return the bytes of images, or why they cannot be read, in order.

        Behind a URL, images that are close in their container are read by one request, and
        requests run concurrently.
        """
        if self.tree is None:
            return [self._outcome(locator) for locator in locators]
        is_range = [one.container is not None and one.storage is None for one in locators]
        ranges = [_range(one) for one, yes in zip(locators, is_range, strict=True) if yes]
        paths = [one.path for one in ranges]
        others = (one for one, yes in zip(locators, is_range, strict=True) if not yes)
        found_others = self._pool.map(self._outcome, others)
        found_ranges = map(_explained, paths, self.tree.read_ranges(ranges))
        return [next(found_ranges if yes else found_others) for yes in is_range]

    def _outcome(self, locator: Locator) -> "bytes | ImageError | OSError":
        try:
            return self.read(*locator)
        except (ImageError, OSError) as error:
            return error

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(NUM_CONNECTIONS, thread_name_prefix="objects")

    @staticmethod
    def _read_object(tree: RemoteTree, path: str) -> bytes:
        """Return the content of an object behind the URL."""
        try:
            return tree.read(path)
        except FileNotFoundError:
            raise UnreadableImageError("the object is not there", hint=MOVED_HINT) from None

    def first_bytes(self, path: str, num_bytes: int) -> bytes:
        """Return the first bytes of any file; none if it is unreadable or not a regular file."""
        try:
            if self.tree:
                with open_file(self.tree.url, path, num_tries=1) as object_:
                    return object_.read(num_bytes)
            with ArchiveFile(f"{self._prefix}{path}", OPEN_FLAGS | os.O_NOFOLLOW) as file:
                return file.read_at(num_bytes, 0) if file.is_regular else b""
        except (OSError, ValueError):
            return b""

    def _read_file(self, path: str) -> bytes:
        """Return the content of a plain file.

        Each system call releases and takes the interpreter's lock: a file object makes twice as
        many.
        """
        try:
            descriptor = os.open(f"{self._prefix}{path}", _READ_FLAGS)
        except (FileNotFoundError, NotADirectoryError):
            raise UnreadableImageError("the file is not there", hint=MOVED_HINT) from None
        try:
            parts = []
            while part := os.read(descriptor, _READ_BYTES):
                parts.append(part)
        except IsADirectoryError:
            raise UnreadableImageError("the file is not there", hint=MOVED_HINT) from None
        finally:
            os.close(descriptor)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_range(
        self, container: str, offset: int, num_bytes: int, storage: str | None
    ) -> bytes:
        """Return *num_bytes* of *container*, or of what it unpacks to, from *offset*."""
        if self.tree and storage is None:
            try:
                return self.tree.read_range(container, offset, offset + num_bytes)
            except OSError as error:
                raise _explained(container, error) from error
        opened = self.open_container(container)
        is_compressed = opened.is_unpacked or opened.reader is not None
        if is_compressed != (storage == GZIP):
            how = "is compressed, and was not" if is_compressed else "is not compressed, and was"
            raise ImageError(f"`{container}` {how} when it was hashed", hint=_HASH_AGAIN)
        if opened.reader:
            return opened.reader.read(offset, num_bytes)
        content = opened.file.read_at(num_bytes, offset)
        if len(content) < num_bytes:
            raise _too_short(container)
        return content

    def _parquet(self, container: str) -> "ParquetRows":
        from vit21k.sources.parquet import ParquetRows  # noqa: PLC0415 (most sources have none)

        with self._lock:
            rows = self._parquets.pop(container, None)
            if rows is None:
                rows = ParquetRows(lambda: self._open_parquet(container))
            self._parquets[container] = rows  # most recently used
            if len(self._parquets) > self._max_open:
                self._parquets.popitem(last=False)
        return rows

    def _open_parquet(self, container: str) -> ByteSource:
        try:
            if self.tree:
                return self.tree.open(container)
            return io.FileIO(f"{self._prefix}{container}")
        except (FileNotFoundError, NotADirectoryError):
            raise _missing(container) from None

    def _read_at(self, container: str) -> ReadAt:
        """Return what reads up to a number of bytes from an offset of *container*."""
        return self.open_container(container).file.read_at

    def is_file(self, path: str) -> bool:
        """Return whether there is a file at *path*."""
        return self.tree.is_object(path) if self.tree else Path(self._prefix + path).is_file()

    def open_stream(self, path: str) -> io.BufferedReader:
        """Open a container to be read by one thread.

        Raises:
            OSError: It cannot be opened.
        """
        return open_file(self._root, path)

    def open_container(self, container: str) -> OpenContainer:
        """Return an open container; it is closed with the last reference to it."""
        with self._lock:
            opened = self._open.pop(container, None) or self._opened(container)
            self._open[container] = opened  # most recently used
            if len(self._open) > self._max_open:
                self._open.popitem(last=False)
        return opened

    def _opened(self, container: str) -> OpenContainer:
        try:
            file = self._open_file(container)
        except (FileNotFoundError, NotADirectoryError):
            raise _missing(container) from None
        if not file.is_regular or not file.is_gzip:
            return OpenContainer(file)
        if self._unpacks:
            return OpenContainer(_unpacked(file), is_unpacked=True)
        return OpenContainer(file, reader=self._reader_of(container, file))

    def _reader_of(self, container: str, file: ArchiveFile) -> GzipReader:
        """Return what reads a compressed tar at random; its index is made if there is none."""
        if file.num_bytes < NEEDS_INDEX_BYTES:
            return GzipReader(file.read_at, GzipIndex())
        index = self._indices.load(container, file) if self._indices else None
        if index is None:
            index = made_index(file)
            if index is None and file.num_bytes > MAX_WITHOUT_INDEX_BYTES:
                raise ImageError(f"`{container}` is compressed", hint=GZIP_HINT)
            if index and self._indices:
                with suppress(OSError):  # the folder may be read-only
                    self._indices.save(container, file, index)
        return GzipReader(file.read_at, index, file.num_bytes)

    def index_compressed(
        self, containers: Iterable[str], note: Callable[[str], None] = lambda _text: None
    ) -> None:
        """Make the indices of compressed tars that have none.

        Args:
            containers: Their paths.
            note: Called with a line for each that takes long to read.

        Raises:
            ImageTreeError: One is too large to be read without rapidgzip, which is not installed.
        """
        for container in containers:
            try:
                with self._open_file(container) as file:
                    is_large = file.num_bytes >= NEEDS_INDEX_BYTES and file.is_gzip
                    if not is_large or (self._indices and self._indices.has(container)):
                        continue
                    if not rapidgzip() and file.num_bytes > MAX_WITHOUT_INDEX_BYTES:
                        raise ImageTreeError(
                            f"`{container}` is compressed: its images cannot be read",
                            hint=GZIP_HINT,
                        )
                if rapidgzip():
                    note(f"indexing `{container}`, once")
                    self.open_container(container)
                else:
                    note(f"`{container}` is compressed: slow without {_GZIP_EXTRA}")
            except (OSError, ImageError):  # reading its images reports that
                continue

    def _open_file(self, container: str) -> ArchiveFile:
        """Open a file; if the limit of descriptors is reached, close the others first."""
        if self.tree:
            return self.tree.open(container)
        path = f"{self._prefix}{container}"
        try:
            return ArchiveFile(path)
        except OSError as error:
            if error.errno not in _TOO_MANY or not self._open:
                raise
        self._max_open = max(len(self._open) // 2, 1)
        self._open.clear()
        return ArchiveFile(path)


def _unpacked(file: ArchiveFile) -> ArchiveFile:
    """Return what a gzip file decompresses to, in an unnamed temporary file."""
    with tempfile.TemporaryFile() as unpacked, closing(unpack(file)) as stream:
        window = Window(stream)
        while len(content := window.take(WINDOW_BYTES)):
            unpacked.write(content)
        unpacked.flush()
        return ArchiveFile(f"/proc/self/fd/{unpacked.fileno()}")


def _range(locator: Locator) -> Range:
    start = locator.offset or 0
    return Range(locator.container or "", start, start + (locator.num_bytes or 0))


def _explained(container: str, found: Found) -> "Found | ImageError":
    """Return *found*, errors as an image in a container of a disk has them."""
    if isinstance(found, FileNotFoundError):
        return _missing(container)
    return _too_short(container) if isinstance(found, ObjectEndsError) else found


def _missing(container: str) -> UnreadableImageError:
    return UnreadableImageError(f"the container `{container}` is not there", hint=MOVED_HINT)


def _too_short(container: str) -> ImageError:
    return ImageError(
        f"`{container}` ends before its member does",
        hint=f"it has changed since it was hashed; {_HASH_AGAIN}",
    )


def _suitable_max() -> int:
    """Return how many containers to keep open: a quarter of the limit of this process."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPEN if limit == resource.RLIM_INFINITY else max(min(MAX_OPEN, limit // 4), 1)
