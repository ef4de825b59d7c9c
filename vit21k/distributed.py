"""The processes of a run, and communication between them.

torchrun starts the processes::

    torchrun --standalone --nproc-per-node=8 -m vit21k train --stage pretrain
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from vit21k.errors import EXIT_STORAGE, LostPeerError, UsageError, Vit21kError


@dataclass(frozen=True)
class World:
    """The processes of a run, from the point of view of one.

    Attributes:
        rank: Index of this process; the process of rank 0 writes and prints.
        world_size: Number of processes.
        local_rank: Index of this process on its node, and of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of *tensor* over all processes; all must call it."""
        total = tensor.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def broadcast(self, tensor: Tensor) -> None:
        """Overwrite *tensor*, on the CPU, by that of the first process; all must call it."""
        if self.world_size > 1:
            dist.broadcast(tensor, 0)

    def gather(self, value: Any) -> list[Any]:
        """Return the *value* of every process, by rank; all must call it."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def is_any(self, flag: bool) -> bool:
        """Return whether *flag* is true in any process; all must call it."""
        return bool(self.all_reduce_sum(torch.tensor([float(flag)])).item())

    @contextmanager
    def in_agreement(self) -> Iterator[None]:
        """Raise an error in every process if the block fails in any.

        The block must not communicate.  A process that failed raises its own error, the others
        that of the first one that failed, with its exit code.
        """
        error: Vit21kError | OSError | None = None
        try:
            yield
        except (Vit21kError, OSError) as caught:
            error = caught
        reports = self.gather(None if error is None else _report(error))
        if error is not None:
            raise error
        for rank, report in enumerate(reports):
            if report is not None:
                raise _error_of(rank, report)

    def barrier(self) -> None:
        """Wait until every process calls this."""
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the process group; no communication is possible afterwards.

        Call `barrier` first: gloo ends a process with SIGABRT if another one has left while a
        message of FSDP is in transit.
        """
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def init_world(device: str) -> World:
    """Join the process group if torchrun started this process.

    Args:
        device: Name of torch's device.  For "cuda", the GPU of this process becomes the current
            one.

    Raises:
        UsageError: The environment is not one of torchrun, or there are too few GPUs.
        LostPeerError: The processes cannot connect.
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
        try:
            with _stdout_to_stderr():
                dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        except (RuntimeError, ValueError) as error:
            at = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '')}"
            why = str(error).partition("\n")[0]
            raise LostPeerError(
                f"the {world.world_size} processes cannot connect at {at}: {why}",
                hint="another process may have failed (see its message), or the port is in use",
            ) from error
    return world


@contextmanager
def explaining_lost_peers(world: World) -> Iterator[None]:
    """Raise `LostPeerError` if the block fails because another process has ended."""
    try:
        yield
    except RuntimeError as error:
        if world.world_size == 1 or not _is_lost_peer(error):
            raise
        raise LostPeerError(
            "another process of this run has ended, and this one cannot continue without it",
            hint="see its message for the reason; rerun the same command to resume from the last "
            "checkpoint",
        ) from error


def _is_lost_peer(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo/" in text or "nccl" in text


def _report(error: Vit21kError | OSError) -> dict[str, Any]:
    if isinstance(error, Vit21kError):
        return {"message": error.message, "hint": error.hint, "exit_code": error.exit_code}
    where = f": `{error.filename}`" if error.filename else ""
    message = f"{error.strerror or error}{where}"
    return {"message": message, "hint": None, "exit_code": EXIT_STORAGE}


def _error_of(rank: int, report: Mapping[str, Any]) -> Vit21kError:
    error = Vit21kError(f"process {rank}: {report['message']}", hint=report["hint"])
    error.exit_code = report["exit_code"]
    return error


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Redirect stdout to stderr: gloo of torch 2.10 prints the number of its peers."""
    sys.stdout.flush()
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


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


def unsharded(tensor: Tensor) -> Tensor:
    """Return *tensor* without sharding; all processes must call it if it is sharded."""
    full: Any = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def local_part(tensor: Tensor) -> Tensor:
    """Return the part of *tensor* in this process: a view of its shard, or itself."""
    local: Any = getattr(tensor, "to_local", None)
    return tensor if local is None else local()


def shard_like(tensor: Tensor, like: Any) -> Tensor:
    """Return *tensor*, complete in every process, sharded as *like* is; without communication.

    A tensor without dimensions, such as a count of steps, is not sharded.
    """
    if not hasattr(like, "full_tensor") or not tensor.ndim:
        return tensor
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415 (takes a second)

    on_device = tensor.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)
