"""images.parquet -> train.parquet, val.parquet: by count per class, by a list, or as published."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.data.rng import derive_key, mix64
from vit21k.errors import UsageError
from vit21k.lock import locked
from vit21k.manifest.file_lists import SUFFIX, FileNames, read_names, without_suffix
from vit21k.manifest.io import Manifest, ManifestHeader, open_manifest
from vit21k.manifest.schema import COPIES, IMAGES, SOURCE_SPLITS, TRAIN, VAL
from vit21k.manifest.writer import manifest_writer, refuse_inside, refuse_repeated
from vit21k.prep.dedup import as_numbers, prefetched

MAKE_VAL = TRAIN.made_by
_SLICE_ROWS = 1 << 13  # what is made on the way stays in the cache


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """Counts of a run of `make_val`.

    Attributes:
        num_images: Rows of `images.parquet`.
        num_train: Rows of `train.parquet`.
        num_val: Rows of `val.parquet`.
        short_classes: Classes with fewer single-label images than asked, with how many they have.
        classes_without_train: Classes whose every image went to val.
    """

    num_images: int
    num_train: int
    num_val: int
    short_classes: dict[str, int]
    classes_without_train: list[str]


def make_val(
    manifests: str | Path,
    *,
    per_class: int = 20,
    holdout: bool = False,
    seed: int | None = None,
    is_any_split: bool = False,
) -> SplitSummary:
    """Choose images to validate on; write `val.parquet` and `train.parquet`.

    Args:
        manifests: The folder that holds `images.parquet`.
        per_class: Number of single-label images of each class to choose, at most.
        holdout: Exclude them from train.  An image is distinct content, so that no copy stays.
        seed: Draw them, instead of taking the first; 64 bits.
        is_any_split: Ignore in which split the images were published.

    Raises:
        ManifestError: `images.parquet` is missing, stale or damaged.
        UsageError: *manifests* is inside the image root; or images without a digest are to be
            drawn with a seed; or some were published as validation or test data.
        LockedError: Another run works on *manifests*.
        OSError: The disk is full or failing.
    """
    manifests = Path(manifests)
    with locked(manifests, command="make-val"):
        images = open_manifest(manifests, IMAGES)
        refuse_inside(manifests, images.header.image_folder)
        if not is_any_split:
            refuse_published(images, "this split")
        wnids = images.classes().wnids
        singles = single_labels(images)
        score_R = None if seed is None else _scores(images, singles, seed)
        chosen = choose(singles.label_R, score_R, num_classes=len(wnids), per_class=per_class)
        in_val = singles.marked(chosen)

        split = "holdout" if holdout else "dummy"
        options = {"split": split, "per_class": per_class, "seed": seed}
        header = replace(
            images.header,
            inputs={"images": images.fingerprint},
            inputs_in=".",
            options={**images.header.options, **options},
        )
        num_train, num_val = write_split(
            images, manifests, header, in_val, ~in_val if holdout else None
        )

    num_val_K = np.bincount(singles.label_R[chosen], minlength=len(wnids))
    is_bare_K = (num_val_K == singles.num_images_K) & (num_val_K > 0)
    return SplitSummary(
        num_images=images.num_rows,
        num_train=num_train,
        num_val=num_val,
        short_classes=_short(singles, wnids, per_class),
        classes_without_train=[wnids[k] for k in np.flatnonzero(is_bare_K).tolist() if holdout],
    )


def _short(singles: "Singles", wnids: Sequence[str], per_class: int) -> dict[str, int]:
    num_single_K = np.bincount(singles.label_R, minlength=len(wnids))
    short = np.flatnonzero(num_single_K < per_class).tolist()
    return {wnids[index]: int(num_single_K[index]) for index in short}


class Singles(NamedTuple):
    """The images with one label, in images order, which is by label.

    Attributes:
        is_single_P: Which rows of `images.parquet` have one label.
        label_R: Their labels; ascending.
        num_images_K: Number of images with each label.
    """

    is_single_P: NDArray[np.bool_]
    label_R: NDArray[np.int32]
    num_images_K: NDArray[np.int64]

    def marked(self, chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which rows of `images.parquet` the *chosen* positions in *label_R* are."""
        is_chosen_R = np.zeros(len(self.label_R), dtype=bool)
        is_chosen_R[chosen] = True
        is_in_P = self.is_single_P.copy()
        is_in_P[is_in_P] = is_chosen_R
        return is_in_P


