"""Image tree -> chunks of file names, in path order, without holding the tree in memory.

Path order is the order of the relative paths, byte by byte.  It comes for free from a depth-first
walk that sorts the entries of each folder with folders compared as ``name/``: that is how their
paths compare with those of the files beside them.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from vit21k.archives.names import archive_stem
from vit21k.archives.part import ArchivePart
from vit21k.hashing.entry_problems import are_usual, is_utf8, problem_from, problem_of
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.one_line import printable

CHUNK_FILES = 128
"""Entries in a chunk at most: enough to make a chunk's overhead small, few enough to redo."""


class Chunk(NamedTuple):
    """Neighbours in path order, all in one folder.

    Attributes:
        folder: Relative to the root, with a ``/`` at the end; empty for the root itself.
        entries: The names, each with what is wrong with it already (None: it is to be read).
        fraction: Share of the tree that lies before the end of this chunk, 0 to 1; an estimate
            that takes all entries of a folder for equally large.
        archive: Where the chunk is an archive, or a part of one; there are no entries then.
    """

    folder: bytes
    entries: list[tuple[bytes, Problem | None]]
    fraction: float
    archive: ArchivePart | None = None

    @property
    def place(self) -> bytes:
        """The folder by which machines divide the chunks among themselves."""
        return self.archive.folder if self.archive else self.folder


ListFiles = Callable[[bytes], list[bytes] | None]
"""Returns the names in a folder that holds nothing but files; None of any other."""


def walk(
    root: bytes, *, follow_symlinks: bool = False, list_files: ListFiles = lambda _folder: None
) -> Iterator[Chunk]:
    """Yield every entry below *root* that is not a folder, and the folders that are not read.

    Args:
        root: The image root.  Bytes, so that neither the locale nor odd names matter.
        follow_symlinks: Read what symbolic links lead to, instead of leaving them out.
        list_files: A quicker way to list plain folders.

    Raises:
        OSError: *root* itself cannot be read.
    """
    walker = Walker(root.rstrip(b"/") + b"/", follow_symlinks=follow_symlinks)
    walker.list_files = list_files
    return walker.chunks()


