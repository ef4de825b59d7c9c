"""Model and split -> everything that `vit21k eval` tells of it, from one pass over the pictures."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from vit21k.checkpoint.model_folder import ModelCard
from vit21k.data.batch_decoder import Batch
from vit21k.data.pictures import Pictures
from vit21k.distributed import World
from vit21k.inference.class_counts import ClassCounts, ClassTable, summary
from vit21k.inference.confusion import ConfusedPair, Confusion
from vit21k.inference.evaluate import Measure, evaluate
from vit21k.inference.real_labels import RealLabels, RealMetrics
from vit21k.models.precision import Precision


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be found out, and how.

    Attributes:
        threshold: A probability at or above it is a prediction.
        num_confused: How many of the most confused pairs of classes are wanted.
        real_labels: ReaL labels of the pictures; None: leave them out.
        hflip: Take the mean of the logits of each picture and of its mirror image.
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
    pictures: Pictures,
    batches: Iterable[Batch],
    plan: Plan,
    *,
    world: World | None = None,
) -> Study:
    """Return what *plan* asks for.

    Args:
        model: From `load_model`.
        card: From `load_model`.
        pictures: What the rows of the batches name.
        batches: This process's share of the pictures, each of them once.
        plan: What is to be found out.
        world: The processes that share the pictures; every one gets the result of all.

    Raises:
        ImageError: A picture cannot be decoded, or none of them can.
        DataError: A picture has no number by which its ReaL labels could be found.
    """
    device = next(model.parameters()).device
    counts = ClassCounts(
        len(card.classes), activation=card.activation, threshold=plan.threshold, device=device
    )
    confusion = Confusion(len(card.classes)) if plan.num_confused else None
    real = RealMetrics(plan.real_labels, pictures) if plan.real_labels is not None else None
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
