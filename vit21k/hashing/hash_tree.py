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
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vit21k.archives.part import ArchivePart
from vit21k.errors import ImageTreeError, UsageError
from vit21k.hashing.archive_parts import with_parts
from vit21k.hashing.digest import ChunkDigester, DigestedChunk
from vit21k.hashing.digest_rows import RowWriter
from vit21k.hashing.engine import Engine, digest_in_threads, suitable_workers
from vit21k.hashing.memory import remembering
from vit21k.hashing.mounts import is_remote
from vit21k.hashing.places import image_root, look_at, refuse_inside, refuse_parquet
from vit21k.hashing.quick import MODE, Candidates, QuickDigester
from vit21k.hashing.shards import OPTION, Shard
from vit21k.hashing.summary import HashSummary
from vit21k.hashing.walk import Chunk, walk
from vit21k.lock import locked
from vit21k.manifest.header import Header
from vit21k.manifest.layout import OPTION as LABEL_OPTION
from vit21k.manifest.layout import LabelFrom, Layout
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.manifest.writer import manifest_writer
from vit21k.one_line import printable

DEFAULT_ALGORITHM = "xxh3_128"
ARCHIVE_OPTION = "archive"
"""Option of a manifest's header: the file that was hashed, where it was one and not a tree."""


OnChunk = Callable[[DigestedChunk], None]


def hash_tree(  # noqa: PLR0913
    root: Path,
    manifests: Path,
    *,
    algorithm: str = DEFAULT_ALGORITHM,
    num_workers: int | None = None,
    follow_symlinks: bool = False,
    mode: Literal["full", "quick"] = "full",
    is_fresh: bool = False,
    recheck: float = 0.0,
    shard: Shard | None = None,
    engine: Engine | None = None,
    label_from: LabelFrom | None = None,
    splits: Collection[str] = (),
    on_look: OnChunk = lambda _chunk: None,
    on_chunk: OnChunk = lambda _chunk: None,
) -> HashSummary:
    """Hash every image below *root* and write `digests.parquet` and `problems.parquet`.

    Args:
        root: The image root, or an archive; opened read-only.
        manifests: Folder to write to; not below *root*.
        algorithm: A key of `algorithms.ALGORITHMS`.
        num_workers: Threads that read and digest; None: as many as suit the file system.
        follow_symlinks: Read what symbolic links lead to, instead of leaving them out.
        mode: Read all of every file, or of most files only as much as tells them from all others.
        is_fresh: Forget what earlier runs have read.
        recheck: Share of the files that are as they were to read all the same, 0 to 1.
        shard: Read only its share of the folders, and write to its own folder below *manifests*.
        engine: Where the chunks are digested; default: in threads of this process.  Nothing is
            remembered of a run on another one.
        label_from: Which folder of an image is its class; None: the one it lies in, if that can be
            a class.
        splits: Folders of the root that the caller keeps apart, as train and val.
        on_look: Called with each chunk of the first of the two walks of a quick run.
        on_chunk: Called, in path order, with each chunk that is done.

    Raises:
        ImageTreeError: No such folder, or no images in it; what was in *manifests* is unchanged.
        LayoutError: Its folders cannot be classes; likewise.
        UsageError: *manifests* lies inside *root*; or a quick run on another engine was asked for.
        LockedError: Another run works on *manifests*.
        OSError: *manifests* cannot be written to.
    """
    root, archive = image_root(root)
    refuse_inside(manifests, str(root))
    if mode == MODE and engine:
        raise UsageError("`--mode quick` runs on this machine only", hint="leave `--engine` out")
    layout = Layout(str(root / (archive or "")), label_from=label_from, splits=splits)
    if archive is None:
        look_at(root, layout)
    options = {"follow_symlinks": follow_symlinks, **_rare_options(mode, shard, archive)}
    if label_from:
        options[LABEL_OPTION] = label_from
    header = Header(algorithm=algorithm, root=_as_text(root), options=options)
    digester = (QuickDigester if mode == MODE else ChunkDigester)(
        os.fsencode(root), algorithm=algorithm, follow_symlinks=follow_symlinks
    )
    digester.recheck, digester.is_remote = recheck, is_remote(root)
    digester.label_from = label_from
    out = shard.folder(manifests) if shard else manifests
    if num_workers is None:
        num_workers = suitable_workers(digester)
    run = _Run(digester, archive, shard, num_workers, engine or digest_in_threads)
    run.summary.layout = layout
    with (
        locked(out, command="hash"),
        remembering(digester, out, header, is_fresh=is_fresh, is_local=not engine) as memory,
    ):
        run.write(out, header, on_look, on_chunk)
        memory.finish()
    return run.summary