def single_labels(images: Manifest) -> Singles:
    """Read which images of `images.parquet` have a single label."""
    num_classes = len(images.classes())
    is_single_P = np.empty(images.num_rows, dtype=bool)
    label_R = np.empty(images.num_rows, dtype=np.int32)
    num_images_K = np.zeros(num_classes, dtype=np.int64)
    row = num_singles = 0
    for rows in prefetched(images.batches(["label_ids"])):
        lists = rows["label_ids"].combine_chunks()
        starts = lists.offsets.to_numpy()
        label_ids = lists.values.to_numpy()
        num_images_K += np.bincount(lists.flatten().to_numpy(), minlength=num_classes)
        is_single_B = np.diff(starts) == 1
        labels = label_ids[starts[:-1][is_single_B]]
        is_single_P[row : row + rows.num_rows] = is_single_B
        label_R[num_singles : num_singles + len(labels)] = labels
        row += rows.num_rows
        num_singles += len(labels)
    return Singles(is_single_P, label_R[:num_singles], num_images_K)


def choose(
    label_R: NDArray[np.int32],
    score_R: NDArray[np.uint64] | None,
    *,
    num_classes: int,
    per_class: int,
) -> NDArray[np.int64]:
    """Return the positions in *label_R* of the first *per_class* of each class, ascending.

    Args:
        label_R: Labels, ascending.
        score_R: The first are those with the lowest score; default: those that come first.
        num_classes: Labels are smaller than this.
        per_class: How many; all, of a class that has fewer.
    """
    start_K = np.searchsorted(label_R, np.arange(num_classes + 1, dtype=label_R.dtype))
    per_class = min(per_class, len(label_R))
    size_K = np.minimum(np.diff(start_K), per_class)
    if score_R is None:
        first_place = np.repeat(start_K[:-1] - (np.cumsum(size_K) - size_K), size_K)
        return first_place + np.arange(len(first_place))
    chosen = [
        start + np.sort(_lowest(score_R[start:stop], per_class))
        for start, stop in pairwise(start_K)
    ]
    return np.concatenate(chosen)


def _lowest(scores: NDArray[np.uint64], number: int) -> NDArray[np.int64]:
    """Return the positions of the lowest *scores*; of equal ones, of those that come first."""
    if len(scores) > number:  # most are not even compared with one another
        indices = np.flatnonzero(scores <= np.partition(scores, number - 1)[number - 1])
    else:
        indices = np.arange(len(scores))
    return indices[np.argsort(scores[indices], kind="stable")[:number]]


def _scores(images: Manifest, singles: Singles, seed: int) -> NDArray[np.uint64]:
    score_R = np.empty(len(singles.label_R), dtype=np.uint64)
    row = num_scores = 0
    for rows in prefetched(images.batches(["digest"])):
        if rows["digest"].null_count:
            raise UsageError(
                "a quick run hashed only some images, and `--seed` chooses by digest",
                hint="skip `--seed`, or run `vit21k hash` without `--mode quick`",
            )
        digests_B2 = as_numbers(rows["digest"].combine_chunks())
        scores = keyed_hash(digests_B2[singles.is_single_P[row : row + rows.num_rows]], seed)
        score_R[num_scores : num_scores + len(scores)] = scores
        row += rows.num_rows
        num_scores += len(scores)
    return score_R


