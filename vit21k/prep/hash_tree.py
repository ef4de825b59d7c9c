"""Counts of a run of `hash`.

Image tree -> digests.parquet, problems.parquet: one row per file.

Input: folders at any depth; the class of a file is the name of the folder that contains it.
Output: both manifests in path order.  The bytes depend on the tree alone: not on the number of
workers, nor on the order in which the file system lists its entries, nor on the locale.
Errors: a file that cannot be used is a row of `problems.parquet`, and the run continues.
Threading: this thread walks the tree and writes, *num_workers* threads read and digest chunks, of
which a bounded number is under way; they are taken in the order in which they were handed out.
Memory: independent of the number of files.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

from vit21k.errors import ImageTreeError, LayoutError, UsageError, printable
from vit21k.lock import locked
from vit21k.manifest.archive_names import archive_stem
from vit21k.manifest.io import ARCHIVE_OPTION, ManifestHeader
from vit21k.manifest.layout import Layout, stem_of
from vit21k.manifest.problems import Problem, ProblemKind, num_known
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.manifest.writer import manifest_writer, refuse_inside
from vit21k.prep.file_digest import UNKNOWN
from vit21k.prep.hash_archives import with_class_tars
from vit21k.prep.hash_cache import hash_cache
from vit21k.prep.hash_chunks import (
    ChunkHasher,
    Engine,
    HashedChunk,
    RowWriter,
    hash_in_threads,
    suitable_workers,
)
from vit21k.prep.quick import MODE, Candidates, QuickHasher
from vit21k.prep.scan import FORMATS, HAS_DIGEST, HAS_FACTS, with_classes
from vit21k.prep.shards import OPTION, Shard
from vit21k.sources.container import (
    TAR,
    ContainerRange,
    LabelOptions,
    SourceTree,
    label_options,
)
from vit21k.sources.detect import LayoutChoice, SourceLayout, detect
from vit21k.sources.folders import (
    Chunk,
    FolderTree,
    image_root,
    is_remote,
    look_at,
    refuse_empty,
    refuse_file,
)
from vit21k.sources.gzip_tar import IndexFolder
from vit21k.sources.label_file import MAP_SUFFIX, LabelFile, read_zip_maps
from vit21k.sources.read import Root
from vit21k.sources.remote import RemoteTree, is_url
from vit21k.sources.split_folders import find_splits


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
        num_unknown: Files that begin like no image, nor like anything else that is known.
        silently_changed: Paths of files that are not what they were, though size and times are.
        is_remote: Whether files were treated as unchanged by size and time alone.
        wnids: Names of the class folders.
        problems: Rows of `problems.parquet`, by kind.
        num_known_problems: Of them, files that are known to be unreadable in fall11.
        layout: The classes, as far as the folders define them.
        other_suffixes: Of the files that are no images by their names.
    """

    num_entries: int = 0
    num_files: int = 0
    num_bytes: int = 0
    num_bytes_read: int = 0
    num_known: int = 0
    num_without_digest: int = 0
    num_unknown: int = 0
    silently_changed: list[str] = field(default_factory=list)
    is_remote: bool = False
    wnids: set[str] = field(default_factory=set)
    problems: Counter[ProblemKind] = field(default_factory=Counter)
    num_known_problems: int = 0
    layout: Layout = field(default_factory=lambda: Layout(""))
    other_suffixes: Counter[str] = field(default_factory=Counter)

    @property
    def num_bad(self) -> int:
        """Files and folders that could not be used."""
        bad = sum(count for kind, count in self.problems.items() if not kind.is_skipped)
        return bad - self.num_missing

    @property
    def num_missing(self) -> int:
        """Names of a label file that no image has."""
        return self.problems[ProblemKind.FILE_MISSING]

    @property
    def num_skipped(self) -> int:
        """What is no image, or not to be followed."""
        return sum(count for kind, count in self.problems.items() if kind.is_skipped)

    def count(self, chunk: HashedChunk, *, is_second_walk: bool) -> None:
        """Add what became of *chunk*; what was known is counted on the first of two walks."""
        num_missing = sum(each.kind is ProblemKind.FILE_MISSING for each in chunk.problems)
        self.num_entries += len(chunk.files) + len(chunk.problems) - num_missing
        self.num_files += len(chunk.files)
        self.num_bytes += chunk.num_bytes
        self.num_bytes_read += chunk.num_bytes_read
        self.num_known += 0 if is_second_walk else chunk.num_known
        files = chunk.files
        self.num_without_digest += len(files) - int(files.have(HAS_DIGEST).sum())
        is_unknown = files.have(HAS_FACTS) & (files.array["format"] == FORMATS.index(UNKNOWN))
        self.num_unknown += int(is_unknown.sum())
        self.silently_changed += chunk.silently_changed
        self.problems.update(problem.kind for problem in chunk.problems)
        bad = [problem.path for problem in chunk.problems if not problem.kind.is_skipped]
        self.num_known_problems += num_known(bad)
        others = [p.path for p in chunk.problems if p.kind is ProblemKind.OTHER_SUFFIX]
        self.other_suffixes.update(path.rpartition(".")[2].lower() for path in others)
        stem = stem_of(chunk.container) if chunk.container else None
        self.wnids |= chunk.classes
        if chunk.files and not chunk.wnids:
            self.layout.add(chunk.paths[0].rpartition("/")[0], stem)
        self.layout.add_files(chunk.paths, others, stem)


