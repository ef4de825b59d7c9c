"""Digests -> duplicates -> unique images with merged labels."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.errors import DataError, UsageError
from vit21k.manifest.io import Manifest
from vit21k.manifest.schema import DIGEST_BYTES

_Item = TypeVar("_Item")


def prefetched(items: Iterator[_Item]) -> Iterator[_Item]:
    """Yield *items* in order, prefetching the next one in a thread.

    An exception of *items* is raised in place of the item.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        coming = pool.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, items, end)
            yield item  # type: ignore[misc]


_NO_DIGEST = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_SPREAD = np.uint64(
    0x9E37_79B9_7F4A_7C15
)  # an odd number, so that no two rows have the same product


@dataclass(frozen=True)
class FileKeys:
    """The keys by which files are compared, a row group at a time; may be iterated repeatedly.

    A null digest is replaced by a key that no other file has, computed from its row.

    Attributes:
        digests: The files.
        by: Compare all bytes; or only the content, where the file is a JPEG.
    """

    digests: Manifest
    by: Literal["bytes", "content"] = "bytes"

    def __iter__(self) -> Iterator[NDArray[np.uint64]]:
        columns = ["digest", "content_digest"] if self.by == "content" else ["digest"]
        start = 0
        for rows in prefetched(self.digests.batches(columns)):
            keys = rows["digest"].combine_chunks()
            if self.by == "content":
                import pyarrow.compute as pc  # noqa: PLC0415 (takes long)

                keys = pc.coalesce(rows["content_digest"].combine_chunks(), keys)
            yield _filled(keys, start)
            start += rows.num_rows


PROBE_COLUMNS = ["num_bytes", "probe", "digest"]