def keyed_hash(digests_B2: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Return a pseudo-random number for each digest and *seed*."""
    key = np.uint64(derive_key(seed))
    hash_B = np.empty(len(digests_B2), dtype=np.uint64)
    for start in range(0, len(digests_B2), _SLICE_ROWS):
        here = slice(start, start + _SLICE_ROWS)
        hash_B[here] = mix64(digests_B2[here, 0] ^ mix64(digests_B2[here, 1] ^ key))
    return hash_B


def write_split(
    images: Manifest,
    manifests: Path,
    header: ManifestHeader,
    in_val: NDArray[np.bool_],
    in_train: NDArray[np.bool_] | None,
) -> tuple[int, int]:
    """Write `train.parquet` and `val.parquet`; return how many rows each has.

    Args:
        images: All images.
        manifests: Folder to write to.
        header: Of both; that of train names val among its inputs, too.
        in_val: Which images are in val.
        in_train: Which images are in train; default: all.

    Raises:
        ManifestError: Two images have the same digest, so that one could be in each.
    """
    classes = images.classes()
    if "labels" in images.header.options:  # else by `relabel`, which has compared all digests
        refuse_repeated(images)
    with manifest_writer(TRAIN, manifests, header, classes, is_distinct=True) as train:
        with manifest_writer(VAL, manifests, header, classes, is_distinct=True) as val:
            row = 0
            for rows in prefetched(images.batches(TRAIN.schema.names)):
                here = slice(row, row + rows.num_rows)
                val.write(rows.filter(pa.array(in_val[here])))
                train.write(rows if in_train is None else rows.filter(pa.array(in_train[here])))
                row += rows.num_rows
        fingerprint = open_manifest(manifests, VAL).fingerprint
        train.header = replace(header, inputs={**header.inputs, "val": fingerprint})
    return train.num_rows, val.num_rows


TRAIN_SPLIT, *HELD_OUT_SPLITS = SOURCE_SPLITS


@dataclass(frozen=True, kw_only=True)
class SourceSplitSummary:
    """Counts of a split as it was published; the images of the last five are all there are.

    Attributes:
        num_images: Rows of `images.parquet`.
        val_split: Published split that is used as val: `validation`, or `test` without one.
        num_train: Rows of `train.parquet`.
        num_val: Rows of `val.parquet`.
        num_several_labels: Images of the val split with more than one label, which are in none.
        num_held_out: Images of another split that is no training data, which are in none.
        num_without: Images that were published in no split, which are in none.
    """

    num_images: int
    val_split: str
    num_train: int
    num_val: int
    num_several_labels: int
    num_held_out: int
    num_without: int


def split_by_source(manifests: Path) -> SourceSplitSummary:
    """Write `val.parquet` and `train.parquet` as the source was published.

    Args:
        manifests: The folder that holds `images.parquet`.

    Raises:
        ManifestError: `images.parquet` is missing, stale or damaged.
        UsageError: *manifests* is inside the image root, or no image was published for training,
            or none for anything else.
        LockedError: Another run works on *manifests*.
        OSError: The disk is full or failing.
    """
    with locked(manifests, command="make-val"):
        images = open_manifest(manifests, IMAGES)
        refuse_inside(manifests, images.header.image_folder)
        split_P = published_splits(images)
        counts = {name: int((split_P == k).sum()) for k, name in enumerate(SOURCE_SPLITS)}
        val_split = next((name for name in HELD_OUT_SPLITS if counts[name]), None)
        if val_split is None or not counts[TRAIN_SPLIT]:
            found = ", ".join(f"{count:,} in {name}" for name, count in counts.items() if count)
            raise UsageError(
                f"the source of `{manifests}` has no published split to take: "
                f"{found or 'no image is in one'}",
                hint="`vit21k make-val --per-class 50 --holdout` chooses images, "
                "`--val-list FILE` takes those of a list",
            )
        is_single_P = single_labels(images).is_single_P
        is_val_P = split_P == SOURCE_SPLITS.index(val_split)
        header = _header(images, {"from_source": True})
        num_train, num_val = write_split(
            images, manifests, header, is_val_P & is_single_P, split_P == 0
        )
    return SourceSplitSummary(
        num_images=images.num_rows,
        val_split=val_split,
        num_train=num_train,
        num_val=num_val,
        num_several_labels=counts[val_split] - num_val,
        num_held_out=sum(counts[name] for name in HELD_OUT_SPLITS if name != val_split),
        num_without=int((split_P < 0).sum()),
    )


def has_published_split(manifests: Path) -> bool:
    """Return whether there are images of a published train split and of another one.

    Raises:
        ManifestError: `images.parquet` is missing, stale or damaged.
    """
    split_P = published_splits(open_manifest(manifests, IMAGES))
    return bool((split_P == 0).any() and (split_P > 0).any())


def command_to_split(manifests: Path) -> str:
    """Return the next command, a `make-val`, for the images in *manifests*."""
    return MAKE_VAL + (" --from-source" if has_published_split(manifests) else "")


def published_splits(images: Manifest) -> NDArray[np.int8]:
    """Return the published split of each image, an index into `SOURCE_SPLITS`; -1: none."""
    split_P = np.full(images.num_rows, -1, dtype=np.int8)
    row = 0
    for rows in prefetched(images.batches(["source_split"])):
        found = pc.index_in(rows["source_split"], value_set=pa.array(SOURCE_SPLITS))
        split_P[row : row + rows.num_rows] = found.fill_null(-1).to_numpy()
        row += rows.num_rows
    return split_P


def refuse_published(images: Manifest, command: str) -> None:
    """Refuse to train on all images if some were published as validation or test data.

    Args:
        images: All images.
        command: What is refused, for the message.

    Raises:
        UsageError: Some were published as validation or test data.
    """
    num_held_out = int((published_splits(images) > 0).sum())
    if num_held_out:
        raise UsageError(
            f"{num_held_out:,} images were published as validation or test data, and {command} "
            "would let them into train",
            hint="`vit21k make-val --from-source` takes the split as published; "
            "`vit21k make-val --no-from-source` chooses from all images",
        )


def _header(images: Manifest, options: Mapping[str, Any]) -> ManifestHeader:
    """Return the header of a split whose val images are held out."""
    return replace(
        images.header,
        inputs={"images": images.fingerprint},
        inputs_in=".",
        options={**images.header.options, "split": "holdout", **options},
    )


_DIGEST = COPIES.schema.field("digest").type
_HEX_DIGEST = re.compile(r"[0-9a-fA-F]{32}")
_STEM = rf"(?is)^(?:.*/)?(?P<stem>[^/]*?)(?:{SUFFIX.pattern[:-1]})?$"


@dataclass(frozen=True, kw_only=True)
class ListSplitSummary:
    """Counts of a split by a list of names.

    Attributes:
        num_images: Rows of `images.parquet`: the sum of the next four.
        num_train: Rows of `train.parquet`.
        num_val: Rows of `val.parquet`.
        num_several_labels: Images of the list with several labels, which are in no split.
        num_held_out: Images that are not in the list, but were published as validation or test
            data, which are in none.
        num_names: Names in the list.
        unmatched: Names that no image has.
    """

    num_images: int
    num_train: int
    num_val: int
    num_several_labels: int
    num_held_out: int
    num_names: int
    unmatched: tuple[str, ...]


def split_by_list(manifests: Path, val_list: Path) -> ListSplitSummary:
    """Write `val.parquet` of the images in a list, `train.parquet` of all others.

    A name of any copy of an image means the image: no copy of it stays in train.

    Args:
        manifests: The folder that holds `images.parquet` and `copies.parquet`.
        val_list: Names, paths or hexadecimal digests of images, as `file_lists.read_names` reads
            them.

    Raises:
        ManifestError: A manifest is missing, stale or damaged, or the list cannot be read.
        UsageError: *manifests* is inside the image root, a name means several images, or no name
            means any.
        LockedError: Another run works on *manifests*.
        OSError: The disk is full or failing.
    """
    names = read_names(val_list)
    with locked(manifests, command="make-val"):
        images = open_manifest(manifests, IMAGES)
        refuse_inside(manifests, images.header.image_folder)
        row_E = _rows_of(names, images, _copies_of(manifests))
        if (row_E < 0).all():
            raise UsageError(
                f"none of the {len(names):,} names in `{val_list}`, such as `{names[0]}`, is of an "
                f"image in `{manifests}`",
                hint="names are paths relative to the image root, file names with or without "
                "suffix, or digests",
            )
        is_listed_P = np.zeros(images.num_rows, dtype=bool)
        is_listed_P[row_E[row_E >= 0]] = True
        is_val_P = is_listed_P & single_labels(images).is_single_P
        is_held_out_P = (published_splits(images) > 0) & ~is_listed_P
        digest = hashlib.sha256(val_list.read_bytes()).hexdigest()
        header = _header(images, {"val_list": {"name": val_list.name, "sha256": digest}})
        num_train, num_val = write_split(
            images, manifests, header, is_val_P, ~is_listed_P & ~is_held_out_P
        )
    return ListSplitSummary(
        num_images=images.num_rows,
        num_train=num_train,
        num_val=num_val,
        num_several_labels=int(is_listed_P.sum()) - num_val,
        num_held_out=int(is_held_out_P.sum()),
        num_names=len(names),
        unmatched=tuple(name for name, row in zip(names, row_E.tolist(), strict=True) if row < 0),
    )


def _copies_of(manifests: Path) -> Manifest | None:
    """Return `copies.parquet`; None in a folder of manifests with other labels."""
    has_copies = (manifests / COPIES.file_name).is_file()
    return open_manifest(manifests, COPIES) if has_copies else None


def _rows_of(names: Sequence[str], images: Manifest, copies: Manifest | None) -> NDArray[np.int64]:
    """Return the row of `images.parquet` that each name means; -1 for none.

    Raises:
        UsageError: A name means several images.
    """
    found = _Found(names)
    for rows in prefetched(copies.batches(["digest", "path"])) if copies else ():
        found.add_copies(rows)
    row = 0
    for rows in prefetched(images.batches(["digest", "path"])):
        found.add_images(rows, row)
        row += rows.num_rows
    return found.row_E


class _Found:
    """Matches names of a list with images, while copies and then images are read."""

    def __init__(self, names: Sequence[str]) -> None:
        self.row_E = np.full(len(names), -1)
        self._names = names
        self._matcher = FileNames(names)
        stems = {without_suffix(name).replace("\\", "/").rpartition("/")[2] for name in names}
        self._stems = pa.array(sorted(stems))
        self._names_of: dict[bytes, set[int]] = {}
        for index, name in enumerate(names):
            if _HEX_DIGEST.fullmatch(name):
                self._names_of.setdefault(bytes.fromhex(name), set()).add(index)
        self._digests = pa.array(list(self._names_of), _DIGEST)

    def add_copies(self, rows: pa.Table) -> None:
        """Take rows of `copies.parquet`: their names are those of the image with their digest."""
        for _, path, digest in self._candidates(rows):
            self._names_of.setdefault(digest, set()).update(self._matcher.find(path))
        self._digests = pa.array(list(self._names_of), _DIGEST)

    def add_images(self, rows: pa.Table, first_row: int) -> None:
        """Take rows of `images.parquet`, from *first_row* on."""
        for row, path, digest in self._candidates(rows):
            for index in {*self._matcher.find(path), *self._names_of.get(digest, ())}:
                self._set(index, first_row + row, path)

    def _candidates(self, rows: pa.Table) -> Iterator[tuple[int, str, bytes]]:
        """Yield place, path and digest of rows that a name may mean."""
        stems = pc.struct_field(pc.extract_regex(rows["path"], _STEM), "stem")
        by_name = pc.is_in(stems, value_set=self._stems)
        by_digest = pc.is_in(rows["digest"], value_set=self._digests, skip_nulls=True)
        indices = np.flatnonzero(pc.or_(by_name, by_digest).to_numpy())
        few = rows.take(pa.array(indices))
        columns = (few[name].to_pylist() for name in ("path", "digest"))
        yield from zip(indices.tolist(), *columns, strict=True)

    def _set(self, index: int, row: int, path: str) -> None:
        if self.row_E[index] not in (-1, row):
            raise UsageError(
                f"`{self._names[index]}` in the list means several images, one of them `{path}`",
                hint="write paths relative to the image root, or digests",
            )
        self.row_E[index] = row
