"""The processes that train together: who this one is, sums over all of them.

Processes are started by torchrun, never by us::

    torchrun --standalone --nproc-per-node=8 -m vit21k train --stage pretrain
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from vit21k.errors import UsageError


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

    def begin_sum(self, tensor: Tensor) -> Callable[[], object]:
        """Begin to replace *tensor* by the sum of every process's; all begin them in one order.

        Returns:
            Waits until it is done (on a GPU: makes the current stream wait).
        """
        work = dist.all_reduce(tensor, async_op=True)
        return work.wait if work is not None else _nothing

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the group; further sums are not possible.

        All processes should come here at the same time (`barrier`): gloo ends a process with
        SIGABRT whose peer left while a message of FSDP was under way.
        """
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


def _nothing() -> None:
    pass


def whole(tensor: Tensor) -> Tensor:
    """Return *tensor* put together, if every process holds a part of it; all call it then."""
    full: Any = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def local_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of *tensor*: a view of its part, or itself."""
    local: Any = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def spread_like(tensor: Tensor, like: Any) -> Tensor:
    """Return *tensor*, whole on every process, spread over them as *like* is; no message is sent.

    A tensor without dimensions, such as a count of steps, is everywhere whole.
    """
    if not hasattr(like, "full_tensor") or not tensor.ndim:
        return tensor
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 (takes a second)

    on_device = tensor.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)
