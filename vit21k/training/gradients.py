"""Gradients of several processes: summed by DDP, or sharded by FSDP2; seeds of dropout."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from vit21k.data.loader import Batch
from vit21k.data.rng import MASK64, mix64
from vit21k.data.sampler import StepSampler
from vit21k.device import DTYPES, Precision
from vit21k.distributed import World, unsharded

LossOf = Callable[[nn.Module, Batch, Tensor | None], Tensor]
"""Model, micro-batch and kept patches (None: all) -> mean loss over the images."""


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generators that a model on *device* uses, with the values of `torch.manual_seed`.

    Without a GPU that function takes 0.4 ms a step, to note the seed for devices that may appear.
    """
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return a different seed for every step and process."""
    mixed = seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB
    return int(mix64(np.array([mixed & MASK64], dtype=np.uint64))[0]) >> 1


def most_passes(sampler: StepSampler, device_batch_size: int) -> int:
    """Return how many micro-batches the process with the most images of a step has at most."""
    rows = -(-sampler.global_batch_size // sampler.world_size)
    return -(-rows // device_batch_size)


def with_dummies(
    micro_batches: Iterable[Batch], num_passes: int, img_size: int, step: int
) -> Iterator[Batch]:
    """Yield the micro-batches of a step, and dummy batches of weight 0 up to *num_passes*."""
    num_done = 0
    for batch in micro_batches:
        yield batch
        num_done += 1
    for _ in range(num_done, num_passes):
        yield _dummy_batch(img_size, step)


def _dummy_batch(img_size: int, step: int | None = None) -> Batch:
    """Return two images that do not count: their loss has the weight 0."""
    none = torch.empty(0, dtype=torch.int64)
    images = torch.full((2, 3, img_size, img_size), 128, dtype=torch.uint8)
    return Batch(images, none, none, rows_B=none, positions_B=torch.arange(2), step=step)


def shard(model: nn.Module, world: World, *, device: torch.device, precision: Precision) -> None:
    """Shard *model* over the processes, block by block; all call it with the same weights.

    Activation checkpointing and compilation come before it, the optimizer after it.

    Args:
        model: On *device*; changed in place.
        world: All processes.
        device: Of this process.
        precision: Of the weights that are sent; they are stored, and gradients summed, in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 (takes a second)
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard  # noqa: PLC0415

    mesh = init_device_mesh(device.type, (world.world_size,))
    policy = MixedPrecisionPolicy(
        param_dtype=DTYPES[precision], reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    lists = [module for name, module in model.named_modules() if name.split(".")[-1] == "blocks"]
    # The root as well: between two steps all weights must be sharded.
    for module in (*(block for blocks in lists for block in blocks.children()), model):
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


class GradientSums:
    """Adds gradients of micro-batches, and sums them over the processes of *world*.

    Args:
        model: On its device, the same in every process.
        loss_of: Its loss.
        world: The processes.
        img_size: Side of the model's images, in pixels.

    Attributes:
        params: Those that are trained.  Listed once: it takes 0.8 ms for a large model, in which a
            GPU would wait.
        is_sharded: Every process must make the same number of passes; otherwise at least one, if
            there are several processes.
    """

    def __init__(self, model: nn.Module, loss_of: LossOf, world: World, img_size: int) -> None:
        self.params = [param for param in model.parameters() if param.requires_grad]
        self.is_sharded = hasattr(model, "set_requires_gradient_sync")
        self._model = model
        self._factor = world.world_size if self.is_sharded else 1  # FSDP averages
        self._loss: nn.Module = _Loss(model, loss_of)
        if world.world_size > 1 and not self.is_sharded:
            self._loss = DistributedDataParallel(
                self._loss, init_sync=False, gradient_as_bucket_view=True
            )
            self._loss.register_comm_hook(None, lambda _state, bucket: _sum(bucket.buffer()))
            # DDP arranges its buckets anew after its first pass.  Sums of three and more processes
            # are rounded by bucket, so this pass makes a resumed run bit-identical.
            self.add(_dummy_batch(img_size), weight=0.0, is_last=True)
            model.zero_grad(set_to_none=True)

    def add(
        self, batch: Batch, kept_BM: Tensor | None = None, *, weight: float, is_last: bool
    ) -> Tensor:
        """Add *weight* times the gradients of a micro-batch, and return its loss.

        In the *last* pass of an update they are summed over the processes as well.
        """
        context: AbstractContextManager[None] = nullcontext()
        if self.is_sharded:
            self._model.set_requires_gradient_sync(is_last)  # type: ignore[operator]
        elif isinstance(self._loss, DistributedDataParallel) and not is_last:
            context = self._loss.no_sync()
        with context:
            loss: Tensor = self._loss(batch, kept_BM)
            (loss * (weight * self._factor)).backward()
        return loss.detach()


class _Loss(nn.Module):
    """The loss as a module: DDP has to wrap everything that is computed."""

    def __init__(self, model: nn.Module, loss_of: LossOf) -> None:
        super().__init__()
        self.model = model
        self._loss_of = loss_of

    def forward(self, batch: Batch, kept_BM: Tensor | None) -> Tensor:
        return self._loss_of(self.model, batch, kept_BM)


def _sum(values: Tensor) -> Any:
    """Start to sum *values* over the processes, without DDP's division by their number."""
    work: Any = dist.all_reduce(values, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


def clip(params: Sequence[nn.Parameter], max_norm: float | None) -> float:
    """Clip the gradient to *max_norm*, if there is one; return its norm before."""
    gradients = [param.grad for param in params if param.grad is not None]
    norm = unsharded(nn.utils.get_total_norm(gradients))
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(params, max_norm, norm)
    return float(norm)
