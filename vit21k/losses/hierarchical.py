"""Logits and sparse labels -> semantic softmax: a softmax for every level of the classes' tree.

Classes of ImageNet-21K contain one another, so one softmax over all of them sets a dog against an
animal.  Semantic softmax asks for the class at each level of the tree: an image of a beagle is an
animal among the roots, a dog among what is two levels below, and so on down to its own level.

Dimensions: B images, K classes, H levels, C classes of one level, L labels in the batch.

Source: Ridnik et al. 2021, arXiv:2104.10972, and Alibaba-MIIL/ImageNet21K, src_files/semantic.
Their code leaves the deepest level out (six of 11,221 classes); here every level of two classes or
more takes part, so that a tree of two levels has its leaves.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
import xxhash
from torch import Tensor

from vit21k.errors import ManifestError
from vit21k.manifest.classes import ClassList
from vit21k.manifest.wordnet import Hierarchy, Ints

# A level of few classes would outweigh all others; `max_normalization_factor` of the source.
_MOST_WEIGHT = 20.0


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The levels of a tree of classes, each with the classes on it.

    Attributes:
        classes_HC: For each level the indices of its classes.
        weights_H: Factor on the loss of each level: all classes by those at this depth or deeper,
            at most 20, since so many fewer images reach the level.
        ancestor_KH: Class at each level: the class itself or its hypernym; -1 below its own level.
    """

    classes_HC: tuple[Tensor, ...]
    weights_H: tuple[float, ...]
    ancestor_KH: Tensor

    @classmethod
    def of(cls, classes: ClassList) -> Self:
        """Return the levels of *classes* in WordNet's tree.

        Raises:
            ManifestError: WordNet's table was not installed with vit21k, or is damaged.
        """
        return cls.from_parents(Hierarchy.of(classes).primary_parent_K())

    @classmethod
    def from_parents(cls, parent_K: Ints) -> Self:
        """Return the levels of the forest in which *parent_K* is above each class; -1: nothing.

        Raises:
            ValueError: A class is above itself.
            IndexError: There is no such class above another.
        """
        lines = [_line(parent_K, index) for index in range(len(parent_K))]
        depth_K = np.array([len(line) - 1 for line in lines])
        counts = np.bincount(depth_K)
        used = np.flatnonzero(counts > 1)
        ancestor_KH = np.full((len(lines), len(used)), -1, dtype=np.int64)
        for index, line in enumerate(lines):
            for place in np.flatnonzero(used < len(line)):
                ancestor_KH[index, place] = line[used[place]]
        at_least = counts[::-1].cumsum()[::-1]
        return cls(
            classes_HC=tuple(torch.from_numpy(np.flatnonzero(depth_K == depth)) for depth in used),
            weights_H=tuple(min(len(lines) / at_least[depth], _MOST_WEIGHT) for depth in used),
            ancestor_KH=torch.from_numpy(ancestor_KH),
        )

    @classmethod
    def read(cls, path: Path, classes: ClassList) -> Self:
        """Return the levels of a tree that `vit21k labels tree` wrote for *classes*.

        Raises:
            ManifestError: The file is missing or damaged, or for another class list.
        """
        try:
            tree = json.loads(path.read_bytes())
            lines, of = tree["class_tree_list"], tree["fingerprint"]
            levels = cls.from_parents(np.array([line[1] if line[1:] else -1 for line in lines]))
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ManifestError(
                f"`{path}` is not a tree of classes ({type(error).__name__}: {error})",
                hint="`vit21k labels tree` writes one",
            ) from error
        if of != classes.fingerprint or len(lines) != len(classes):
            raise ManifestError(
                f"`{path}` is the tree of another class list",
                hint="write it again: `vit21k labels tree`",
            )
        return levels

    @property
    def fingerprint(self) -> str:
        """Identifies the tree."""
        return xxhash.xxh3_128_hexdigest(self.ancestor_KH.cpu().contiguous().numpy().data)

    def to(self, device: torch.device | str) -> Self:
        """Return the same on *device*."""
        return type(self)(
            classes_HC=tuple(classes_C.to(device) for classes_C in self.classes_HC),
            weights_H=self.weights_H,
            ancestor_KH=self.ancestor_KH.to(device),
        )


