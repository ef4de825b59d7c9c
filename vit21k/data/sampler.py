"""The images of each step and their order, optionally class-balanced; without state.

Class-balanced sampling: a round visits every class with images once, in a random order, and takes
one image of each.  A class iterates over all its images, in a random order, before any is repeated.
The image at a position is a pure function of (seed, position in the run).

Dimensions: B images of one step on one rank, or positions of the run; K classes; M memberships:
an image is in each of its classes.
"""

from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vit21k.data.dataset import ImageRows
from vit21k.data.rng import derive_key, derive_keys, permute, permute_each
from vit21k.errors import UsageError

_ROUNDS, _MEMBERS = np.array([0x726F756E], np.uint64), np.array([0x6D656D62], np.uint64)
_CHUNK_ROWS = 1 << 20


class ClassRows:
    """The images of each class, as two flat arrays.

    Each label takes 4 bytes: 60 MB for 14.2 million images, and 3 s to sort when a run starts.

    Args:
        rows_M: int32; the rows of the first class, then those of the second, and so on.
        starts_K1: int64; where each class starts, and the end; no class is empty.
    """

    def __init__(self, rows_M: NDArray[np.int32], starts_K1: NDArray[np.int64]) -> None:
        self._rows_M = rows_M
        self._starts_K = starts_K1[:-1]
        self._sizes_K = np.diff(starts_K1)

    @classmethod
    def from_images(cls, images: ImageRows) -> Self:
        """Sort the rows of *images* by class; classes without an image are skipped.

        Raises:
            UsageError: No image has a label.
        """
        chunks = [
            _labels(images, start, min(start + _CHUNK_ROWS, len(images)))
            for start in range(0, len(images), _CHUNK_ROWS)
        ]
        if not sum(len(rows) for rows, _ in chunks):
            raise UsageError("no image has a label, so classes cannot be balanced")
        ids_M = np.concatenate([ids for _, ids in chunks])
        order_M = np.argsort(ids_M, kind="stable")
        rows_M = np.concatenate([rows for rows, _ in chunks])[order_M]
        sizes = np.bincount(ids_M)
        return cls(rows_M, np.concatenate([[0], np.cumsum(sizes[sizes > 0])]))

    @property
    def num_classes(self) -> int:
        """Number of classes with images."""
        return len(self._sizes_K)

    def rows(self, positions_B: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """Return the row at each position of the run."""
        seeds = np.array([seed], dtype=np.int64).astype(np.uint64)
        round_B, in_round_B = np.divmod(positions_B, self.num_classes)
        round_keys_B = derive_keys(_ROUNDS, seeds, round_B.astype(np.uint64))
        class_B = permute_each(in_round_B, np.array([self.num_classes]), round_keys_B)
        # A class is visited once per round, so the round is also its number of visits.
        size_B = self._sizes_K[class_B]
        cycle_B, in_cycle_B = np.divmod(round_B, size_B)
        cycle_keys_B = derive_keys(
            _MEMBERS, seeds, class_B.astype(np.uint64), cycle_B.astype(np.uint64)
        )
        member_B = permute_each(in_cycle_B, size_B, cycle_keys_B)
        return self._rows_M[self._starts_K[class_B] + member_B].astype(np.int64)


def _labels(
    images: ImageRows, start: int, stop: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the row and the class of every label of a range of rows."""
    rows, ids = images.labels_of(np.arange(start, stop, dtype=np.int64))
    return (rows + start).astype(np.int32), ids.astype(np.int32)


_STREAM = 0x6F726465  # separates the order from other uses of the seed


class StepRows(NamedTuple):
    """The images of one step on one rank.

    Attributes:
        rows_B: Row of each image in the manifest.
        positions_B: Number of images of the run before each, over all ranks, with epochs rounded up
            to an even number: the key of its augmentation.  Pairs of mixed images are at 2k and
            2k + 1.
    """

    rows_B: NDArray[np.int64]
    positions_B: NDArray[np.int64]


class StepOrder(Protocol):
    """Selects the images of each step.  A run uses `StepSampler`."""

    def num_rows(self, step: int) -> int:
        """Return the number of images of this rank in the 0-based *step*."""

    def batch(self, step: int) -> StepRows:
        """Return this rank's images of the 0-based *step*."""


class StepSampler:
    """The images of every step: a pure function of seed, step, rank and world size.

    Each epoch is another permutation.  The global batch of a step is a range of consecutive
    positions, independent of the number of ranks, and each rank takes a consecutive part of it.

    Args:
        num_images: Rows of the manifest: images of an epoch.
        global_batch_size: Images of a step, over all ranks.
        seed: Seed of the run.
        rank: Index of this process.
        world_size: Number of processes.
        drop_last: Skip the last, incomplete batch of an epoch (other images each epoch); otherwise
            that batch is smaller, and a rank's part of it may be empty.
        repeats: Number of occurrences of an image in an epoch, with different augmentation (DeiT's
            repeated augmentation).  They are in one batch, far apart; an epoch then has one image
            in *repeats*.
        class_rows: Sample all classes equally often, instead of all images.

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
        repeats: int = 1,
        class_rows: ClassRows | None = None,
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
        self._repeats = repeats
        self._class_rows = class_rows
        self._images_per_epoch = full * global_batch_size if drop_last else num_images

    def num_rows(self, step: int) -> int:
        """Return the number of images of this rank in the 0-based *step*."""
        return len(self._part(step % self.steps_per_epoch))

    def num_before(self, step: int) -> int:
        """Return the number of images of all ranks in the steps before *step*."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return epoch * self._images_per_epoch + step_in_epoch * self.global_batch_size

    def batch(self, step: int) -> StepRows:
        """Return this rank's images of the 0-based *step*."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        part = self._part(step_in_epoch)
        in_epoch_B = np.arange(part.start, part.stop, dtype=np.int64)
        even = self._images_per_epoch + self._images_per_epoch % 2
        return StepRows(
            rows_B=self._rows(epoch, self._ordinals(step_in_epoch, part)),
            positions_B=epoch * even + in_epoch_B,
        )

    def _ordinals(self, step_in_epoch: int, part: range) -> NDArray[np.int64]:
        """Return the index in the epoch of the image at each position of *part*."""
        if self._repeats == 1:
            return np.arange(part.start, part.stop, dtype=np.int64)
        # First one copy of every image of the global batch, then the next of every image.
        batch = self._global_batch(step_in_epoch)
        copies = np.arange(batch.start, batch.stop, dtype=np.int64)
        spread = copies[np.argsort(copies % self._repeats, kind="stable")]
        ordinals_B: NDArray[np.int64] = (
            spread[part.start - batch.start : part.stop - batch.start] // self._repeats
        )
        return ordinals_B

    def _rows(self, epoch: int, ordinals_B: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._class_rows is None:
            return permute(ordinals_B, self.num_images, derive_key(_STREAM, self.seed, epoch))
        per_epoch = -(-self._images_per_epoch // self._repeats)
        return self._class_rows.rows(epoch * per_epoch + ordinals_B, self.seed)

    def _global_batch(self, step_in_epoch: int) -> range:
        """Return the positions of a step's global batch, within the epoch."""
        start = step_in_epoch * self.global_batch_size
        return range(start, min(start + self.global_batch_size, self._images_per_epoch))

    def _part(self, step_in_epoch: int) -> range:
        """Return this rank's positions of a step, within the epoch."""
        batch = self._global_batch(step_in_epoch)
        return batch[self._cut(len(batch), self.rank) : self._cut(len(batch), self.rank + 1)]

    def _cut(self, size: int, rank: int) -> int:
        """Return the start of the part of *rank*; pairs in a smaller batch are kept together."""
        if rank == self.world_size or size == self.global_batch_size:
            return size * rank // self.world_size
        return size // 2 * rank // self.world_size * 2
