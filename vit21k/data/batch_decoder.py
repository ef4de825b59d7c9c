"""Rows of a manifest -> uint8 images, read, decoded and transformed by threads.

Dimensions: B images, C colours, H W pixels, L labels.
"""

import errno
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit21k.data.bad_pictures import BadPictures, Reads
from vit21k.data.picture import Picture
from vit21k.data.picture_file import open_picture
from vit21k.data.rows import PictureRows
from vit21k.errors import ImageError, UnreadableImageError

_CHUNK = 32
"""Images of one task of a thread: few enough to share a batch out, enough to pay for the task."""

_NOT_THE_FILES_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

_NUM_SUBSTITUTES = 10
"""How many others are tried in place of a bad picture, before it is left out after all."""


@dataclass
class _Chunk:
    """What became of a chunk.

    Attributes:
        left_out: Places that are to be left out.
        replaced: How many places have another image than they were to have.
        bad: Rows that are bad, with why.
        num_unreadable: How often a file could not be opened or read.
        is_any_read: Whether one could.
    """

    left_out: list[int] = field(default_factory=list)
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
        transform: (picture, place in the batch, (3, H, W) array to fill).
        positions_B: How many images the run has seen before each; empty: nothing is drawn.
        substitute: (place in the batch, number of tries so far) -> another row.
        fill: (files by place in the batch, (B, 3, H, W) array) -> the places that it filled: the
            same as *transform*, for many pictures at a time; None: there is no such way.
        step: Of the run; None in evaluation.
    """

    rows_B: NDArray[np.int64]
    transform: Callable[[Picture, int, NDArray[np.uint8]], object]
    positions_B: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    substitute: Callable[[int, int], int] | None = None
    fill: Callable[[Mapping[int, bytes], NDArray[np.uint8]], set[int]] | None = None
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
        pictures: What the rows of a job name.
        img_size: Height and width that the transforms return.
        batch_size: Usual size of a job; it decides how many are decoded ahead.
        num_workers: Threads; with 0 the caller's own thread decodes.
        bad_pictures: What notes those that are left out or replaced.
        pin_memory: Put the images where a GPU can copy them from by itself.
    """

    def __init__(
        self,
        pictures: PictureRows,
        *,
        img_size: int,
        batch_size: int,
        num_workers: int,
        bad_pictures: BadPictures,
        pin_memory: bool = False,
    ) -> None:
        self._bad_pictures = bad_pictures
        self._pin_memory = pin_memory
        self._pictures = pictures
        self._img_size = img_size
        self._pool = ThreadPoolExecutor(num_workers, "decode") if num_workers else None
        # Enough that every thread has a task to do and one to take next: with large batches, two.
        self._num_ahead = max(2, -(-2 * _CHUNK * num_workers // batch_size)) if num_workers else 0

    def batches(self, jobs: Iterable[Job]) -> Iterator[Batch]:
        """Yield the batch of each job, some of which may be smaller than their job or empty.

        Raises:
            ImageError: A picture is bad, and bad pictures are not skipped; or too many are.
            ImageTreeError: So many files in a row cannot be read that the tree must be gone.
            OSError: There are too many open files, or no memory.
        """
        waiting: deque[_Pending] = deque()
        try:
            for job in jobs:
                waiting.append(self._start(job))
                if len(waiting) > self._num_ahead:
                    yield self._finish(waiting.popleft())
            while waiting:
                yield self._finish(waiting.popleft())
        finally:
            for pending in waiting:
                _cancel(pending)

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
        bad = [(self._pictures.path(row), why) for chunk in done for row, why in chunk.bad]
        reads = [Reads(chunk.num_unreadable, chunk.is_any_read) for chunk in done]
        self._bad_pictures.note(len(rows_B), bad, reads)
        if left_out := [index for chunk in done for index in chunk.left_out]:
            kept = np.delete(np.arange(len(rows_B)), left_out)
            rows_B, images_BCHW = rows_B[kept], images_BCHW[kept]
            positions_B = positions_B[kept] if len(positions_B) else positions_B
        label_rows_L, label_ids_L = self._pictures.labels_of(rows_B)
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
        contents = self._read(job, chunk) if job.fill else {}
        done.is_any_read = bool(contents)
        filled = job.fill(contents, images_BCHW) if job.fill else set()
        for index in chunk:
            if index in filled:
                continue
            num_tries = 0
            while (
                why := self._try(job, images_BCHW, index, contents.pop(index, None), done)
            ) is not None:
                done.bad.append((int(job.rows_B[index]), why))
                if job.substitute is None or num_tries == _NUM_SUBSTITUTES:
                    done.left_out.append(index)
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
                contents[index] = self._pictures.read_bytes(int(job.rows_B[index]))
        return contents

    def _try(
        self,
        job: Job,
        images_BCHW: NDArray[np.uint8],
        index: int,
        content: bytes | None,
        done: _Chunk,
    ) -> str | None:
        """Decode one picture into its place; return what is wrong with it, if that is tolerated."""
        row = int(job.rows_B[index])
        try:
            content = self._pictures.read_bytes(row) if content is None else content
            done.is_any_read = True
            job.transform(open_picture(content), index, images_BCHW[index])
        except UnreadableImageError as error:
            done.num_unreadable += 1
            return self._bad_pictures.reason(self._pictures.path(row), error)
        except ImageError as error:
            return self._bad_pictures.reason(self._pictures.path(row), error)
        except OSError as error:
            if error.errno in _NOT_THE_FILES_FAULT:
                raise
            done.num_unreadable += 1
            unreadable = UnreadableImageError(f"it cannot be read: {error.strerror or error}")
            return self._bad_pictures.reason(self._pictures.path(row), unreadable)
        return None


def _cancel(pending: _Pending) -> None:
    for task in pending.tasks:
        task.cancel()
