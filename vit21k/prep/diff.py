"""Two folders of manifests -> differences, image by image.

Images are matched by the digest of their bytes, so that neither renamed files nor another
order count as a difference.  Labels are compared as sets of class folders, not of class indices:
two releases number their classes differently.

Dimensions: A B images of the two folders, K classes, L labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from vit21k.errors import DataError
from vit21k.manifest.io import Manifest, open_manifest
from vit21k.manifest.schema import IMAGES, TRAIN, VAL, ManifestKind
from vit21k.manifest.writer import refuse_repeated
from vit21k.prep.dedup import as_numbers, find_rows

Change = Literal["added", "removed", "relabelled", "moved"]


class Difference(NamedTuple):
    """An image that differs.

    Attributes:
        change: Its labels have changed, or the split it is in; or it is in one folder only.
        digest: Hexadecimal.
        path: Of the kept file; in the second folder where it is in both.
        before: Its labels, or splits, in the first; empty for one that was added.
        after: The same in the second; empty for one that was removed.
    """

    change: Change
    digest: str
    path: str
    before: list[str]
    after: list[str]


@dataclass
class DiffSummary:
    """Counts of a comparison.

    Attributes:
        num_before: Images in the first folder.
        num_after: Images in the second.
        num_same: Images in both, with the same labels and in the same splits.
        has_splits: Whether both folders have a split, so that splits were compared.
        classes_added: Class folders of the second class list that are not in the first.
        classes_removed: The opposite.
        num_changes: Differences by kind; an image may have changed labels and split.
    """

    num_before: int
    num_after: int
    num_same: int
    has_splits: bool
    classes_added: list[str]
    classes_removed: list[str]
    num_changes: dict[Change, int] = field(default_factory=dict)

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        return not any(self.num_changes.values()) and not (
            self.classes_added or self.classes_removed
        )


def diff_manifests(before: Path, after: Path) -> tuple[DiffSummary, Iterator[Difference]]:
    """Compare the images of two manifest folders.

    Returns:
        The counts; and the differences: relabelled, moved and added ones in the order of the
        second folder, then those that were removed, in the order of the first.

    Raises:
        ManifestError: An `images.parquet` is missing, stale or damaged, or has a digest twice.
        DataError: The two use different digests, or lack some.
    """
    old, new = _Side(before), _Side(after)
    if old.images.header.algorithm != new.images.header.algorithm:
        raise DataError(
            f"`{before}` has digests by {old.images.header.algorithm}, `{after}` by "
            f"{new.images.header.algorithm}: they cannot be compared",
            hint="hash one of the trees again with the other's `--algorithm`",
        )
    row_B = find_rows(new.digests_B2, old.digests_B2)
    is_in_both_B = row_B >= 0
    is_kept_A = np.zeros(len(old.digests_B2), dtype=bool)
    is_kept_A[row_B[is_in_both_B]] = True
    was_B = np.where(is_in_both_B, row_B, 0)

    is_relabelled_B = is_in_both_B & _differ(new.label_keys_B, old.label_keys_B, was_B)
    has_splits = old.splits_B is not None and new.splits_B is not None
    is_moved_B = np.zeros(len(row_B), dtype=bool)
    if old.splits_B is not None and new.splits_B is not None:
        is_moved_B = is_in_both_B & _differ(new.splits_B, old.splits_B, was_B)

    summary = DiffSummary(
        num_before=len(is_kept_A),
        num_after=len(row_B),
        num_same=int((is_in_both_B & ~is_relabelled_B & ~is_moved_B).sum()),
        has_splits=has_splits,
        classes_added=sorted(set(new.wnids) - set(old.wnids)),
        classes_removed=sorted(set(old.wnids) - set(new.wnids)),
        num_changes={
            "added": int((~is_in_both_B).sum()),
            "removed": int((~is_kept_A).sum()),
            "relabelled": int(is_relabelled_B.sum()),
            "moved": int(is_moved_B.sum()),
        },
    )
    found = _Found(old, new, row_B, is_relabelled_B, is_moved_B, is_kept_A)
    return summary, found.differences()


class _Side:
    """Columns of one folder to compare."""

    def __init__(self, folder: Path) -> None:
        self.images = open_manifest(folder, IMAGES)
        refuse_repeated(self.images)
        self.wnids = self.images.classes().wnids
        self.digests_B2 = _digests_of(self.images)
        self.label_keys_B = _label_keys(self.images, self.wnids)
        self.splits_B = _splits(folder, self.digests_B2)

    def rows(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, str, str, list[str]]]:
        """Yield row, digest, path and class folders of *rows*, which are ascending."""
        start = 0
        for batch in self.images.batches(["digest", "path", "label_ids"]):
            first, last = np.searchsorted(rows, (start, start + batch.num_rows))
            chosen = batch.take(pa.array(rows[first:last] - start))
            for row, image in zip(rows[first:last].tolist(), chosen.to_pylist(), strict=True):
                labels = [self.wnids[label] for label in image["label_ids"]]
                yield row, image["digest"].hex(), image["path"], labels
            start += batch.num_rows

    def split_names(self, row: int) -> list[str]:
        """Return the splits that an image is in."""
        bits = 0 if self.splits_B is None else int(self.splits_B[row])
        return [kind.name for bit, kind in _SPLITS if bits & bit]


_SPLITS: tuple[tuple[int, ManifestKind], ...] = ((1, TRAIN), (2, VAL))


@dataclass
class _Found:
    """Rows of images that differ, without paths and labels."""

    old: _Side
    new: _Side
    row_B: NDArray[np.int64]
    is_relabelled_B: NDArray[np.bool_]
    is_moved_B: NDArray[np.bool_]
    is_kept_A: NDArray[np.bool_]

    def differences(self) -> Iterator[Difference]:
        """Yield them."""
        changed = np.flatnonzero((self.row_B < 0) | self.is_relabelled_B | self.is_moved_B)
        were = np.unique(self.row_B[changed][self.row_B[changed] >= 0])
        labels_before = {row: labels for row, _, _, labels in self.old.rows(were)}
        for row, digest, path, labels in self.new.rows(changed):
            was = int(self.row_B[row])
            if was < 0:
                yield Difference("added", digest, path, [], labels)
                continue
            if self.is_relabelled_B[row]:
                yield Difference("relabelled", digest, path, labels_before[was], labels)
            if self.is_moved_B[row]:
                splits = self.old.split_names(was), self.new.split_names(row)
                yield Difference("moved", digest, path, *splits)
        for _, digest, path, labels in self.old.rows(np.flatnonzero(~self.is_kept_A)):
            yield Difference("removed", digest, path, labels, [])


def _digests_of(manifest: Manifest) -> NDArray[np.uint64]:
    parts = []
    for rows in manifest.batches(["digest"]):
        digests = rows["digest"].combine_chunks()
        if digests.null_count:
            raise DataError(
                f"`{manifest.path}` has images without a digest: it was made by a quick run",
                hint="run `vit21k hash` again without `--mode quick`",
            )
        parts.append(as_numbers(digests))
    return np.concatenate(parts) if parts else np.empty((0, 2), dtype=np.uint64)


def _label_keys(images: Manifest, wnids: tuple[str, ...]) -> NDArray[np.uint64]:
    """Return a number for the set of class folders of each image: the sum of their hashes."""
    key_K = np.array([xxhash.xxh3_64_intdigest(wnid.encode()) for wnid in wnids], dtype=np.uint64)
    parts = []
    for rows in images.batches(["label_ids"]):
        lists = rows["label_ids"].combine_chunks()
        starts = lists.offsets.to_numpy() - lists.offsets[0].as_py()
        sums = np.append(np.uint64(0), np.cumsum(key_K[lists.flatten().to_numpy()]))
        parts.append(sums[starts[1:]] - sums[starts[:-1]])
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.uint64)


def _splits(folder: Path, digests_B2: NDArray[np.uint64]) -> NDArray[np.uint8] | None:
    """Return the splits of each image as bits; None if the folder has no split."""
    if not all((folder / kind.file_name).is_file() for _, kind in _SPLITS):
        return None
    splits_B = np.zeros(len(digests_B2), dtype=np.uint8)
    for bit, kind in _SPLITS:
        rows = find_rows(_digests_of(open_manifest(folder, kind)), digests_B2)
        splits_B[rows[rows >= 0]] |= np.uint8(bit)
    return splits_B


def _differ(
    new_B: NDArray[np.integer], old_A: NDArray[np.integer], was_B: NDArray[np.int64]
) -> NDArray[np.bool_]:
    if not len(old_A):
        return np.zeros(len(new_B), dtype=bool)
    differ: NDArray[np.bool_] = new_B != old_A[was_B]
    return differ