DEFAULT_ALGORITHM = "xxh3_128"


OnChunk = Callable[[HashedChunk], None]


def hash_tree(  # noqa: PLR0913
    root: Root,
    manifests: str | Path,
    *,
    algorithm: str = DEFAULT_ALGORITHM,
    num_workers: int | None = None,
    follow_symlinks: bool = False,
    mode: Literal["full", "quick"] = "full",
    is_fresh: bool = False,
    recheck: float = 0.0,
    shard: Shard | None = None,
    engine: Engine | None = None,
    layout: LayoutChoice | None = None,
    label_from: str | None = None,
    class_names: Sequence[str] | None = None,
    image_column: str | None = None,
    label_file: LabelFile | None = None,
    on_layout: Callable[[SourceLayout], None] = lambda _layout: None,
    on_look: OnChunk = lambda _chunk: None,
    on_chunk: OnChunk = lambda _chunk: None,
) -> HashSummary:
    """Hash every image below *root*; write `digests.parquet` and `problems.parquet`.

    Args:
        root: Image root or archive, or the URL of one; opened read-only.
        manifests: Output folder; not below *root*.
        algorithm: A key of `file_digest.ALGORITHMS`.
        num_workers: Threads that read and hash; None: a number that suits the file system.
        follow_symlinks: Read the targets of symbolic links instead of skipping the links.
        mode: ``full`` hashes every file; ``quick`` only the head and tail of files without copies.
        is_fresh: Ignore the cache of earlier runs.
        recheck: Fraction of the unchanged files to re-read anyway, 0 to 1.
        shard: Hash only this shard, and write to its own folder below *manifests*.
        engine: Where chunks are hashed; default: in threads.  Other engines have no cache.
        layout: What the source is; None: detected.
        label_from: Where the class of an image comes from (`LabelOptions`); None: detected.
        class_names: What the class indices in a source mean; None: it says so itself.
        image_column: Column or field of a source that has images in several.
        label_file: The classes of the images, whatever folder they are in.
        on_layout: Called once with what was detected, before anything is hashed.
        on_look: Called with each chunk of the first walk of a quick run.
        on_chunk: Called with each hashed chunk, in path order.

    Raises:
        ImageTreeError: No such folder, or it has no images; *manifests* is unchanged.
        LayoutError: Folders or labels are not clear; *manifests* is unchanged.
        UsageError: *manifests* is inside *root*, or arguments contradict each other.
        LockedError: Another run works on *manifests*.
        OSError: *manifests* cannot be written to.
    """
    manifests = Path(manifests)
    _refuse_contradictions(root, mode, engine)
    place = _place_of(root, is_flat=label_file is not None or label_from == "key")
    if not any((label_file, layout, label_from)):
        label_file = _zip_maps(place, class_names)
    refuse_inside(manifests, "" if place.archive else place.root)
    labels = label_options(label_from, class_names, image_column)
    found = _layout_of(place, layout, labels, label_file)
    on_layout(found)
    judge = _judge(place, found)
    given = _non_default_options(mode, shard, place.archive)
    options = {**given, **found.options, "follow_symlinks": follow_symlinks}
    header = ManifestHeader(algorithm=algorithm, root=place.root, options=options)
    hasher = hasher_of(header, found, is_quick=mode == MODE, recheck=recheck)
    hasher.indices = IndexFolder(manifests)
    out = shard.folder(manifests) if shard else manifests
    run = _Run(hasher, place.archive, shard, num_workers, engine, judge, label_file)
    cache = hash_cache(out, header, is_fresh=is_fresh, is_remote=hasher.is_remote)
    with locked(out, command="hash"), nullcontext() if engine else cache as hasher.cache:
        run.write(out, header, on_look, on_chunk)
    return run.summary


