"""digests.parquet -> images, copies, crowded, classes.parquet: one row per picture.

The same picture is filed under several classes of ImageNet-21K.  Files with equal digests are one
picture, and its labels are the folders they lie in.

Algorithm: a number made of the digest (`copies.find_copies`) and a class index are held for each
file, 12 bytes, which tell the pictures (`pictures.merge_groups`).  Digests and paths are never
held: later passes over the manifest carry them from row group to row group.

Source: PLSC, task/classification/vit/README.md, "ImageNet21K data preparation".  From the same list
of files the result is the same.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.errors import DataError, ManifestError, UsageError
from vit21k.hashing.places import refuse_inside
from vit21k.lock import locked
from vit21k.manifest.classes import ClassList
from vit21k.manifest.header import Header
from vit21k.manifest.reader import Manifest, open_manifest
from vit21k.manifest.schema import CLASSES, COPIES, CROWDED, DIGESTS, IMAGES
from vit21k.manifest.writer import manifest_writer
from vit21k.prep import copies
from vit21k.prep.ahead import ahead
from vit21k.prep.copies import CopyGroups
from vit21k.prep.keys import NO_LATE_DIGESTS, FileKeys, refuse_without_content
from vit21k.prep.picture_rows import RowSource
from vit21k.prep.pictures import Pictures, merge_groups
from vit21k.prep.quick_shards import digest_unproven

CROWDED_LABELS = 20
"""A picture under more classes than this is hardly a picture of them all."""

_SLICE_ROWS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class RelabelSummary:
    """Counts of a run of `relabel`.

    Attributes:
        num_files: Rows of `digests.parquet`.
        num_images: Rows of `images.parquet`.
        num_multi_label: Pictures with two labels or more.
        num_crowded: Pictures with more than `CROWDED_LABELS` labels.
        num_crowded_files: Rows of `crowded.parquet`: files left out for the labels they would have.
        num_classes: Length of the class list.
        num_classes_without_files: Classes of the list that no file lies in.
        num_classes_before: Length of the class list of the `images.parquet` that was replaced, if
            it was another list.
    """

    num_files: int
    num_images: int
    num_multi_label: int
    num_crowded: int
    num_crowded_files: int
    num_classes: int
    num_classes_without_files: int
    num_classes_before: int | None

    @property
    def num_copies(self) -> int:
        """Files that were merged into another; rows of `copies.parquet`."""
        return self.num_files - self.num_images - self.num_crowded_files


def relabel(
    manifests: Path,
    *,
    classes: ClassList | None = None,
    by: Literal["bytes", "content"] = "bytes",
    max_labels: int | None = None,
    find_copies: Callable[[Manifest], CopyGroups] | None = None,
    names_of: Callable[[Sequence[str]], Mapping[str, str]] = lambda _wnids: {},
) -> RelabelSummary:
    """Merge equal files; write `images`, `copies`, `crowded` and `classes.parquet`.

    Args:
        manifests: The folder that holds `digests.parquet`.
        classes: Which class folder is class 0, 1, 2 ...; default: the folders found, by name.
        by: What must be equal: all bytes, or what is left of a JPEG without its metadata.
        max_labels: Leave out pictures with more labels than this.
        find_copies: Finds the files with equal bytes elsewhere, so that digests are not held here.
        names_of: Gives the classes' names in words, where *classes* does not.

    Raises:
        ManifestError: `digests.parquet` is missing or damaged.
        DataError: It is empty, or a file lies in a folder that is not among *classes*.
        UsageError: *manifests* lies inside the image root; or the content was not digested.
        LockedError: Another run works on *manifests*.
        OSError: The disk is full or failing.
    """
    if find_copies and by == "content":
        raise UsageError("on Ray, files are merged by all their bytes", hint="leave `--by` out")
    with locked(manifests, command="relabel"):
        digests = open_manifest(manifests, DIGESTS)
        refuse_inside(manifests, digests.header.root)
        wnid_N, wnids = _read_folders(digests)
        classes = classes or ClassList.from_folders(wnids)
        label_N = _replaced(wnid_N, _class_indices(wnids, classes))
        if by == "content":
            refuse_without_content(digests)
        is_quick = digests.header.options.get("mode") == "quick" and not find_copies
        late = digest_unproven(digests) if is_quick else NO_LATE_DIGESTS
        if find_copies:
            groups = find_copies(digests)
        else:
            groups = copies.find_copies(FileKeys(digests, by, late), digests.num_rows)
        pictures = merge_groups(groups, label_N, max_labels=max_labels)
        header = _header_for(digests, classes, by=by, max_labels=max_labels)
        num_classes_before = _num_classes_before(manifests, classes)
        is_distinct = find_copies is None  # all digests were sorted: no two groups share theirs
        with ExitStack() as stack:
            writers = {
                kind.name: stack.enter_context(
                    manifest_writer(kind, manifests, header, classes, is_distinct=is_distinct)
                )
                for kind in (IMAGES, COPIES, CROWDED, CLASSES)
            }
            writers["classes"].write(class_rows(classes, pictures, names_of))
            source = RowSource(digests, late, pictures, classes.wnids)
            for tables in source.batches():
                for name, rows in tables.items():
                    writers[name].write(rows)
    return _summary(pictures, classes, num_classes_before)


def _header_for(
    digests: Manifest, classes: ClassList, *, by: str, max_labels: int | None
) -> Header:
    return Header(
        algorithm=digests.header.algorithm,
        root=digests.header.root,
        classes=classes.fingerprint,
        inputs={"digests": digests.fingerprint},
        options={"by": by, "max_labels": max_labels},
    )


def _read_folders(digests: Manifest) -> tuple[NDArray[np.int32], list[str]]:
    """Return the folder of each file as an index into a list of folders, and the list."""
    if not digests.num_rows:
        raise DataError(
            f"`{digests.path}` lists no files", hint="see `problems.parquet` beside it for why"
        )
    wnid_N = np.empty(digests.num_rows, dtype=np.int32)
    index_of: dict[str, int] = {}
    row = 0
    for rows in ahead(digests.batches(["wnid"], as_dictionary=["wnid"])):
        for wnid in rows["wnid"].chunks:
            names = wnid.dictionary.to_pylist()
            found = [index_of.setdefault(name, len(index_of)) for name in names]
            indices = np.array(found, dtype=np.int32)[wnid.indices.to_numpy()]
            wnid_N[row : row + len(wnid)] = indices
            row += len(wnid)
    return wnid_N, list(index_of)


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
    """Return *place_N*, in which each number has given way to the value at its place."""
    for start in range(0, len(place_N), _SLICE_ROWS):
        places = place_N[start : start + _SLICE_ROWS]
        places[:] = values[places]
    return place_N


def class_rows(
    classes: ClassList,
    pictures: Pictures,
    names_of: Callable[[Sequence[str]], Mapping[str, str]],
) -> pa.Table:
    """Return the rows of `classes.parquet`."""
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
            "num_files": pictures.num_files_of_classes(size),
            "num_images": pictures.num_images_of_classes(size),
            "num_single_label": pictures.num_single_label_of_classes(size),
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
    pictures: Pictures, classes: ClassList, num_classes_before: int | None
) -> RelabelSummary:
    return RelabelSummary(
        num_files=len(pictures.label_N),
        num_images=pictures.num_pictures,
        num_multi_label=int((pictures.num_labels_G > 1).sum()),
        num_crowded_files=pictures.num_crowded_files,
        num_crowded=int((pictures.num_labels_G > CROWDED_LABELS).sum()),
        num_classes=len(classes),
        num_classes_without_files=int((pictures.num_files_of_classes(len(classes)) == 0).sum()),
        num_classes_before=num_classes_before,
    )
