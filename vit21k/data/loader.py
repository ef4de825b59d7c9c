"""Decode and augment batches in a thread pool; replace or skip bad images."""

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
from vit21k.data.dataset import ImageRows, announced
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
"""Images per task: small enough to divide a batch among threads, large enough to pay off."""

_NOT_THE_FILES_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

_NUM_REPLACEMENTS = 10
"""Number of replacements to try before a bad image is skipped."""


OnBadImage = Literal["fail", "skip", "replace"]

_LEAST_JUDGED = 1000
"""Minimum number of images for the rate of bad ones."""

_NUM_NAMED = 10
"""Maximum number of bad images in an error message."""

_MAX_UNREADABLE = 100
"""Consecutive unreadable files after which the image root is considered gone."""

_FEW_UNREADABLE = 10
"""The same, if there are too many bad images anyway: decides the message."""

_LOST_HINT = (
    "check that the disk of the image tree is mounted and readable, or name the current image "
    "root with `--root`"
)


class BadImages:
    """Counts bad images, while they are tolerated.

    Args:
        on_bad_image: "fail": raise at the first one; otherwise count it.
        hint: What to do about a bad image.
        max_rate: Raise if a larger fraction of images is bad, of 1,000 or more.

    Attributes:
        reasons: Why each was bad, by path.
        num: Number of occurrences.
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
        """Return why an image is bad.

        Raises:
            ImageError: Bad images are not tolerated.
        """
        if self._on_bad_image != "fail":
            return error.message
        raise ImageError(f"`{path}`: {error.message}", hint=error.hint or self._hint) from error

    def note(
        self, num_done: int, bad: Sequence[tuple[str, str]], chunks: "Sequence[_Chunk]" = ()
    ) -> None:
        """Count *num_done* more images, and the (path, reason) of bad ones.

        Args:
            num_done: Number of images, including bad ones.
            bad: Images that were tried several times are repeated.
            chunks: Results of reading their files, in order.

        Raises:
            ImageTreeError: Too many consecutive files could not be read: the image root is gone.
            ImageError: Too many images are bad.
        """
        self._num_done += num_done
        self.num += len(bad)
        self.reasons.update(bad)
        for chunk in chunks:
            if chunk.is_any_read:
                self._num_unreadable_in_a_row = 0
            else:
                self._num_unreadable_in_a_row += chunk.num_unreadable
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
    """Result of a chunk.

    Attributes:
        skipped: Indices in the batch to skip.
        bad: Bad rows, with the reason.
        replaced: Number of replaced images.
        num_unreadable: Number of failures to open or read a file.
        is_any_read: Whether any file could be read.
    """

    skipped: list[int] = field(default_factory=list)
    bad: list[tuple[int, str]] = field(default_factory=list)
    replaced: int = 0
    num_unreadable: int = 0
    is_any_read: bool = False


class Batch(NamedTuple):
    """A batch of images with sparse labels.

    Attributes:
        images_BCHW: uint8, RGB, not normalised.
        label_rows_L: int64; row in the batch of each label.
        label_ids_L: int64; class index of each label.
        rows_B: int64; row of each image in the manifest.
        positions_B: int64; number of images of the run before each: the key of its random values.
            Empty without random values, as in evaluation.
        step: The 0-based step of the run; None in evaluation.
        num_replaced: Number of replacements of bad images.
    """

    images_BCHW: Tensor
    label_rows_L: Tensor
    label_ids_L: Tensor
    rows_B: Tensor
    positions_B: Tensor = torch.empty(0, dtype=torch.int64)
    step: int | None = None
    num_replaced: int = 0


@dataclass(frozen=True)
class DecodeJob:
    """A batch to decode.

    Attributes:
        rows_B: Row of each image in the manifest.
        crops: Decodes, crops and resizes the images.
        positions_B: Number of images of the run before each; empty: no random values.
        replacement: (index in the batch, number of tries so far) -> another row.
        step: Step of the run; None in evaluation.
    """

    rows_B: NDArray[np.int64]
    crops: RandomCrops | ResizedImages
    positions_B: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    replacement: Callable[[int, int], int] | None = None
    step: int | None = None


@dataclass
class _Pending:
    """A batch in progress, with a task for each chunk."""

    job: DecodeJob
    images_BCHW: Tensor
    chunks: list[range]
    tasks: list[Future[_Chunk]] = field(default_factory=list)


class BatchDecoder:
    """Decodes batches ahead of their use, in order.

    Args:
        images: The images that the rows of a job index.
        img_size: Height and width of the transformed images.
        batch_size: Usual size of a job; determines how many are decoded ahead.
        num_workers: Threads; with 0 the thread of the caller decodes.
        bad_images: Counts skipped and replaced images.
        pin_memory: Allocate images in pinned memory.
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
        # So that every thread has a task and a next one; two with large batches.
        self._num_ahead = max(2, -(-2 * _CHUNK * num_workers // batch_size)) if num_workers else 0

    def batches(self, jobs: Iterable[DecodeJob]) -> Iterator[Batch]:
        """Yield the batch of each job; with skipped images it is smaller, or even empty.

        Raises:
            ImageError: An image is bad, and bad images are not tolerated; or too many are bad.
            ImageTreeError: Too many consecutive files could not be read: the image root is gone.
            OSError: There are too many open files, or no memory.
        """
        waiting: deque[_Pending] = deque()
        try:
            for job in announced(self._images, jobs, lambda job: job.rows_B):
                waiting.append(self._start(job))
                if len(waiting) > self._num_ahead:
                    yield self._finish(waiting.popleft())
            while waiting:
                yield self._finish(waiting.popleft())
        finally:
            for pending in waiting:
                _cancel(pending)

    def close(self) -> None:
        """Cancel pending tasks, and join the threads."""
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, job: DecodeJob) -> _Pending:
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
        self._bad_images.note(len(rows_B), bad, done)
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

    def _fill(self, job: DecodeJob, images_BCHW: NDArray[np.uint8], chunk: range) -> _Chunk:
        """Decode a chunk into the batch; return its result."""
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
                if job.replacement is None or num_tries == _NUM_REPLACEMENTS:
                    done.skipped.append(index)
                    break
                job.rows_B[index] = job.replacement(index, num_tries)
                num_tries += 1
            else:
                done.replaced += num_tries > 0
        return done

    def _read(self, job: DecodeJob, chunk: range) -> dict[int, bytes]:
        """Return the files of a chunk, by index; those that cannot be read are tried again."""
        contents = {}
        for index in chunk:
            with suppress(ImageError, OSError):
                contents[index] = self._images.read_bytes(int(job.rows_B[index]))
        return contents

    def _try(
        self,
        job: DecodeJob,
        images_BCHW: NDArray[np.uint8],
        index: int,
        content: bytes | None,
        done: _Chunk,
    ) -> str | None:
        """Decode an image into the batch; return why it is bad, if that is tolerated."""
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
    """Yield *batches*; on a GPU, images are copied two batches ahead of their use.

    Copies run on a separate stream, asynchronously for pinned memory.  Labels, rows and positions
    stay on the host.
    """
    if device.type != "cuda":
        return batches
    stream = torch.cuda.Stream(device)
    return started_ahead(batches, partial(_start, device=device, stream=stream), _finish)


def started_ahead(
    items: Iterator[Batch], start: Callable[[Batch], _T], finish: Callable[[_T], Batch]
) -> Iterator[Batch]:
    """Yield each item started and finished, in order; two items are started in advance.

    An error in *items* is raised up to two items early.
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
    """Make the compute stream wait for the copy, and keep the memory until it is read."""
    batch, copied = copy
    computing = torch.cuda.current_stream(batch.images_BCHW.device)
    computing.wait_event(copied)
    batch.images_BCHW.record_stream(computing)
    return batch


_CPU = torch.device("cpu")
_REPLACEMENTS = 0x737562  # separates these random values from those of the crops
_SKIP_HINT = "repair it, or skip bad images: `--set data.on_bad_image=skip`"
_REPAIR_HINT = (
    "repair it, or skip bad images: `vit21k eval --on-bad-image skip`, "
    "`vit21k train --set data.on_bad_image=skip`"
)


class _Loader:
    """Base of the loaders: the decoder and the skipped images."""

    def __init__(self, decoder: BatchDecoder, bad_images: BadImages) -> None:
        self._decoder = decoder
        self._bad_images = bad_images

    @property
    def num_skipped(self) -> int:
        """Number of skipped images so far."""
        return self._bad_images.num

    @property
    def skipped(self) -> dict[str, str]:
        """Why each image was skipped, by path."""
        return self._bad_images.reasons

    def close(self) -> None:
        """Join the threads; the loader cannot be used afterwards."""
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

    Steps may be requested in any order; in ascending order they are decoded ahead, across steps.

    Args:
        images: The training images.
        sampler: Selects the images of each step.
        transform: Random crop and flip, from *seed* and the positions of the sampler.
        device_batch_size: Images of a micro-batch; the last one of a step may be smaller.
        num_workers: Decoding threads; with 0 the thread of the caller decodes.
        seed: Seed of the run.
        policy: Augmentation of the crops, from the same random values; None: none.
        on_bad_image: "fail": raise at the first bad image; "skip": skip and count it; "replace":
            use another image instead, by a random value, and count it.
        max_bad_rate: Raise if a larger fraction of images is bad, of 1,000 or more.
        device: Device of the images; they are copied ahead to a GPU.
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
        self._next_step: int | None = None  # of `_batches`; None: within a step

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Yield the images of the 0-based *step*; empty micro-batches are skipped.

        Raises:
            ImageError: An image is bad, and bad images are not tolerated; or too many are bad.
            ImageTreeError: Too many consecutive files could not be read: the image root is gone.
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

    def _jobs_from(self, step: int) -> Iterator[DecodeJob]:
        """Yield the jobs of *step* and of all later steps, endlessly."""
        for later in count(step):
            rows, positions = self._sampler.batch(later)
            for start in range(0, len(rows), self._device_batch_size):
                part = slice(start, start + self._device_batch_size)
                yield self._job(rows[part], positions[part], later)

    def _job(
        self, rows_B: NDArray[np.int64], positions_B: NDArray[np.int64], step: int
    ) -> DecodeJob:
        policy = self._policy
        num_columns = self._transform.num_uniforms + (policy.num_uniforms if policy else 0)
        uniforms_BD = uniform_values(self._seed, positions_B, num_columns)
        crops = RandomCrops(self._transform, uniforms_BD, policy, self._crop_decoder)
        replacements = self._replacements(positions_B) if self._replaces else None
        return DecodeJob(rows_B, crops, positions_B, replacements, step)

    def _replacements(self, positions_B: NDArray[np.int64]) -> Callable[[int, int], int]:
        """Return a function that selects replacements for the images of a batch."""

        def replacement(index: int, num_tries: int) -> int:
            key, position = derive_key(_REPLACEMENTS, self._seed), positions_B[index : index + 1]
            uniform = uniform_values(key, position, num_tries + 1)[0, num_tries]
            return int(uniform * self._num_images)

        return replacement


class EvalLoader(_Loader):
    """Every image exactly once, in manifest order; each rank has a part of the rows.

    Args:
        images: The images.
        transform: Resizes and crops each image.
        device_batch_size: Images of a batch; the last one may be smaller.
        num_workers: Decoding threads; with 0 the thread of the caller decodes.
        rank: Index of this process.
        world_size: Number of processes.
        on_bad_image: "fail": raise at the first bad image; "skip": skip and count it.
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
        """Yield the batches; empty ones are skipped."""
        for batch in self._decoder.batches(self._jobs()):
            if len(batch.rows_B):
                yield batch

    def _jobs(self) -> Iterator[DecodeJob]:
        for start in self._starts:
            last = min(start + self._starts.step, self._last)
            rows_B = np.arange(start, last, dtype=np.int64)
            yield DecodeJob(rows_B, self._resized)