def _refuse_contradictions(root: Root, mode: str, engine: Engine | None) -> None:
    if is_url(root) and (mode == MODE or engine):
        raise UsageError(
            "a URL is always read in full, by this machine",
            hint="leave `--mode` and `--engine` out; `--shard I/N` divides the work",
        )
    if mode == MODE and engine:
        raise UsageError("`--mode quick` runs on this machine only", hint="leave `--engine` out")


class _Place(NamedTuple):
    """Where a source is.

    Attributes:
        root: Path or URL of the image root.
        archive: Name of the one file in it that is hashed; None: all.
        tree: Its files and archives.
    """

    root: str
    archive: str | None
    tree: SourceTree

    @property
    def name(self) -> str:
        """Path or URL of what is hashed."""
        return f"{self.root}/{self.archive}" if self.archive else self.root


def _place_of(root: Root, *, is_flat: bool) -> _Place:
    """Return where *root* is; of a container, the folder that contains it.

    Raises:
        ImageTreeError: There is nothing that can be hashed.
        OSError: A server does not answer.
    """
    if not is_url(root):
        folder, archive = image_root(Path(root), is_flat=is_flat)
        return _Place(_as_text(folder), archive, FolderTree(folder, only=archive))
    tree = RemoteTree(str(root))
    if tree.is_folder():
        refuse_empty(tree, tree.url, is_flat=is_flat)
        return _Place(tree.url, None, tree)
    if not tree.is_object():
        raise ImageTreeError(f"nothing is below `{tree.url}`", hint="check the address")
    refuse_file(tree.url)
    above, _, name = tree.url.rpartition("/")
    return _Place(above, name, RemoteTree(above, only=name))


def _judge(place: _Place, layout: SourceLayout) -> Layout:
    """Return what refuses folders that cannot be classes, after it has seen those at the top."""
    judge = layout.judge(place.name)
    if place.archive is None:
        look_at(place.tree, judge)
    return judge


def _zip_maps(place: _Place, class_names: Sequence[str] | None) -> LabelFile | None:
    """Return the labels of the lists next to zips; those of a URL are copied to be read."""
    if not is_url(place.root):
        return read_zip_maps(Path(place.root), place.archive, class_names)
    tree = RemoteTree(place.root)
    names = {entry.name for entry in tree.entries() if not entry.is_folder}
    with TemporaryDirectory() as folder:
        for name in names:
            stem, _, suffix = name.rpartition(".")
            listed = f"{stem}{MAP_SUFFIX}"
            if suffix.lower() == "zip" and listed in names:
                Path(folder, name).touch()
                Path(folder, listed).write_bytes(tree.read(listed))
        return read_zip_maps(Path(folder), place.archive, class_names)