def semantic_softmax_loss(
    logits_BK: Tensor,
    label_rows_L: Tensor,
    label_ids_L: Tensor,
    *,
    levels: Levels,
    smoothing: float = 0.0,
    label_weights_L: Tensor | None = None,
) -> Tensor:
    """Cross-entropy at every level a label reaches, weighted and summed; averaged over images.

    Args:
        logits_BK: Scores before the softmaxes.  Of any type; the computation is in float32.
        label_rows_L: Which image of the batch each label belongs to.  An image may have none.
        label_ids_L: Class index of each label.
        levels: Of the classes, on the device of the logits.
        smoothing: e: at each level the target is ``y (1 - e) + e / C``.
        label_weights_L: Share of its image's target that a label has; None: 1/m for m labels.

    Returns:
        Scalar, float32.
    """
    dtype = torch.float64 if logits_BK.dtype == torch.float64 else torch.float32
    z_BK = logits_BK.to(dtype)
    shares_L = label_weights_L
    if shares_L is None:
        shares_L = _shares(label_rows_L, len(z_BK), dtype)
    loss = z_BK.new_zeros(())
    for level, (classes_C, weight) in enumerate(
        zip(levels.classes_HC, levels.weights_H, strict=True)
    ):
        above_L = levels.ancestor_KH[label_ids_L, level]
        z_BC = z_BK[:, classes_C]
        # -(1 - e) log p(above) - e mean(log p), with log p = z - logsumexp(z).
        of_image_B = z_BC.logsumexp(dim=1) - smoothing * z_BC.mean(dim=1)
        of_label_L = z_BK[label_rows_L, above_L.clamp(min=0)]
        loss_L = of_image_B[label_rows_L] - (1 - smoothing) * of_label_L
        loss = loss + weight * (loss_L * shares_L * (above_L >= 0)).sum()
    return loss / len(z_BK)


def semantic_hits(
    logits_BK: Tensor, label_rows_L: Tensor, label_ids_L: Tensor, levels: Levels
) -> tuple[Tensor, Tensor]:
    """Return at how many levels the best class is right, over all images, and of how many.

    A level counts for an image if one of its labels reaches it, and is right if the class that
    scores best there is, or is above, one of the labels.
    """
    num_right = logits_BK.new_zeros((), dtype=torch.float64)
    num_levels = logits_BK.new_zeros((), dtype=torch.float64)
    for level, classes_C in enumerate(levels.classes_HC):
        best_B = classes_C[logits_BK[:, classes_C].argmax(dim=1)]
        above_L = levels.ancestor_KH[label_ids_L, level]
        is_right_L = above_L == best_B[label_rows_L]
        num_right += label_rows_L[is_right_L].unique().numel()
        num_levels += label_rows_L[above_L >= 0].unique().numel()
    return num_right, num_levels


def _shares(label_rows_L: Tensor, num_images: int, dtype: torch.dtype) -> Tensor:
    """Return 1/m for each label of an image with m of them."""
    ones_L = torch.ones(len(label_rows_L), dtype=dtype, device=label_rows_L.device)
    num_labels_B = ones_L.new_zeros(num_images).index_add_(0, label_rows_L, ones_L)
    return 1 / num_labels_B[label_rows_L]


def _line(parent_K: Sequence[int] | Ints, index: int) -> list[int]:
    """Return the classes from the root down to class *index*."""
    line = [index]
    while (above := int(parent_K[line[-1]])) >= 0:
        line.append(above)
        if len(line) > len(parent_K):
            raise ValueError(f"class {index} is above itself")
    return line[::-1]
