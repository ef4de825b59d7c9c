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
from typing import Any

from vit21k.archives.part import ArchivePart
from vit21k.errors import ImageTreeError
from vit21k.lock import locked
from vit21k.manifest.header import Header
from vit21k.manifest.io import ManifestWriter, manifest_writer
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.prep.archive_parts import with_parts
from vit21k.prep.digest import ChunkDigester, DigestedChunk
from vit21k.prep.digest_rows import digest_rows, problem_rows
from vit21k.prep.places import image_root, refuse_inside
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
        wnids: Names of the class folders.
        problems: Rows of `problems.parquet`, by kind.
    """

    num_entries: int = 0
    num_files: int = 0
    num_bytes: int = 0
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


def hash_tree(
    root: Path,
    manifests: Path,
    *,
    algorithm: str = DEFAULT_ALGORITHM,
    num_workers: int = DEFAULT_NUM_WORKERS,
    follow_symlinks: bool = False,
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
        shard: Read only its share of the folders, and write to its own folder below *manifests*.
        engine: Where the chunks are digested; default: in threads of this process.
        on_chunk: Called, in path order, with each chunk that is done.

    Raises:
        ImageTreeError: No such folder, or no images in it; what was in *manifests* is unchanged.
        UsageError: *manifests* lies inside *root*.
        LockedError: Another run works on *manifests*.
        OSError: *manifests* cannot be written to.
    """
    root, archive = image_root(root)
    root_text = os.fsencode(root).decode("utf-8", "surrogateescape")
    refuse_inside(manifests, str(root))
    options: dict[str, Any] = {"follow_symlinks": follow_symlinks}
    options |= {OPTION: str(shard)} if shard else {}
    options |= {ARCHIVE_OPTION: archive} if archive else {}
    header = Header(algorithm=algorithm, root=root_text, options=options)
    summary = HashSummary()
    row_group_rows = shard.row_group_rows if shard else None
    out = shard.folder(manifests) if shard else manifests
    with (
        locked(out, command="hash"),  # of the two, digests move into place last
        manifest_writer(DIGESTS, out, header, row_group_rows=row_group_rows) as digests,
        manifest_writer(PROBLEMS, out, header) as problems,
    ):
        rows = _Rows(digests, problems)
        digester = ChunkDigester(
            os.fsencode(root), algorithm=algorithm, follow_symlinks=follow_symlinks
        )
        chunks = chunks_of(digester, archive)
        if shard:
            chunks = (chunk for chunk in chunks if shard.has(chunk.place))
        for done in (engine or digest_in_threads)(digester, chunks, num_workers):
            for chunk in chain((done,), done.more):
                _count(chunk, summary)
                rows.add(chunk)
                on_chunk(chunk)
        rows.flush()
        if not shard:
            _refuse_nothing(summary, root)
    return summary


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


def digest_in_threads(
    digester: ChunkDigester, chunks: Iterator[Chunk], num_workers: int
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


def _count(chunk: DigestedChunk, summary: HashSummary) -> None:
    summary.num_entries += len(chunk.files) + len(chunk.problems)
    summary.num_files += len(chunk.files)
    summary.num_bytes += chunk.num_bytes
    summary.problems.update(problem.kind for problem in chunk.problems)
    if chunk.files:
        summary.wnids.add(chunk.wnid)


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
