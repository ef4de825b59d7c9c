"""What `bench_gpu.py` measures on: models, batches, and how a step is timed."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peer_models import blocks_of
from torch import Tensor, nn

from vit21k.data.loader import Batch
from vit21k.data.transforms import normalise
from vit21k.device import autocast, wait_for
from vit21k.losses.sparse import LOSSES
from vit21k.models.attention import AttentionName, use_backend
from vit21k.models.cost import macs_per_image
from vit21k.models.registry import model_args

GREY = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Size:
    """A model, its loss, and the batches that are tried."""

    args: dict[str, Any]
    loss_kind: str
    batch_sizes: tuple[int, ...]

    @property
    def train_flops(self) -> float:
        """Operations in matrix products of a training image."""
        return 6.0 * macs_per_image(self.args)


@dataclass
class Bench:
    """Where and how long; and what earlier parts found that later ones use."""

    device: torch.device
    tiny: bool
    ends_at: float
    matmul_flops: float | None = None
    backend: AttentionName | None = None
    synthetic: float | None = None
    """Images a second of the first size, of synthetic images."""

    @property
    def seconds_left(self) -> float:
        """Until the end of the whole call."""
        return self.ends_at - time.perf_counter()

    @property
    def compiler(self) -> str:
        """What compiles blocks; in a tiny run nothing is generated, as that takes a minute."""
        return "eager" if self.tiny else "inductor"

    @property
    def num_timed(self) -> int:
        """How many steps are timed."""
        return 2 if self.tiny else 12


def sizes_of(*, tiny: bool) -> dict[str, Size]:
    """Return the sizes by name; tiny ones for a test."""
    if tiny:
        small = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
        args = model_args("vit_tiny_patch16_224", num_classes=50, **small)
        return {
            "L/16 224": Size(args, "sigmoid", (2, 4)),
            "L/16 384": Size({**args, "img_size": 48}, "softmax", (2,)),
        }
    large, base = "vit_large_patch16_224", "vit_base_patch16_224"
    return {
        "L/16 224": Size(model_args(large, num_classes=21_841), "sigmoid", (128, 256)),
        "B/16 224": Size(model_args(base, num_classes=21_841), "sigmoid", (256, 512)),
        "L/16 384": Size(model_args(large, num_classes=1000, img_size=384), "softmax", (64,)),
    }


def first_size(bench: Bench) -> Size:
    """Return the size that most parts use."""
    return next(iter(sizes_of(tiny=bench.tiny).values()))


def make_fast(bench: Bench, name: str, model: nn.Module) -> nn.Module:
    """Return *model*, of the library *name*, on the device, its blocks compiled."""
    model = model.to(bench.device)
    if name == "vit21k":
        use_backend(model, bench.backend)
    limits: Any = torch._dynamo.config  # noqa: SLF001 (its public face)
    limits.recompile_limit = max(limits.recompile_limit, 64)
    for block in blocks_of(name, model):
        block.compile(dynamic=False, backend=bench.compiler)
    return model


def synthetic_batch(size: Size, num_images: int, device: torch.device) -> Batch:
    """Return noise as uint8 on the device, with 1.2 labels an image."""
    side = size.args["img_size"]
    rows = torch.arange(num_images)
    if size.loss_kind == "sigmoid":
        rows = torch.cat([rows, rows[::5]])
    ids = torch.arange(len(rows)) * 7919 % size.args["num_classes"]
    images = torch.randint(0, 256, (num_images, 3, side, side), dtype=torch.uint8)
    return Batch(images.to(device), rows.to(device), ids.to(device), rows)


def loss_of(model: nn.Module, batch: Batch, size: Size) -> Tensor:
    """Return the loss under bfloat16 autocast."""
    images = normalise(batch.images_BCHW, GREY, GREY)
    with autocast(images.device, "bf16"):
        logits = model(images)
    return LOSSES[size.loss_kind](logits, batch.label_rows_L, batch.label_ids_L)


def trainer(model: nn.Module, size: Size) -> Callable[[Batch], None]:
    """Return what makes a whole training step of a batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step(batch: Batch) -> None:
        loss_of(model, batch, size).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def images_a_second(bench: Bench, work: Callable[[], object], num_images: int) -> float:
    """Return the rate of *work*, from the median time; three calls are not timed."""
    for _ in range(3):
        work()
    times = []
    for _ in range(bench.num_timed):
        wait_for(bench.device)
        started_at = time.perf_counter()
        work()
        wait_for(bench.device)
        times.append(time.perf_counter() - started_at)
    return num_images / statistics.median(times)


def with_shares(
    bench: Bench, size: Size, rate: float, *, of_training: float = 1.0
) -> dict[str, Any]:
    """Return a rate with what it means: operations a second, and share of the measured ceiling.

    A third of training's operations are inference's.
    """
    flops = rate * size.train_flops * of_training
    found: dict[str, Any] = {"images_per_second": rate, "tflops": flops / 1e12}
    if bench.matmul_flops:
        found["of_measured_matmul"] = flops / bench.matmul_flops
    return found