def repeated_probes(manifests: Iterable[Manifest]) -> NDArray[np.uint64]:
    """Return the keys of size, head and tail that several files of a quick run share, sorted."""
    keys = [
        _probe_keys(rows)
        for digests in manifests
        for rows in prefetched(digests.batches(PROBE_COLUMNS))
    ]
    ordered = np.sort(np.concatenate(keys))
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def unproven_rows(rows: pa.Table, repeated: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return which of *rows* lack a digest and may be duplicates.

    Args:
        rows: The columns `PROBE_COLUMNS` of some files.
        repeated: By `repeated_probes`.
    """
    has_digest = rows["digest"].is_valid().to_numpy()
    return np.flatnonzero(~has_digest & np.isin(_probe_keys(rows), repeated))


def _probe_keys(rows: pa.Table) -> NDArray[np.uint64]:
    sizes = rows["num_bytes"].to_numpy().astype(np.uint64)
    keys: NDArray[np.uint64] = as_numbers(rows["probe"].combine_chunks())[:, 0] ^ sizes * _SPREAD
    return keys


def refuse_unproven(digests: Manifest) -> None:
    """Refuse a quick run that has not read all files that may be duplicates.

    Raises:
        DataError: There are such files: the shards were merged by an earlier version.
    """
    repeated = repeated_probes([digests])
    batches = prefetched(digests.batches(PROBE_COLUMNS))
    if num_files := sum(len(unproven_rows(rows, repeated)) for rows in batches):
        raise DataError(
            f"{num_files:,} files may be duplicates, but have no digest in `{digests.path}`",
            hint="merge the shards again: `vit21k relabel` with the folders of all of them",
        )


def refuse_without_content(digests: Manifest) -> None:
    """Refuse to compare files by content where the content was not hashed.

    Raises:
        UsageError: The files were not read in full, or not by vit21k.
    """
    if digests.header.options.get("mode") == "quick":
        raise UsageError(
            "a quick run does not hash the content of files",
            hint="run `vit21k hash` without `--mode quick`, or `vit21k relabel` by bytes",
        )
    batches = digests.batches(["format"], as_dictionary=["format"])
    if all(rows["format"].null_count == rows.num_rows for rows in batches):
        raise UsageError(
            f"`{digests.path}` holds no content digests: it was imported",
            hint="run `vit21k hash`, which reads the files",
        )


def _filled(digests: pa.FixedSizeBinaryArray, start: int) -> NDArray[np.uint64]:
    """Return *digests* as numbers, with unique values for nulls."""
    if not digests.null_count:
        return as_numbers(digests)
    is_null_B = digests.is_null().to_numpy(zero_copy_only=False)
    numbers_B2 = as_numbers(digests).copy()
    rows = start + np.flatnonzero(is_null_B)
    numbers_B2[is_null_B, 0] = rows.astype(np.uint64) * _SPREAD
    numbers_B2[is_null_B, 1] = _NO_DIGEST
    return numbers_B2


def as_digests(numbers_N2: NDArray[np.unsignedinteger[Any]]) -> pa.FixedSizeBinaryArray:
    """Return rows of 16 bytes (two numbers, or sixteen) as digests."""
    buffer = pa.py_buffer(np.ascontiguousarray(numbers_N2))
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(DIGEST_BYTES), len(numbers_N2), [None, buffer]
    )


def as_numbers(digests: pa.FixedSizeBinaryArray) -> NDArray[np.uint64]:
    """Return digests of 16 bytes as two numbers each; a view, not a copy."""
    numbers_B2 = np.frombuffer(digests.buffers()[1], dtype="<u8").reshape(-1, 2)
    return numbers_B2[digests.offset : digests.offset + len(digests)]


def find_rows(wanted_B2: NDArray[np.uint64], among_A2: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return for each of *wanted_B2* the row of *among_A2* that is equal to it; -1 for none.

    Args:
        wanted_B2: Digests, each as two numbers.
        among_A2: Digests, each at most once.
    """
    wanted, among = _as_keys(wanted_B2), _as_keys(among_A2)
    order = np.argsort(among)
    place = np.searchsorted(among[order], wanted)
    row = order[np.minimum(place, len(order) - 1)] if len(order) else np.zeros_like(place)
    is_there = among[row] == wanted if len(order) else np.zeros(len(place), dtype=bool)
    return np.where(is_there, row, -1)


def _as_keys(digests_B2: NDArray[np.uint64]) -> NDArray[np.complex128]:
    """Return digests as complex numbers of their halves: NumPy sorts those by both parts.

    The halves are integers of 53 bits and less in a float; what that loses (11 bits of each) leaves
    106 bits, which no two of the images share by chance.
    """
    keys = np.empty(len(digests_B2), dtype=np.complex128)
    keys.real = digests_B2[:, 0] >> np.uint64(11)
    keys.imag = digests_B2[:, 1] >> np.uint64(11)
    return keys


_SLICE_ROWS = 1 << 20


class CopyGroups(NamedTuple):
    """Groups of files with equal content.

    Attributes:
        rows_M: Their row numbers: group by group, ascending in each.
        starts_G: Where each group begins in *rows_M*.
    """

    rows_M: NDArray[np.int64]
    starts_G: NDArray[np.int64]

    @property
    def sizes_G(self) -> NDArray[np.int64]:
        """Number of files of each group; at least 2."""
        return np.diff(self.starts_G, append=len(self.rows_M))


def find_copies(parts: Iterable[NDArray[np.uint64]], num_rows: int) -> CopyGroups:
    """Group the rows whose digests are equal.

    Args:
        parts: The digests of 16 bytes, some rows at a time, each as two numbers; gone through
            twice, so that they need not be held.
        num_rows: How many there are.

    Returns:
        The groups of two rows or more, by their first row.
    """
    rows, is_first = _rows_in_runs(parts, num_rows)
    digests = _digests_of(rows, parts)
    differs = _differs_from_last(digests)
    if (is_astray := differs & ~is_first).any():
        mixed = _of_runs_with(is_astray, is_first)
        order = mixed[np.lexsort((digests[mixed, 1], digests[mixed, 0]))]
        rows[mixed], digests[mixed] = rows[order], digests[order]
        differs = _differs_from_last(digests)
    is_lone = differs & np.append(differs[1:], True)
    rows, differs = rows[~is_lone], differs[~is_lone]
    return by_first_row(rows, np.flatnonzero(differs))


def by_first_row(rows_M: NDArray[np.int64], starts_G: NDArray[np.int64]) -> CopyGroups:
    """Return groups, each of which is together already, by their first row."""
    order_G = np.argsort(rows_M[starts_G])
    sizes_G = np.diff(starts_G, append=len(rows_M))[order_G]
    new_starts_G = np.cumsum(sizes_G) - sizes_G
    place_M = np.arange(len(rows_M)) + np.repeat(starts_G[order_G] - new_starts_G, sizes_G)
    return CopyGroups(rows_M[place_M], new_starts_G)


def _rows_in_runs(
    parts: Iterable[NDArray[np.uint64]], num_rows: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the rows whose first bits occur more than once, and which begin a run of the same.

    Runs are in the order of their bits; rows ascend in each.
    """
    row_bits = np.uint64((1 << num_rows.bit_length()) - 1)
    key_N = np.empty(num_rows, dtype=np.uint64)
    row = 0
    for digests_B2 in parts:
        stop = row + len(digests_B2)
        key_N[row:stop] = (digests_B2[:, 0] & ~row_bits) | np.arange(row, stop, dtype=np.uint64)
        row = stop
    key_N.sort()
    is_same = np.zeros(num_rows + 1, dtype=bool)  # as the one before it
    for start in range(1, num_rows, _SLICE_ROWS):
        keys = key_N[start - 1 : start + _SLICE_ROWS]
        is_same[start : start + len(keys) - 1] = (keys[1:] ^ keys[:-1]) <= row_bits
    indices = np.flatnonzero(is_same[:-1] | is_same[1:])
    return (key_N[indices] & row_bits).astype(np.int64), ~is_same[indices]


def _digests_of(rows: NDArray[np.int64], parts: Iterable[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    """Return the complete digests of some rows."""
    digests = np.empty((len(rows), 2), dtype=np.uint64)
    order = np.argsort(rows)
    ascending = rows[order]
    start = 0
    for digests_B2 in parts:
        first, last = np.searchsorted(ascending, (start, start + len(digests_B2)))
        digests[order[first:last]] = digests_B2[ascending[first:last] - start]
        start += len(digests_B2)
    return digests


def _of_runs_with(is_marked: NDArray[np.bool_], is_first: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the positions in all runs that have a mark in them."""
    run = np.cumsum(is_first) - 1
    has_mark = np.zeros(int(is_first.sum()), dtype=bool)
    has_mark[run[is_marked]] = True
    return np.flatnonzero(has_mark[run])


def _differs_from_last(digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
    differs = np.ones(len(digests), dtype=bool)
    differs[1:] = (digests[1:, 0] != digests[:-1, 0]) | (digests[1:, 1] != digests[:-1, 1])
    return differs


_LABEL_BITS = np.uint64(32)
_LABEL_MASK = np.uint64(0xFFFF_FFFF)


@dataclass(frozen=True, kw_only=True)
class DedupResult:
    """Images of files, with labels.

    Attributes:
        label_N: Class index of each file, int32.
        is_copy_N: Whether it is not the file that is kept: an earlier one has the same content, or
            the image has too many labels to be one.
        group_C: The group of each of those, in file order; -1 if it is skipped.
        first_row_G: The kept file of each group, ascending.
        num_files_G: Number of files of each group.
        num_labels_G: Number of distinct labels of each group.
        label_ids_L: The labels, group by group, ascending in each.
    """

    label_N: NDArray[np.int32]
    is_copy_N: NDArray[np.bool_]
    group_C: NDArray[np.int64]
    first_row_G: NDArray[np.int64]
    num_files_G: NDArray[np.int64]
    num_labels_G: NDArray[np.int64]
    label_ids_L: NDArray[np.int32]

    @property
    def num_images(self) -> int:
        """Number of distinct contents."""
        return len(self.is_copy_N) - len(self.group_C)

    @property
    def num_overlabelled_files(self) -> int:
        """Number of files skipped because their image has too many labels."""
        return int((self.group_C < 0).sum())

    @property
    def copy_row_C(self) -> NDArray[np.int64]:
        """The files of `group_C`."""
        return np.flatnonzero(self.is_copy_N)

    def num_files_of_classes(self, num_classes: int) -> NDArray[np.int64]:
        """Return how many files the folders of each class contain."""
        return np.pad(self._num_files, (0, num_classes - len(self._num_files)))

    @cached_property
    def _num_files(self) -> NDArray[np.int64]:
        num_files_K = np.zeros(int(self.label_N.max(initial=-1)) + 1, dtype=np.int64)
        for start in range(0, len(self.label_N), _SLICE_ROWS):
            part = np.bincount(self.label_N[start : start + _SLICE_ROWS])
            num_files_K[: len(part)] += part
        return num_files_K

    def num_lone_files_of_classes(self, num_classes: int) -> NDArray[np.int64]:
        """Count the files without a copy in each class."""
        in_groups = np.concatenate([self.label_N[self.first_row_G], self.label_N[self.is_copy_N]])
        return self.num_files_of_classes(num_classes) - np.bincount(
            in_groups, minlength=num_classes
        )

    def num_images_of_classes(self, num_classes: int) -> NDArray[np.int64]:
        """Count the images with each label."""
        in_groups = np.bincount(self.label_ids_L, minlength=num_classes)
        return self.num_lone_files_of_classes(num_classes) + in_groups

    def num_single_label_of_classes(self, num_classes: int) -> NDArray[np.int64]:
        """Count the images with only this label, for each label."""
        is_single = np.repeat(self.num_labels_G == 1, self.num_labels_G)
        in_groups = np.bincount(self.label_ids_L[is_single], minlength=num_classes)
        return self.num_lone_files_of_classes(num_classes) + in_groups

    def image_order(self) -> NDArray[np.int64] | None:
        """Return for each image, in file order, its place among all by first label.

        Ties keep file order.  None if file order is already that order, as it is for a tree whose
        files are in path order and whose classes are numbered by name: the first path of an image
        then has its smallest label.
        """
        last = -1
        for labels in self._first_labels():
            if len(labels) and (labels[0] < last or (labels[1:] < labels[:-1]).any()):
                break
            last = labels[-1] if len(labels) else last
        else:
            return None
        order = np.argsort(np.concatenate(list(self._first_labels())), kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return place

    def _first_labels(self) -> Iterator[NDArray[np.int32]]:
        """Yield the first label of each image, in file order, those of some files at a time."""
        first_label_G = self.label_ids_L[_starts(self.num_labels_G)]
        for start in range(0, len(self.label_N), _SLICE_ROWS):
            labels = self.label_N[start : start + _SLICE_ROWS].copy()
            first, last = np.searchsorted(self.first_row_G, (start, start + len(labels)))
            labels[self.first_row_G[first:last] - start] = first_label_G[first:last]
            yield labels[~self.is_copy_N[start : start + len(labels)]]

    def columns(self, start: int, stop: int) -> tuple[pa.Array, NDArray[np.int64]]:
        """Return `label_ids` and `num_files` of the images kept from files *start* to *stop*."""
        kept = start + np.flatnonzero(~self.is_copy_N[start:stop])
        first, last = np.searchsorted(self.first_row_G, (start, stop))
        place = np.searchsorted(kept, self.first_row_G[first:last])
        num_files, num_labels = np.ones((2, len(kept)), dtype=np.int64)
        num_files[place] = self.num_files_G[first:last]
        num_labels[place] = self.num_labels_G[first:last]

        label_ids = np.repeat(self.label_N[kept].astype(np.int64), num_labels)
        in_group = np.zeros(len(kept), dtype=bool)
        in_group[place] = True
        before = int(self.num_labels_G[:first].sum())
        num_group_labels = int(self.num_labels_G[first:last].sum())
        label_ids[np.repeat(in_group, num_labels)] = self.label_ids_L[
            before : before + num_group_labels
        ]
        offsets = np.append(0, np.cumsum(num_labels)).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(label_ids)), num_files


def merge_groups(
    groups: CopyGroups, label_N: NDArray[np.int32], *, max_labels: int | None = None
) -> DedupResult:
    """Merge each group of files into an image with all their labels.

    Args:
        groups: Files with the same content.
        label_N: Class index of each file.
        max_labels: Skip images with more labels than this, with all of their files.
    """
    first_row_G = groups.rows_M[groups.starts_G]
    is_copy_N = np.zeros(len(label_N), dtype=bool)
    is_copy_N[groups.rows_M] = True
    is_copy_N[first_row_G] = False

    group_M = np.repeat(np.arange(len(first_row_G), dtype=np.uint64), groups.sizes_G)
    label_M = label_N[groups.rows_M].astype(np.uint64)
    pair_M = np.sort((group_M << _LABEL_BITS) | label_M)
    pair_L = pair_M[np.append(True, pair_M[1:] != pair_M[:-1])[: len(pair_M)]]
    num_labels_G = np.bincount((pair_L >> _LABEL_BITS).view(np.int64), minlength=len(first_row_G))
    label_ids_L = (pair_L & _LABEL_MASK).astype(np.int32)
    is_kept_G = num_labels_G <= (max_labels or len(label_N))
    is_copy_N[first_row_G[~is_kept_G]] = True
    return DedupResult(
        label_N=label_N,
        is_copy_N=is_copy_N,
        group_C=_groups_of_copies(groups, is_kept_G, is_copy_N),
        first_row_G=first_row_G[is_kept_G],
        num_files_G=groups.sizes_G[is_kept_G],
        num_labels_G=num_labels_G[is_kept_G],
        label_ids_L=label_ids_L[np.repeat(is_kept_G, num_labels_G)],
    )


def _groups_of_copies(
    groups: CopyGroups, is_kept_G: NDArray[np.bool_], is_copy_N: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the group, by number of those kept, of each file that is not kept, in file order."""
    group_M = np.repeat(np.where(is_kept_G, np.cumsum(is_kept_G) - 1, -1), groups.sizes_G)
    is_copy_M = is_copy_N[groups.rows_M]
    order = np.argsort(groups.rows_M[is_copy_M])
    return group_M[is_copy_M][order]


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.cumsum(counts) - counts
