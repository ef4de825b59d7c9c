"""Step -> which images, in which order.

Dimensions: B images of one step on one rank.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit21k.data.mix64 import derive_key
from vit21k.data.permutation import permute
from vit21k.errors import UsageError

_STREAM = 0x6F726465  # keeps the order apart from the draws, which hang on the same seed


class StepRows(NamedTuple):
    """The images of one step on one rank.

    Attributes:
        rows_B: Row of each image in the manifest.
        positions_B: How many images the run has seen before each, over all ranks: the key of its
            augmentation.
    """

    rows_B: NDArray[np.int64]
    positions_B: NDArray[np.int64]


class StepSampler:
    """The images of every step: a pure function of seed, step, rank and world size.

    Each epoch is a permutation of its own.  A step's global batch is a run of consecutive
    positions, the same for any number of ranks, and each rank takes a consecutive part of it.

    Args:
        num_images: Rows of the manifest.
        global_batch_size: Images of a step, over all ranks.
        seed: Seed of the run.
        rank: Which process this is.
        world_size: How many processes there are.
        drop_last: Leave the last, incomplete batch of an epoch out (other images each epoch);
            else that batch is smaller, and a rank's part of it may be empty.

    Attributes:
        steps_per_epoch: Steps until the next permutation.

    Raises:
        UsageError: There are no images, or not enough for one batch.
    """

    def __init__(
        self,
        num_images: int,
        *,
        global_batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = True,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size}")
        full, rest = divmod(num_images, global_batch_size)
        self.steps_per_epoch = full if drop_last else full + (rest > 0)
        if not self.steps_per_epoch:
            raise UsageError(
                f"{num_images:,} images are not enough for a batch of {global_batch_size:,}",
                hint="use a smaller batch",
            )
        self.num_images = num_images
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._images_per_epoch = full * global_batch_size if drop_last else num_images

    def num_rows(self, step: int) -> int:
        """Return how many images this rank has in the 0-based *step*."""
        return len(self._part(step % self.steps_per_epoch))

    def batch(self, step: int) -> StepRows:
        """Return this rank's images of the 0-based *step*."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        part = self._part(step_in_epoch)
        in_epoch_B = np.arange(part.start, part.stop, dtype=np.int64)
        key = derive_key(_STREAM, self.seed, epoch)
        return StepRows(
            rows_B=permute(in_epoch_B, self.num_images, key),
            positions_B=epoch * self._images_per_epoch + in_epoch_B,
        )

    def _part(self, step_in_epoch: int) -> range:
        """Return this rank's positions of a step, within the epoch."""
        start = step_in_epoch * self.global_batch_size
        size = min(self.global_batch_size, self._images_per_epoch - start)
        return range(
            start + size * self.rank // self.world_size,
            start + size * (self.rank + 1) // self.world_size,
        )
