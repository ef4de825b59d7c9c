"""How much of each image a step sees: smaller images and fewer patches first, all of it at last.

A step's image size and whether patches are skipped follow from its number; which patches, from the
seed and the position of the image in the run.  So a resumed run, and one on more processes, sees
the same.

Dimensions: B images, P patches of an image, M of them that are kept.

Source: patch dropout after arXiv:2208.07220 and FLIP (arXiv:2212.00794), which also ends with whole
images; small images first after FixRes (arXiv:1906.06423) and EfficientNetV2 (arXiv:2104.00298).


One loader for each image size of a run, opened when its steps come.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit21k.data.loader import Batch, TrainLoader
from vit21k.data.rng import derive_key, uniform_draws
from vit21k.errors import UsageError
from vit21k.models.cost import is_pit

_STREAM = 0x70617463  # keeps these draws apart from those of crops, which depend on the same seed
_SEED_BITS = (1 << 63) - 1


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """What each step sees.

    Attributes:
        img_size: Side of an image at the end, in pixels.
        early_img_sizes: Sides before that, rising.
        patch_drop_rate: Share of the patches that is skipped at first.
        full_tail: Last part of the run, in which nothing is skipped.
        total_steps: Length of the run.
        seed: Of the run.
    """

    img_size: int
    early_img_sizes: tuple[int, ...] = ()
    patch_drop_rate: float = 0.0
    full_tail: float = 0.0
    total_steps: int
    seed: int = 0

    @property
    def first_full_step(self) -> int:
        """The first step that sees whole images."""
        return round((1 - self.full_tail) * self.total_steps)

    def stages(self) -> list[tuple[int, int]]:
        """Return the first step and the image size of each part of the run."""
        parts = len(self.early_img_sizes)
        starts = [self.first_full_step * part // max(parts, 1) for part in range(parts)]
        last = self.first_full_step if parts else 0
        return [*zip(starts, self.early_img_sizes, strict=True), (last, self.img_size)]

    def drops_patches_at(self, step: int) -> bool:
        """Return whether the 0-based *step* leaves patches out."""
        return self.patch_drop_rate > 0 and step < self.first_full_step


def kept_patches(
    positions_B: NDArray[np.int64], *, num_patches: int, drop_rate: float, seed: int
) -> NDArray[np.int64]:
    """Return which patches of each image are kept, (B, M), ascending; at least one.

    Args:
        positions_B: How many images the run has seen before each.
        num_patches: P.
        drop_rate: Share of the patches that are skipped.
        seed: Of the run.
    """
    key = derive_key(_STREAM, seed) & _SEED_BITS
    draws_BP = uniform_draws(key, positions_B, num_patches)
    num_kept = max(1, round((1 - drop_rate) * num_patches))
    if num_kept == num_patches:
        return np.broadcast_to(np.arange(num_patches), draws_BP.shape).copy()
    return np.sort(np.argpartition(draws_BP, num_kept, axis=1)[:, :num_kept], axis=1)


@dataclass(frozen=True)
class PatchDropper:
    """Says which patches of a batch are seen, in the part of the run that leaves some out.

    Attributes:
        curriculum: Of the run.
        patch_size: Side of a patch, in pixels.
        device: Where the model computes.
    """

    curriculum: Curriculum
    patch_size: int
    device: torch.device

    def __call__(self, batch: Batch) -> Tensor | None:
        """Return the kept patches, (B, M), on the device; None: all are."""
        if batch.step is None:
            raise ValueError("a batch of no step of a run")
        if not self.curriculum.drops_patches_at(batch.step):
            return None
        positions_B = batch.positions_B.cpu().numpy()
        kept_BM = kept_patches(
            positions_B,
            num_patches=(batch.images_BCHW.shape[-1] // self.patch_size) ** 2,
            drop_rate=self.curriculum.patch_drop_rate,
            seed=self.curriculum.seed,
        )
        return torch.from_numpy(kept_BM).to(self.device, non_blocking=True)


def check_curriculum(curriculum: Curriculum, args: Mapping[str, Any]) -> None:
    """Check that the model of constructor arguments *args* can see less of an image.

    Raises:
        UsageError: It is no plain Vision Transformer, or an image is smaller than a patch.
    """
    if not curriculum.early_img_sizes and not curriculum.patch_drop_rate:
        return
    if is_pit(args) or args["resnet_layers"] is not None:
        raise UsageError(
            "the section `curriculum` of a recipe is for plain Vision Transformers",
            hint="a PiT pools its map of patches, and a hybrid has a ResNet before them",
        )
    smallest = min((*curriculum.early_img_sizes, curriculum.img_size))
    if smallest < args["patch_size"]:
        raise UsageError(
            f"curriculum.img_sizes: {smallest} pixels are less than a patch ({args['patch_size']})"
        )


class StagedLoader:
    """The micro-batches of each step, from the loader of its stage.

    Args:
        stages: First step and image size of each part of the run, the first step of all being 0.
        open_loader: Returns a loader of images of a size.
    """

    def __init__(
        self, stages: Sequence[tuple[int, int]], open_loader: Callable[[int], TrainLoader]
    ) -> None:
        self._stages = stages
        self._open_loader = open_loader
        self._img_size = 0
        self._loader: TrainLoader | None = None
        self._num_skipped = 0
        self._skipped: dict[str, str] = {}

    @property
    def num_skipped(self) -> int:
        """How often a bad image was skipped so far."""
        return self._num_skipped + (self._loader.num_skipped if self._loader else 0)

    @property
    def skipped(self) -> dict[str, str]:
        """Why each image was skipped, by path."""
        return {**self._skipped, **(self._loader.skipped if self._loader else {})}

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Yield the images of the 0-based *step*; see `TrainLoader.micro_batches`."""
        yield from self._loader_of(step).micro_batches(step)

    def close(self) -> None:
        """Join the threads."""
        if self._loader is not None:
            self._num_skipped += self._loader.num_skipped
            self._skipped.update(self._loader.skipped)
            self._loader.close()
            self._loader = None

    def _loader_of(self, step: int) -> TrainLoader:
        img_size = next(size for first, size in reversed(self._stages) if step >= first)
        if self._loader is None or img_size != self._img_size:
            self.close()
            self._img_size, self._loader = img_size, self._open_loader(img_size)
        return self._loader
