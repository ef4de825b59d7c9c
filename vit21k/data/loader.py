"""Images -> batches of uint8 images and sparse labels, by a pool of threads."""

import errno
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from types import TracebackType
from typing import Literal, NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit21k.data.augment import Policy
from vit21k.data.dataset import ImageRows
from vit21k.data.decode import decode_rgb
from vit21k.data.rng import derive_key, uniform_values
from vit21k.data.sampler import StepOrder
from vit21k.data.transforms import (
    EvalTransform,
    RandomCrops,
    ResizedImages,
    TrainTransform,
    compiled_crops,
)
from vit21k.errors import ImageError, ImageTreeError, UnreadableImageError

_CHUNK = 32
"""Images of one task of a thread: few enough to share a batch out, enough to pay for the task."""

_NOT_THE_FILES_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

_NUM_SUBSTITUTES = 10
"""How many others are tried in place of a bad image, before it is skipped after all."""


OnBadImage = Literal["fail", "skip", "replace"]

_LEAST_JUDGED = 1000
"""Images before which no rate is a rate."""

_NUM_NAMED = 10
"""Bad images that an error names."""

_MAX_UNREADABLE = 100
"""Files in a row that cannot be read, before the image tree is taken to be gone."""

_FEW_UNREADABLE = 10
"""The same, where the bad images are too many anyway: what to say of them."""

_LOST_HINT = (
    "check that the disk of the image tree is mounted and may be read, or say where the tree is "
    "now with `--root`"
)


class Reads(NamedTuple):
    """What came of reading some files, one after the other.

    Attributes:
        num_unreadable: Files that could not be opened or read.
        is_any_read: Whether one of them could.
    """

    num_unreadable: int
    is_any_read: bool


class BadImages:
    """Counts bad images, as long as they are tolerated.

    Args:
        on_bad_image: "fail": raise at the first one; else it is noted.
        hint: What to do about a bad image.
        max_rate: Raise when more of the images were bad, and more than that of 1,000.

    Attributes:
        reasons: Why each was bad, by path.
        num: How often one was met.
    """

    def __init__(self, on_bad_image: OnBadImage, *, hint: str, max_rate: float = 1.0) -> None:
        self.reasons: dict[str, str] = {}
        self.num = 0
        self._num_done = 0
        self._num_unreadable_in_a_row = 0
        self._on_bad_image = on_bad_image
        self._hint = hint
        self._max_rate = max_rate

    def reason(self, path: str, error: ImageError) -> str:
        """Return what is wrong with an image.

        Raises:
            ImageError: Bad images are not tolerated.
        """
        if self._on_bad_image != "fail":
            return error.message
        raise ImageError(f"`{path}`: {error.message}", hint=error.hint or self._hint) from error

    def note(
        self, num_done: int, bad: Sequence[tuple[str, str]], reads: Sequence[Reads] = ()
    ) -> None:
        """Count *num_done* more images, and (path, reason) of those that are bad.

        Args:
            num_done: Bad ones included.
            bad: An image that was tried several times comes as often.
            reads: Of their files, in order.

        Raises:
            ImageTreeError: The last files could not be read, so many that the tree must be gone.
            ImageError: Too many are bad.
        """
        self._num_done += num_done
        self.num += len(bad)
        self.reasons.update(bad)
        for num_unreadable, is_any_read in reads:
            before = 0 if is_any_read else self._num_unreadable_in_a_row
            self._num_unreadable_in_a_row = before + (0 if is_any_read else num_unreadable)
        in_a_row = self._num_unreadable_in_a_row
        too_many = self.num > self._max_rate * max(self._num_done, _LEAST_JUDGED)
        if in_a_row >= (_FEW_UNREADABLE if too_many else _MAX_UNREADABLE):
            path, why = list(self.reasons.items())[-1]
            raise ImageTreeError(
                f"{in_a_row:,} images in a row could not be read, the last one `{path}`: {why}",
                hint=_LOST_HINT,
            )
        if too_many:
            self._raise_too_many()

    def _raise_too_many(self) -> None:
        named = [f"`{path}`: {why}" for path, why in list(self.reasons.items())[:_NUM_NAMED]]
        more = len(self.reasons) - len(named)
        raise ImageError(
            f"{self.num:,} of {self._num_done:,} images could not be decoded, more "
            f"than {self._max_rate:.2%}:\n"
            + "\n".join([*named, *([f"and {more:,} more"] if more else [])]),
            hint="find all of them with `vit21k verify --decode`, or raise data.max_bad_rate",
        )


