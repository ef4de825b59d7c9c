"""images.parquet -> train.parquet, val.parquet, where folders of the image root are the split.

A picture that lies in both is one picture: it is validated on, and not trained on.  As everywhere,
only pictures with a single label are in val.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.errors import UsageError
from vit21k.hashing.places import refuse_inside
from vit21k.lock import locked
from vit21k.manifest.reader import Manifest, open_manifest
from vit21k.manifest.schema import COPIES, IMAGES
from vit21k.prep.ahead import ahead
from vit21k.prep.split import write_split

_DIGEST = COPIES.schema.field("digest").type


@dataclass(frozen=True, kw_only=True)
class FolderSplitSummary:
    """Counts of a split by folders.

    Attributes:
        num_images: Rows of `images.parquet`.
        num_train: Rows of `train.parquet`.
        num_val: Rows of `val.parquet`.
        num_in_both: Pictures of the train folder that are not in train, for they lie in another.
        num_several_labels: Pictures of the val folder with more than one label, which are in none.
        num_elsewhere: Pictures in neither folder, which are in none.
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
    """Write `val.parquet` of the pictures below one folder, `train.parquet` of those of another.

    Args:
        manifests: The folder that holds `images.parquet` and `copies.parquet`.
        train: Folder of the pictures to train on, relative to the image root.
        val: Folder of the pictures to validate on.
        held_out: Folders of other pictures not to train on.

    Raises:
        ManifestError: `images.parquet` or `copies.parquet` is missing, stale or damaged.
        UsageError: *manifests* lies inside the image root, or one of the folders has no pictures.
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
                    f"no picture lies below `{folder}` in `{images.header.root}`",
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
    """Return, for each picture, whether one of its files lies below one of *folders*."""
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
        for rows in ahead(images.batches(["digest", "path"]))
    ]
    return np.concatenate(lies)


def _have_one_label(images: Manifest) -> NDArray[np.bool_]:
    counts = [
        pc.list_value_length(rows["label_ids"]).to_numpy()
        for rows in ahead(images.batches(["label_ids"]))
    ]
    is_single: NDArray[np.bool_] = np.concatenate(counts) == 1
    return is_single
