"""ReaL: the reassessed labels of ImageNet-1k's validation images.

Source: Beyer et al., "Are we done with ImageNet?", arXiv:2006.07159; `real.json` of
google-research/reassessed-imagenet, which timm ships too.
"""

import json
import re
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from vit21k.data.dataset import ImageDataset
from vit21k.data.loader import Batch
from vit21k.distributed import World
from vit21k.errors import DataError
from vit21k.inference.metrics import ClassificationMetrics
from vit21k.manifest.classes import ClassList

NUM_IMAGES = 50_000
NUM_CLASSES = 1000
_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})")

RealLabels = list[list[int]]
"""Class indices of each validation image, in file name order; some have none."""


def read_real_labels(path: Path) -> RealLabels:
    """Read `real.json`.

    Raises:
        DataError: It is not that file.
        OSError: It cannot be read.
    """
    try:
        labels: RealLabels = json.loads(path.read_bytes())
        whole = len(labels) == NUM_IMAGES and all(
            0 <= label < NUM_CLASSES for of_image in labels for label in of_image
        )
    except (ValueError, TypeError) as error:
        raise DataError(f"`{path}` is not a list of lists of class indices: {error}") from error
    if not whole:
        raise DataError(
            f"`{path}` is not ReaL's list of labels: {NUM_IMAGES:,} lists of indices below "
            f"{NUM_CLASSES:,}",
            hint="it is `real.json` of github.com/google-research/reassessed-imagenet",
        )
    return labels


def check_classes(classes: ClassList) -> None:
    """Check that *classes* may be ImageNet-1k's, in the order of ReaL's indices.

    Raises:
        DataError: They are not.
    """
    if len(classes) != NUM_CLASSES or list(classes.wnids) != sorted(classes.wnids):
        raise DataError(
            f"ReaL's labels are for the {NUM_CLASSES:,} classes of ImageNet-1k in the order of "
            f"their folders; this model has {len(classes):,} classes"
        )


class RealMetrics:
    """prec@1 and top-5 on the ReaL labels; images that have none are skipped and counted.

    Args:
        labels: From `read_real_labels`.
        images: The images that batches index: files named `ILSVRC2012_val_00000001.JPEG`, ...
    """

    def __init__(self, labels: RealLabels, images: ImageDataset) -> None:
        self._labels = labels
        self._images = images
        self._metrics = ClassificationMetrics()
        self._num_empty = torch.zeros(1, dtype=torch.int64)

    def update(self, logits_BK: Tensor, batch: Batch) -> None:
        """Add a batch.

        Raises:
            DataError: The name of an image has no index.
        """
        labels = [self._labels_of(row) for row in batch.rows_B.tolist()]
        kept = [row for row, of_image in enumerate(labels) if of_image]
        self._num_empty += len(labels) - len(kept)
        if not kept:
            return
        rows_L = [new_row for new_row, row in enumerate(kept) for _ in labels[row]]
        ids_L = [label for row in kept for label in labels[row]]
        device = logits_BK.device
        self._metrics.update(
            logits_BK[torch.tensor(kept, device=device)],
            torch.tensor(rows_L, device=device),
            torch.tensor(ids_L, device=device),
            0.0,
        )

    def reduce(self, world: World) -> None:
        """Sum over all processes; all of them call it."""
        self._metrics.set_totals(world.all_reduce_sum(self._metrics.totals().cpu()))
        self._num_empty = world.all_reduce_sum(self._num_empty)

    def compute(self) -> dict[str, float | int]:
        """Return "prec@1", "top5", "num_images" and "num_without_labels", which are skipped.

        Raises:
            DataError: No image has a label.
        """
        try:
            metrics = self._metrics.compute()
        except ValueError:
            raise DataError("none of these images has a ReaL label") from None
        del metrics["loss"]
        return {**metrics, "num_without_labels": int(self._num_empty)}

    def _labels_of(self, row: int) -> list[int]:
        path = self._images.path(row)
        match = _NUMBERED.fullmatch(PurePosixPath(path).stem)
        if match is None or not 1 <= int(match[1]) <= len(self._labels):
            raise DataError(
                f"`{path}` has no ReaL labels: its name is not that of an ImageNet-1k validation "
                "image, such as ILSVRC2012_val_00000001.JPEG"
            )
        return self._labels[int(match[1]) - 1]
