"""Pictures -> batches of uint8 images and sparse labels.

Threads decode ahead, not processes: decoding and resizing run without the GIL, and nothing has to
be copied between threads.  What a batch holds hangs on the sampler and the seed alone.
"""

from collections.abc import Callable, Iterator
from itertools import count
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from vit21k.data.augment import Policy
from vit21k.data.bad_pictures import BadPictures, OnBadImage
from vit21k.data.batch_decoder import Batch, BatchDecoder, Job
from vit21k.data.copy_ahead import copied_ahead
from vit21k.data.draws import uniform_draws
from vit21k.data.mix64 import derive_key
from vit21k.data.plain_pictures import compiled_crops
from vit21k.data.random_crops import RandomCrops
from vit21k.data.resized_pictures import ResizedPictures
from vit21k.data.rows import PictureRows
from vit21k.data.sampler import StepOrder
from vit21k.data.transforms import EvalTransform, TrainTransform

__all__ = ["Batch", "EvalLoader", "OnBadImage", "TrainLoader"]

_CPU = torch.device("cpu")
_SUBSTITUTES = 0x737562  # keeps these draws apart from those of the crops
_SKIP_HINT = "repair it, or leave such pictures out: `--set data.on_bad_image=skip`"
_REPAIR_HINT = (
    "repair it, or leave such pictures out: `vit21k eval --on-bad-image skip`, "
    "`vit21k train --set data.on_bad_image=skip`"
)


