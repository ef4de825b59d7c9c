"""Batches -> the same batches with their images on a GPU already, copied while it computes."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import torch

from vit21k.data.batch_decoder import Batch

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
    """Yield each item started and finished, in order; two are started beside the one that is used.

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
