"""Collect concurrent requests into batches."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[np.uint8]
Score = Callable[[Pixels], Tensor]
"""uint8 images (B, 3, H, W) -> probabilities (B, K) on the CPU."""

_Waiting = tuple[Pixels, "asyncio.Future[Tensor]"]


class BatcherStoppedError(RuntimeError):
    """The batching loop has ended; requests are no longer answered."""


class Batcher:
    """Collects images until there are *max_batch_size*, or the first has waited long enough.

    One thread computes while the next batch is collected.

    Args:
        score: Computes the probabilities of a batch.
        max_batch_size: Maximum number of images in one call.
        max_wait_seconds: How long an image waits for others.

    Attributes:
        num_batches: Calls of *score* so far.
        num_images: Images in them.
        num_failures_in_a_row: Calls that failed since the last success.
        has_stopped: Whether `run` has ended.
    """

    def __init__(self, score: Score, *, max_batch_size: int, max_wait_seconds: float) -> None:
        self.num_batches = 0
        self.num_images = 0
        self.num_failures_in_a_row = 0
        self._score = score
        self._max_batch_size = max_batch_size
        self._max_wait_seconds = max_wait_seconds
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "model")
        self.has_stopped = False

    async def score(self, image_CHW: Pixels) -> Tensor:
        """Return the probabilities (K,) of an image; needs `run` to be running.

        Raises:
            BatcherStoppedError: `run` has ended.
            Exception: Raised by *score* for its batch.
        """
        if self.has_stopped:
            raise BatcherStoppedError
        answer: asyncio.Future[Tensor] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((image_CHW, answer))
        return await answer

    async def run(self) -> None:
        """Compute batch after batch until cancelled."""
        batch: list[_Waiting] = []
        try:
            while True:
                batch = await self._collect()
                await self._answer(batch)
        finally:
            self.has_stopped = True
            self._thread.shutdown(wait=False, cancel_futures=True)
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(BatcherStoppedError())

    async def _collect(self) -> list[_Waiting]:
        batch = [await self._queue.get()]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._max_wait_seconds
        while len(batch) < self._max_batch_size:
            try:
                async with asyncio.timeout_at(deadline):
                    batch.append(await self._queue.get())
            except TimeoutError:
                break
        return [waiting for waiting in batch if not waiting[1].cancelled()]

    async def _answer(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        self.num_batches += 1
        self.num_images += len(batch)
        images = [image_CHW for image_CHW, _ in batch]
        loop = asyncio.get_running_loop()
        try:
            rows = await loop.run_in_executor(self._thread, self._scores, images)
        except Exception as error:  # answered to each request; the next batch may succeed
            self.num_failures_in_a_row += 1
            results: list[Tensor | Exception] = [error] * len(batch)
        else:
            self.num_failures_in_a_row = 0
            results = list(rows)
        for (_, answer), result in zip(batch, results, strict=True):
            if answer.done():  # cancelled in the meantime
                continue
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

    def _scores(self, images: list[Pixels]) -> list[Tensor]:
        """Return one row per image; runs in the thread, where a failure is one of the batch."""
        rows = list(self._score(np.stack(images)))
        if len(rows) != len(images):
            raise ValueError(f"{len(rows)} rows for {len(images)} images")
        return rows
