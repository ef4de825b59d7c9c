"""Gradients summed over the processes, once for an update, while the backward pass still runs.

Gradients are sent in runs of parameters ("buckets"), those of the last layers first.  During the
last backward pass of an update a bucket is sent as soon as all of its gradients are there and the
buckets before it were sent: every process sends them in the same order, and one that had no
pictures, or left its batch early, sends what it has, zeros included.

With FSDP (`training.sharding`) the shards' gradients are summed by torch, also in the last pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vit21k.distributed import World, whole

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
