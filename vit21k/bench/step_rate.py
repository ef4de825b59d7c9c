"""How many images a second a training step takes on this device.

A large model on a small machine is not built whole: two shallow ones are timed, and their
difference is what a block takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vit21k.bench.device_rates import best_seconds
from vit21k.data.loader import Batch
from vit21k.inference.evaluate import normalise
from vit21k.losses.sparse import LOSSES
from vit21k.models.cost import train_flops_per_image
from vit21k.models.precision import Precision, autocast
from vit21k.models.registry import build_model
from vit21k.models.shapes import is_pit
from vit21k.training.grey_batch import grey_batch

_SHALLOW = (1, 3)
_GREY = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class StepRate:
    """What training takes, without reading pictures.

    Attributes:
        images: A second, in forward and backward passes.
        flops: Operations in matrix products a second, counted as 6 for each multiplication.
        update_seconds: That the optimizer takes for one update, on top of that.
        num_images: Images of the pass that was timed.
        measured: What was timed: "whole model", or which parts of it.
    """

    images: float
    flops: float
    update_seconds: float
    num_images: int
    measured: str


def measure_step(
    args: Mapping[str, Any],
    *,
    device: torch.device,
    precision: Precision,
    loss_kind: str,
    matmul_flops: float,
    num_images: int | None = None,
    seconds: float,
) -> StepRate:
    """Return how fast the model of constructor arguments *args* trains.

    Args:
        args: As `model_args` returns them.
        device: Where.
        precision: Of matrix products.
        loss_kind: "sigmoid" or "softmax".
        matmul_flops: What the device can do at most, a second; to see how long it will take.
        num_images: Of a pass; None: as many as fit the time, up to 64.
        seconds: About how long to measure.
    """
    flops = train_flops_per_image(args)
    rounds = 4  # with the first one, which is not timed; at half of the ceiling
    if num_images is None:
        num_images = max(2, min(64, int(seconds * matmul_flops / 2 / (rounds * flops))))
    timed = partial(
        _step_seconds,
        device=device,
        precision=precision,
        loss_kind=loss_kind,
        num_images=num_images,
    )
    takes = rounds * num_images * flops / (matmul_flops / 2)
    if device.type != "cpu" or takes <= seconds or is_pit(args) or args["depth"] <= _SHALLOW[1]:
        (took, update), measured = timed(args, seconds=seconds), "the whole model"
    else:
        few, more = (timed({**args, "depth": n}, seconds=seconds / 2) for n in _SHALLOW)
        took, update = (_at_depth(args["depth"], *pair) for pair in zip(few, more, strict=True))
        measured = f"models of {_SHALLOW[0]} and {_SHALLOW[1]} of {args['depth']} blocks"
    images = num_images / took
    return StepRate(
        images=images,
        flops=flops * images,
        update_seconds=update,
        num_images=num_images,
        measured=measured,
    )


def _at_depth(depth: int, few: float, more: float) -> float:
    """Return the time of *depth* blocks, from those of the two shallow models."""
    block = (more - few) / (_SHALLOW[1] - _SHALLOW[0])
    return few + block * (depth - _SHALLOW[0])


def _step_seconds(
    args: Mapping[str, Any],
    *,
    device: torch.device,
    precision: Precision,
    loss_kind: str,
    num_images: int,
    seconds: float,
) -> tuple[float, float]:
    """Return the time of a forward and a backward pass, and of an update."""
    torch.manual_seed(0)
    model = build_model(args).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    batch = grey_batch(num_images, args["img_size"])

    def passes() -> None:
        loss = loss_of(model, batch, device=device, precision=precision, loss_kind=loss_kind)
        loss.backward()

    return (
        best_seconds(passes, device, seconds=0.8 * seconds),
        best_seconds(optimizer.step, device, seconds=0.2 * seconds),
    )


def loss_of(
    model: nn.Module, batch: Batch, *, device: torch.device, precision: Precision, loss_kind: str
) -> Tensor:
    """Return the loss of a batch, from uint8 images on the host."""
    images = normalise(batch.images_BCHW.to(device, non_blocking=True), _GREY, _GREY)
    with autocast(device, precision):
        logits = model(images)
    rows, ids = batch.label_rows_L.to(device), batch.label_ids_L.to(device)
    return LOSSES[loss_kind](logits, rows, ids)
