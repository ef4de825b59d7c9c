"""Image tree behind a URL (`s3://bucket/folder`) -> digests.parquet, problems.parquet.

The same walk, the same rows as from a disk; fsspec lists and reads.  Archives are not looked into
there.  An object is taken as read if its size, time and entity tag were the same before and after.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from vit21k.errors import ImageTreeError, MissingExtraError, printable
from vit21k.lock import locked
from vit21k.manifest.archive_names import archive_stem
from vit21k.manifest.io import Header
from vit21k.manifest.layout import OPTION, LabelFrom, Layout, class_of
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.manifest.writer import manifest_writer
from vit21k.prep.file_digest import (
    ALGORITHMS,
    NOT_IMAGES,
    WHOLE_BYTES,
    FileDigest,
    FileReader,
    Flaw,
    ImageFacts,
    image_facts,
    no_image,
)
from vit21k.prep.hash_chunks import HashedChunk, digest_rows, hash_in_threads, problem_rows
from vit21k.prep.hash_tree import DEFAULT_ALGORITHM, HashSummary
from vit21k.prep.scan import FileRows
from vit21k.sources.folders import Chunk, Level, Walker, problem_from

_NUM_WORKERS = 32
"""Answers of a server take longer than those of a disk."""

_NUM_TRIES = 2
_PIECE_BYTES = 8 << 20
_TIMES = ("mtime", "LastModified", "updated", "last_modified", "created")


def is_url(root: str) -> bool:
    """Return whether *root* names a place that fsspec knows, and no folder of this machine."""
    return "://" in root


def hash_remote(
    url: str,
    manifests: Path,
    *,
    algorithm: str = DEFAULT_ALGORITHM,
    num_workers: int | None = None,
    label_from: LabelFrom | None = None,
    on_chunk: Callable[[HashedChunk], None] = lambda _chunk: None,
) -> HashSummary:
    """Hash every image below *url*; otherwise as `hashing.hash_tree`.

    Args:
        url: The image root, such as ``s3://bucket/folder``.
        manifests: Folder of this machine to write to.
        algorithm: A key of `algorithms.ALGORITHMS`.
        num_workers: Objects read at a time; None: 32.
        label_from: As for a tree on a disk.
        on_chunk: Called, in path order, with each chunk that is done.

    Raises:
        MissingExtraError: What fsspec needs for this kind of URL is not installed.
        ImageTreeError: There is nothing there, or no images, or the folders cannot be classes.
        LockedError: Another run works on *manifests*.
        OSError: *manifests* cannot be written to.
    """
    hasher = RemoteHasher(url, algorithm, label_from)
    options = {"follow_symlinks": False} | ({OPTION: label_from} if label_from else {})
    header = Header(algorithm=algorithm, root=url.rstrip("/"), options=options)
    layout = Layout(url.rstrip("/"), label_from=label_from)
    summary = HashSummary(is_remote=True, layout=layout)
    with (
        locked(manifests, command="hash"),
        manifest_writer(DIGESTS, manifests, header) as digests,  # moves into place last
        manifest_writer(PROBLEMS, manifests, header) as problems,
    ):
        for chunk in hash_in_threads(hasher, hasher.walk(), num_workers or _NUM_WORKERS):
            summary.count(chunk, is_second_walk=False)
            if chunk.files:
                digests.write(digest_rows([chunk]))
            if chunk.problems:
                problems.write(problem_rows(chunk.problems))
            on_chunk(chunk)
        if not summary.num_files and not summary.num_bad:
            raise ImageTreeError(
                f"no images below `{url}`",
                hint="expected keys such as `n01440764/n01440764_10026.JPEG` below it",
            )
        layout.refuse()
    return summary


class RemoteHasher:
    """Lists and digests what lies below a URL; any number of threads may share it.

    Attributes:
        is_stopped: Set it to have the chunks under way end at their next object, unfinished.
    """

    def __init__(self, url: str, algorithm: str, label_from: LabelFrom | None = None) -> None:
        self._label_from = label_from
        self.is_stopped = False
        self.prefetches = False  # it is for files
        self.is_remote = True
        self._files, self._root = _open(url)
        self._algorithm = ALGORITHMS[algorithm]
        self._reader = FileReader(algorithm, 0)

    @property
    def is_concurrent(self) -> bool:
        """Whether threads work side by side: they do, for they mostly wait."""
        return True

    def walk(self) -> Iterator[Chunk]:
        """Yield what lies below the URL, in path order."""
        return _RemoteWalker(self._files, self._root).chunks()

    def __call__(self, chunk: Chunk) -> HashedChunk:
        """Return what became of each entry of *chunk*."""
        folder = printable(chunk.folder)
        done = HashedChunk(class_of(folder, self._label_from), chunk.fraction)
        files: list[FileDigest] = []
        for name, problem in chunk.entries:
            if self.is_stopped:
                break
            found = problem or self._take(folder + name.decode())
            if isinstance(found, FileDigest):
                done.paths.append(folder + name.decode())
                files.append(found)
                done.num_bytes_read += found.num_bytes
            elif isinstance(found, Problem):
                done.problems.append(found)
            elif isinstance(found, OSError):
                done.problems.append(problem_from(chunk.folder + name, found))
            else:
                done.problems.append(Problem(folder + name.decode(), *found))
        done.files = FileRows.of(files)
        return done

    def _take(self, path: str) -> FileDigest | OSError | Flaw:
        """Read an object to its end; once more if it changed meanwhile."""
        path = f"{self._root}/{path}"
        try:
            for _ in range(_NUM_TRIES):
                before = self._files.info(path)
                num_bytes, digest, facts = self._read(path, before["size"])
                if (
                    _version(before)
                    == _version(self._files.info(path))
                    == (num_bytes, *_tag(before))
                ):
                    return _checked(num_bytes, before, digest, facts)
        except OSError as error:
            return error
        return ProblemKind.CHANGED_WHILE_READ, ""

    def _read(self, path: str, size: int) -> tuple[int, bytes, ImageFacts]:
        if size < WHOLE_BYTES:
            content = self._files.cat_file(path)
            return len(content), *self._reader.describe(content, memoryview(content))
        hasher = self._algorithm.piecewise()
        num_bytes, facts = 0, None
        with self._files.open(path, "rb", block_size=_PIECE_BYTES) as file:
            while piece := file.read(_PIECE_BYTES):
                facts = facts or image_facts(piece, memoryview(piece))
                hasher.update(memoryview(piece))
                num_bytes += len(piece)
        known = facts or image_facts(b"", memoryview(b""))
        return num_bytes, hasher.digest(), known._replace(content_digest=None, has_end=None)


class _RemoteWalker(Walker):
    def __init__(self, files: Any, root: str) -> None:
        super().__init__(b"", follow_symlinks=False)
        self._files = files
        self._prefix = root

    def _remember(self, path: bytes) -> bytes | None:
        return None  # there are no links

    def _open(self, path: bytes) -> Level:
        level = Level(path, [], {})
        folder = f"{self._prefix}/{path.decode()}".rstrip("/")
        for info in self._files.ls(folder, detail=True):
            name = info["name"].rstrip("/").rpartition("/")[2].encode()
            if info["name"].rstrip("/") != folder:  # an empty object stands for the folder itself
                level.keys.append(name + b"/" if info["type"] == "directory" else name)
            if archive_stem(name) is not None and info["type"] != "directory":
                level.flaws[name] = ProblemKind.ARCHIVE_NOT_READ, ""
        level.keys.sort()
        return level


def _open(url: str) -> tuple[Any, str]:
    """Return the file system behind *url*, and the place in it."""
    try:
        import fsspec  # noqa: PLC0415

        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise MissingExtraError(
            f"`{url}` cannot be read: {error}", hint="`pip install 'vit21k[s3]'`"
        ) from None
    except ValueError as error:
        raise ImageTreeError(f"`{url}` cannot be read: {error}") from error
    root = root.rstrip("/")
    if not files.isdir(root):
        raise ImageTreeError(f"nothing lies below `{url}`", hint="is the address right?")
    return files, root


def _tag(info: Mapping[str, Any]) -> tuple[object, object]:
    return info.get("ETag"), _time(info)


def _version(info: Mapping[str, Any]) -> tuple[object, object, object]:
    return info["size"], *_tag(info)


def _time(info: Mapping[str, Any]) -> datetime | float | None:
    found: datetime | float | None = next((info[name] for name in _TIMES if name in info), None)
    return found


def _checked(
    num_bytes: int, info: Mapping[str, Any], digest: bytes, facts: ImageFacts
) -> FileDigest | Flaw:
    if not num_bytes:
        return ProblemKind.EMPTY, ""
    if facts.format in NOT_IMAGES:
        return no_image(facts)
    time = _time(info)
    seconds = time.timestamp() if isinstance(time, datetime) else time or 0.0
    return FileDigest(num_bytes, round(seconds * 1e6) * 1000, digest, facts)
