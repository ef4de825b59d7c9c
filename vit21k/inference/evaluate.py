"""Evaluate a model: loss, prec@1, top-5 and per-class metrics, exact over the split."""

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
    RealLabels,
    RealMetrics,
    summary,
)
from vit21k.losses.sparse import LOSSES

LossKind = Literal["sigmoid", "softmax"]
LossFunction = Callable[..., Tensor]
"""(logits_BK, label_rows_L, label_ids_L, smoothing=...) -> mean over images."""


class Measure(Protocol):
    """Another metric, computed from the same logits."""

    def update(self, logits_BK: Tensor, batch: Batch) -> None:
        """Add a batch, whose labels are on the device of *logits_BK* (float32)."""

    def reduce(self, world: World) -> None:
        """Sum over all processes; all of them call it."""


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
        model: On *device*; evaluated in eval mode; its mode is restored.
        loader: This process's share of the images, each of them once.
        loss_kind: "sigmoid" sums over classes; "softmax" is cross-entropy.
        loss_function: Overrides *loss_kind*; has the signature of `LOSSES`.
        mean: Mean of red, green, blue in 0..1.
        std: Standard deviation of the same.
        smoothing: Label smoothing of the loss.
        device: Where to compute.
        world: The processes that share the images; each gets the metrics of all.
        precision: Precision of the matrix products.
        hflip: Average the logits of each image and of its mirror image.
        measures: Updated with every batch and reduced at the end.

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
    # On the CPU, where the zeros of a process without images are too.
    metrics.set_totals(world.all_reduce_sum(metrics.totals().cpu()))
    for measure in measures:
        measure.reduce(world)
    if not metrics.num_images:
        raise ImageError("no image could be decoded")
    return metrics.compute()


def _labels_to(batch: Batch, device: str | torch.device) -> Batch:
    return batch._replace(
        label_rows_L=batch.label_rows_L.to(device), label_ids_L=batch.label_ids_L.to(device)
    )


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options of an evaluation.

    Attributes:
        threshold: A probability at or above it counts as a prediction.
        num_confused: How many of the most confused pairs of classes to return.
        real_labels: ReaL labels of the images, if they are to be used too.
        hflip: Average the logits of each image and of its mirror image.
        precision: Precision of the matrix products.
    """

    threshold: float = 0.5
    num_confused: int = 0
    real_labels: RealLabels | None = None
    hflip: bool = False
    precision: Precision = "fp32"


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Result of an evaluation.

    Attributes:
        metrics: Over the split, by name; see `evaluate` and `metrics.summary`.
        real: The same on the ReaL labels; empty without them.
        table: The metrics of each class.
        confused: Pairs of classes, the most confused first.
    """

    metrics: dict[str, float | int]
    real: dict[str, float | int]
    table: ClassTable
    confused: list[ConfusedPair]


def evaluate_model(
    model: nn.Module,
    card: ModelCard,
    images: ImageDataset,
    batches: Iterable[Batch],
    options: EvalOptions,
    *,
    world: World | None = None,
) -> EvalResult:
    """Evaluate a loaded model, with its own loss, normalisation and classes.

    Args:
        model: From `load_model`.
        card: From `load_model`.
        images: The images that the rows of the batches index.
        batches: This process's share of the images, each of them once.
        options: Which metrics, and how.
        world: The processes that share the images; each gets the result of all.

    Raises:
        ImageError: An image cannot be decoded, or none of them can.
        DataError: ReaL labels are used, and the name of an image has no ReaL index.
    """
    device = next(model.parameters()).device
    counts = ClassCounts(
        len(card.classes), activation=card.activation, threshold=options.threshold, device=device
    )
    confusion = Confusion(len(card.classes)) if options.num_confused else None
    real = None if options.real_labels is None else RealMetrics(options.real_labels, images)
    measures: list[Measure | None] = [counts, confusion, real]
    metrics = evaluate(
        model,
        batches,
        loss_kind=card.loss_kind,
        mean=card.eval_settings.mean,
        std=card.eval_settings.std,
        device=device,
        world=world,
        precision=options.precision,
        hflip=options.hflip,
        measures=[measure for measure in measures if measure is not None],
    )
    table = counts.table()
    return EvalResult(
        metrics={**metrics, **summary(table)},
        real=real.compute() if real else {},
        table=table,
        confused=confusion.top(options.num_confused) if confusion else [],
    )
