"""Sum gradients over processes by DDP: what the pass before training costs, and is good for.

    torchrun --standalone --nproc-per-node=2 tools/bench/bench_ddp.py
    torchrun --standalone --nproc-per-node=3 tools/bench/bench_ddp.py --rounds 0

`plain` is torch's DistributedDataParallel; `ours` is `training.gradients`, which adds a pass before
training; with `fixed` buckets DDP searches unused parameters in every pass.  Rounds are interleaved:
each has one step of each method, with the same images.  Then a run is interrupted and resumed with
each method, and compared with one that was not, bit by bit.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from vit21k.data.loader import Batch
from vit21k.distributed import World, init_world
from vit21k.models.registry import get_model
from vit21k.training.gradients import GradientSums

Step = Callable[[list[Batch]], None]


def loss_of(model: nn.Module, batch: Batch, _kept: Tensor | None = None) -> Tensor:
    """Return the mean loss."""
    return nn.functional.cross_entropy(model(batch.images_BCHW), batch.label_ids_L)


class Loss(nn.Module):
    """The loss as a module, for DistributedDataParallel."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean loss."""
        return loss_of(self.model, batch)


def small_vit(**changes: Any) -> nn.Module:
    """Return a ViT-S/16, the same in every process."""
    torch.manual_seed(0)
    return get_model("vit_small_patch16_224", **changes).train()


def batches_of(step: int, rank: int, count: int, size: int, img_size: int) -> list[Batch]:
    """Return the micro-batches of a process in a step."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    rows = torch.arange(size)
    return [
        Batch(
            torch.randn(size, 3, img_size, img_size, generator=generator),
            rows,
            torch.randint(0, 1000, (size,), generator=generator),
            rows,
        )
        for _ in range(count)
    ]


def ours(model: nn.Module, world: World, img_size: int) -> Step:
    """Return a step of `GradientSums`."""
    sums = GradientSums(model, _loss_or_zero, world, img_size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(batches: list[Batch]) -> None:
        for index, batch in enumerate(batches):
            sums.add(batch, weight=1.0, is_last=index == len(batches) - 1)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _loss_or_zero(model: nn.Module, batch: Batch, kept: Tensor | None) -> Tensor:
    """Return the loss; of the batch before training, which has no labels, that of class 0."""
    if len(batch.label_ids_L):
        return loss_of(model, batch, kept)
    return nn.functional.cross_entropy(model(batch.images_BCHW.float()), torch.zeros(2).long())


def plain(model: nn.Module, _world: World, _img_size: int, *, fixed: bool = False) -> Step:
    """Return a step of DistributedDataParallel, whose buckets are rebuilt unless *fixed*."""
    ddp = DistributedDataParallel(
        Loss(model), find_unused_parameters=fixed, gradient_as_bucket_view=True
    )
    ddp.register_comm_hook(None, lambda _state, bucket: _sum(bucket.buffer()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(batches: list[Batch]) -> None:
        with ddp.no_sync():
            for batch in batches[:-1]:
                ddp(batch).backward()
        ddp(batches[-1]).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _sum(values: Tensor) -> Any:
    work: Any = dist.all_reduce(values, async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


METHODS: dict[str, Callable[[nn.Module, World, int], Step]] = {
    "plain": plain,
    "ours": ours,
    "fixed": partial(plain, fixed=True),
}


def time_steps(world: World, args: argparse.Namespace) -> None:
    """Print seconds of a step of each method, and its ratio to the first one's."""
    steps = {
        name: make(small_vit(img_size=args.img_size), world, args.img_size)
        for name, make in METHODS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(args.rounds + 2):
        batches = batches_of(index, world.rank, args.accumulate, args.batch, args.img_size)
        names = list(steps)
        for name in names[index % len(names) :] + names[: index % len(names)]:
            dist.barrier()
            started_at = time.perf_counter()
            steps[name](batches)
            dist.barrier()
            if index > 1:
                seconds[name].append(time.perf_counter() - started_at)
    for name, values in seconds.items():
        ratios = [one / first for one, first in zip(values, seconds["plain"], strict=True)]
        if world.rank == 0:
            low, mid, high = statistics.quantiles(ratios)
            print(
                f"{name}: {statistics.median(values):.3f} s a step, {mid:.3f} of `plain` "
                f"({low:.3f} to {high:.3f})"
            )


def check_resume(world: World) -> None:
    """Print whether a resumed run is bit-identical to one that was not interrupted."""
    for name, make in METHODS.items():
        straight, resumed = (small_vit(img_size=32) for _ in range(2))
        steps = [make(straight, world, 32), make(resumed, world, 32)]
        for index in range(6):
            if index == 3:
                steps[1] = make(resumed, world, 32)
            for step in steps:
                step(batches_of(index, world.rank, 1, 2, 32))
        pairs = zip(straight.parameters(), resumed.parameters(), strict=True)
        same = all(torch.equal(*pair) for pair in pairs)
        if world.rank == 0:
            print(f"{name}: a resumed run is {'' if same else 'NOT '}bit-identical")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="of the timing; 0: checks only")
    parser.add_argument("--batch", type=int, default=1, help="images of a micro-batch")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches of a step")
    parser.add_argument("--img-size", type=int, default=224)
    args = parser.parse_args()
    world = init_world("cpu")
    if args.rounds:
        time_steps(world, args)
    check_resume(world)
    world.barrier()
    world.close()


if __name__ == "__main__":
    main()
