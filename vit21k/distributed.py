"""The processes that train together: who this one is, sums over all of them.

The only user of `torch.distributed`.  Processes are started by torchrun, never by us::

    torchrun --standalone --nproc-per-node=8 -m vit21k train --stage pretrain
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist

from vit21k.errors import UsageError

# Gradients are summed in runs of about this many values: few messages, little memory beside them.
_BUCKET_VALUES = 1 << 24


@dataclass(frozen=True)
class World:
    """This process among all.

    Attributes:
        rank: Number of this process, from 0; rank 0 writes and prints.
        world_size: Number of processes.
        local_rank: Number of this process on its machine: which device it uses.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of every process's *tensor*, which is left alone; all must call it."""
        total = tensor.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def all_reduce_gradients(self, model: nn.Module) -> None:
        """Replace every gradient of *model* by its sum over the processes; all must call it.

        A process that had no pictures of a batch takes part with zeros.
        """
        if self.world_size == 1:
            return
        for bucket in _buckets(model):
            values = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(values)
            sizes = [gradient.numel() for gradient in bucket]
            for gradient, total in zip(bucket, values.split(sizes), strict=True):
                gradient.copy_(total.view_as(gradient))

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the group; further sums are not possible."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def init_world(device: str) -> World:
    """Join the processes that torchrun started; alone if it started none.

    Args:
        device: As torch names it.  On "cuda" this process's GPU becomes the current one.

    Raises:
        UsageError: The environment is not torchrun's, or there are too few GPUs.
    """
    world = World(*(_number(name, default) for name, default in _VARIABLES.items()))
    if torch.device(device).type == "cuda":
        _take_gpu(device, world)
    if world.world_size > 1:
        if "MASTER_ADDR" not in os.environ or "RANK" not in os.environ:
            raise UsageError(
                f"WORLD_SIZE is {world.world_size}, but RANK or MASTER_ADDR is not set",
                hint="start the processes with torchrun",
            )
        on_gpu = torch.device(device).type == "cuda"
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    return world


_VARIABLES = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UsageError(f"{name} is `{text}`, not a number", hint="torchrun sets it; unset it")
    return int(text)


def _take_gpu(device: str, world: World) -> None:
    index = torch.device(device).index
    if index is None:
        index = world.local_rank
    if index >= torch.cuda.device_count():
        raise UsageError(
            f"process {world.local_rank} of this machine has no GPU: "
            f"there are {torch.cuda.device_count()}",
            hint="give torchrun --nproc-per-node the number of GPUs, or use --device cpu",
        )
    torch.cuda.set_device(index)


def _buckets(model: nn.Module) -> Iterator[list[Tensor]]:
    """Yield the gradients of *model*, in an order all processes share, in runs of one type."""
    bucket: list[Tensor] = []
    num_values = 0
    for param in model.parameters():
        if not param.requires_grad:
            continue
        if param.grad is None:
            param.grad = torch.zeros_like(param)
        if bucket and (
            num_values + param.numel() > _BUCKET_VALUES or param.grad.dtype != bucket[0].dtype
        ):
            yield bucket
            bucket, num_values = [], 0
        bucket.append(param.grad)
        num_values += param.numel()
    if bucket:
        yield bucket
