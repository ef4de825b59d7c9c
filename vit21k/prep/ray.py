"""Hashing and duplicate search on a Ray cluster."""

import os
import socket
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vit21k.errors import MissingExtraError, UsageError, Vit21kError
from vit21k.manifest.io import Manifest
from vit21k.prep.dedup import CopyGroups, as_numbers, by_first_row, find_copies

if TYPE_CHECKING:  # `relabel` uses this module and reads no images
    from vit21k.prep.hash_chunks import ChunkHasher, HashedChunk
    from vit21k.sources.folders import Chunk

_CHUNKS_PER_TASK = 16
"""About 2,000 files, 0.2 GB: the overhead of a task, a millisecond, is small."""

_TASKS_PER_CPU = 3
_NUM_RETRIES = 5
_CONNECT_SECONDS = 10


_PART_ROWS = 8_000_000


@dataclass(frozen=True)
class RayCluster:
    """A Ray cluster that hashes chunks and finds duplicates.

    Attributes:
        address: ``host:port``, or ``auto`` for the cluster this machine belongs to; default: the
            one that ``RAY_ADDRESS`` names, or else one of this machine's processors.
        part_rows: About how many digests a worker sorts at a time, at 40 bytes each.

    Raises:
        MissingExtraError: Ray is not installed.
    """

    address: str | None = None
    part_rows: int = _PART_ROWS

    def __post_init__(self) -> None:
        _import_ray()

    def hash_chunks(
        self, hasher: "ChunkHasher", chunks: Iterator["Chunk"], num_workers: int
    ) -> Iterator["HashedChunk"]:
        """Yield each of *chunks* hashed, in order: the engine of `hash_tree`."""
        with _connected(self.address) as ray:
            yield from _digest_on(ray, hasher, chunks, num_workers)

    def find_copies(self, digests: Manifest) -> CopyGroups:
        """Group the files of *digests* with equal bytes, as `dedup.find_copies` does.

        Raises:
            UsageError: *digests* is of a quick run.
        """
        if digests.header.options.get("mode") == "quick":
            raise UsageError("a quick run has no digests for most files", hint="skip --engine")
        num_parts = -(-digests.num_rows // self.part_rows)
        with _connected(self.address) as ray:
            return _find_on(ray, digests.path, num_parts)


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Connect to a cluster and yield the module `ray`; leave an existing connection open.

    Raises:
        MissingExtraError: Ray is not installed.
        Vit21kError: No cluster at *address*.
    """
    ray = _import_ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        try:
            _knock_at(address)  # Ray would try for minutes
            ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (OSError, ValueError, RuntimeError) as error:
            raise Vit21kError(
                f"no Ray cluster at `{address or 'this machine'}`: {error}",
                hint="start one with `ray start --head`, or run without `--address`",
            ) from error
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()


def _knock_at(address: str | None) -> None:
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def _num_cpus(ray: Any) -> int:
    """Return how many tasks the cluster runs in parallel."""
    return max(int(ray.cluster_resources().get("CPU", 1)), 1)


def _digest_on(
    ray: Any, hasher: "ChunkHasher", chunks: Iterator["Chunk"], num_workers: int
) -> Iterator["HashedChunk"]:
    task = ray.remote(max_retries=_NUM_RETRIES)(_digest_chunks)
    shared = ray.put(hasher)
    num_tasks = _TASKS_PER_CPU * _num_cpus(ray)
    pending: deque[Any] = deque()
    try:
        while group := list(islice(chunks, _CHUNKS_PER_TASK)):
            pending.append(task.remote(shared, group, num_workers))
            if len(pending) >= num_tasks:
                yield from ray.get(pending.popleft())
        while pending:
            yield from ray.get(pending.popleft())
    finally:
        for left in pending:
            ray.cancel(left)


def _digest_chunks(
    hasher: "ChunkHasher", chunks: list["Chunk"], num_workers: int
) -> list["HashedChunk"]:
    """Hash *chunks*; runs on a worker of the cluster."""
    with ThreadPoolExecutor(min(num_workers, len(chunks))) as pool:
        return list(pool.map(hasher, chunks))


def _import_ray() -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns
    try:
        import ray  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError(
            "Ray is not installed", hint="`pip install 'vit21k[ray]'`"
        ) from None
    return ray


_ROW_GROUPS_PER_TASK = 8
_PREFIXES = 1 << 16


def _find_on(ray: Any, path: Path, num_parts: int) -> CopyGroups:
    deal = ray.remote(max_retries=_NUM_RETRIES, num_returns=num_parts)(_deal)
    find = ray.remote(max_retries=_NUM_RETRIES)(_copies_of_part)
    dealt = [deal.remote(str(path), groups, row, num_parts) for groups, row in _tasks(path)]
    pieces = [[parts] for parts in dealt] if num_parts == 1 else dealt
    found = ray.get([find.remote(*part) for part in zip(*pieces, strict=True)])
    rows_M = np.concatenate([rows for rows, _ in found])
    before = np.cumsum([0, *(len(rows) for rows, _ in found[:-1])])
    starts_G = np.concatenate([starts + n for (_, starts), n in zip(found, before, strict=True)])
    return by_first_row(rows_M, starts_G)


def _tasks(path: Path) -> list[tuple[list[int], int]]:
    """Return the row groups of each task, and the number of their first row."""
    metadata = pq.read_metadata(path)
    groups = range(metadata.num_row_groups)
    starts = np.cumsum([0, *(metadata.row_group(index).num_rows for index in groups)])
    firsts = groups[::_ROW_GROUPS_PER_TASK]
    return [(list(groups[i : i + _ROW_GROUPS_PER_TASK]), int(starts[i])) for i in firsts]


def _deal(path: str, groups: list[int], row: int, num_parts: int) -> Any:
    """Return the digests of some row groups by part: for each its row and two numbers; a worker."""
    parquet = pq.ParquetFile(path, page_checksum_verification=True)
    digests = parquet.read_row_groups(groups, columns=["digest"])["digest"].combine_chunks()
    rows_N3 = np.empty((len(digests), 3), dtype=np.uint64)
    rows_N3[:, 0] = np.arange(row, row + len(digests))
    rows_N3[:, 1:] = as_numbers(digests)
    part_N = _part_of(rows_N3[:, 1], num_parts)
    parts = tuple(rows_N3[part_N == part] for part in range(num_parts))
    return parts if num_parts > 1 else parts[0]


def _part_of(half_N: NDArray[np.uint64], num_parts: int) -> NDArray[np.int64]:
    first_two_bytes = half_N.astype(np.uint16).byteswap().astype(np.int64)
    return first_two_bytes * num_parts // _PREFIXES


def _copies_of_part(
    *pieces: NDArray[np.uint64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of the copies of one part, by group, and where groups begin; a worker."""
    rows_N3 = np.concatenate(pieces)
    groups = find_copies([rows_N3[:, 1:]], len(rows_N3))
    return rows_N3[groups.rows_M, 0].astype(np.int64), groups.starts_G
