"""Walk an image tree in path order and classify its entries; read-only."""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vit21k.errors import OUR_OWN_LIMITS, ImageTreeError, LayoutError, is_utf8, printable
from vit21k.machine import file_system_of
from vit21k.manifest.archive_names import archive_stem, find_parts, how_to_unpack
from vit21k.manifest.layout import SPLIT_OF, Layout
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.sources.archive_file import ArchiveFile
from vit21k.sources.container import TAR, ContainerRange, Entry, SourceTree

IMAGE_SUFFIXES = frozenset(
    {b".jpeg", b".jpg", b".png", b".webp", b".bmp", b".gif", b".tif", b".tiff"}
)
"""Compared in lower case: ImageNet's own files end in `.JPEG`."""

_USUAL_ENDS = (b".JPEG\0", b".jpg\0", b".jpeg\0", b".JPG\0", b".png\0")

Flaws = Mapping[bytes, tuple[ProblemKind, str]]
"""Kind and detail of entries of a folder that are neither folders nor regular files, by name."""


def are_usual(names: list[bytes]) -> bool:
    """Return whether all *names* are those of valid image files, without checking each."""
    text = b"\0%b\0" % b"\0".join(names)
    num_images = sum(text.count(end) for end in _USUAL_ENDS)
    return num_images == len(names) and text.isascii() and b"\0." not in text


def problem_of(folder: bytes, name: bytes, flaws: Flaws) -> Problem | None:
    """Return the problem of the entry *name* of *folder*, as far as known without opening it.

    Args:
        folder: Relative to the root, with a ``/`` at the end; empty for the root itself.
        name: Of an entry that is not a folder.
        flaws: Of this folder.
    """
    detail = ""
    if name.startswith(b"."):
        kind = ProblemKind.HIDDEN
    elif name in flaws:
        kind, detail = flaws[name]
    elif not is_image_name(name):
        detail = how_to_unpack(name) or ""
        kind = ProblemKind.ARCHIVE_NOT_SUPPORTED if detail else ProblemKind.OTHER_SUFFIX
    elif not is_utf8(folder) or not is_utf8(name):
        kind = ProblemKind.NAME_NOT_UTF8
    elif not folder:
        kind = ProblemKind.NOT_IN_CLASS_FOLDER
    else:
        return None
    return Problem(printable(folder + name), kind, detail)


_KIND_OF_ERRNO = {
    errno.ENOENT: ProblemKind.VANISHED,
    errno.ENOTDIR: ProblemKind.VANISHED,
    errno.ESTALE: ProblemKind.VANISHED,
    errno.ELOOP: ProblemKind.CHANGED_WHILE_READ,  # O_NOFOLLOW: it was replaced by a link
    errno.ENXIO: ProblemKind.NOT_A_REGULAR_FILE,  # a socket
}


def problem_from(path: bytes, error: OSError) -> Problem:
    """Return *error*, raised at *path*, as a problem.

    Raises:
        OSError: *error* itself, if this process has run out of file descriptors or memory.
    """
    if error.errno in OUR_OWN_LIMITS:
        raise error
    kind = _KIND_OF_ERRNO.get(error.errno or 0, ProblemKind.UNREADABLE)
    return Problem(printable(path), kind, error.strerror or str(error))


