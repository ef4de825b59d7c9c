"""Compare digests.parquet with the image tree: read and hash every file again."""

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from vit21k.errors import DataError, ImageError
from vit21k.manifest.io import ARCHIVE_OPTION, Manifest, damaged_manifests, open_manifest
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.manifest.schema import DIGESTS, LOCATOR_COLUMNS, PROBLEMS
from vit21k.prep.dedup import FileKeys, as_numbers, find_copies
from vit21k.prep.hash_chunks import (
    HashedChunk,
    hash_in_threads,
    suitable_workers,
)
from vit21k.prep.hash_tree import chunks_of, hasher_of
from vit21k.prep.scan import FileRows, numbers
from vit21k.prep.shards import OPTION, Shard
from vit21k.sources.detect import SourceLayout
from vit21k.sources.read import ImageReader, Locator, Root, existing_root

Sign = Literal["=", "*", "+", "-", "!"]

OnFile = Callable[[Sign, str], None]


@dataclass
class VerifySummary:
    """Counts of a run of `verify`.

    Attributes:
        num_files: Rows of `digests.parquet`: the sum of the next four.
        num_same: Unchanged files.
        num_different: Files with other bytes.
        num_missing: Files that no longer exist.
        num_unreadable: Files that cannot be read.
        num_new: Files, and new problems, that the manifests do not list.
        num_by_size: Of those that are the same, how many only by their size, because a quick run
            took no digest of them.
        manifest_problems: What is wrong with other manifests of the folder, by file name.
    """

    num_files: int = 0
    num_same: int = 0
    num_different: int = 0
    num_missing: int = 0
    num_unreadable: int = 0
    num_new: int = 0
    num_by_size: int = 0
    manifest_problems: dict[str, str] = field(default_factory=dict)

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        is_same = self.num_same == self.num_files and not self.num_new
        return is_same and not self.manifest_problems


class FileComparison:
    """The rows of the manifest by a hash of their paths, and which of them were met.

    64 bits of hash: at 14.2 million files the odds that two paths share one are 5e-6, and the run
    would then report a difference that is none.
    """

    def __init__(
        self, digests: Manifest, known_problems: set[str], unlabelled: set[str], on_file: OnFile
    ) -> None:
        self._manifest = digests
        self._known_problems = known_problems
        self._unlabelled = unlabelled
        self._on_file = on_file
        keys, digests_N2, sizes, has_digest = _read(digests)
        self._row_K = np.argsort(keys, kind="stable")
        self._key_K = keys[self._row_K]
        self._digests_N2, self._num_bytes_N, self._has_digest_N = digests_N2, sizes, has_digest
        self._is_met_N = np.zeros(len(keys), dtype=bool)
        is_repeated_K = self._key_K[1:] == self._key_K[:-1]  # a row for each label of an image
        self._is_met_N[self._row_K[1:][is_repeated_K]] = True
        num_files = len(keys) - int(is_repeated_K.sum())
        self.summary = VerifySummary(num_files=num_files)

    def take(self, chunk: HashedChunk) -> None:
        """Compare the rows of a chunk."""
        chunk = _without_repeats(chunk)
        if chunk.files:
            rows_B = self._rows_of(chunk.paths)
            is_listed_B = rows_B >= 0
            is_same_B = self._are_same(rows_B, chunk.files) & is_listed_B
            self._is_met_N[rows_B[is_listed_B]] = True
            for path, is_listed, is_same in zip(
                chunk.paths, is_listed_B.tolist(), is_same_B.tolist(), strict=True
            ):
                if is_listed or path not in self._unlabelled:
                    self._say("=" if is_same else "*" if is_listed else "+", path)
        if chunk.problems:
            self._take_problems([each for each in chunk.problems if not each.kind.is_skipped])

    def _are_same(self, rows_B: NDArray[np.int64], files: FileRows) -> NDArray[np.bool_]:
        """Return which of *files* are as the rows say; anything where the row is -1."""
        if not len(self._has_digest_N):
            return np.zeros(len(files), dtype=bool)
        digests_B2 = numbers(files.array, "digest")
        is_same_B: NDArray[np.bool_]
        is_same_B = (self._digests_N2[rows_B] == digests_B2).all(axis=1)
        if not self._has_digest_N.all():
            by_size_B = ~self._has_digest_N[rows_B] & (rows_B >= 0)
            num_bytes_B = files.array["num_bytes"]
            self.summary.num_by_size += int(by_size_B.sum())
            is_same_B = np.where(by_size_B, self._num_bytes_N[rows_B] == num_bytes_B, is_same_B)
        return is_same_B

    def _take_problems(self, problems: list[Problem]) -> None:
        paths = [problem.path for problem in problems]
        for path, row in zip(paths, self._rows_of(paths), strict=True):
            if row >= 0 and not self._is_met_N[row]:
                self._is_met_N[row] = True
                self._say("!", path)
            elif path not in self._known_problems:
                self.summary.num_new += 1
                self._on_file("!", path)

    def finish(self) -> None:
        """Report the rows that were not found."""
        start = 0
        for rows in self._manifest.batches(["path"]):
            is_missing = ~self._is_met_N[start : start + rows.num_rows]
            for path in rows["path"].filter(pa.array(is_missing)).to_pylist():
                self._say("-", path)
            start += rows.num_rows

    def _rows_of(self, paths: list[str]) -> NDArray[np.int64]:
        """Return the row of each path; -1 if there is none."""
        keys = np.array([xxhash.xxh3_64_intdigest(path.encode()) for path in paths], np.uint64)
        place = np.searchsorted(self._key_K, keys)
        if not len(self._key_K):
            return np.full(len(keys), -1)
        place = np.minimum(place, len(self._key_K) - 1)
        return np.where(self._key_K[place] == keys, self._row_K[place], -1)

    def _say(self, sign: Sign, path: str) -> None:
        name = _COUNTERS[sign]
        setattr(self.summary, name, getattr(self.summary, name) + 1)
        self._on_file(sign, path)


