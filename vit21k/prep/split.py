"""images.parquet -> train.parquet, val.parquet: by count per class, or by folders."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.data.rng import derive_key, mix64
from vit21k.errors import UsageError
from vit21k.lock import locked
from vit21k.manifest.io import Header, Manifest, open_manifest
from vit21k.manifest.schema import COPIES, IMAGES, TRAIN, VAL
from vit21k.manifest.writer import manifest_writer, refuse_inside, refuse_repeated
from vit21k.prep.dedup import as_numbers, prefetched

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
    manifests: Path, *, per_class: int = 20, holdout: bool = False, seed: int | None = None
) -> SplitSummary:
    """Choose images to validate on; write `val.parquet` and `train.parquet`.

    Args:
        manifests: The folder that holds `images.parquet`.
        per_class: How many single-label images of each class to choose, where there are so many.
        holdout: Take them out of train.  An image is distinct content, so that no copy stays.
        seed: Draw them, instead of taking the first; 64 bits.

    Raises:
        ManifestError: `images.parquet` is missing, stale or damaged.
        UsageError: *manifests* lies inside the image root; or images without a digest are to be
            drawn with a seed.
        LockedError: Another run works on *manifests*.
        OSError: The disk is full or failing.
    """
    with locked(manifests, command="make-val"):
        images = open_manifest(manifests, IMAGES)
        refuse_inside(manifests, images.header.root)
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
        is_single_P: Which rows of `images.parquet` they are.
        label_R: Their labels; ascending.
        num_images_K: How many images, with one label or more, carry each label.
    """

    is_single_P: NDArray[np.bool_]
    label_R: NDArray[np.int32]
    num_images_K: NDArray[np.int64]

    def marked(self, chosen: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which rows of `images.parquet` the *chosen* places in *label_R* are."""
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
    """Return the places in *label_R* of the first *per_class* of each class, ascending.

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
    """Return the places of the lowest *scores*; of equal ones, of those that come first."""
    if len(scores) > number:  # most are not even compared with one another
        places = np.flatnonzero(scores <= np.partition(scores, number - 1)[number - 1])
    else:
        places = np.arange(len(scores))
    return places[np.argsort(scores[places], kind="stable")[:number]]


def _scores(images: Manifest, singles: Singles, seed: int) -> NDArray[np.uint64]:
    score_R = np.empty(len(singles.label_R), dtype=np.uint64)
    row = num_scores = 0
    for rows in prefetched(images.batches(["digest"])):
        if rows["digest"].null_count:
            raise UsageError(
                "images that a quick run has not read have no digest to draw them by",
                hint="leave `--seed` out, or run `vit21k hash` without `--mode quick`",
            )
        digests_B2 = as_numbers(rows["digest"].combine_chunks())
        scores = keyed_hash(digests_B2[singles.is_single_P[row : row + rows.num_rows]], seed)
        score_R[num_scores : num_scores + len(scores)] = scores
        row += rows.num_rows
        num_scores += len(scores)
    return score_R


def keyed_hash(digests_B2: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Return a number for each digest that looks random, and another one for another seed."""
    key = np.uint64(derive_key(seed))
    hash_B = np.empty(len(digests_B2), dtype=np.uint64)
    for start in range(0, len(digests_B2), _SLICE_ROWS):
        here = slice(start, start + _SLICE_ROWS)
        hash_B[here] = mix64(digests_B2[here, 0] ^ mix64(digests_B2[here, 1] ^ key))
    return hash_B


def write_split(
    images: Manifest,
    manifests: Path,
    header: Header,
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


_DIGEST = COPIES.schema.field("digest").type


@dataclass(frozen=True, kw_only=True)
class FolderSplitSummary:
    """Counts of a split by folders.

    Attributes:
        num_images: Rows of `images.parquet`.
        num_train: Rows of `train.parquet`.
        num_val: Rows of `val.parquet`.
        num_in_both: Images of the train folder that are not in train, for they lie in another.
        num_several_labels: Images of the val folder with more than one label, which are in none.
        num_elsewhere: Images in neither folder, which are in none.
    """

    num_images: int
    num_train: int
    num_val: int
    num_in_both: int
    num_several_labels: int
    num_elsewhere: int


def split_by_folders(
    manifests: Path, *, train: str, val: str, held_out: Sequence[str] = ()
) -> FolderSplitSummary:
    """Write `val.parquet` of the images below one folder, `train.parquet` of those of another.

    Args:
        manifests: The folder that holds `images.parquet` and `copies.parquet`.
        train: Folder of the images to train on, relative to the image root.
        val: Folder of the images to validate on.
        held_out: Folders of other images not to train on.

    Raises:
        ManifestError: `images.parquet` or `copies.parquet` is missing, stale or damaged.
        UsageError: *manifests* lies inside the image root, or one of the folders has no images.
        LockedError: Another run works on *manifests*.
        OSError: The disk is full or failing.
    """
    with locked(manifests, command="make-val"):
        images, copies = open_manifest(manifests, IMAGES), open_manifest(manifests, COPIES)
        refuse_inside(manifests, images.header.root)
        in_train, in_val = (_lies_in([folder], images, copies) for folder in (train, val))
        out = _lies_in([val, *held_out], images, copies)
        for folder, found in ((train, in_train), (val, in_val)):
            if not found.any():
                raise UsageError(
                    f"no image lies below `{folder}` in `{images.header.root}`",
                    hint="folders are named relative to the image root, as in `images.parquet`",
                )
        is_single = _have_one_label(images)
        header = replace(
            images.header,
            inputs={"images": images.fingerprint},
            inputs_in=".",
            options={
                **images.header.options,
                "split": "holdout",
                "train_folder": train,
                "val_folder": val,
            },
        )
        num_train, num_val = write_split(
            images, manifests, header, in_val & is_single, in_train & ~out
        )
    return FolderSplitSummary(
        num_images=images.num_rows,
        num_train=num_train,
        num_val=num_val,
        num_in_both=int((in_train & out).sum()),
        num_several_labels=int((in_val & ~is_single).sum()),
        num_elsewhere=int((~in_train & ~in_val).sum()),
    )


def _lies_in(folders: Sequence[str], images: Manifest, copies: Manifest) -> NDArray[np.bool_]:
    """Return, for each image, whether one of its files lies below one of *folders*."""
    prefixes = "|".join(re.escape(folder.strip("/")) for folder in folders)
    pattern = f"^({prefixes})/"
    found = [
        rows["digest"].filter(pc.match_substring_regex(rows["path"], pattern))
        for rows in copies.batches(["digest", "path"])
    ]
    digests = pa.chunked_array([c for one in found for c in one.chunks], _DIGEST)
    lies = [
        pc.or_(
            pc.match_substring_regex(rows["path"], pattern),
            pc.is_in(rows["digest"], value_set=digests.combine_chunks()),
        ).to_numpy()
        for rows in prefetched(images.batches(["digest", "path"]))
    ]
    return np.concatenate(lies)


def _have_one_label(images: Manifest) -> NDArray[np.bool_]:
    counts = [
        pc.list_value_length(rows["label_ids"]).to_numpy()
        for rows in prefetched(images.batches(["label_ids"]))
    ]
    is_single: NDArray[np.bool_] = np.concatenate(counts) == 1
    return is_single
