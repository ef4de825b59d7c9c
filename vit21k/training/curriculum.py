"""The curriculum: smaller images and fewer patches at first, complete images at last.

The image size of a step, and whether patches are dropped, depend on its index; the dropped patches
depend on the seed and the position of the image in the run.  So a resumed run, and one on more
processes, sees the same.

Dimensions: B images, P patches of an image, M of them that are kept.

Source: patch dropout as in arXiv:2208.07220 and FLIP (arXiv:2212.00794), which also ends with
complete images; small images first as in FixRes (arXiv:1906.06423) and EfficientNetV2
(arXiv:2104.00298).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit21k.data.loader import Batch
from vit21k.data.rng import derive_key, uniform_values
from vit21k.errors import UsageError
from vit21k.models.cost import is_pit
from vit21k.recipe.schema import CurriculumSection, Recipe

_STREAM = 0x70617463  # other random values than those of crops, which have the same seed
_SEED_BITS = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Image sizes and dropped patches of each step.

    Attributes:
        section: Early image sizes, drop rate of patches, and the last part of the run, with
            complete images.
        img_size: Side of an image at the end, in pixels.
        total_steps: Length of the run.
        seed: Of the run.
    """

    section: CurriculumSection
    img_size: int
    total_steps: int
    seed: int = 0

    @classmethod
    def of(cls, recipe: Recipe, total_steps: int) -> "Curriculum":
        """Return the curriculum of *recipe*."""
        return cls(
            section=recipe.curriculum,
            img_size=recipe.model.img_size,
            total_steps=total_steps,
            seed=recipe.seed,
        )

    @property
    def first_full_step(self) -> int:
        """The first step with complete images."""
        return round((1 - self.section.full_tail) * self.total_steps)

    def stages(self) -> list[tuple[int, int]]:
        """Return the first step and the image size of each part of the run."""
        parts = len(self.section.img_sizes)
        starts = [self.first_full_step * part // max(parts, 1) for part in range(parts)]
        last = self.first_full_step if parts else 0
        return [*zip(starts, self.section.img_sizes, strict=True), (last, self.img_size)]

    def drops_patches_at(self, step: int) -> bool:
        """Return whether the 0-based *step* drops patches."""
        return self.section.patch_drop_rate > 0 and step < self.first_full_step


def kept_patches(
    positions_B: NDArray[np.int64], *, num_patches: int, drop_rate: float, seed: int
) -> NDArray[np.int64]:
    """Return which patches of each image are kept, (B, M), ascending; at least one.

    Args:
        positions_B: Number of images that the run has seen before each.
        num_patches: P.
        drop_rate: Fraction of the patches that are dropped.
        seed: Of the run.
    """
    key = derive_key(_STREAM, seed) & _SEED_BITS
    uniforms_BP = uniform_values(key, positions_B, num_patches)
    num_kept = max(1, round((1 - drop_rate) * num_patches))
    if num_kept == num_patches:
        return np.broadcast_to(np.arange(num_patches), uniforms_BP.shape).copy()
    return np.sort(np.argpartition(uniforms_BP, num_kept, axis=1)[:, :num_kept], axis=1)


@dataclass(frozen=True)
class PatchDropper:
    """Chooses the patches of a batch that the model sees.

    Attributes:
        curriculum: Of the run.
        patch_size: Side of a patch, in pixels.
        device: Of the model.
    """

    curriculum: Curriculum
    patch_size: int
    device: torch.device

    def __call__(self, batch: Batch) -> Tensor | None:
        """Return the kept patches, (B, M), on the device; None: all are."""
        if not self.curriculum.section.patch_drop_rate:
            return None
        if batch.step is None:
            raise ValueError("a batch of no step of a run")
        if not self.curriculum.drops_patches_at(batch.step):
            return None
        positions_B = batch.positions_B.cpu().numpy()
        kept_BM = kept_patches(
            positions_B,
            num_patches=(batch.images_BCHW.shape[-1] // self.patch_size) ** 2,
            drop_rate=self.curriculum.section.patch_drop_rate,
            seed=self.curriculum.seed,
        )
        return torch.from_numpy(kept_BM).to(self.device, non_blocking=True)


def check_curriculum(curriculum: Curriculum, args: Mapping[str, Any]) -> None:
    """Check that the model of *args* can see parts of an image.

    Raises:
        UsageError: It is no plain Vision Transformer, or an image is smaller than a patch.
    """
    if not curriculum.section.img_sizes and not curriculum.section.patch_drop_rate:
        return
    if is_pit(args) or args["resnet_layers"] is not None:
        raise UsageError(
            "the section `curriculum` of a recipe is for plain Vision Transformers",
            hint="a PiT pools its map of patches, and a hybrid has a ResNet before them",
        )
    smallest = min((*curriculum.section.img_sizes, curriculum.img_size))
    if smallest < args["patch_size"]:
        raise UsageError(
            f"curriculum.img_sizes: {smallest} pixels are less than a patch ({args['patch_size']})"
        )