def _rare_options(mode: str, shard: Shard | None, archive: str | None) -> dict[str, Any]:
    """Return those options of the header that are left out where they say nothing."""
    options = {"mode": "" if mode == "full" else mode}
    options |= {OPTION: str(shard or ""), ARCHIVE_OPTION: archive or ""}
    return {name: value for name, value in options.items() if value}


def _as_text(root: Path) -> str:
    return os.fsencode(root).decode("utf-8", "surrogateescape")


class _Run:
    """One run, from the walk to the manifests."""

    def __init__(
        self,
        digester: ChunkDigester,
        archive: str | None,
        shard: Shard | None,
        num_workers: int,
        engine: Engine,
    ) -> None:
        self.summary = HashSummary(is_remote=digester.is_remote)
        self._digester = digester
        self._archive = archive
        self._shard = shard
        self._num_workers = num_workers
        self._engine = engine

    def write(self, out: Path, header: Header, on_look: OnChunk, on_chunk: OnChunk) -> None:
        """Digest everything and write both manifests to *out*."""
        is_quick = isinstance(self._digester, QuickDigester)
        if is_quick:
            self._find_candidates(on_look)
        row_group_rows = self._shard.row_group_rows if self._shard else None
        with (  # of the two, digests move into place last
            manifest_writer(DIGESTS, out, header, row_group_rows=row_group_rows) as digests,
            manifest_writer(PROBLEMS, out, header) as problems,
        ):
            rows = RowWriter(digests, problems)
            for chunk in self._walk():
                self.summary.count(chunk, is_second_walk=is_quick)
                rows.add(chunk)
                on_chunk(chunk)
            rows.flush()
            if not self._shard:
                _refuse_nothing(self.summary, self._digester.root)
            self.summary.layout.refuse(is_complete=not self._shard)

    def _walk(self) -> Iterator[DigestedChunk]:
        """Yield what became of everything, in path order, the members of archives one by one."""
        chunks = chunks_of(self._digester, self._archive)
        if self._shard:
            chunks = filter(partial(_is_of, self._shard), chunks)
        for done in self._engine(self._digester, chunks, self._num_workers):
            yield done
            yield from done.more

    def _find_candidates(self, on_look: OnChunk) -> None:
        """Take the first of the two walks of a quick run."""
        candidates = Candidates()
        for chunk in self._walk():
            candidates.add(chunk)
            on_look(chunk)
            self.summary.num_bytes_read += chunk.num_bytes_read
            self.summary.num_known += chunk.num_known
        candidates.keep_repeated()
        if isinstance(self._digester, QuickDigester):
            self._digester.start_second_walk(candidates)


def _is_of(shard: Shard, chunk: Chunk) -> bool:
    return shard.has(chunk.place)


def chunks_of(digester: ChunkDigester, archive: str | None = None) -> Iterator[Chunk]:
    """Yield what there is to digest, in path order.

    Args:
        digester: Whose root it lies below.
        archive: Name of the one file of the root that counts, instead of a tree.
    """
    if archive is None:
        follow_symlinks = digester.follow_symlinks
        if digester.compiled:
            list_files = digester.compiled.list_files
            chunks = walk(digester.root, follow_symlinks=follow_symlinks, list_files=list_files)
        else:
            chunks = walk(digester.root, follow_symlinks=follow_symlinks)
    else:
        name = os.fsencode(archive)
        chunks = iter([Chunk(b"", [], 1.0, ArchivePart(name, name, b""))])
    return with_parts(chunks, digester.root, flags=digester.file_flags)


def _refuse_nothing(summary: HashSummary, root: bytes) -> None:
    if not summary.num_files and summary.other_suffixes["parquet"]:
        refuse_parquet(printable(root[:-1]))
    if not summary.num_files and not summary.num_bad:
        raise ImageTreeError(
            f"no images below `{printable(root[:-1])}`",
            hint="expected folders such as `n01440764/` with .JPEG, .jpg, .png ... files in them"
            + _links_hint(summary),
        )


def _links_hint(summary: HashSummary) -> str:
    num_links = summary.problems[ProblemKind.SYMLINK]
    return f"; `--follow-symlinks` reads the {num_links:,} links found" if num_links else ""
