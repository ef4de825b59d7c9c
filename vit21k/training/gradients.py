"""Processes that train together: sharded weights, gradients summed, seeds of dropout."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from vit21k.data.loader import Batch
from vit21k.data.rng import MASK64, mix64
from vit21k.data.sampler import StepSampler
from vit21k.device import DTYPES, Precision
from vit21k.distributed import World, whole


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed what a model on *device* draws from: as `torch.manual_seed`, to the bit.

    That one takes 0.4 ms a step where there is no GPU, to note the seed for devices that may come.
    """
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed of its own for every step and process."""
    place = seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB
    return int(mix64(np.array([place & MASK64], dtype=np.uint64))[0]) >> 1


def most_passes(sampler: StepSampler, device_batch_size: int) -> int:
    """Return how many micro-batches the process with the most images of a step has at most."""
    rows = -(-sampler.global_batch_size // sampler.world_size)
    return -(-rows // device_batch_size)


def in_lockstep(
    micro_batches: Iterable[Batch], num_passes: int, img_size: int, step: int
) -> Iterator[Batch]:
    """Yield the micro-batches of a step, and after them dummy batches that weigh nothing."""
    num_done = 0
    for batch in micro_batches:
        yield batch
        num_done += 1
    for _ in range(num_done, num_passes):
        yield _dummy_batch(img_size, step)


def _dummy_batch(img_size: int, step: int) -> Batch:
    """Return two grey images that are no images: their loss has the weight 0."""
    none = torch.empty(0, dtype=torch.int64)
    grey = torch.full((2, 3, img_size, img_size), 128, dtype=torch.uint8)
    return Batch(grey, none, none, rows_B=none, positions_B=torch.arange(2), step=step)


def shard(
    model: nn.Module, world: World, *, device: torch.device, precision: Precision
) -> FSDPModule:
    """Spread *model* over the processes, block by block; all call it with the same weights.

    Activation checkpointing and compilation come before it, the optimizer after it.

    Args:
        model: On *device*; changed in place.
        world: All processes share it.
        device: Of this process.
        precision: Weights are sent in it; they are kept, and gradients summed, in float32.
    """
    mesh = init_device_mesh(device.type, (world.world_size,))
    policy = MixedPrecisionPolicy(
        param_dtype=DTYPES[precision], reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    # The root as well: whoever looks between two steps must find parts everywhere.
    return fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks of a ViT, or of the stages of a PiT."""
    lists = [module for name, module in model.named_modules() if name.split(".")[-1] == "blocks"]
    return [block for blocks in lists for block in blocks.children()]


# 25 MB of float32, as in torch's DistributedDataParallel: few messages, little memory beside them.
_BUCKET_VALUES = 25 * (1 << 18)


@dataclass
class _Bucket:
    """Parameters whose gradients travel together.

    Attributes:
        params: Of one type.
        num_missing: How many gradients of the last pass are still to come.
        values: What travels; None: it was not sent yet.
        wait: Until it has arrived.
    """

    params: list[nn.Parameter]
    num_missing: int = 0
    values: Tensor | None = None
    wait: Callable[[], object] | None = None


class GradientSums:
    """Runs backward passes of *model* and sums the gradients over the processes of *world*.

    Args:
        model: On its device; every process has the same.
        world: The processes.

    Attributes:
        params: Those that are trained.  Listed once: a large model's modules take 0.8 ms to go
            through, in which a GPU would wait.
        in_lockstep: Every process must make the same number of passes.
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        self.params = [param for param in model.parameters() if param.requires_grad]
        self.in_lockstep = hasattr(model, "set_requires_gradient_sync")
        self._model = model
        self._world = world
        self._is_own = world.world_size > 1 and not self.in_lockstep
        self._buckets = _buckets_of(self.params) if self._is_own else []
        self._num_sent = 0
        self._is_last = False
        for bucket in self._buckets:
            for param in bucket.params:
                param.register_post_accumulate_grad_hook(self._arrival_in(bucket))

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradients of *loss*; during the *last* pass of an update they are also sent."""
        if self.in_lockstep:
            self._model.set_requires_gradient_sync(is_last)  # type: ignore[operator]
            loss = loss * self._world.world_size  # FSDP takes the mean of all processes
        self._is_last = is_last
        for bucket in self._buckets if is_last else ():
            bucket.num_missing = len(bucket.params)
        loss.backward()
        self._is_last = False

    def finish(self) -> None:
        """Send what was not sent, and wait until every gradient is the sum over the processes."""
        while self._num_sent < len(self._buckets):
            self._send()
        for bucket in self._buckets:
            _receive(bucket)
        self._num_sent = 0

    def _arrival_in(self, bucket: _Bucket) -> Callable[[Tensor], None]:
        def arrived(_param: Tensor) -> None:
            if not self._is_last:
                return
            bucket.num_missing -= 1
            while self._num_sent < len(self._buckets) and not self._next.num_missing:
                self._send()

        return arrived

    @property
    def _next(self) -> _Bucket:
        return self._buckets[self._num_sent]

    def _send(self) -> None:
        bucket = self._next
        gradients = [
            torch.zeros_like(param) if param.grad is None else param.grad for param in bucket.params
        ]
        bucket.values = torch.cat([gradient.flatten() for gradient in gradients])
        bucket.wait = self._world.begin_sum(bucket.values)
        self._num_sent += 1


def clip(params: Sequence[nn.Parameter], max_norm: float | None) -> float:
    """Clip the gradient to *max_norm*, if there is one; return its norm before."""
    gradients = [param.grad for param in params if param.grad is not None]
    norm = whole(nn.utils.get_total_norm(gradients))
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(params, max_norm, norm)
    return float(norm)


def _receive(bucket: _Bucket) -> None:
    """Put the sums where the gradients are."""
    if bucket.values is None or bucket.wait is None:
        raise RuntimeError("a bucket was never sent")
    bucket.wait()
    sizes = [param.numel() for param in bucket.params]
    for param, total in zip(bucket.params, bucket.values.split(sizes), strict=True):
        if param.grad is None:
            param.grad = torch.empty_like(param)
        param.grad.copy_(total.view_as(param))
    bucket.values = bucket.wait = None


def _buckets_of(params: Sequence[nn.Parameter]) -> list[_Bucket]:
    """Return *params* in runs of one type, the last ones first."""
    buckets: list[_Bucket] = []
    num_values = 0
    for param in reversed(params):
        is_full = num_values + param.numel() > _BUCKET_VALUES
        if not buckets or is_full or param.dtype != buckets[-1].params[0].dtype:
            buckets.append(_Bucket([]))
            num_values = 0
        buckets[-1].params.append(param)
        num_values += param.numel()
    return buckets
