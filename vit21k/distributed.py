"""The processes that train together: who this one is, sums over all of them.

Processes are started by torchrun, never by us::

    torchrun --standalone --nproc-per-node=8 -m vit21k train --stage pretrain
"""

import json
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

    def broadcast(self, tensor: Tensor) -> None:
        """Replace *tensor*, on the CPU, by that of the first process; all must call it."""
        if self.world_size > 1:
            dist.broadcast(tensor, 0)

    def gather(self, value: Any) -> list[Any]:
        """Return every process's *value*, a JSON value, by rank; all must call it."""
        if self.world_size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = torch.zeros(self.world_size, dtype=torch.int64)
        sizes[self.rank] = len(text)
        sizes = self.all_reduce_sum(sizes)
        texts = torch.zeros(self.world_size, int(sizes.max()), dtype=torch.uint8)
        texts[self.rank, : len(text)] = text
        rows = zip(self.all_reduce_sum(texts), sizes.tolist(), strict=True)
        return [json.loads(bytes(row[:size].tolist())) for row, size in rows]

    def is_any(self, flag: bool) -> bool:
        """Return whether any process says so; all must call it."""
        return bool(self.all_reduce_sum(torch.tensor([float(flag)])).item())

    @contextmanager
    def in_agreement(self) -> Iterator[None]:
        """Let every process leave the block well, or every one with an error.

        In the block no process waits for another.  One that failed raises its own error, the
        others raise that of the first one that did, with its exit code.
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
        try:
            with _stdout_to_stderr():
                dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        except (RuntimeError, ValueError) as error:
            at = f"{os.environ['MASTER_ADDR']}:{os.environ.get('MASTER_PORT', '')}"
            why = str(error).partition("\n")[0]
            raise LostPeerError(
                f"the {world.world_size} processes could not meet at {at}: {why}",
                hint="another process may have ended (its message says why), or the port is taken",
            ) from error
    return world


@contextmanager
def explaining_lost_peers(world: World) -> Iterator[None]:
    """Raise `LostPeerError` where the block fails because another process has ended.

    Raises:
        LostPeerError: Instead of what the library for sending messages raised.
    """
    try:
        yield
    except RuntimeError as error:
        if world.world_size == 1 or not _is_lost_peer(error):
            raise
        raise LostPeerError(
            "another process of this run has ended, and this one cannot continue without it",
            hint="its own message says why; rerun the same command to resume from the last "
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
    """Send to stderr what C++ prints: torch 2.10's gloo counts its peers on stdout."""
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