def _without_repeats(chunk: HashedChunk) -> HashedChunk:
    """Return *chunk* with one row for each path: images in containers have one for each label."""
    is_first = [path != before for before, path in zip(["", *chunk.paths], chunk.paths)]  # noqa: B905
    if all(is_first):
        return chunk
    paths = [path for path, is_kept in zip(chunk.paths, is_first, strict=True) if is_kept]
    return replace(chunk, paths=paths, files=FileRows(chunk.files.array[is_first]))


_COUNTERS: dict[Sign, str] = {
    "=": "num_same",
    "*": "num_different",
    "+": "num_new",
    "-": "num_missing",
    "!": "num_unreadable",
}


def _read(
    digests: Manifest,
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return hashes of the paths, digests, sizes, and whether there is a digest, of each row."""
    num_rows = digests.num_rows
    keys = np.empty(num_rows, dtype=np.uint64)
    digests_N2 = np.zeros((num_rows, 2), dtype=np.uint64)
    sizes = np.empty(num_rows, dtype=np.int64)
    has_digest = np.empty(num_rows, dtype=bool)
    start = 0
    for rows in digests.batches(["path", "digest", "num_bytes"]):
        here = slice(start, start + rows.num_rows)
        paths = rows["path"].to_pylist()
        keys[here] = [xxhash.xxh3_64_intdigest(path.encode()) for path in paths]
        column = rows["digest"].combine_chunks()
        digests_N2[here] = as_numbers(column)
        has_digest[here] = column.is_valid().to_numpy(zero_copy_only=False)
        sizes[here] = rows["num_bytes"].combine_chunks().fill_null(-1).to_numpy()
        start += rows.num_rows
    return keys, digests_N2, sizes, has_digest


def verify(
    manifests: Path,
    *,
    root: Root | None = None,
    num_workers: int | None = None,
    on_file: OnFile = lambda _sign, _path: None,
    on_chunk: Callable[[HashedChunk], None] = lambda _chunk: None,
) -> VerifySummary:
    """Hash the tree again, and compare it with `digests.parquet`; read the other manifests.

    Args:
        manifests: The folder that holds `digests.parquet`, and `problems.parquet`.
        root: Where the image tree is now; default: where it was hashed.
        num_workers: Threads that read and digest; None: as many as suit the file system.
        on_file: Called with each file, in tree order; missing ones come last.
        on_chunk: Called with each chunk that is done.

    Raises:
        ManifestError: A manifest is missing or damaged.
        ImageTreeError: The image tree is not there.
    """
    digests = open_manifest(manifests, DIGESTS)
    bad = [kind for kind in ProblemKind if not kind.is_skipped]
    known, unlabelled = (_with_problem(manifests, kinds) for kinds in (bad, _OF_LABELS))
    comparison = FileComparison(digests, known, unlabelled, on_file)
    for chunk in _digested_again(digests, root, num_workers):
        comparison.take(chunk)
        on_chunk(chunk)
    comparison.finish()
    comparison.summary.manifest_problems = damaged_manifests(manifests)
    return comparison.summary


def _digested_again(
    digests: Manifest, root: Root | None, num_workers: int | None
) -> Iterable[HashedChunk]:
    options = digests.header.options
    root = existing_root(digests.header.root, root)
    hasher = hasher_of(digests.header, SourceLayout.of_header(options), root=root)
    chunks = chunks_of(hasher, options.get(ARCHIVE_OPTION))
    if OPTION in options:
        shard = Shard.parse(options[OPTION])
        chunks = (chunk for chunk in chunks if shard.has(chunk.shard_folder))
    for done in hash_in_threads(hasher, chunks, num_workers or suitable_workers(hasher)):
        yield from chain((done,), done.more)


_OF_LABELS = (ProblemKind.LABEL_MISSING, ProblemKind.UNLABELLED)


def _with_problem(manifests: Path, kinds: Collection[str]) -> set[str]:
    """Return the paths that had a problem of one of *kinds* when the tree was hashed."""
    known: set[str] = set()
    if (manifests / PROBLEMS.file_name).is_file():
        for rows in open_manifest(manifests, PROBLEMS).batches(["path", "kind"]):
            known.update(
                path
                for path, kind in zip(*(column.to_pylist() for column in rows.columns), strict=True)
                if kind in kinds
            )
    return known


_AT_ONCE = 4096
_HINT = "hash again with `vit21k hash --algorithm blake2b_128`, which cannot be made to collide"


def compare_copies(manifests: Path, *, root: Root | None = None, num_workers: int = 16) -> int:
    """Compare every file that has a copy with the first of its copies, byte by byte.

    Args:
        manifests: The folder that holds `digests.parquet`.
        root: Where the image tree is now; default: where it was hashed.
        num_workers: Pairs read at a time.

    Returns:
        How many pairs were compared.

    Raises:
        DataError: Two files have the same digest, and other bytes.
        ImageError: A file is not there any more.
        ImageTreeError: The image tree is not there, or an archive in it is compressed.
        ManifestError: `digests.parquet` is missing or damaged.
        OSError: A file cannot be read.
    """
    digests = open_manifest(manifests, DIGESTS)
    root = existing_root(digests.header.root, root)
    groups = find_copies(FileKeys(digests), digests.num_rows)
    locators = _locators(digests, groups.rows_M)
    first_M = np.repeat(groups.starts_G, groups.sizes_G)
    copies = [place for place in range(len(locators)) if first_M[place] != place]
    reader = ImageReader(root, manifests=digests.path.parent)

    def compare(copy: int) -> None:
        one, other = locators[first_M[copy]], locators[copy]
        if _read_named(reader, one) != _read_named(reader, other):
            raise DataError(
                f"`{one.path}` and `{other.path}` have the same digest, but not the same bytes",
                hint=_HINT,
            )

    with ThreadPoolExecutor(num_workers, thread_name_prefix="compare") as pool:
        for first in range(0, len(copies), _AT_ONCE):  # each waits as an object of its own
            for _ in pool.map(compare, copies[first : first + _AT_ONCE]):
                pass
    return len(copies)


def _read_named(reader: ImageReader, locator: Locator) -> bytes:
    try:
        return reader.read(*locator)
    except ImageError as error:
        raise ImageError(f"`{locator.path}`: {error.message}", hint=error.hint) from None


def _locators(digests: Manifest, rows_M: NDArray[np.int64]) -> list[Locator]:
    """Return the locators of the files of *rows_M*, in its order."""
    order = np.argsort(rows_M)
    found: list[Locator] = []
    for start, files in _numbered(digests):
        first, last = np.searchsorted(rows_M[order], (start, start + files.num_rows))
        chosen = files.take(pa.array(rows_M[order][first:last] - start))
        found += [Locator(**row) for row in chosen.to_pylist()]
    place_of = np.empty_like(order)
    place_of[order] = np.arange(len(order))
    return [found[place] for place in place_of]


def _numbered(digests: Manifest) -> Iterator[tuple[int, pa.Table]]:
    start = 0
    for files in digests.batches(LOCATOR_COLUMNS):
        yield start, files
        start += files.num_rows