class _Loader:
    """What both loaders share: the decoder, what was skipped, and its end."""

    def __init__(self, decoder: BatchDecoder, bad_pictures: BadPictures) -> None:
        self._decoder = decoder
        self._bad_pictures = bad_pictures

    @property
    def num_skipped(self) -> int:
        """How often a bad picture was left out so far."""
        return self._bad_pictures.num

    @property
    def skipped(self) -> dict[str, str]:
        """Why each picture was left out, by path."""
        return self._bad_pictures.reasons

    def close(self) -> None:
        """Join the threads; the loader cannot be used any more."""
        self._decoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class TrainLoader(_Loader):
    """The micro-batches of each step of this rank.

    Steps may be asked for in any order; in ascending order they are decoded ahead, across steps.

    Args:
        pictures: The training pictures.
        sampler: Which of them each step takes.
        transform: Random crop and flip, drawn from *seed* and the sampler's positions.
        device_batch_size: Images of a micro-batch; the last one of a step may be smaller.
        num_workers: Threads that decode; with 0 the caller's own does.
        seed: Seed of the run.
        policy: What is done to a crop after that, drawn from the same; None: nothing.
        on_bad_image: "fail": raise at the first bad picture; "skip": leave it out and count it;
            "replace": take another one, drawn from the same, and count it.
        max_bad_rate: Raise when more of the pictures are bad, counted over 1,000 or more.
        device: Where the images are wanted; to a GPU they are copied ahead.
    """

    def __init__(  # noqa: PLR0913 (each is a plain value)
        self,
        pictures: PictureRows,
        sampler: StepOrder,
        transform: TrainTransform,
        *,
        device_batch_size: int,
        num_workers: int,
        seed: int,
        policy: Policy | None = None,
        on_bad_image: OnBadImage = "fail",
        max_bad_rate: float = 1.0,
        device: torch.device = _CPU,
    ) -> None:
        bad_pictures = BadPictures(on_bad_image, hint=_SKIP_HINT, max_rate=max_bad_rate)
        decoder = BatchDecoder(
            pictures,
            img_size=transform.img_size,
            batch_size=device_batch_size,
            num_workers=num_workers,
            bad_pictures=bad_pictures,
            pin_memory=device.type == "cuda",
        )
        super().__init__(decoder, bad_pictures)
        self._crop_decoder = compiled_crops()
        self._sampler = sampler
        self._transform = transform
        self._policy = policy
        self._device_batch_size = device_batch_size
        self._seed = seed
        self._replaces = on_bad_image == "replace"
        self._num_pictures = len(pictures)
        self._device = device
        self._batches: Iterator[Batch] = iter(())
        self._next_step: int | None = None  # where `_batches` is; None: in the middle of a step

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Yield the images of the 0-based *step*; empty micro-batches are left out.

        Raises:
            ImageError: A picture is bad, and bad pictures are not skipped; or too many are.
            ImageTreeError: So many files in a row cannot be read that the tree must be gone.
            OSError: There are too many open files, or no memory.
        """
        if self._next_step != step:
            self._batches = copied_ahead(self._decoder.batches(self._jobs_from(step)), self._device)
        self._next_step = None
        for _ in range(-(-self._sampler.num_rows(step) // self._device_batch_size)):
            batch = next(self._batches)
            if len(batch.rows_B):
                yield batch
        self._next_step = step + 1

    def _jobs_from(self, step: int) -> Iterator[Job]:
        """Yield the jobs of *step* and of all steps after it, without end."""
        for later in count(step):
            rows, positions = self._sampler.batch(later)
            for start in range(0, len(rows), self._device_batch_size):
                part = slice(start, start + self._device_batch_size)
                yield self._job(rows[part], positions[part], later)

    def _job(self, rows_B: NDArray[np.int64], positions_B: NDArray[np.int64], step: int) -> Job:
        policy = self._policy
        num_columns = self._transform.num_draws + (policy.num_draws if policy else 0)
        draws_BD = uniform_draws(self._seed, positions_B, num_columns)
        crops = RandomCrops(self._transform, draws_BD, policy, self._crop_decoder)
        substitutes = self._substitutes(positions_B) if self._replaces else None
        return Job(rows_B, crops, positions_B, substitutes, crops.fill, step)

    def _substitutes(self, positions_B: NDArray[np.int64]) -> Callable[[int, int], int]:
        """Return what gives another row for a place of a batch."""

        def substitute(index: int, num_tries: int) -> int:
            key, position = derive_key(_SUBSTITUTES, self._seed), positions_B[index : index + 1]
            draw = uniform_draws(key, position, num_tries + 1)[0, num_tries]
            return int(draw * self._num_pictures)

        return substitute


class EvalLoader(_Loader):
    """Every picture exactly once, in manifest order; each rank has a part of the rows.

    Args:
        pictures: The pictures.
        transform: What is done to each.
        device_batch_size: Images of a batch; the last one may be smaller.
        num_workers: Threads that decode; with 0 the caller's own does.
        rank: Which process this is.
        world_size: How many processes there are.
        on_bad_image: "fail": raise at the first bad picture; "skip": leave it out and count it.
    """

    def __init__(
        self,
        pictures: PictureRows,
        transform: EvalTransform,
        *,
        device_batch_size: int,
        num_workers: int,
        rank: int = 0,
        world_size: int = 1,
        on_bad_image: OnBadImage = "fail",
    ) -> None:
        bad_pictures = BadPictures(on_bad_image, hint=_REPAIR_HINT)
        decoder = BatchDecoder(
            pictures,
            img_size=transform.img_size,
            batch_size=device_batch_size,
            num_workers=num_workers,
            bad_pictures=bad_pictures,
        )
        super().__init__(decoder, bad_pictures)
        first = len(pictures) * rank // world_size
        last = len(pictures) * (rank + 1) // world_size
        self._resized = ResizedPictures(transform, compiled_crops())
        self._starts = range(first, last, device_batch_size)
        self._last = last

    def __len__(self) -> int:
        """Return the number of batches of this rank."""
        return len(self._starts)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; those without a good picture are left out."""
        for batch in self._decoder.batches(self._jobs()):
            if len(batch.rows_B):
                yield batch

    def _jobs(self) -> Iterator[Job]:
        for start in self._starts:
            last = min(start + self._starts.step, self._last)
            rows_B = np.arange(start, last, dtype=np.int64)
            yield Job(rows_B, self._resized, fill=self._resized.fill)
