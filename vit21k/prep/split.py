"""images.parquet -> train.parquet, val.parquet.

Only pictures with a single label are drawn for val, so that plain accuracy means something.  By
default they stay in train as well, as in PLSC: such a split is a *dummy*, good for watching a
training run and for nothing else, and every metric on it is named so.

Without a seed the first pictures of each class are taken, as in PLSC.  With one, each picture's
place in the draw is a keyed hash of its digest: other classes, and other pictures, do not move it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.data.mix64 import derive_key, mix64
from vit21k.errors import UsageError
from vit21k.hashing.places import refuse_inside
from vit21k.lock import locked
from vit21k.manifest.distinct import refuse_repeated
from vit21k.manifest.header import Header
from vit21k.manifest.reader import Manifest, open_manifest
from vit21k.manifest.schema import IMAGES, TRAIN, VAL
from vit21k.manifest.writer import manifest_writer
from vit21k.prep.ahead import ahead
from vit21k.prep.keys import as_numbers

_SLICE_ROWS = 1 << 13  # what is made on the way stays in the cache


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """Counts of a run of `make_val`.

    Attributes:
        num_images: Rows of `images.parquet`.
        num_train: Rows of `train.parquet`.
        num_val: Rows of `val.parquet`.
        short_classes: Classes with fewer single-label pictures than asked, with how many they have.
        classes_without_train: Classes whose every picture went to val.
    """

    num_images: int
    num_train: int
    num_val: int
    short_classes: dict[str, int]
    classes_without_train: list[str]


def make_val(
    manifests: Path, *, per_class: int = 20, holdout: bool = False, seed: int | None = None
) -> SplitSummary:
    """Choose pictures to validate on; write `val.parquet` and `train.parquet`.

    Args:
        manifests: The folder that holds `images.parquet`.
        per_class: How many single-label pictures of each class to choose, where there are so many.
        holdout: Take them out of train.  A picture is distinct content, so that no copy stays.
        seed: Draw them, instead of taking the first; 64 bits.

    Raises:
        ManifestError: `images.parquet` is missing, stale or damaged.
        UsageError: *manifests* lies inside the image root; or pictures without a digest are to be
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
    """The pictures with one label, in images order, which is by label.

    Attributes:
        is_single_P: Which rows of `images.parquet` they are.
        label_R: Their labels; ascending.
        num_images_K: How many pictures, with one label or more, carry each label.
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
    """Read which pictures of `images.parquet` have a single label."""
    num_classes = len(images.classes())
    is_single_P = np.empty(images.num_rows, dtype=bool)
    label_R = np.empty(images.num_rows, dtype=np.int32)
    num_images_K = np.zeros(num_classes, dtype=np.int64)
    row = num_singles = 0
    for rows in ahead(images.batches(["label_ids"])):
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
    for rows in ahead(images.batches(["digest"])):
        if rows["digest"].null_count:
            raise UsageError(
                "pictures that a quick run has not read have no digest to draw them by",
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
        images: All pictures.
        manifests: Folder to write to.
        header: Of both; that of train names val among its inputs, too.
        in_val: Which pictures are in val.
        in_train: Which pictures are in train; default: all.

    Raises:
        ManifestError: Two pictures have the same digest, so that one could be in each.
    """
    classes = images.classes()
    if "labels" in images.header.options:  # else by `relabel`, which has compared all digests
        refuse_repeated(images)
    with manifest_writer(TRAIN, manifests, header, classes, is_distinct=True) as train:
        with manifest_writer(VAL, manifests, header, classes, is_distinct=True) as val:
            row = 0
            for rows in ahead(images.batches(TRAIN.schema.names)):
                here = slice(row, row + rows.num_rows)
                val.write(rows.filter(pa.array(in_val[here])))
                train.write(rows if in_train is None else rows.filter(pa.array(in_train[here])))
                row += rows.num_rows
        fingerprint = open_manifest(manifests, VAL).fingerprint
        train.header = replace(header, inputs={**header.inputs, "val": fingerprint})
    return train.num_rows, val.num_rows