def _layout_of(
    place: _Place,
    layout: LayoutChoice | None,
    labels: LabelOptions,
    label_file: LabelFile | None,
) -> SourceLayout:
    """Return the layout of a source; with a label file, only its splits."""
    tree = place.tree
    if label_file is not None:
        return SourceLayout(label_file=label_file.identity, splits=find_splits(tree, are_flat=True))
    found = detect(tree, place.root, layout=layout, labels=labels)
    if labels.are_classes_given and found.name == "folders":
        raise UsageError(
            "`--classes` says what numbers mean, and the classes of folders are names",
            hint="`vit21k relabel --classes LIST` sets the class indices",
        )
    return found


def hasher_of(
    header: ManifestHeader,
    layout: SourceLayout,
    *,
    root: Root | None = None,
    is_quick: bool = False,
    recheck: float = 0.0,
) -> ChunkHasher:
    """Return what hashes a source as *header* says.

    Args:
        header: Of `digests.parquet`.
        layout: Of the source.
        root: Where the source is now; None: where the header says.
        is_quick: Hash only head and tail of files without copies.
        recheck: Fraction of the cached files to re-read anyway, 0 to 1.
    """
    place = str(root or header.root)
    if is_url(place):
        from vit21k.prep.hash_remote import RemoteHasher  # noqa: PLC0415 (few sources are)

        tree = RemoteTree(place)
        return RemoteHasher(tree, algorithm=header.algorithm, layout=layout, recheck=recheck)
    return (QuickHasher if is_quick else ChunkHasher)(
        _as_bytes(place),
        algorithm=header.algorithm,
        follow_symlinks=bool(header.options.get("follow_symlinks")),
        layout=layout,
        is_remote=is_remote(Path(place)),
        recheck=recheck,
    )


def _non_default_options(mode: str, shard: Shard | None, archive: str | None) -> dict[str, Any]:
    """Return the options that the header holds only where they differ from their default."""
    options = {
        "mode": "" if mode == "full" else mode,
        OPTION: str(shard or ""),
        ARCHIVE_OPTION: archive,
    }
    return {name: value for name, value in options.items() if value}


def _as_text(root: Path) -> str:
    return os.fsencode(root).decode("utf-8", "surrogateescape")


def _as_bytes(root: str) -> bytes:
    return root.encode("utf-8", "surrogateescape")


class _Run:
    """One run, from the walk to the manifests."""

    def __init__(
        self,
        hasher: ChunkHasher,
        archive: str | None,
        shard: Shard | None,
        num_workers: int | None,
        engine: Engine | None,
        layout: Layout,
        label_file: LabelFile | None,
    ) -> None:
        self.summary = HashSummary(is_remote=hasher.is_remote, layout=layout)
        self._hasher = hasher
        self._archive = archive
        self._shard = shard
        self._label_file = label_file
        self._num_workers = num_workers or suitable_workers(hasher)
        self._engine = engine or hash_in_threads

    def write(self, out: Path, header: ManifestHeader, on_look: OnChunk, on_chunk: OnChunk) -> None:
        """Digest everything and write both manifests to *out*."""
        is_quick = isinstance(self._hasher, QuickHasher)
        if is_quick:
            self._find_candidates(on_look)
        row_group_rows = self._shard.row_group_rows if self._shard else None
        with (  # of the two, digests move into place last
            manifest_writer(DIGESTS, out, header, row_group_rows=row_group_rows) as digests,
            manifest_writer(PROBLEMS, out, header) as problems,
        ):
            rows = RowWriter(digests, problems)
            for chunk in self._labelled(map(self._in_split, self._walk())):
                self.summary.count(chunk, is_second_walk=is_quick)
                rows.add(chunk)
                on_chunk(chunk)
            if self._label_file:
                unused = HashedChunk("", 1.0, problems=self._label_file.unused())
                rows.add(unused)
                if not self._shard:  # other shards may have these images
                    self.summary.count(unused, is_second_walk=is_quick)
            rows.flush()
            if not self._shard:
                _refuse_nothing(self.summary, self._hasher.root)
            self.summary.layout.refuse(is_complete=not self._shard)

    def _in_split(self, chunk: HashedChunk) -> HashedChunk:
        """Return *chunk* with the published split that its folder is in.

        Images in the folder of a test split itself have no class.
        """
        splits = self._hasher.layout.splits
        if splits is None or not chunk.files:
            return chunk
        folder = chunk.paths[0].rpartition("/")[0]
        chunk.source_split = splits.split_of(folder)
        if chunk.source_split == "test" and not splits.inside(folder) and not self._label_file:
            return with_classes(chunk, _without_class)
        return chunk

    def _labelled(self, chunks: Iterator[HashedChunk]) -> Iterator[HashedChunk]:
        """Yield *chunks* with the classes of the label file, if there is one, or in their paths."""
        class_of = self._hasher.layout.class_of_path
        if self._label_file is None:
            yield from (with_classes(chunk, class_of) for chunk in chunks) if class_of else chunks
            return
        for chunk in chunks:
            for problem in chunk.problems:
                if not problem.kind.is_skipped:
                    self._label_file.class_of(problem.path)  # the file is there
            yield with_classes(chunk, self._label_file.class_of)
        is_useless = self.summary.problems[ProblemKind.LABEL_MISSING] and not self.summary.num_files
        if is_useless and not self._shard:
            self._label_file.refuse(printable(self._hasher.root[:-1]))

    def _walk(self) -> Iterator[HashedChunk]:
        """Yield what became of everything, in path order, the members of archives one by one."""
        chunks = chunks_of(self._hasher, self._archive)
        if self._shard:
            chunks = filter(partial(_is_of, self._shard), chunks)
        for done in self._engine(self._hasher, chunks, self._num_workers):
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
        if isinstance(self._hasher, QuickHasher):
            self._hasher.start_second_walk(candidates)


