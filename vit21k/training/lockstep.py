"""Processes that share weights (FSDP) wait for each other in every pass: all must make as many."""

from collections.abc import Callable, Iterator

import torch

from vit21k.data.batch_decoder import Batch
from vit21k.data.sampler import StepSampler


def most_passes(sampler: StepSampler, device_batch_size: int) -> int:
    """Return how many micro-batches the process with the most pictures of a step has at most."""
    rows = -(-sampler.global_batch_size // sampler.world_size)
    return -(-rows // device_batch_size)


def in_lockstep(
    micro_batches: Callable[[int], Iterator[Batch]], num_passes: int, img_size: int, step: int
) -> Iterator[Batch]:
    """Yield the micro-batches of a step, and after them some that count for nothing."""
    num_done = 0
    for batch in micro_batches(step):
        yield batch
        num_done += 1
    for _ in range(num_done, num_passes):
        yield _batch_of_nothing(img_size, step)


def _batch_of_nothing(img_size: int, step: int) -> Batch:
    """Return two grey images that are no pictures: their loss has the weight 0."""
    none = torch.empty(0, dtype=torch.int64)
    grey = torch.full((2, 3, img_size, img_size), 128, dtype=torch.uint8)
    return Batch(grey, none, none, rows_B=none, positions_B=torch.arange(2), step=step)
