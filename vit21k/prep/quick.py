"""Quick hashing: read only head and tail of most files; also across shards."""

import os
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.errors import DataError
from vit21k.manifest.io import Manifest
from vit21k.manifest.problems import ProblemKind
from vit21k.prep.dedup import LateDigests, as_numbers
from vit21k.prep.file_digest import FileDigest, FileReader
from vit21k.prep.hash_chunks import ChunkDigester, DigestedChunk
from vit21k.prep.scan import DONE, HAS_DIGEST, HAS_PROBE, TO_DO, ChunkFiles, Rows, have, numbers

MODE = "quick"

_SPREAD = np.uint64(0x9E3779B97F4A7C15)


_CHANGED = ProblemKind.CHANGED_WHILE_READ, "between the two walks of a quick run"


class Candidates:
    """Which sizes and ends have been seen, and then which of them more than once."""

    def __init__(self) -> None:
        self._keys = array("Q")

    def add(self, chunk: DigestedChunk) -> None:
        """Note the files of *chunk*."""
        self._keys.frombytes(_keys(chunk.files.array).tobytes())

    def keep_repeated(self) -> None:
        """Forget what was seen once."""
        keys = np.frombuffer(self._keys, dtype=np.uint64)
        keys.sort()  # in place
        repeated = keys[1:][keys[1:] == keys[:-1]]
        is_last = np.append(repeated[1:] != repeated[:-1], True)[: len(repeated)]
        self._keys = array("Q", repeated[is_last].tobytes())  # `np.unique` would import numpy.ma

    def have(self, rows: Rows) -> NDArray[np.bool_]:
        """Return which of *rows* another file may be equal to."""
        repeated, keys = np.frombuffer(self._keys, dtype=np.uint64), _keys(rows)
        if not len(repeated):
            return np.zeros(len(rows), bool)
        places = np.minimum(np.searchsorted(repeated, keys), len(repeated) - 1)
        are_repeated: NDArray[np.bool_] = repeated[places] == keys
        return are_repeated


def _keys(rows: Rows) -> NDArray[np.uint64]:
    return numbers(rows, "probe")[:, 0] ^ rows["num_bytes"].astype(np.uint64) * _SPREAD


class QuickDigester(ChunkDigester):
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

    def read_more(self, files: ChunkFiles, done: DigestedChunk) -> None:
        """Read those candidates among *files* to their end that were not."""
        if self.candidates is None:
            return
        is_open = files.are_done & ~have(files.rows, HAS_DIGEST)
        places = np.flatnonzero(is_open & self.candidates.have(files.rows))
        if not len(places):
            return
        before = files.rows[places]
        files.states[places] = TO_DO
        self.ask_ahead(files, only_ends=False)
        self.read(files, only_ends=False)
        is_read = files.are_done[places]
        now = files.rows[places]
        is_changed = is_read & (
            (now["num_bytes"] != before["num_bytes"]) | (now["mtime_ns"] != before["mtime_ns"])
        )
        for place in places[is_changed].tolist():
            files.put(place, _CHANGED)
        now["probe"] = before["probe"]
        now["flags"] |= HAS_PROBE
        is_whole = is_read & ~is_changed
        files.rows[places[is_whole]] = now[is_whole]
        done.num_known = max(done.num_known - int(is_whole.sum()), 0)
        done.num_bytes_read += int(now["num_bytes"][is_whole].sum())


_COLUMNS = ["num_bytes", "probe", "digest"]
_NUM_WORKERS = 16
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def digest_unproven(digests: Manifest) -> LateDigests:
    """Read the files of a quick run that may have a copy, and have no digest.

    Returns:
        Their digests: of no file, if the manifest is of one run.

    Raises:
        DataError: A file has changed since, or is not there any more.
    """
    row_U = _unproven_rows(digests)
    digests_U2 = np.empty((len(row_U), 2), dtype=np.uint64)
    root = os.open(digests.header.root, os.O_RDONLY | os.O_DIRECTORY) if len(row_U) else -1
    try:
        read = partial(_read, FileReader(digests.header.algorithm, _FLAGS), root)
        with ThreadPoolExecutor(_NUM_WORKERS, thread_name_prefix="quick") as pool:
            for place, digest in enumerate(pool.map(read, _files(digests, row_U))):
                digests_U2[place] = np.frombuffer(digest, dtype=np.uint64)
    finally:
        if root >= 0:
            os.close(root)
    return LateDigests(row_U, digests_U2)


def _unproven_rows(digests: Manifest) -> NDArray[np.int64]:
    keys, has_digest = [], []
    for rows in digests.batches(_COLUMNS):
        sizes = rows["num_bytes"].to_numpy().astype(np.uint64)
        probes_B2 = as_numbers(rows["probe"].combine_chunks())
        keys.append(probes_B2[:, 0] ^ (sizes * np.uint64(0x9E37_79B9_7F4A_7C15)))
        has_digest.append(rows["digest"].is_valid().to_numpy())
    key_N = np.concatenate(keys)
    ordered = np.sort(key_N)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    return np.flatnonzero(~np.concatenate(has_digest) & np.isin(key_N, repeated))


def _files(digests: Manifest, row_U: NDArray[np.int64]) -> Iterator[tuple[str, int, int]]:
    """Yield path, size and time of the files of *row_U*."""
    start = 0
    for rows in digests.batches(["path", "num_bytes", "mtime_ns"]):
        first, last = np.searchsorted(row_U, (start, start + rows.num_rows))
        yield from (
            (row["path"], row["num_bytes"], row["mtime_ns"])
            for row in rows.take(pa.array(row_U[first:last] - start)).to_pylist()
        )
        start += rows.num_rows


def _read(reader: FileReader, root: int, file: tuple[str, int, int]) -> bytes:
    path, num_bytes, mtime_ns = file
    found = reader.digest(path.encode(), root)
    if not isinstance(found, FileDigest) or found.digest is None:
        raise DataError(
            f"`{path}` cannot be read any more: {found}",
            hint="run `vit21k hash --mode quick` again",
        )
    if (found.num_bytes, found.mtime_ns) != (num_bytes, mtime_ns):
        raise DataError(
            f"`{path}` has changed since it was hashed",
            hint="run `vit21k hash --mode quick` again for its shard",
        )
    return found.digest
