"""Class-balanced sampling: every class as often as every other, each one's images in turn.

A round visits every class that has images once, in an order of its own, and takes one image of
each.  A class goes through all its images, in an order of its own, before one comes again.  Which
image is where is a pure function of (seed, place in the run), without a state.

Dimensions: B places of the run, K classes, M memberships: an image is in each of its classes.


Step -> which images, in which order.

Dimensions: B images of one step on one rank.
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

    An image with 14.2 million others costs 4 bytes for each of its labels: 60 MB in all, and
    3 s to sort when a run starts.

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
        """How many classes have an image."""
        return len(self._sizes_K)

    def rows(self, places_B: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
        """Return the row at each of the *places_B*, counted from the start of the run."""
        seeds = np.array([seed], dtype=np.int64).astype(np.uint64)
        round_B, in_round_B = np.divmod(places_B, self.num_classes)
        round_keys_B = derive_keys(_ROUNDS, seeds, round_B.astype(np.uint64))
        class_B = permute_each(in_round_B, np.array([self.num_classes]), round_keys_B)
        # A class is visited once a round, so the round is also the number of its visits.
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
    """Return the row and the class of every label of some rows."""
    places, ids = images.labels_of(np.arange(start, stop, dtype=np.int64))
    return (places + start).astype(np.int32), ids.astype(np.int32)


_STREAM = 0x6F726465  # separates the order from the uniforms, which have the same seed


class StepRows(NamedTuple):
    """The images of one step on one rank.

    Attributes:
        rows_B: Row of each image in the manifest.
        positions_B: How many images the run has seen before each, over all ranks, an epoch
            counting as an even number: the key of its augmentation.  Pairs of images that are
            mixed are at 2k and 2k + 1.
    """

    rows_B: NDArray[np.int64]
    positions_B: NDArray[np.int64]


class StepOrder(Protocol):
    """Which images each step takes.  `StepSampler` is the one of a run."""

    def num_rows(self, step: int) -> int:
        """Return how many images this rank has in the 0-based *step*."""

    def batch(self, step: int) -> StepRows:
        """Return this rank's images of the 0-based *step*."""


class StepSampler:
    """The images of every step: a pure function of seed, step, rank and world size.

    Each epoch is a permutation of its own.  A step's global batch is a run of consecutive
    positions, the same for any number of ranks, and each rank takes a consecutive part of it.

    Args:
        num_images: Rows of the manifest; so many images are an epoch.
        global_batch_size: Images of a step, over all ranks.
        seed: Seed of the run.
        rank: Which process this is.
        world_size: How many processes there are.
        drop_last: Leave the last, incomplete batch of an epoch out (other images each epoch);
            else that batch is smaller, and a rank's part of it may be empty.
        repeats: How often an image comes in an epoch, each time augmented in another way (DeiT's
            repeated augmentation).  Its copies share a batch, far apart in it; an epoch then has
            one image in *repeats*.
        class_rows: Take every class as often as every other, not every image.

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
        """Return how many images this rank has in the 0-based *step*."""
        return len(self._part(step % self.steps_per_epoch))

    def num_before(self, step: int) -> int:
        """Return how many images all ranks have in the steps before *step*."""
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
        """Return which image of the epoch is at each place of *part*."""
        if self._repeats == 1:
            return np.arange(part.start, part.stop, dtype=np.int64)
        # First one copy of every image of the global batch, then the next of every image.
        whole = self._whole(step_in_epoch)
        copies = np.arange(whole.start, whole.stop, dtype=np.int64)
        spread = copies[np.argsort(copies % self._repeats, kind="stable")]
        ordinals_B: NDArray[np.int64] = (
            spread[part.start - whole.start : part.stop - whole.start] // self._repeats
        )
        return ordinals_B

    def _rows(self, epoch: int, ordinals_B: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._class_rows is None:
            return permute(ordinals_B, self.num_images, derive_key(_STREAM, self.seed, epoch))
        per_epoch = -(-self._images_per_epoch // self._repeats)
        return self._class_rows.rows(epoch * per_epoch + ordinals_B, self.seed)

    def _whole(self, step_in_epoch: int) -> range:
        """Return the places of a step's global batch, within the epoch."""
        start = step_in_epoch * self.global_batch_size
        return range(start, min(start + self.global_batch_size, self._images_per_epoch))

    def _part(self, step_in_epoch: int) -> range:
        """Return this rank's places of a step, within the epoch."""
        whole = self._whole(step_in_epoch)
        return whole[self._cut(len(whole), self.rank) : self._cut(len(whole), self.rank + 1)]

    def _cut(self, size: int, rank: int) -> int:
        """Return where the part of *rank* starts; pairs of a smaller batch are kept together."""
        if rank == self.world_size or size == self.global_batch_size:
            return size * rank // self.world_size
        return size // 2 * rank // self.world_size * 2
