"""Model and images -> loss, prec@1 and top-5, exact over the split."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from vit21k.checkpoint.model_folder import ModelCard
from vit21k.data.dataset import ImageDataset
from vit21k.data.loader import Batch
from vit21k.data.transforms import normalise
from vit21k.device import Precision, autocast
from vit21k.distributed import World
from vit21k.errors import ImageError
from vit21k.inference.metrics import (
    ClassCounts,
    ClassificationMetrics,
    ClassTable,
    ConfusedPair,
    Confusion,
    summary,
)
from vit21k.inference.real_labels import RealLabels, RealMetrics
from vit21k.losses.sparse import LOSSES

LossKind = Literal["sigmoid", "softmax"]
LossFunction = Callable[..., Tensor]
"""(logits_BK, label_rows_L, label_ids_L, smoothing=...) -> mean over images."""


class Measure(Protocol):
    """Something else to be found out from the same logits."""

    def update(self, logits_BK: Tensor, batch: Batch) -> None:
        """Add a batch, whose labels are on the device of *logits_BK* (float32)."""

    def reduce(self, world: World) -> None:
        """Replace what was added by the sum of all processes; all of them call it."""


@torch.no_grad()
def evaluate(  # noqa: PLR0913 (each is a plain value)
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    loss_kind: LossKind = "softmax",
    loss_function: LossFunction | None = None,
    mean: Sequence[float],
    std: Sequence[float],
    smoothing: float = 0.0,
    device: str | torch.device = "cpu",
    world: World | None = None,
    precision: Precision = "fp32",
    hflip: bool = False,
    measures: Sequence[Measure] = (),
) -> dict[str, float | int]:
    """Return the metrics of *model* over every image of *loader*.

    Args:
        model: On *device*; evaluated in eval mode, left in the mode it came in.
        loader: This process's share of the images, each of them once.
        loss_kind: "sigmoid" sums over classes; "softmax" is cross-entropy.
        loss_function: The loss instead, as one of `LOSSES`.
        mean: Of red, green, blue in 0..1.
        std: Of the same.
        smoothing: As in the loss that was trained with; 0 for the plain loss.
        device: Where to compute.
        world: The processes that share the images; every one gets the metrics of all.
        precision: Of the matrix products.
        hflip: Take the mean of the logits of each image and of its mirror image.
        measures: What else is to be updated with every batch, and reduced at the end.

    Returns:
        What `ClassificationMetrics.compute` returns: "loss", "prec@1", "top5", "num_images".

    Raises:
        ImageError: An image cannot be decoded, or none of them can.
    """
    loss_function = loss_function or LOSSES[loss_kind]
    metrics = ClassificationMetrics()
    world = world or World()
    was_training = model.training
    model.eval()
    try:
        for batch in loader:
            batch = _labels_to(batch, device)  # noqa: PLW2901
            images_BCHW = normalise(batch.images_BCHW.to(device, non_blocking=True), mean, std)
            with autocast(device, precision):
                logits_BK = model(images_BCHW).float()
                if hflip:
                    logits_BK = (logits_BK + model(images_BCHW.flip(-1)).float()) / 2
            rows_L, ids_L = batch.label_rows_L, batch.label_ids_L
            loss = loss_function(logits_BK, rows_L, ids_L, smoothing=smoothing)
            metrics.update(logits_BK, rows_L, ids_L, loss * len(logits_BK))
            for measure in measures:
                measure.update(logits_BK, batch)
    finally:
        model.train(was_training)
    # On the CPU, where also a process without images has its zeros.
    metrics.set_totals(world.all_reduce_sum(metrics.totals().cpu()))
    for measure in measures:
        measure.reduce(world)
    if not metrics.num_images:
        raise ImageError("there is no image that can be decoded")
    return metrics.compute()


def _labels_to(batch: Batch, device: str | torch.device) -> Batch:
    return batch._replace(
        label_rows_L=batch.label_rows_L.to(device), label_ids_L=batch.label_ids_L.to(device)
    )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be found out, and how.

    Attributes:
        threshold: A probability at or above it is a prediction.
        num_confused: How many of the most confused pairs of classes are wanted.
        real_labels: ReaL labels of the images; None: leave them out.
        hflip: Take the mean of the logits of each image and of its mirror image.
        precision: Of the matrix products.
    """

    threshold: float = 0.5
    num_confused: int = 0
    real_labels: RealLabels | None = None
    hflip: bool = False
    precision: Precision = "fp32"


@dataclass(frozen=True, kw_only=True)
class Study:
    """What was found out.

    Attributes:
        metrics: Over the split, by name; see `evaluate` and `class_counts.summary`.
        real: The same on the ReaL labels; empty if they were not wanted.
        table: The metrics of each class.
        confused: Pairs of classes, the most confused first.
    """

    metrics: dict[str, float | int]
    real: dict[str, float | int]
    table: ClassTable
    confused: list[ConfusedPair]


def study(
    model: nn.Module,
    card: ModelCard,
    images: ImageDataset,
    batches: Iterable[Batch],
    plan: Plan,
    *,
    world: World | None = None,
) -> Study:
    """Return what *plan* asks for.

    Args:
        model: From `load_model`.
        card: From `load_model`.
        images: What the rows of the batches name.
        batches: This process's share of the images, each of them once.
        plan: What is to be found out.
        world: The processes that share the images; every one gets the result of all.

    Raises:
        ImageError: An image cannot be decoded, or none of them can.
        DataError: An image has no number by which its ReaL labels could be found.
    """
    device = next(model.parameters()).device
    counts = ClassCounts(
        len(card.classes), activation=card.activation, threshold=plan.threshold, device=device
    )
    confusion = Confusion(len(card.classes)) if plan.num_confused else None
    real = RealMetrics(plan.real_labels, images) if plan.real_labels is not None else None
    measures: list[Measure | None] = [counts, confusion, real]
    metrics = evaluate(
        model,
        batches,
        loss_kind=card.loss_kind,
        mean=card.eval_settings.mean,
        std=card.eval_settings.std,
        device=device,
        world=world,
        precision=plan.precision,
        hflip=plan.hflip,
        measures=[measure for measure in measures if measure is not None],
    )
    table = counts.table()
    return Study(
        metrics={**metrics, **summary(table)},
        real=real.compute() if real else {},
        table=table,
        confused=confusion.top(plan.num_confused) if confusion else [],
    )
