"""Copies found on a Ray cluster, for tables of digests that outgrow one machine's memory.

Digests are dealt out by their first two bytes: each part holds every copy of its digests, so parts
need not know of one another.  What is left to this machine are a class index and a mark for each
file, and the groups of copies.

Every machine of the cluster must see the manifest under the same path.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vit21k.errors import UsageError
from vit21k.hashing.ray_engine import ray_cluster
from vit21k.manifest.reader import Manifest
from vit21k.prep.copies import CopyGroups, by_first_row, find_copies
from vit21k.prep.keys import as_numbers

_ROW_GROUPS_PER_TASK = 8
_PART_ROWS = 8_000_000
_NUM_RETRIES = 5
_PREFIXES = 1 << 16

FindCopies = Callable[[Manifest], CopyGroups]


def copies_on_ray(address: str | None = None, *, part_rows: int = _PART_ROWS) -> FindCopies:
    """Return what finds the copies among the files of a manifest, on the cluster at *address*.

    Args:
        address: As for `ray_engine.ray_engine`.
        part_rows: About how many digests a worker holds at a time, at 40 bytes each.
    """

    def find(digests: Manifest) -> CopyGroups:
        if digests.header.options.get("mode") == "quick":
            raise UsageError("a quick run has no digests for most files", hint="leave out --engine")
        num_parts = -(-digests.num_rows // part_rows)
        with ray_cluster(address) as ray:
            return _find_on(ray, digests.path, num_parts)

    return find


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
