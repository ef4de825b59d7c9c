"""Quick hashing: read only head and tail of most files; also across shards."""

import os
from array import array
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.data.rng import GOLDEN_GAMMA
from vit21k.errors import DataError
from vit21k.manifest.io import ManifestHeader
from vit21k.manifest.problems import ProblemKind
from vit21k.prep.dedup import unproven_rows
from vit21k.prep.file_digest import FileDigest, FileReader
from vit21k.prep.hash_chunks import ChunkHasher, HashedChunk, file_columns
from vit21k.prep.scan import (
    DONE,
    HAS_DIGEST,
    HAS_PROBE,
    TO_DO,
    ChunkFiles,
    FileRows,
    Rows,
    have,
    numbers,
)

MODE = "quick"


_CHANGED = ProblemKind.CHANGED_WHILE_READ, "between the two walks of a quick run"


class Candidates:
    """Which sizes and ends have been seen, and then which of them more than once."""

    def __init__(self) -> None:
        self._keys = array("Q")

    def add(self, chunk: HashedChunk) -> None:
        """Note the files of *chunk*."""
        self._keys.frombytes(_keys(chunk.files.array).tobytes())

    def keep_repeated(self) -> None:
        """Forget what was seen once."""
        keys = np.frombuffer(self._keys, dtype=np.uint64)
        keys.sort()  # in-index
        repeated = keys[1:][keys[1:] == keys[:-1]]
        is_last = np.append(repeated[1:] != repeated[:-1], True)[: len(repeated)]
        self._keys = array("Q", repeated[is_last].tobytes())  # `np.unique` would import numpy.ma

    def have(self, rows: Rows) -> NDArray[np.bool_]:
        """Return which of *rows* another file may be equal to."""
        repeated, keys = np.frombuffer(self._keys, dtype=np.uint64), _keys(rows)
        if not len(repeated):
            return np.zeros(len(rows), bool)
        indices = np.minimum(np.searchsorted(repeated, keys), len(repeated) - 1)
        are_repeated: NDArray[np.bool_] = repeated[indices] == keys
        return are_repeated


def _keys(rows: Rows) -> NDArray[np.uint64]:
    return numbers(rows, "probe")[:, 0] ^ rows["num_bytes"].astype(np.uint64) * GOLDEN_GAMMA


class QuickHasher(ChunkHasher):
    """Digests chunks by what a quick run needs of them.

    Attributes:
        candidates: Which files are to be read to their end; None on the first walk.
    """

    candidates: Candidates | None = None
    only_ends = True

    def start_second_walk(self, candidates: Candidates) -> None:
        """Read *candidates* to their end from now on, and take the first walk for known."""
        self.candidates = candidates
        self.is_stopped = False
        self.recheck = 0.0
        self.caches_known = False
        if self.cache:
            self.cache.include_current()

    def check(self, files: ChunkFiles) -> None:
        """Make those of *files* done that are as their rows say, or were when a walk began."""
        if self.candidates is None:
            super().check(files)
        else:  # what the first walk saw counts, if it was settled
            files.states[(files.states == TO_DO) & (files.rows["ctime_ns"] > 0)] = DONE

    def read_more(self, files: ChunkFiles, done: HashedChunk) -> None:
        """Read those candidates among *files* to their end that were not."""
        if self.candidates is None:
            return
        is_open = files.are_done & ~have(files.rows, HAS_DIGEST)
        indices = np.flatnonzero(is_open & self.candidates.have(files.rows))
        if not len(indices):
            return
        before = files.rows[indices]
        files.states[indices] = TO_DO
        self.prefetch(files, only_ends=False)
        self.read(files, only_ends=False)
        is_read = files.are_done[indices]
        now = files.rows[indices]
        is_changed = is_read & (
            (now["num_bytes"] != before["num_bytes"]) | (now["mtime_ns"] != before["mtime_ns"])
        )
        for index in indices[is_changed].tolist():
            files.put(index, _CHANGED)
        now["probe"] = before["probe"]
        now["flags"] |= HAS_PROBE
        is_whole = is_read & ~is_changed
        files.rows[indices[is_whole]] = now[is_whole]
        done.num_known = max(done.num_known - int(is_whole.sum()), 0)
        done.num_bytes_read += int(now["num_bytes"][is_whole].sum())


_NUM_WORKERS = 16
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def hash_unproven(rows: pa.Table, repeated: NDArray[np.uint64], header: ManifestHeader) -> pa.Table:
    """Read those of *rows* that may be duplicates of files in other shards; fill in their digests.

    Args:
        rows: Rows of `digests.parquet` of a quick run.
        repeated: By `dedup.repeated_probes`, of all shards.
        header: Names the image root and the algorithm.

    Raises:
        DataError: A file has changed since it was hashed, or cannot be read.
        OSError: The image root cannot be opened.
    """
    indices = unproven_rows(rows, repeated)
    if not len(indices):
        return rows
    import pyarrow.compute as pc  # noqa: PLC0415 (takes long)

    files = rows.select(["path", "num_bytes", "mtime_ns"]).take(pa.array(indices)).to_pylist()
    root = os.open(header.root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        read = partial(_read, FileReader(header.algorithm, _FLAGS), root)
        with ThreadPoolExecutor(_NUM_WORKERS, thread_name_prefix="quick") as pool:
            found = FileRows.of(pool.map(read, files))
    finally:
        os.close(root)
    is_read = np.zeros(rows.num_rows, dtype=bool)
    is_read[indices] = True
    for name, column in file_columns(found.array).items():
        if name != "probe":
            filled = pc.replace_with_mask(rows[name].combine_chunks(), pa.array(is_read), column)
            rows = rows.set_column(rows.schema.get_field_index(name), rows.field(name), filled)
    return rows


def _read(reader: FileReader, root: int, file: dict[str, Any]) -> FileDigest:
    path = file["path"]
    found = reader.digest(path.encode(), root)
    if not isinstance(found, FileDigest) or found.digest is None:
        raise DataError(
            f"`{path}` cannot be read any more: {found}",
            hint="run `vit21k hash --mode quick` again",
        )
    if (found.num_bytes, found.mtime_ns) != (file["num_bytes"], file["mtime_ns"]):
        raise DataError(
            f"`{path}` has changed since it was hashed",
            hint="run `vit21k hash --mode quick` again for its shard",
        )
    return found
