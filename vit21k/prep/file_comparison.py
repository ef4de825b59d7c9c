"""Files as they are now, and the rows of digests.parquet: which are the same, by path.

Dimensions: N rows, K of them by key, B files of a chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from vit21k.hashing.digest import DigestedChunk
from vit21k.hashing.file_rows import FileRows, numbers
from vit21k.manifest.problems import Problem
from vit21k.manifest.reader import Manifest
from vit21k.prep.keys import as_numbers

Sign = Literal["=", "*", "+", "-", "!"]

OnFile = Callable[[Sign, str], None]


@dataclass
class VerifySummary:
    """Counts of a run of `verify`.

    Attributes:
        num_files: Rows of `digests.parquet`: the sum of the next four.
        num_same: Files that are as they were.
        num_different: Files with other bytes.
        num_missing: Files that are not there any more.
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

    def __init__(self, digests: Manifest, known_problems: set[str], on_file: OnFile) -> None:
        self.summary = VerifySummary(num_files=digests.num_rows)
        self._manifest = digests
        self._known_problems = known_problems
        self._on_file = on_file
        keys, digests_N2, sizes, has_digest = _read(digests)
        self._row_K = np.argsort(keys)
        self._key_K = keys[self._row_K]
        self._digests_N2, self._num_bytes_N, self._has_digest_N = digests_N2, sizes, has_digest
        self._is_met_N = np.zeros(len(keys), dtype=bool)

    def take(self, chunk: DigestedChunk) -> None:
        """Compare what became of a chunk."""
        if chunk.files:
            rows_B = self._rows_of(chunk.paths)
            is_listed_B = rows_B >= 0
            is_same_B = self._are_same(rows_B, chunk.files) & is_listed_B
            self._is_met_N[rows_B[is_listed_B]] = True
            for path, is_listed, is_same in zip(
                chunk.paths, is_listed_B.tolist(), is_same_B.tolist(), strict=True
            ):
                self._say("=" if is_same else "*" if is_listed else "+", path)
        if chunk.problems:
            self._take_problems([each for each in chunk.problems if not each.kind.is_left_out])

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
        """Report the rows that were not met."""
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