@dataclass
class _Chunk:
    """What became of a chunk.

    Attributes:
        skipped: Places that are to be skipped.
        replaced: How many places have another image than they were to have.
        bad: Rows that are bad, with why.
        num_unreadable: How often a file could not be opened or read.
        is_any_read: Whether one could.
    """

    skipped: list[int] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    replaced: int = 0
    num_unreadable: int = 0
    is_any_read: bool = False


class Batch(NamedTuple):
    """A batch on its way to a device.

    Attributes:
        images_BCHW: uint8, RGB, not normalised.
        label_rows_L: int64; which image of the batch each label belongs to.
        label_ids_L: int64; class index of each label.
        rows_B: int64; row of each image in the manifest.
        positions_B: int64; how many images the run has seen before each: the key of everything
            that is drawn for it.  Empty where nothing is drawn, as in evaluation.
        step: The 0-based step of the run that the images belong to; None in evaluation.
        num_replaced: Images that stand in for bad ones.
    """

    images_BCHW: Tensor
    label_rows_L: Tensor
    label_ids_L: Tensor
    rows_B: Tensor
    positions_B: Tensor = torch.empty(0, dtype=torch.int64)
    step: int | None = None
    num_replaced: int = 0


@dataclass(frozen=True)
class Job:
    """A batch to decode.

    Attributes:
        rows_B: Row of each image in the manifest.
        crops: What decodes, crops and resizes the images.
        positions_B: How many images the run has seen before each; empty: nothing is drawn.
        substitute: (place in the batch, number of tries so far) -> another row.
        step: Of the run; None in evaluation.
    """

    rows_B: NDArray[np.int64]
    crops: RandomCrops | ResizedImages
    positions_B: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    substitute: Callable[[int, int], int] | None = None
    step: int | None = None


@dataclass
class _Pending:
    """A batch in the making: a task of a thread for each chunk of it."""

    job: Job
    images_BCHW: Tensor
    chunks: list[range]
    tasks: list[Future[_Chunk]] = field(default_factory=list)


