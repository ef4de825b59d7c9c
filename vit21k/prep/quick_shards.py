"""Quick runs of several shards, put together: files that are unique in a shard, but not in all.

Each shard has proven which of its files are unlike all others of its own.  A file of another shard
with the same size and the same ends was not among those, so both are read to their end here.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.errors import DataError
from vit21k.hashing.file_digest import FileDigest, FileReader
from vit21k.manifest.reader import Manifest
from vit21k.prep.keys import LateDigests, as_numbers

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