_SUFFIXES = (
    (b"\xff\xd8", "jpg"),
    (b"\x89PNG", "png"),
    (b"RIFF", "webp"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II", "tiff"),
    (b"MM", "tiff"),
    (b"P", "ppm"),
)


def suffix_of(content: memoryview | bytes) -> str | None:
    """Return the suffix for an image file that begins like *content*; None if it is not known."""
    head = bytes(content[:4])
    return next((suffix for start, suffix in _SUFFIXES if head.startswith(start)), None)


def is_image_name(name: bytes) -> bool:
    """Return whether a file name has the suffix of an image."""
    return name[name.rfind(b".") :].lower() in IMAGE_SUFFIXES


_REMOTE_NAMES = (
    "9p afs beegfs ceph cifs coda davfs glusterfs gpfs lustre ncpfs nfs nfs4 orangefs pvfs2 smb3 "
    "smbfs virtiofs wekafs"
)
_REMOTE = frozenset(_REMOTE_NAMES.split())


def is_remote(folder: Path, root: Path = Path("/")) -> bool:
    """Return whether *folder* is on a network file system.

    Inodes and status-change times may differ there between machines and mounts.

    Args:
        folder: A path that need not exist.
        root: Where ``proc/self/mountinfo`` is read.
    """
    kind = file_system_of(folder, root)
    return kind in _REMOTE or kind.startswith("fuse")


CHUNK_FILES = 128
"""Most entries of a chunk: enough for a small overhead, few enough to be hashed again."""


class Chunk(NamedTuple):
    """Entries of one folder that follow each other in path order.

    Attributes:
        folder: Relative to the root, with a ``/`` at the end; empty for the root itself.
        entries: Names, each with its problem, or None if it is to be read.
        fraction: Share of the tree up to the end of this chunk, 0 to 1; an estimate that treats
            all entries of a folder as equally large.
        container: Of a chunk that is a container or a class tar in one; it has no entries.
        facts: Facts of the entries in a listing, by name, behind a URL.
    """

    folder: bytes
    entries: list[tuple[bytes, Problem | None]]
    fraction: float
    container: ContainerRange | None = None
    facts: Mapping[bytes, Any] | None = None

    @property
    def names_to_read(self) -> list[bytes]:
        """Names of the entries without a problem."""
        return [name for name, problem in self.entries if problem is None]

    @property
    def shard_folder(self) -> bytes:
        """The folder that decides which shard of a run hashes the chunk."""
        return self.container.folder if self.container else self.folder


ListFiles = Callable[[bytes], list[bytes] | None]
"""Returns the names in a folder of regular files; None for any other folder."""


KindOf = Callable[[bytes], str | None]
"""Returns how a file of that name is read as a container (`ContainerRange.kind`); None: not one."""


def kind_of_tar(name: bytes) -> str | None:
    """Return `TAR` for the name of a tar."""
    return TAR if archive_stem(name) is not None else None


_TABLES = {b".parquet": "parquet", b".arrow": "arrow"}
_OF_CACHE = b"cache-"  # files that `datasets` makes of others


def kind_of_table(name: bytes) -> str | None:
    """Return `parquet` or `arrow` for the name of such a file."""
    if name.startswith((b".", _OF_CACHE)):
        return None
    return _TABLES.get(name[name.rfind(b".") :].lower())


def walk(
    root: bytes,
    *,
    follow_symlinks: bool = False,
    list_files: ListFiles = lambda _folder: None,
    kind_of: KindOf = kind_of_tar,
) -> Iterator[Chunk]:
    """Yield all files below *root*, and the folders that are not read.

    Args:
        root: The image root; bytes, to be independent of the locale.
        follow_symlinks: Read the targets of symbolic links instead of skipping them.
        list_files: Lists folders of regular files faster.
        kind_of: Which files are containers.

    Raises:
        OSError: *root* itself cannot be read.
    """
    walker = Walker(root.rstrip(b"/") + b"/", follow_symlinks=follow_symlinks)
    walker.list_files, walker.kind_of = list_files, kind_of
    return walker.chunks()


@dataclass
class FolderLevel:
    """A folder between the root and the position of the walk."""

    path: bytes
    keys: list[bytes]
    """Names in order; those of folders end in ``/``."""
    flaws: dict[bytes, tuple[ProblemKind, str]]
    """Kind and detail of entries that are neither folders nor regular files."""
    containers: dict[bytes, ContainerRange] = field(default_factory=dict)
    """By key: the name of the folder they would be unpacked to, or their own if that exists."""
    has_files_only: bool = False
    """Whether all names are known to be regular files."""
    num_taken: int = 0
    waiting: list[tuple[bytes, Problem | None]] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Whether all its names have been yielded."""
        return self.num_taken == len(self.keys)

    def add_containers(self, kinds: Mapping[bytes, str]) -> None:
        """Put tars where their folders would be, unless there are such folders.

        Args:
            kinds: How to read them, by name; other containers than tars are folders themselves.
        """
        taken = {key: self.path + key for key in self.keys}
        for name, kind in sorted(kinds.items()):
            path, key = self.path + name, (archive_stem(name) or name) + b"/"
            if not is_utf8(path):
                self.flaws[name] = ProblemKind.NAME_NOT_UTF8, ""
                self.keys.append(name)
                continue
            if kind != TAR:
                key = name + b"/"
                self.containers[key] = ContainerRange(path, path, path + b"/", kind=kind)
                self.keys.append(key)
                continue
            superseded_by = taken.get(key, b"")
            at = name if superseded_by else key
            self.containers[at] = ContainerRange(
                path, path, self.path + key, superseded_by=superseded_by
            )
            self.keys.append(at)
            taken.setdefault(key, path)


class Walker:
    """Walks a tree; `_open` and `_remember` use the file system."""

    def __init__(self, root: bytes, *, follow_symlinks: bool) -> None:
        self._root = root
        self._follow_symlinks = follow_symlinks
        self._names: dict[tuple[int, int], bytes] = {}
        self._stack: list[FolderLevel] = []
        self.list_files: ListFiles = lambda _folder: None
        self.kind_of: KindOf = kind_of_tar

    def chunks(self) -> Iterator[Chunk]:
        """Yield all files, and the folders that are not read."""
        self._remember(b"")
        self._stack.append(self._open(b""))
        while self._stack:
            level = self._stack[-1]
            deeper = self._take(level)
            archive = level.containers.get(level.keys[level.num_taken - 1]) if level.keys else None
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

    def _take(self, level: FolderLevel) -> FolderLevel | None:
        """Take names until the chunk is full, the folder ends or a folder is entered."""
        if level.has_files_only and not level.waiting:
            names = level.keys[level.num_taken : level.num_taken + CHUNK_FILES]
            level.num_taken += len(names)
            is_fine = are_usual(names)
            level.waiting = [
                (name, None if is_fine else problem_of(level.path, name, level.flaws))
                for name in names
            ]
            return None
        while not level.is_done and len(level.waiting) < CHUNK_FILES:
            key = level.keys[level.num_taken]
            level.num_taken += 1
            if key in level.containers:
                return None
            if key.endswith(b"/"):
                found = self._go_into(level.path + key, key)
                if isinstance(found, FolderLevel):
                    return found
                level.waiting.append((key, found))
            else:
                level.waiting.append((key, problem_of(level.path, key, level.flaws)))
        return None

    def _go_into(self, path: bytes, key: bytes) -> FolderLevel | Problem:
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
        """Return the path at which the same folder was entered before; None if it was not."""
        status = os.stat(self._root + path)  # noqa: PTH116 (bytes)
        if not status.st_ino:  # a file system without inode numbers
            return None
        first = self._names.setdefault((status.st_dev, status.st_ino), path)
        return None if first is path else first

    def _open(self, path: bytes) -> FolderLevel:
        level = FolderLevel(path, [], {})
        is_usual = bool(path) and is_utf8(path)
        names = self.list_files(self._root + path) if is_usual else None
        if names and not _may_be_containers(names):
            return FolderLevel(path, sorted(names), {}, has_files_only=True)
        archives: dict[bytes, str] = {}
        num_files = 0
        with os.scandir(self._root + path) as entries:
            for entry in entries:
                name = entry.name
                if name[-1] in _ENDS_OF_ARCHIVES or not entry.is_file(follow_symlinks=False):
                    key = self._key(entry, level)
                    if (kind := self._kind_of_key(key)) and key not in level.flaws:
                        archives[key] = kind
                    else:
                        level.keys.append(key)
                else:
                    level.keys.append(name)
                    num_files += 1
        level.has_files_only = is_usual and num_files == len(level.keys)
        self._add_archives(level, archives)
        return level

    def _add_archives(self, level: FolderLevel, archives: dict[bytes, str]) -> None:
        """Add *archives*, kinds by name, to the other entries of a folder; sort them."""
        self._take_parts(level, archives)
        if archives:
            level.has_files_only = False
            level.add_containers(archives)
        level.keys.sort()

    def _take_parts(self, level: FolderLevel, archives: dict[bytes, str]) -> None:
        """Move the first parts of multi-part tars to *archives*; drop the others."""
        files = [*level.keys, *archives]
        if not any(mark in b"\0".join(files).lower() for mark in _MARKS_OF_PARTS):
            return
        parts = find_parts(name for name in files if name not in level.flaws)
        for first, names in parts.of_first.items():
            if kind := self.kind_of(first):
                archives[first] = kind
                level.keys = [key for key in level.keys if key not in names]
        for name, flaw in parts.flaws.items():
            level.flaws[name] = ProblemKind.ARCHIVE_TRUNCATED, flaw
            level.has_files_only = False

    def _kind_of_key(self, key: bytes) -> str | None:
        """Return how a file is read as a container; the last byte of its name rules out most."""
        is_candidate = key[-1] in _ENDS_OF_ARCHIVES and not key.startswith(b".")
        return self.kind_of(key) if is_candidate else None

    def _key(self, entry: os.DirEntry[bytes], level: FolderLevel) -> bytes:
        """Return the sort key of *entry*; add its flaw, if any, to *level*."""
        if entry.is_file(follow_symlinks=False):
            return entry.name
        if entry.is_dir(follow_symlinks=False):
            return entry.name + b"/"
        if not entry.is_symlink():
            level.flaws[entry.name] = ProblemKind.NOT_A_REGULAR_FILE, ""
            return entry.name
        if not self._follow_symlinks:
            level.flaws[entry.name] = ProblemKind.SYMLINK, _target(entry)
            return entry.name
        return _followed_key(entry, level)

    def _fraction(self) -> float:
        """Return the share of the tree that is done."""
        fraction, weight = 0.0, 1.0
        for level in self._stack:
            weight /= len(level.keys)
            fraction += weight * (level.num_taken - (level is not self._stack[-1]))
        return fraction


_ENDS_OF_ARCHIVES = b"rRzZpPtTwW"  # `.tar`, `.gz`, `.tgz`, `.zip`, `.parquet` and `.arrow`
_MARKS_OF_PARTS = (b".tar", b".tgz")
_SUFFIXES_OF_CONTAINERS = (b".zip", b".parquet", b".arrow", *_MARKS_OF_PARTS)


def _may_be_containers(names: list[bytes]) -> bool:
    """Return whether some of *names* may be those of containers; quickly."""
    text = b"\0".join(names).lower()
    return any(suffix in text for suffix in _SUFFIXES_OF_CONTAINERS)


def _followed_key(entry: os.DirEntry[bytes], level: FolderLevel) -> bytes:
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        is_loop = error.errno == errno.ELOOP
        kind = ProblemKind.SYMLINK_LOOP if is_loop else ProblemKind.BROKEN_SYMLINK
        level.flaws[entry.name] = kind, _target(entry)
        return entry.name
    if stat.S_ISDIR(mode):
        return entry.name + b"/"
    if not stat.S_ISREG(mode):
        level.flaws[entry.name] = ProblemKind.NOT_A_REGULAR_FILE, _target(entry)
    return entry.name


def _target(entry: os.DirEntry[bytes]) -> str:
    try:
        return f"-> {printable(os.readlink(entry.path))}"  # noqa: PTH115 (bytes)
    except OSError as error:  # it was removed meanwhile
        return error.strerror or ""


_MAX_LOOKED_INTO = 8


def image_root(root: Path, *, is_flat: bool = False) -> tuple[Path, str | None]:
    """Return *root* resolved, if it holds folders or archives.

    For an archive, return its folder and its name.

    Args:
        root: The image root.
        is_flat: The root itself may contain images.

    Raises:
        ImageTreeError: There is no such folder, or it holds neither folders nor archives.
    """
    if root.is_file():
        refuse_file(str(root))
        root = root.resolve()
        return root.parent, root.name
    if not root.is_dir():
        raise ImageTreeError(
            f"`{root}` does not exist",
            hint="name the folder that holds the class folders, or an archive",
        )
    if not os.access(root, os.R_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(root))
    refuse_empty(FolderTree(root), str(root), is_flat=is_flat)
    return root.resolve(), None


def refuse_file(path: str) -> None:
    """Refuse a source that is a file and not a container.

    Raises:
        ImageTreeError: It is not.
    """
    _refuse_archive(path)
    if not _is_container(path.rpartition("/")[2]):
        raise ImageTreeError(
            f"`{path}` is a file, not a folder or an archive",
            hint="give the folder that holds the class folders",
        )


def refuse_empty(tree: SourceTree, root: str, *, is_flat: bool) -> None:
    """Refuse a source with nothing at its top that may hold images.

    Args:
        tree: The source.
        root: Its path or URL.
        is_flat: The root itself may contain images.

    Raises:
        LayoutError: There is nothing.
    """
    entries = tree.entries()
    may_hold = _may_hold_images if is_flat else _may_hold_classes
    if any(may_hold(entry) or _is_container(entry.name) for entry in entries):
        return
    for entry in entries:
        _refuse_archive(f"{root}/{entry.name}")
    raise LayoutError(
        f"`{root}` holds no class folders",
        hint="expected folders such as `n01440764/` with images in them, or archives such as "
        "`n01440764.tar`; the class of an image is the name of its folder; or, if a "
        "file has the classes, `vit21k hash --labels FILE`",
    )


def _refuse_archive(path: str) -> None:
    """Refuse an archive that is not read, by its name."""
    hint = how_to_unpack(os.fsencode(path.rpartition("/")[2]))
    if hint is not None:
        raise LayoutError(f"`{path}` is an archive of a kind that is not read", hint=hint)


def _is_container(name: str) -> bool:
    encoded = os.fsencode(name)
    return archive_stem(encoded) is not None or kind_of_table(encoded) is not None


def look_at(tree: SourceTree, layout: Layout) -> None:
    """Refuse layouts that are recognisable at the top of a source, before reading it.

    Raises:
        LayoutError: Its folders cannot be classes.
    """
    entries = [entry for entry in tree.entries() if _may_hold_classes(entry)]
    for entry in entries:
        name = os.fsencode(entry.name)
        stem = printable(archive_stem(name) or name)
        is_container = not entry.is_folder
        if stem.lower() in SPLIT_OF and (is_container or _holds_images(tree, entry.name)):
            layout.add_split(stem)
    layout.refuse(is_complete=False)
    if all(entry.is_folder for entry in entries) and len(entries) <= _MAX_LOOKED_INTO:
        _look_for_flat(tree, [entry.name for entry in entries], layout)


def _holds_images(tree: SourceTree, folder: str) -> bool:
    return any(map(_may_hold_images, tree.entries(folder)))


def _look_for_flat(tree: SourceTree, folders: list[str], layout: Layout) -> None:
    """Refuse a root with few folders that are not classes and hold only images."""
    found = layout.like()
    for folder in folders:
        name = printable(os.fsencode(folder))
        inside = tree.entries(folder)
        images = [entry for entry in inside if is_image_name(os.fsencode(entry.name))]
        if not images or any(map(_may_hold_classes, inside)):
            return
        found.add(name)
        paths, others = ([f"{name}/{one.name}" for one in of] for of in (images, inside))
        found.add_files(paths, others, None)
    found.refuse()


def _may_hold_classes(entry: Entry) -> bool:
    is_archive = archive_stem(os.fsencode(entry.name)) is not None
    return not entry.name.startswith(".") and (is_archive or entry.is_folder)


def _may_hold_images(entry: Entry) -> bool:
    return is_image_name(os.fsencode(entry.name)) or _may_hold_classes(entry)


_NO_IMAGES = (
    "", ".cfg", ".cls", ".csv", ".db", ".docx", ".html", ".ini", ".json", ".log", ".m", ".mat",
    ".md", ".pdf", ".py", ".rst", ".sh", ".toml", ".tsv", ".txt", ".xml", ".yaml", ".yml",
)  # fmt: skip
"""Suffixes of files that do not hold images."""

ARCHIVE = "an archive"
"""Reason why an archive is skipped; the caller may read it."""

_READ = (None, ProblemKind.NOT_IN_CLASS_FOLDER)
_NO_LOSS = (ProblemKind.HIDDEN, ProblemKind.FOLDER_SEEN_BEFORE)
_NUM_NAMED = 5


class Skipped(NamedTuple):
    r"""An entry of a folder that is not read.

    Attributes:
        path: Relative to the folder; bytes that are not UTF-8 as ``\xNN``.
        why: The reason, in a few words.
        may_hold_images: Whether it may hold images: an archive, an image of another format, a
            broken link, an unreadable folder.
    """

    path: str
    why: str
    may_hold_images: bool


def list_folder(root: Path, *, any_name: bool = False) -> tuple[list[str], list[Skipped]]:
    """Return the image files below *root*, in byte order, and the entries that are not read.

    Symbolic links are followed; images directly in *root* are included.

    Args:
        root: A folder.
        any_name: Include files whose names are not UTF-8, as `os.fsdecode` returns them.
    """
    read = (*_READ, ProblemKind.NAME_NOT_UTF8) if any_name else _READ
    paths, skipped = [], []
    for chunk in walk(os.fsencode(root), follow_symlinks=True):
        if chunk.container:
            skipped.append(Skipped(printable(chunk.container.path), ARCHIVE, True))
        for name, problem in chunk.entries:
            path = chunk.folder + name
            if (problem and problem.kind) in read:
                paths.append(os.fsdecode(path))
            elif problem:
                skipped.append(_skipped(path, problem.kind, problem.detail))
    return paths, skipped


def _skipped(path: bytes, kind: ProblemKind, detail: str) -> Skipped:
    if archive_stem(path) is not None:
        return Skipped(printable(path), ARCHIVE, True)
    if kind is ProblemKind.OTHER_SUFFIX:
        is_table = kind_of_table(path.rpartition(b"/")[2]) is not None
        why = "`vit21k hash` reads it: name its manifest" if is_table else "another suffix"
        return Skipped(printable(path), why, may_be_image(os.fsdecode(path)))
    words = str(kind).replace("_", " ") + (f": {detail}" if detail else "")
    return Skipped(printable(path), words, kind not in _NO_LOSS)


def may_be_image(name: str) -> bool:
    """Return whether a file with another suffix may be an image or hold images."""
    return Path(name).suffix.lower() not in _NO_IMAGES


def describe_skipped(skipped: Sequence[Skipped]) -> str:
    """Return how many entries were not read, with the names of the most important."""
    first = sorted(skipped, key=lambda one: not one.may_hold_images)[:_NUM_NAMED]
    named = ", ".join(f"`{one.path}` ({one.why})" for one in first)
    more = f" and {len(skipped) - len(first):,} more" if len(skipped) > len(first) else ""
    verb = "entry was" if len(skipped) == 1 else "entries were"
    return f"{len(skipped):,} {verb} not read: {named}{more}"


class FolderEntry(NamedTuple):
    """An entry of a folder."""

    name: str
    is_folder: bool


class FolderTree:
    """The folder *root* on a disk, as a `container.SourceTree`."""

    def __init__(self, root: Path, *, only: str | None = None) -> None:
        """Make an instance.

        Args:
            root: The folder.
            only: The one file of it that counts.
        """
        self._root = root
        self._only = only

    def entries(self, folder: str = "") -> list[FolderEntry]:
        """Return what is in *folder*; nothing if it cannot be listed, which the walk reports."""
        if self._only is not None:
            return [FolderEntry(self._only, False)]
        try:
            with os.scandir(self._root / folder) as entries:
                return [FolderEntry(entry.name, entry.is_dir()) for entry in entries]
        except OSError:
            return []

    def open(self, path: str) -> ArchiveFile:
        """Open the file *path*, or all files of the split archive whose first file it is."""
        return ArchiveFile(os.fsencode(self._root / path))