class BatchDecoder:
    """Decodes batches ahead of their use, in order.

    Args:
        images: What the rows of a job name.
        img_size: Height and width that the transforms return.
        batch_size: Usual size of a job; it decides how many are decoded ahead.
        num_workers: Threads; with 0 the caller's own thread decodes.
        bad_images: What notes those that are skipped or replaced.
        pin_memory: Put the images where a GPU can copy them from by itself.
    """

    def __init__(
        self,
        images: ImageRows,
        *,
        img_size: int,
        batch_size: int,
        num_workers: int,
        bad_images: BadImages,
        pin_memory: bool = False,
    ) -> None:
        self._bad_images = bad_images
        self._pin_memory = pin_memory
        self._images = images
        self._img_size = img_size
        self._pool = ThreadPoolExecutor(num_workers, "decode") if num_workers else None
        # Enough that every thread has a task to do and one to take next: with large batches, two.
        self._num_ahead = max(2, -(-2 * _CHUNK * num_workers // batch_size)) if num_workers else 0

    def batches(self, jobs: Iterable[Job]) -> Iterator[Batch]:
        """Yield the batch of each job, some of which may be smaller than their job or empty.

        Raises:
            ImageError: An image is bad, and bad images are not skipped; or too many are.
            ImageTreeError: So many files in a row cannot be read that the tree must be gone.
            OSError: There are too many open files, or no memory.
        """
        waiting: deque[_Pending] = deque()
        try:
            for job in self._announced(jobs):
                waiting.append(self._start(job))
                if len(waiting) > self._num_ahead:
                    yield self._finish(waiting.popleft())
            while waiting:
                yield self._finish(waiting.popleft())
        finally:
            for pending in waiting:
                _cancel(pending)

    def _announced(self, jobs: Iterable[Job]) -> Iterator[Job]:
        """Yield *jobs*; the images of those that come next are prefetched."""
        if not self._images.num_ahead:
            yield from jobs
            return
        coming: deque[Job] = deque()
        num_coming = 0
        for job in jobs:
            self._images.prefetch(job.rows_B)
            coming.append(job)
            num_coming += len(job.rows_B)
            while num_coming > self._images.num_ahead:
                num_coming -= len(coming[0].rows_B)
                yield coming.popleft()
        yield from coming

    def close(self) -> None:
        """Drop what is not begun, and join the threads."""
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, job: Job) -> _Pending:
        B = len(job.rows_B)
        shape = (B, 3, self._img_size, self._img_size)
        images_BCHW = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin_memory)
        chunks = [range(start, min(start + _CHUNK, B)) for start in range(0, B, _CHUNK)]
        pending = _Pending(job, images_BCHW, chunks)
        if self._pool:
            pending.tasks = [
                self._pool.submit(self._fill, job, images_BCHW.numpy(), chunk) for chunk in chunks
            ]
        return pending

    def _finish(self, pending: _Pending) -> Batch:
        job, images_BCHW = pending.job, pending.images_BCHW
        try:
            if self._pool:
                done = [task.result() for task in pending.tasks]
            else:
                done = [self._fill(job, images_BCHW.numpy(), chunk) for chunk in pending.chunks]
        finally:
            _cancel(pending)
        rows_B, positions_B = job.rows_B, job.positions_B
        bad = [(self._images.path(row), why) for chunk in done for row, why in chunk.bad]
        reads = [Reads(chunk.num_unreadable, chunk.is_any_read) for chunk in done]
        self._bad_images.note(len(rows_B), bad, reads)
        if skipped := [index for chunk in done for index in chunk.skipped]:
            kept = np.delete(np.arange(len(rows_B)), skipped)
            rows_B, images_BCHW = rows_B[kept], images_BCHW[kept]
            positions_B = positions_B[kept] if len(positions_B) else positions_B
        label_rows_L, label_ids_L = self._images.labels_of(rows_B)
        return Batch(
            images_BCHW,
            label_rows_L=torch.from_numpy(label_rows_L),
            label_ids_L=torch.from_numpy(label_ids_L),
            rows_B=torch.from_numpy(rows_B),
            positions_B=torch.from_numpy(positions_B),
            step=job.step,
            num_replaced=sum(chunk.replaced for chunk in done),
        )

    def _fill(self, job: Job, images_BCHW: NDArray[np.uint8], chunk: range) -> _Chunk:
        """Decode a chunk into its place; return what of it is bad."""
        done = _Chunk()
        contents = self._read(job, chunk)
        done.is_any_read = bool(contents)
        filled = job.crops.fill(contents, images_BCHW)
        for index in chunk:
            if index in filled:
                continue
            num_tries = 0
            while (
                why := self._try(job, images_BCHW, index, contents.pop(index, None), done)
            ) is not None:
                done.bad.append((int(job.rows_B[index]), why))
                if job.substitute is None or num_tries == _NUM_SUBSTITUTES:
                    done.skipped.append(index)
                    break
                job.rows_B[index] = job.substitute(index, num_tries)
                num_tries += 1
            else:
                done.replaced += num_tries > 0
        return done

    def _read(self, job: Job, chunk: range) -> dict[int, bytes]:
        """Return the files of a chunk, by place; one that cannot be read is tried again alone."""
        contents = {}
        for index in chunk:
            with suppress(ImageError, OSError):
                contents[index] = self._images.read_bytes(int(job.rows_B[index]))
        return contents

    def _try(
        self,
        job: Job,
        images_BCHW: NDArray[np.uint8],
        index: int,
        content: bytes | None,
        done: _Chunk,
    ) -> str | None:
        """Decode one image into its place; return what is wrong with it, if that is tolerated."""
        row = int(job.rows_B[index])
        try:
            content = self._images.read_bytes(row) if content is None else content
            done.is_any_read = True
            job.crops(decode_rgb(content), index, images_BCHW[index])
        except UnreadableImageError as error:
            done.num_unreadable += 1
            return self._bad_images.reason(self._images.path(row), error)
        except ImageError as error:
            return self._bad_images.reason(self._images.path(row), error)
        except OSError as error:
            if error.errno in _NOT_THE_FILES_FAULT:
                raise
            done.num_unreadable += 1
            unreadable = UnreadableImageError(f"it cannot be read: {error.strerror or error}")
            return self._bad_images.reason(self._images.path(row), unreadable)
        return None


