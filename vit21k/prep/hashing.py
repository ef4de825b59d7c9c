"""Image tree -> digests.parquet, problems.parquet: one row per file.

Input: folders at any depth; the class of a file is the name of the folder it lies in.
Output: both manifests in path order.  The bytes depend on the tree alone: not on the number of
workers, nor on the order in which the file system lists its entries, nor on the locale.
Errors: a file that cannot be used is a row of `problems.parquet`, and the run goes on.
Threading: this thread walks the tree and writes, *num_workers* threads read and digest chunks, of
which a bounded number is under way; they are taken in the order in which they were handed out.
Memory: independent of the number of files.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol

from vit21k.archives.part import ArchivePart
from vit21k.errors import ImageTreeError, UsageError
from vit21k.lock import locked
from vit21k.manifest.header import Header
from vit21k.manifest.io import ManifestWriter, manifest_writer
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.prep.archive_parts import with_parts
from vit21k.prep.digest import ChunkDigester, DigestedChunk
from vit21k.prep.digest_rows import digest_rows, problem_rows
from vit21k.prep.hash_memory import remembering
from vit21k.prep.mounts import is_remote
from vit21k.prep.places import image_root, refuse_inside
from vit21k.prep.quick import MODE, Candidates, QuickDigester
from vit21k.prep.shards import OPTION, Shard
from vit21k.prep.walk import Chunk, walk

DEFAULT_ALGORITHM = "xxh3_128"
DEFAULT_NUM_WORKERS = 16
"""More than there are cores: the workers of a cold run mostly wait for the disk."""

ARCHIVE_OPTION = "archive"
"""Option of a manifest's header: the file that was hashed, where it was one and not a tree."""

_CHUNKS_PER_WORKER = 4
_BATCH_ROWS = 16_384


@dataclass
class HashSummary:
    """Counts of a run of `hash_tree`.

    Attributes:
        num_entries: What the walk met, folders that it went into excepted.
        num_files: Rows of `digests.parquet`.
        num_bytes: Bytes of those files.
        num_bytes_read: Bytes that were read for that.
        num_known: Files that were not read, because they are as an earlier run left them.
        num_without_digest: Files that a quick run has proven unlike all others.
        silently_changed: Paths of files that are not what they were, though size and times are.
        is_remote: Whether files were taken for what they were by size and time alone.
        wnids: Names of the class folders.
        problems: Rows of `problems.parquet`, by kind.
    """

    num_entries: int = 0
    num_files: int = 0
    num_bytes: int = 0
    num_bytes_read: int = 0
    num_known: int = 0
    num_without_digest: int = 0
    silently_changed: list[str] = field(default_factory=list)
    is_remote: bool = False
    wnids: set[str] = field(default_factory=set)
    problems: Counter[ProblemKind] = field(default_factory=Counter)

    @property
    def num_bad(self) -> int:
        """Files and folders that could not be used."""
        return sum(count for kind, count in self.problems.items() if not kind.is_left_out)

    @property
    def num_left_out(self) -> int:
        """What is no image, or not to be followed."""
        return sum(count for kind, count in self.problems.items() if kind.is_left_out)

    def count(self, chunk: DigestedChunk, *, is_second_walk: bool) -> None:
        """Add what became of *chunk*; what was known is counted on the first of two walks."""
        self.num_entries += len(chunk.files) + len(chunk.problems)
        self.num_files += len(chunk.files)
        self.num_bytes += chunk.num_bytes
        self.num_bytes_read += chunk.num_bytes_read
        self.num_known += 0 if is_second_walk else chunk.num_known
        self.num_without_digest += sum(file.digest is None for file in chunk.files)
        self.silently_changed += chunk.silently_changed
        self.problems.update(problem.kind for problem in chunk.problems)
        if chunk.files:
            self.wnids.add(chunk.wnid)


