"""The recipe fields of what is minimised, and how: loss, optimizer, learning rate."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vit21k.config.fields import (
    Beta,
    NonNegative,
    NonNegativeInt,
    Number,
    Positive,
    Section,
    all_well,
)


class LossSection(Section):
    """What is minimised."""

    kind: Literal["sigmoid", "softmax"]
    """`sigmoid`: multi-label, summed over classes; `softmax`: one class per image."""
    smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Label smoothing e; sigmoid: targets become y (1 - e) + e, as in PLSC."""


class OptimSection(Section):
    """How weights are updated."""

    kind: Literal["adamw", "sgd", "muon"]
    """`muon`: Muon on the blocks' matrices, AdamW on everything else."""
    lr: Positive
    """Peak learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW: decay of the first and the second moment."""
    eps: Positive = 1e-8
    """AdamW: added to the root of the second moment."""
    momentum: Beta = 0.9
    """SGD and Muon: decay of the momentum."""
    weight_decay: NonNegative = 0.0
    """AdamW and Muon: decoupled, times the learning rate; SGD: added to the gradient."""
    decay_params: Literal["all", "kernels", "none"] = "kernels"
    """What decays: every parameter, matrices and convolutions only, or nothing."""
    grad_clip_norm: Positive | None = None
    """Global L2 norm the gradient is clipped to; null: not at all."""
    muon_lr: Positive | None = None
    """Muon: peak learning rate of the matrices it updates; null: `lr`."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        problems = []
        if self.muon_lr is not None and self.kind != "muon":
            problems.append(f"optim.muon_lr ({self.muon_lr}) is for optim.kind `muon`")
        return all_well(self, problems)


class ScheduleSection(Section):
    """Learning rate over the run."""

    decay: Literal["linear", "cosine"] = "cosine"
    """Shape of the way down after the warm-up."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps of linear warm-up; the first one has learning rate 0, as in PLSC."""
    end_lr: NonNegative = 0.0
    """Learning rate at which the decay ends."""