def _cancel(pending: _Pending) -> None:
    for task in pending.tasks:
        task.cancel()


_NUM_AHEAD = 2

_T = TypeVar("_T")
_Copy = tuple[Batch, torch.cuda.Event]


def copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield *batches*; on a GPU with their images there, two batches ahead of their use.

    Copies run on a stream of their own.  Images in pinned memory are copied while the host goes on;
    labels, rows and positions stay on the host, where mixing is drawn.
    """
    if device.type != "cuda":
        return batches
    stream = torch.cuda.Stream(device)
    return started_ahead(batches, partial(_start, device=device, stream=stream), _finish)


def started_ahead(
    items: Iterator[Batch], start: Callable[[Batch], _T], finish: Callable[[_T], Batch]
) -> Iterator[Batch]:
    """Yield each item started and finished, in order; two are started ahead of it.

    An error in *items* is met up to two items early.
    """
    waiting: deque[_T] = deque()
    for item in items:
        waiting.append(start(item))
        if len(waiting) > _NUM_AHEAD:
            yield finish(waiting.popleft())
    while waiting:
        yield finish(waiting.popleft())


def _start(batch: Batch, *, device: torch.device, stream: torch.cuda.Stream) -> _Copy:
    with torch.cuda.stream(stream):
        images_BCHW = batch.images_BCHW.to(device, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(stream)
    return batch._replace(images_BCHW=images_BCHW), copied


def _finish(copy: _Copy) -> Batch:
    """Let the stream that computes wait for the copy, and keep the memory until it has read it."""
    batch, copied = copy
    computing = torch.cuda.current_stream(batch.images_BCHW.device)
    computing.wait_event(copied)
    batch.images_BCHW.record_stream(computing)
    return batch


_CPU = torch.device("cpu")
_SUBSTITUTES = 0x737562  # separates these random values from those of the crops
_SKIP_HINT = "repair it, or leave such images out: `--set data.on_bad_image=skip`"
_REPAIR_HINT = (
    "repair it, or leave such images out: `vit21k eval --on-bad-image skip`, "
    "`vit21k train --set data.on_bad_image=skip`"
)


class _Loader:
    """What both loaders share: the decoder, what was skipped, and its end."""

    def __init__(self, decoder: BatchDecoder, bad_images: BadImages) -> None:
        self._decoder = decoder
        self._bad_images = bad_images

    @property
    def num_skipped(self) -> int:
        """How often a bad image was skipped so far."""
        return self._bad_images.num

    @property
    def skipped(self) -> dict[str, str]:
        """Why each image was skipped, by path."""
        return self._bad_images.reasons

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
        images: The training images.
        sampler: Which of them each step takes.
        transform: Random crop and flip, drawn from *seed* and the sampler's positions.
        device_batch_size: Images of a micro-batch; the last one of a step may be smaller.
        num_workers: Threads that decode; with 0 the caller's own does.
        seed: Seed of the run.
        policy: What is done to a crop after that, drawn from the same; None: nothing.
        on_bad_image: "fail": raise at the first bad image; "skip": leave it out and count it;
            "replace": take another one, drawn from the same, and count it.
        max_bad_rate: Raise when more of the images are bad, counted over 1,000 or more.
        device: Where the images are wanted; to a GPU they are copied ahead.
    """

    def __init__(  # noqa: PLR0913 (each is a plain value)
        self,
        images: ImageRows,
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
        bad_images = BadImages(on_bad_image, hint=_SKIP_HINT, max_rate=max_bad_rate)
        decoder = BatchDecoder(
            images,
            img_size=transform.img_size,
            batch_size=device_batch_size,
            num_workers=num_workers,
            bad_images=bad_images,
            pin_memory=device.type == "cuda",
        )
        super().__init__(decoder, bad_images)
        self._crop_decoder = compiled_crops()
        self._sampler = sampler
        self._transform = transform
        self._policy = policy
        self._device_batch_size = device_batch_size
        self._seed = seed
        self._replaces = on_bad_image == "replace"
        self._num_images = len(images)
        self._device = device
        self._batches: Iterator[Batch] = iter(())
        self._next_step: int | None = None  # where `_batches` is; None: in the middle of a step

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Yield the images of the 0-based *step*; empty micro-batches are skipped.

        Raises:
            ImageError: An image is bad, and bad images are not skipped; or too many are.
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
        num_columns = self._transform.num_uniforms + (policy.num_uniforms if policy else 0)
        uniforms_BD = uniform_values(self._seed, positions_B, num_columns)
        crops = RandomCrops(self._transform, uniforms_BD, policy, self._crop_decoder)
        substitutes = self._substitutes(positions_B) if self._replaces else None
        return Job(rows_B, crops, positions_B, substitutes, step)

    def _substitutes(self, positions_B: NDArray[np.int64]) -> Callable[[int, int], int]:
        """Return what gives another row for a place of a batch."""

        def substitute(index: int, num_tries: int) -> int:
            key, position = derive_key(_SUBSTITUTES, self._seed), positions_B[index : index + 1]
            draw = uniform_values(key, position, num_tries + 1)[0, num_tries]
            return int(draw * self._num_images)

        return substitute


class EvalLoader(_Loader):
    """Every image exactly once, in manifest order; each rank has a part of the rows.

    Args:
        images: The images.
        transform: What is done to each.
        device_batch_size: Images of a batch; the last one may be smaller.
        num_workers: Threads that decode; with 0 the caller's own does.
        rank: Which process this is.
        world_size: How many processes there are.
        on_bad_image: "fail": raise at the first bad image; "skip": leave it out and count it.
    """

    def __init__(
        self,
        images: ImageRows,
        transform: EvalTransform,
        *,
        device_batch_size: int,
        num_workers: int,
        rank: int = 0,
        world_size: int = 1,
        on_bad_image: OnBadImage = "fail",
    ) -> None:
        bad_images = BadImages(on_bad_image, hint=_REPAIR_HINT)
        decoder = BatchDecoder(
            images,
            img_size=transform.img_size,
            batch_size=device_batch_size,
            num_workers=num_workers,
            bad_images=bad_images,
        )
        super().__init__(decoder, bad_images)
        first = len(images) * rank // world_size
        last = len(images) * (rank + 1) // world_size
        self._resized = ResizedImages(transform, compiled_crops())
        self._starts = range(first, last, device_batch_size)
        self._last = last

    def __len__(self) -> int:
        """Return the number of batches of this rank."""
        return len(self._starts)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches; those without a good image are skipped."""
        for batch in self._decoder.batches(self._jobs()):
            if len(batch.rows_B):
                yield batch

    def _jobs(self) -> Iterator[Job]:
        for start in self._starts:
            last = min(start + self._starts.step, self._last)
            rows_B = np.arange(start, last, dtype=np.int64)
            yield Job(rows_B, self._resized)