@dataclass
class Level:
    """A folder on the way from the root to where the walk is."""

    path: bytes
    keys: list[bytes]
    """Names in order; those of folders end in ``/``."""
    odd: dict[bytes, tuple[ProblemKind, str]]
    """What is wrong with those that are neither folders nor regular files."""
    archives: dict[bytes, ArchivePart] = field(default_factory=dict)
    """By their keys: the names of the folders they stand for, or their own, if these are taken."""
    has_files_only: bool = False
    """All names are those of regular files, as far as that is known."""
    num_taken: int = 0
    waiting: list[tuple[bytes, Problem | None]] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether all its names have been taken."""
        return self.num_taken == len(self.keys)

    def add_archives(self, names: list[bytes]) -> None:
        """Put archives where their folders would be, unless there are such folders."""
        taken = {key: self.path + key for key in self.keys}
        for name in sorted(names):
            path, key = self.path + name, (archive_stem(name) or name) + b"/"
            if not is_utf8(path):
                self.odd[name] = ProblemKind.NAME_NOT_UTF8, ""
                self.keys.append(name)
                continue
            beside = taken.get(key, b"")
            at = name if beside else key
            self.archives[at] = ArchivePart(path, path, self.path + key, beside=beside)
            self.keys.append(at)
            taken.setdefault(key, path)


class Walker:
    """The way through a tree; what a file system has to offer for it is in `_open`, `_remember`."""

    def __init__(self, root: bytes, *, follow_symlinks: bool) -> None:
        self._root = root
        self._follow_symlinks = follow_symlinks
        self._names: dict[tuple[int, int], bytes] = {}
        self._stack: list[Level] = []
        self.list_files: ListFiles = lambda _folder: None

    def chunks(self) -> Iterator[Chunk]:
        """Yield every entry that is not a folder, and the folders that are not read."""
        self._remember(b"")
        self._stack.append(self._open(b""))
        while self._stack:
            level = self._stack[-1]
            deeper = self._take(level)
            archive = level.archives.get(level.keys[level.num_taken - 1]) if level.keys else None
            is_full = len(level.waiting) == CHUNK_FILES
            if level.waiting and (deeper or archive or is_full or level.is_done):
                yield Chunk(level.path, level.waiting, self._fraction())
                level.waiting = []
            if archive:
                yield Chunk(level.path, [], self._fraction(), archive)
            if deeper:
                self._stack.append(deeper)
            elif level.is_done:
                self._stack.pop()

    def _take(self, level: Level) -> Level | None:
        """Take names until a chunk is full, the folder ends, or one has to be gone into."""
        if level.has_files_only and not level.waiting:
            names = level.keys[level.num_taken : level.num_taken + CHUNK_FILES]
            level.num_taken += len(names)
            is_fine = are_usual(names)
            level.waiting = [
                (name, None if is_fine else problem_of(level.path, name, level.odd))
                for name in names
            ]
            return None
        while not level.is_done and len(level.waiting) < CHUNK_FILES:
            key = level.keys[level.num_taken]
            level.num_taken += 1
            if key in level.archives:
                return None
            if key.endswith(b"/"):
                found = self._go_into(level.path + key, key)
                if isinstance(found, Level):
                    return found
                level.waiting.append((key, found))
            else:
                level.waiting.append((key, problem_of(level.path, key, level.odd)))
        return None

    def _go_into(self, path: bytes, key: bytes) -> Level | Problem:
        if key.startswith(b"."):
            return Problem(printable(path), ProblemKind.HIDDEN, "")
        try:
            first = self._remember(path)
            if first is None:
                return self._open(path)
        except OSError as error:
            return problem_from(path, error)
        is_loop = path.startswith(first)
        kind = ProblemKind.SYMLINK_LOOP if is_loop else ProblemKind.FOLDER_SEEN_BEFORE
        return Problem(printable(path), kind, f"is `{printable(first) or '/'}`")

    def _remember(self, path: bytes) -> bytes | None:
        """Return the name under which the folder was met before; None if it was not."""
        status = os.stat(self._root + path)  # noqa: PTH116 (bytes)
        if not status.st_ino:  # a file system without inode numbers
            return None
        first = self._names.setdefault((status.st_dev, status.st_ino), path)
        return None if first is path else first

    def _open(self, path: bytes) -> Level:
        level = Level(path, [], {})
        is_usual = bool(path) and is_utf8(path)
        if is_usual and (names := self.list_files(self._root + path)):
            return Level(path, sorted(names), {}, has_files_only=True)
        archives: list[bytes] = []
        num_files = 0
        with os.scandir(self._root + path) as entries:
            for entry in entries:
                name = entry.name
                if name[-1] in _ENDS_OF_ARCHIVES or not entry.is_file(follow_symlinks=False):
                    key = self._key(entry, level)
                    is_archive = _is_archive(key) and key not in level.odd
                    (archives if is_archive else level.keys).append(key)
                else:
                    level.keys.append(name)
                    num_files += 1
        level.has_files_only = is_usual and num_files == len(level.keys)
        if archives:
            level.has_files_only = False
            level.add_archives(archives)
        level.keys.sort()
        return level

    def _key(self, entry: os.DirEntry[bytes], level: Level) -> bytes:
        """Return the sort key of *entry*; note in *level* what is wrong with it, if anything."""
        if entry.is_file(follow_symlinks=False):
            return entry.name
        if entry.is_dir(follow_symlinks=False):
            return entry.name + b"/"
        if not entry.is_symlink():
            level.odd[entry.name] = ProblemKind.NOT_A_REGULAR_FILE, ""
            return entry.name
        if not self._follow_symlinks:
            level.odd[entry.name] = ProblemKind.SYMLINK, _target(entry)
            return entry.name
        return _followed_key(entry, level)

    def _fraction(self) -> float:
        """Return the share of the tree that lies before this point."""
        fraction, weight = 0.0, 1.0
        for level in self._stack:
            weight /= len(level.keys)
            fraction += weight * (level.num_taken - (level is not self._stack[-1]))
        return fraction


_ENDS_OF_ARCHIVES = b"rRzZ"  # `.tar`, `.gz` and `.tgz`


def _is_archive(key: bytes) -> bool:
    # The last byte rules out nearly all.
    return (
        key[-1] in _ENDS_OF_ARCHIVES and not key.startswith(b".") and archive_stem(key) is not None
    )


def _followed_key(entry: os.DirEntry[bytes], level: Level) -> bytes:
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        is_loop = error.errno == errno.ELOOP
        kind = ProblemKind.SYMLINK_LOOP if is_loop else ProblemKind.BROKEN_SYMLINK
        level.odd[entry.name] = kind, _target(entry)
        return entry.name
    if stat.S_ISDIR(mode):
        return entry.name + b"/"
    if not stat.S_ISREG(mode):
        level.odd[entry.name] = ProblemKind.NOT_A_REGULAR_FILE, _target(entry)
    return entry.name


def _target(entry: os.DirEntry[bytes]) -> str:
    try:
        return f"-> {printable(os.readlink(entry.path))}"  # noqa: PTH115 (bytes)
    except OSError as error:  # it was removed meanwhile
        return error.strerror or ""