def _without_class(path: str) -> Problem:
    return Problem(path, ProblemKind.UNLABELLED, "in the folder of a split, in no class folder")


def _is_of(shard: Shard, chunk: Chunk) -> bool:
    return shard.has(chunk.shard_folder)


def chunks_of(hasher: ChunkHasher, archive: str | None = None) -> Iterator[Chunk]:
    """Yield the files to hash, in path order.

    Args:
        hasher: Its root contains the files.
        archive: Name of the one file of the root that counts, instead of a tree.
    """
    if archive is None:
        walker = hasher.walker()
        walker.kind_of = hasher.layout.kind_of
        chunks = walker.chunks()
        if hasher.layout.is_flat:
            chunks = map(_with_files_of_root, chunks)
    else:
        name = os.fsencode(archive)
        kind = hasher.layout.kind_of(name) or TAR
        folder = b"" if kind == TAR else name + b"/"
        if hasher.layout.is_flat:
            folder = (archive_stem(name) or name) + b"/"
        chunks = iter([Chunk(b"", [], 1.0, ContainerRange(name, name, folder, kind=kind))])
    return with_class_tars(chunks, hasher.files, hasher.num_ahead)


def _with_files_of_root(chunk: Chunk) -> Chunk:
    """Return *chunk* with the files of the root as such that are to be read."""
    if chunk.folder:
        return chunk
    entries = [
        (name, None if problem and problem.kind is ProblemKind.NOT_IN_CLASS_FOLDER else problem)
        for name, problem in chunk.entries
    ]
    return chunk._replace(entries=entries)


def _refuse_nothing(summary: HashSummary, root: bytes) -> None:
    tables = [suffix for suffix in ("parquet", "arrow") if summary.other_suffixes[suffix]]
    if not summary.num_files and tables:
        raise LayoutError(
            f"`{printable(root[:-1])}` holds .{tables[0]} files, and no images that are found",
            hint=f"`--layout {tables[0]}` looks for images in their columns",
        )
    if not summary.num_files and not summary.num_bad:
        raise ImageTreeError(
            f"no images below `{printable(root[:-1])}`",
            hint="expected folders such as `n01440764/` with .JPEG, .jpg, .png ... files in them"
            + _links_hint(summary),
        )


def _links_hint(summary: HashSummary) -> str:
    num_links = summary.problems[ProblemKind.SYMLINK]
    return f"; `--follow-symlinks` reads the {num_links:,} links found" if num_links else ""
