"""What a run minimises beside what its recipe says: a tree of classes, a teacher."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from vit21k.losses.hierarchical import Levels
from vit21k.models.pit import PoolingTransformer
from vit21k.training.distill import Distillation


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the loss needs that is not a number.

    Attributes:
        levels: Of the classes, for semantic softmax; else None.
        distillation: The teacher, and how much it counts; None: there is none.
    """

    levels: Levels | None = None
    distillation: Distillation | None = None

    @property
    def fingerprints(self) -> Mapping[str, str | None]:
        """What a run must have in common with its continuation, by name."""
        return {
            "tree of classes": None if self.levels is None else self.levels.fingerprint,
            "teacher": None if self.distillation is None else self.distillation.teacher.fingerprint,
        }

    def prepare(self, model: nn.Module) -> None:
        """Let a model with a head of its own for a teacher answer with both heads in training."""
        if self.distillation is not None and isinstance(model, PoolingTransformer):
            model.answers_apart = True