def hash_tree(  # noqa: PLR0913
    root: Path,
    manifests: Path,
    *,
    algorithm: str = DEFAULT_ALGORITHM,
    num_workers: int = DEFAULT_NUM_WORKERS,
    follow_symlinks: bool = False,
    mode: Literal["full", "quick"] = "full",
    is_fresh: bool = False,
    recheck: float = 0.0,
    shard: Shard | None = None,
    engine: "Engine | None" = None,
    on_chunk: Callable[[DigestedChunk], None] = lambda _chunk: None,
) -> HashSummary:
    """Hash every image below *root* and write `digests.parquet` and `problems.parquet`.

    Args:
        root: The image root, or an archive; opened read-only.
        manifests: Folder to write to; not below *root*.
        algorithm: A key of `digest.ALGORITHMS`.
        num_workers: Threads that read and digest.
        follow_symlinks: Read what symbolic links lead to, instead of leaving them out.
        mode: Read all of every file, or of most files only as much as tells them from all others.
        is_fresh: Forget what earlier runs have read.
        recheck: Share of the files that are as they were to read all the same, 0 to 1.
        shard: Read only its share of the folders, and write to its own folder below *manifests*.
        engine: Where the chunks are digested; default: in threads of this process.  Nothing is
            remembered of a run on another one.
        on_chunk: Called, in path order, with each chunk that is done.

    Raises:
        ImageTreeError: No such folder, or no images in it; what was in *manifests* is unchanged.
        UsageError: *manifests* lies inside *root*; or a quick run on another engine was asked for.
        LockedError: Another run works on *manifests*.
        OSError: *manifests* cannot be written to.
    """
    root, archive = image_root(root)
    root_text = os.fsencode(root).decode("utf-8", "surrogateescape")
    refuse_inside(manifests, str(root))
    options: dict[str, Any] = {"follow_symlinks": follow_symlinks}
    options |= {"mode": mode} if mode != "full" else {}
    options |= {OPTION: str(shard)} if shard else {}
    options |= {ARCHIVE_OPTION: archive} if archive else {}
    header = Header(algorithm=algorithm, root=root_text, options=options)
    if mode == MODE and engine:
        raise UsageError("`--mode quick` runs on this machine only", hint="leave `--engine` out")
    digester = (QuickDigester if mode == MODE else ChunkDigester)(
        os.fsencode(root), algorithm=algorithm, follow_symlinks=follow_symlinks
    )
    digester.recheck = recheck
    digester.is_remote = is_remote(root)

    def chunks() -> Iterator[Chunk]:
        found = chunks_of(digester, archive)
        return (chunk for chunk in found if shard is None or shard.has(chunk.place))

    summary = HashSummary(is_remote=digester.is_remote)
    row_group_rows = shard.row_group_rows if shard else None
    out = shard.folder(manifests) if shard else manifests
    with (
        locked(out, command="hash"),
        remembering(digester, out, header, is_fresh=is_fresh, is_local=not engine) as memory,
    ):
        if isinstance(digester, QuickDigester):
            _find_candidates(digester, chunks(), num_workers, summary)
        done = _whole((engine or digest_in_threads)(digester, chunks(), num_workers))
        with (  # of the two, digests move into place last
            manifest_writer(DIGESTS, out, header, row_group_rows=row_group_rows) as digests,
            manifest_writer(PROBLEMS, out, header) as problems,
        ):
            rows = _Rows(digests, problems)
            for chunk in done:
                summary.count(chunk, is_second_walk=mode == MODE)
                rows.add(chunk)
                on_chunk(chunk)
            rows.flush()
            if not shard:
                _refuse_nothing(summary, root)
        memory.finish()
    return summary


def _find_candidates(
    digester: QuickDigester, chunks: Iterator[Chunk], num_workers: int, summary: HashSummary
) -> None:
    """Take the first of the two walks of a quick run."""
    candidates = Candidates()
    for chunk in _whole(digest_in_threads(digester, chunks, num_workers)):
        candidates.add(chunk)
        summary.num_bytes_read += chunk.num_bytes_read
        summary.num_known += chunk.num_known
    candidates.keep_repeated()
    digester.start_second_walk(candidates)


def _whole(chunks: Iterator[DigestedChunk]) -> Iterator[DigestedChunk]:
    return (chunk for first in chunks for chunk in chain((first,), first.more))


def chunks_of(digester: ChunkDigester, archive: str | None = None) -> Iterator[Chunk]:
    """Yield what there is to digest, in path order.

    Args:
        digester: Whose root it lies below.
        archive: Name of the one file of the root that counts, instead of a tree.
    """
    if archive is None:
        chunks = walk(digester.root, follow_symlinks=digester.follow_symlinks)
    else:
        name = os.fsencode(archive)
        chunks = iter([Chunk(b"", [], 1.0, ArchivePart(name, name, b""))])
    return with_parts(chunks, digester.root, flags=digester.file_flags)


Engine = Callable[[ChunkDigester, Iterator[Chunk], int], Iterator[DigestedChunk]]
"""Yields what became of each chunk, in order: of (digester, chunks, number of workers)."""


class Digester(Protocol):
    """What threads may share to digest chunks: a `ChunkDigester`, or one that reads from afar."""

    is_stopped: bool

    def __call__(self, chunk: Chunk, /) -> DigestedChunk:
        """Return what became of *chunk*."""


def digest_in_threads(
    digester: Digester, chunks: Iterator[Chunk], num_workers: int
) -> Iterator[DigestedChunk]:
    """Yield what became of each of *chunks*, in order; threads read and digest."""
    under_way: deque[Future[DigestedChunk]] = deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix="hash") as pool:
        try:
            for chunk in chunks:
                under_way.append(pool.submit(digester, chunk))
                if len(under_way) >= num_workers * _CHUNKS_PER_WORKER:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            digester.is_stopped = True
            pool.shutdown(cancel_futures=True)


def _refuse_nothing(summary: HashSummary, root: Path) -> None:
    if not summary.num_files and not summary.num_bad:
        raise ImageTreeError(
            f"no images below `{root}`",
            hint="expected folders such as `n01440764/` with .JPEG, .jpg, .png ... files in them"
            + _links_hint(summary),
        )


def _links_hint(summary: HashSummary) -> str:
    num_links = summary.problems[ProblemKind.SYMLINK]
    return f"; `--follow-symlinks` reads the {num_links:,} links found" if num_links else ""


class _Rows:
    """Gathers chunks, and hands them on in batches that are worth Arrow's overhead."""

    def __init__(self, digests: ManifestWriter, problems: ManifestWriter) -> None:
        self._digests = digests
        self._problems = problems
        self._chunks: list[DigestedChunk] = []
        self._num_waiting = 0

    def add(self, chunk: DigestedChunk) -> None:
        self._chunks.append(chunk)
        self._num_waiting += len(chunk.files) + len(chunk.problems)
        if self._num_waiting >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        if digests := [chunk for chunk in self._chunks if chunk.files]:
            self._digests.write(digest_rows(digests))
        if problems := [problem for chunk in self._chunks for problem in chunk.problems]:
            self._problems.write(problem_rows(problems))
        self._chunks = []
        self._num_waiting = 0
