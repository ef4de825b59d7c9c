"""The second pass of `relabel`: carry paths from `digests` to `images` and `copies`.

digests.parquet -> images, copies, over-labelled, classes.parquet: one row per image.

The same image is filed under several classes of ImageNet-21K.  Files with equal digests are one
image, and its labels are the folders that contain them.

Algorithm: a number made of the digest (`dedup.find_copies`) and a class index are held for each
file, 12 bytes, which identify the images (`dedup.merge_groups`).  Digests and paths are never
held: later passes over the manifest carry them from row group to row group.

Source: PLSC, task/classification/vit/README.md, "ImageNet21K data preparation".  From the same list
of files the result is the same.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.errors import DataError, ManifestError, UsageError
from vit21k.lock import locked
from vit21k.manifest.classes import CLASSES_OPTION, ClassList
from vit21k.manifest.io import ARCHIVE_OPTION, Manifest, ManifestHeader, open_manifest
from vit21k.manifest.schema import (
    CLASSES,
    COPIES,
    DIGESTS,
    IMAGES,
    LOCATOR_COLUMNS,
    OVERLABELLED,
    SOURCE_SPLITS,
)
from vit21k.manifest.wordnet import names_of
from vit21k.manifest.writer import manifest_writer, refuse_inside
from vit21k.prep import dedup
from vit21k.prep.dedup import (
    DedupResult,
    FileKeys,
    as_digests,
    as_numbers,
    merge_groups,
    prefetched,
    refuse_unproven,
    refuse_without_content,
)
from vit21k.prep.ray import RayCluster

_COLUMNS = ["digest", *LOCATOR_COLUMNS, "source_split"]

ROWS_IN_MEMORY = 2_000_000
"""Rows of `images` in memory when they are reordered."""


@dataclass(frozen=True)
class RowSource:
    """Makes the rows of `images` and `copies`.

    Attributes:
        digests: Paths and sizes.
        result: Images of its files.
        wnids: The class list.
        split_N: Published split of each image at its kept file, an index into `SOURCE_SPLITS`, -1
            for none; None if no file has one.
    """

    digests: Manifest
    result: DedupResult
    wnids: Sequence[str]
    split_N: NDArray[np.int8] | None = None

    def batches(self) -> Iterator[dict[str, pa.Table]]:
        """Yield rows of `images`, `copies` and `overlabelled`, each in manifest order."""
        place = self.result.image_order()
        not_kept = _NotKept(self.result, self.wnids)
        for start, files in self._files():
            images = self._images(start, files) if place is None else IMAGES.schema.empty_table()
            yield {"images": images, **not_kept.among(start, files)}
        if place is not None:
            for images in self._reordered(place):
                yield {"images": images}

    def _files(self) -> Iterator[tuple[int, pa.Table]]:
        """Yield a row group of files at a time, with the number of its first row."""
        start = 0
        for files in prefetched(self.digests.batches(_COLUMNS)):
            yield start, files
            start += files.num_rows

    def _images(self, start: int, files: pa.Table) -> pa.Table:
        """Return the images among *files*, in file order."""
        stop = start + files.num_rows
        label_ids, num_files = self.result.columns(start, stop)
        kept = files.filter(pa.array(~self.result.is_copy_N[start:stop]))
        columns = [
            kept["digest"],
            kept["path"],
            _bytes_in_container(kept),
            label_ids,
            pa.array(num_files),
            kept["container"],
            kept["offset"],
            kept["storage"],
            self._source_splits(start, kept, ~self.result.is_copy_N[start:stop]),
        ]
        return pa.table(columns, schema=IMAGES.schema)

    def _source_splits(
        self, start: int, kept: pa.Table, is_kept_B: NDArray[np.bool_]
    ) -> pa.Array | pa.ChunkedArray:
        if self.split_N is None:
            return kept["source_split"]
        splits_B = self.split_N[start : start + len(is_kept_B)][is_kept_B]
        return pa.array(SOURCE_SPLITS).take(pa.array(splits_B, mask=splits_B < 0))

    def _reordered(self, place: NDArray[np.int64]) -> Iterator[pa.Table]:
        """Yield the images by *place*, reading the files once for each part that is held."""
        for first in range(0, len(place), ROWS_IN_MEMORY):
            parts: list[pa.Table] = []
            positions: list[NDArray[np.int64]] = []
            row = 0
            for start, files in self._files():
                images = self._images(start, files)
                its_place = place[row : row + images.num_rows]
                row += images.num_rows
                is_in = (its_place >= first) & (its_place < first + ROWS_IN_MEMORY)
                parts.append(images.filter(pa.array(is_in)))
                positions.append(its_place[is_in])
            order = np.argsort(np.concatenate(positions))
            yield pa.concat_tables(parts).take(pa.array(order))


def _bytes_in_container(files: pa.Table) -> pa.ChunkedArray:
    """Return `num_bytes` of *files*, null for plain files."""
    return pc.if_else(files["container"].is_valid(), files["num_bytes"], None)


class _NotKept:
    """Makes the rows of `copies` and `overlabelled`, from the files in order."""

    def __init__(self, result: DedupResult, wnids: Sequence[str]) -> None:
        self._dedup = result
        self._copy_row_C = result.copy_row_C
        self._wnids = pa.array(wnids, pa.string())
        self._digests_G2 = np.empty((len(result.first_row_G), 2), dtype=np.uint64)

    def among(self, start: int, files: pa.Table) -> dict[str, pa.Table]:
        """Return those of *files* that are copies, and the over-labelled."""
        stop = start + files.num_rows
        digests_B2 = as_numbers(files["digest"].combine_chunks())
        first_row_G = self._dedup.first_row_G
        first, last = np.searchsorted(first_row_G, (start, stop))
        self._digests_G2[first:last] = digests_B2[first_row_G[first:last] - start]

        first, last = np.searchsorted(self._copy_row_C, (start, stop))
        row_C = self._copy_row_C[first:last]
        group_C = self._dedup.group_C[first:last]
        is_overlabelled_C = group_C < 0
        digests_C2 = digests_B2[row_C - start]
        digests_C2[~is_overlabelled_C] = self._digests_G2[group_C[~is_overlabelled_C]]
        files = files.take(pa.array(row_C - start))
        wnids = self._wnids.take(pa.array(self._dedup.label_N[row_C]))
        columns = [
            as_digests(digests_C2),
            files["path"],
            wnids,
            _bytes_in_container(files),
            files["container"],
            files["offset"],
            files["storage"],
            files["source_split"],
        ]
        rows = pa.table(columns, schema=COPIES.schema)
        return {
            "copies": rows.filter(pa.array(~is_overlabelled_C)),
            "overlabelled": rows.filter(pa.array(is_overlabelled_C)),
        }


MANY_LABELS = 20
"""More labels than this on one image are rarely all true."""

_SLICE_ROWS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class RelabelSummary:
    """Counts of a run of `relabel`.

    Attributes:
        num_files: Rows of `digests.parquet`.
        num_images: Rows of `images.parquet`.
        num_multi_label: Images with two labels or more.
        num_overlabelled: Images with more than `MANY_LABELS` labels.
        num_overlabelled_files: Rows of `overlabelled.parquet`: files with too many labels.
        num_classes: Length of the class list.
        num_classes_without_files: Classes of the list without files.
        num_classes_before: Length of the class list of the `images.parquet` that was replaced, if
            it was another list.
        num_in_both: Images published for training and, as another file, for something else; they
            are not trained on.
    """

    num_files: int
    num_images: int
    num_multi_label: int
    num_overlabelled: int
    num_overlabelled_files: int
    num_classes: int
    num_classes_without_files: int
    num_classes_before: int | None
    num_in_both: int = 0

    @property
    def num_copies(self) -> int:
        """Files that were merged into another; rows of `copies.parquet`."""
        return self.num_files - self.num_images - self.num_overlabelled_files


def relabel(
    manifests: str | Path,
    *,
    classes: ClassList | None = None,
    by: Literal["bytes", "content"] = "bytes",
    max_labels: int | None = None,
    cluster: RayCluster | None = None,
) -> RelabelSummary:
    """Merge equal files; write `images`, `copies`, `overlabelled` and `classes.parquet`.

    Args:
        manifests: The folder that holds `digests.parquet`.
        classes: Which class folder is class 0, 1, 2 ...; default: the folders found, by name.
        by: What must be equal: all bytes, or what is left of a JPEG without its metadata.
        max_labels: Skip images with more labels than this.
        cluster: Finds the duplicates, so that this machine holds no digests.

    Raises:
        ManifestError: `digests.parquet` is missing or damaged.
        DataError: It is empty, or the folder of a file is not among *classes*; or it was
            merged from quick shards without reading what may be duplicates.
        UsageError: *manifests* is inside the image root; or the content was not hashed.
        LockedError: Another run works on *manifests*.
        OSError: The disk is full or failing.
    """
    manifests = Path(manifests)
    if cluster and by == "content":
        raise UsageError("on Ray, files are merged by all their bytes", hint="run without `--by`")
    with locked(manifests, command="relabel"):
        digests = open_manifest(manifests, DIGESTS)
        refuse_inside(manifests, digests.header.image_folder)
        wnid_N, wnids = _read_folders(digests)
        classes = classes or ClassList.from_folders(wnids)
        label_N = _replaced(wnid_N, _class_indices(wnids, classes))
        if by == "content":
            refuse_without_content(digests)
        if cluster:
            groups = cluster.find_copies(digests)
        else:
            if digests.header.options.get("mode") == "quick":
                refuse_unproven(digests)
            groups = dedup.find_copies(FileKeys(digests, by), digests.num_rows)
        result = merge_groups(groups, label_N, max_labels=max_labels)
        header = _header_for(digests, classes, by=by, max_labels=max_labels)
        num_classes_before = _num_classes_before(manifests, classes)
        with ExitStack() as stack:
            writers = {
                kind.name: stack.enter_context(
                    manifest_writer(kind, manifests, header, classes, is_distinct=cluster is None)
                )  # without a cluster all digests were sorted: no two groups share theirs
                for kind in (IMAGES, COPIES, OVERLABELLED, CLASSES)
            }
            writers["classes"].write(class_rows(classes, result))
            split_N, num_in_both = read_splits(digests, result)
            for tables in RowSource(digests, result, classes.wnids, split_N).batches():
                for name, rows in tables.items():
                    writers[name].write(rows)
    return _summary(result, classes, num_classes_before, num_in_both)


def classes_of_source(manifests: Path) -> ClassList | None:
    """Return the class list of the hashed source; None if it has none.

    Raises:
        ManifestError: `digests.parquet` is missing or damaged.
    """
    names = open_manifest(manifests, DIGESTS).header.options.get(CLASSES_OPTION)
    return None if names is None else ClassList(tuple(names))


def _header_for(
    digests: Manifest, classes: ClassList, *, by: str, max_labels: int | None
) -> ManifestHeader:
    options: dict[str, Any] = {"by": by, "max_labels": max_labels}
    if archive := digests.header.options.get(ARCHIVE_OPTION):
        options[ARCHIVE_OPTION] = archive
    return ManifestHeader(
        algorithm=digests.header.algorithm,
        root=digests.header.root,
        classes=classes.fingerprint,
        inputs={"digests": digests.fingerprint},
        options=options,
    )


def _read_folders(digests: Manifest) -> tuple[NDArray[np.int32], list[str]]:
    """Return the folder of each file as an index into a list of folders, and the list."""
    if not digests.num_rows:
        raise DataError(
            f"`{digests.path}` lists no files",
            hint="see `problems.parquet` next to it for the reasons",
        )
    wnid_N = np.empty(digests.num_rows, dtype=np.int32)
    index_of: dict[str, int] = {}
    row = 0
    for rows in prefetched(digests.batches(["wnid"], as_dictionary=["wnid"])):
        for wnid in rows["wnid"].chunks:
            names = wnid.dictionary.to_pylist()
            found = [index_of.setdefault(name, len(index_of)) for name in names]
            indices = np.array(found, dtype=np.int32)[wnid.indices.to_numpy()]
            wnid_N[row : row + len(wnid)] = indices
            row += len(wnid)
    return wnid_N, list(index_of)


def read_splits(digests: Manifest, result: DedupResult) -> tuple[NDArray[np.int8] | None, int]:
    """Return the published split of each image, and how many are in train and in another.

    Of copies in several splits, the image has the split that is used for training the least: no
    image that is held out somewhere is trained on.

    Returns:
        split_N: At the kept file of each image an index into `SOURCE_SPLITS`, -1 for none; None if
            no file has a split.
        num_in_both: Images with a file in train and one in a split that is held out.
    """
    split_N = np.full(digests.num_rows, -1, dtype=np.int8)
    row, is_any = 0, False
    for rows in prefetched(digests.batches(["source_split"])):
        if rows["source_split"].null_count < rows.num_rows:
            found = pc.index_in(rows["source_split"], value_set=pa.array(SOURCE_SPLITS))
            split_N[row : row + rows.num_rows] = found.fill_null(-1).to_numpy()
            is_any = True
        row += rows.num_rows
    if not is_any:
        return None, 0
    split_G = split_N[result.first_row_G]
    is_in_train_G = split_G == 0
    is_copy_C = result.group_C >= 0
    split_C = split_N[result.copy_row_C[is_copy_C]]
    np.maximum.at(split_G, result.group_C[is_copy_C], split_C)
    np.logical_or.at(is_in_train_G, result.group_C[is_copy_C], split_C == 0)
    split_N[result.first_row_G] = split_G
    return split_N, int((is_in_train_G & (split_G > 0)).sum())


def _class_indices(wnids: list[str], classes: ClassList) -> NDArray[np.int32]:
    """Return the class index of each of *wnids*."""
    index_of = {wnid: index for index, wnid in enumerate(classes.wnids)}
    if unknown := sorted(wnid for wnid in wnids if wnid not in index_of):
        more = f" and {len(unknown) - 1:,} more folders are" if len(unknown) > 1 else " is"
        raise DataError(
            f"`{unknown[0]}`{more} not in the class list",
            hint="add it to the list, or move the folder out of the image tree and run "
            "`vit21k hash` again",
        )
    return np.array([index_of[wnid] for wnid in wnids], dtype=np.int32)


def _replaced(place_N: NDArray[np.int32], values: NDArray[np.int32]) -> NDArray[np.int32]:
    """Replace each index in *place_N* by its element of *values*, in place."""
    for start in range(0, len(place_N), _SLICE_ROWS):
        slice_N = place_N[start : start + _SLICE_ROWS]
        slice_N[:] = values[slice_N]
    return place_N


def class_rows(classes: ClassList, result: DedupResult) -> pa.Table:
    """Return the rows of `classes.parquet`, named by WordNet where the class list has no name."""
    names = names_of(classes.wnids)
    size = len(classes)
    return pa.table(
        {
            "class_index": np.arange(size),
            "wnid": list(classes.wnids),
            "name": [
                name or names.get(wnid)
                for wnid, name in zip(classes.wnids, classes.names, strict=True)
            ],
            "num_files": result.num_files_of_classes(size),
            "num_images": result.num_images_of_classes(size),
            "num_single_label": result.num_single_label_of_classes(size),
        },
        schema=CLASSES.schema,
    )


def _num_classes_before(manifests: Path, classes: ClassList) -> int | None:
    try:
        before = open_manifest(manifests, IMAGES, allow_stale=True).classes()
    except ManifestError:
        return None
    return None if before.fingerprint == classes.fingerprint else len(before)


def _summary(
    result: DedupResult, classes: ClassList, num_classes_before: int | None, num_in_both: int
) -> RelabelSummary:
    return RelabelSummary(
        num_files=len(result.label_N),
        num_images=result.num_images,
        num_multi_label=int((result.num_labels_G > 1).sum()),
        num_overlabelled_files=result.num_overlabelled_files,
        num_overlabelled=int((result.num_labels_G > MANY_LABELS).sum()),
        num_classes=len(classes),
        num_classes_without_files=int((result.num_files_of_classes(len(classes)) == 0).sum()),
        num_classes_before=num_classes_before,
        num_in_both=num_in_both,
    )
