"""The recipe fields of what is minimised, and how: loss, optimizer, learning rate."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vit21k.config.fields import (
    Beta,
    Integer,
    Multiplier,
    NonNegative,
    NonNegativeInt,
    Number,
    Percent,
    Positive,
    PositiveInt,
    Section,
    all_well,
    shown,
)


class LossSection(Section):
    """What is minimised."""

    kind: Literal["sigmoid", "softmax", "semantic_softmax"]
    """`sigmoid`: multi-label, every class for itself; `softmax`: one class per image;
    `semantic_softmax`: one class at each level of the classes' tree (ImageNet-21K-P)."""
    tree: str | None = None
    """`semantic_softmax`: file of `vit21k labels tree`; null: WordNet's tree of the class list."""
    smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Label smoothing e: a target y becomes y (1 - e) + `smoothing_floor`."""
    smoothing_floor: Literal["e", "e/K"] | None = None
    """What all targets are raised by: `e`, as in PLSC, or `e/K` for K classes, as in timm,
    MindCV and torch; null: `e` with `sigmoid`, `e/K` with `softmax`."""
    class_reduction: Literal["sum", "mean"] = "sum"
    """`sigmoid`: the sum over classes (PLSC, Google), or their mean (DeiT, torch's default)."""
    mixed_labels: Literal["weighted", "whole"] = "weighted"
    """Labels of mixed pictures count by their share, or wholly, as in DeiT III (`gt(0)`)."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        problems = []
        if self.tree is not None and self.kind != "semantic_softmax":
            problems.append(f"loss.tree ({self.tree}) is for loss.kind `semantic_softmax`")
        if self.kind != "sigmoid":
            if self.smoothing_floor == "e":
                problems.append("loss.smoothing_floor `e` is for loss.kind `sigmoid`")
            if self.class_reduction == "mean":
                problems.append("loss.class_reduction `mean` is for loss.kind `sigmoid`")
            if self.mixed_labels == "whole":
                problems.append("loss.mixed_labels `whole` is for loss.kind `sigmoid`")
        return all_well(self, problems)


class OptimSection(Section):
    """How weights are updated."""

    kind: Literal["adamw", "sgd", "lamb", "muon"]
    """`muon`: Muon on the blocks' matrices, AdamW on everything else."""
    lr: Positive
    """Peak learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW and LAMB: decay of the first and the second moment."""
    eps: Positive = 1e-8
    """AdamW and LAMB: added to the root of the second moment."""
    momentum: Beta = 0.9
    """SGD and Muon: decay of the momentum."""
    momentum_dtype: Literal["fp32", "bf16"] = "fp32"
    """AdamW and SGD: what the first moment is kept in; Google keeps it in bfloat16."""
    weight_decay: NonNegative = 0.0
    """AdamW, LAMB and Muon: decoupled, times the learning rate; SGD: added to the gradient."""
    decay_params: Literal["all", "not_1d", "kernels", "none"] = "kernels"
    """What decays: every parameter; all but those of one dimension (norms, biases), so position
    embedding and class token do, as in MIIL and MindCV; matrices and convolutions only; nothing."""
    decay_multipliers: dict[str, Multiplier] = Field(default={})
    """Factors on the decay of parameters, by name or pattern: `{cls_token: 0, pos_embed: 0}`.
    The first that matches counts."""
    lr_multipliers: dict[str, Multiplier] = Field(default={})
    """Factors on the learning rate of parameters, by name or pattern: `{head.*: 10}`.
    The first that matches counts."""
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate from one block to the one below it, as BEiT and MMPretrain have
    it: the head's is 1, the last block's this, the embeddings' is the least."""
    grad_clip_norm: Positive | None = None
    """Global L2 norm the gradient is clipped to; null: not at all."""
    muon_lr: Positive | None = None
    """Muon: peak learning rate of the matrices it updates; null: `lr`."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        problems = []
        if self.muon_lr is not None and self.kind != "muon":
            problems.append(f"optim.muon_lr ({self.muon_lr}) is for optim.kind `muon`")
        if self.momentum_dtype == "bf16" and self.kind not in ("adamw", "sgd"):
            problems.append("optim.momentum_dtype `bf16` is for optim.kind `adamw` or `sgd`")
        return all_well(self, problems)


class ScheduleSection(Section):
    """Learning rate over the run: up to the peak in the warm-up, then down."""

    decay: Literal["linear", "cosine", "rsqrt", "step"] = "cosine"
    """Shape of the way down after the warm-up."""
    end_lr: NonNegative = 0.0
    """`linear`, `cosine`: learning rate at which the decay ends."""
    decay_epochs: Positive | None = None
    """`linear`, `cosine`: the decay ends after so many epochs of the run, and `end_lr` stays;
    null: with the run."""
    decay_from: Literal["warmup", "start"] = "warmup"
    """`linear`, `cosine`: the decay is counted from the end of the warm-up, or from the start of
    the run, as DeiT and timm do, so that the peak is never quite reached."""
    rsqrt_timescale_steps: PositiveInt = 10_000
    """`rsqrt`: after so many steps of decay the learning rate is the peak by the root of 2."""
    step_percents: tuple[Percent, ...] = ()
    """`step`: where the learning rate drops, in percent of the run, ascending."""
    step_factor: Multiplier = 0.1
    """`step`: the factor of each drop."""
    warmup_steps: NonNegativeInt = 0
    """Length of the warm-up in optimizer steps; or give one of the next three."""
    warmup_epochs: Positive | None = None
    """Length of the warm-up in passes over the training images."""
    warmup_images: PositiveInt | None = None
    """Length of the warm-up in training images."""
    warmup_percent: Percent | None = None
    """Length of the warm-up in percent of the run."""
    warmup_start_lr: NonNegative = 0.0
    """Learning rate of the first step; 0, as in PLSC and Google: it changes nothing."""
    warmup_shape: Literal["linear", "cosine"] = "linear"
    """Shape of the way up; `cosine` as in torch's OneCycleLR."""
    cooldown_steps: NonNegativeInt = 0
    """The learning rate goes to 0 along a line in so many last steps; or give the next one."""
    cooldown_percent: Percent | None = None
    """The same, in percent of the run."""
    lr_changes: Literal["every_step", "every_epoch", "every_epoch_after_warmup"] = "every_step"
    """When the learning rate changes: DeiT and timm set it once an epoch, some recipes of
    MMPretrain once an epoch after a warm-up by the step."""
    first_epoch: Annotated[Integer, Field(ge=-1)] = 0
    """`every_epoch`: the number of the first epoch in the schedule; PaddleViT counts from 1, and
    with -1 the first two epochs share the first value, as in DeiT's loop, which sets the learning
    rate after each epoch."""

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        return all_well(self, [*self._wrong_lengths(), *self._wrong_decay()])

    def _wrong_lengths(self) -> list[str]:
        problems = []
        lengths = {
            "warmup_steps": self.warmup_steps or None,
            "warmup_epochs": self.warmup_epochs,
            "warmup_images": self.warmup_images,
            "warmup_percent": self.warmup_percent,
        }
        if len(given := [name for name, value in lengths.items() if value is not None]) > 1:
            problems.append(f"give one of schedule.{' and schedule.'.join(given)}")
        if self.cooldown_steps and self.cooldown_percent is not None:
            problems.append("give one of schedule.cooldown_steps and schedule.cooldown_percent")
        if self.first_epoch and self.lr_changes != "every_epoch":
            problems.append("schedule.first_epoch is for schedule.lr_changes `every_epoch`")
        return problems

    def _wrong_decay(self) -> list[str]:
        problems = []
        has_end = self.end_lr or self.decay_epochs is not None or self.decay_from != "warmup"
        if has_end and self.decay not in ("linear", "cosine"):
            problems.append(
                f"schedule.end_lr ({shown(self.end_lr)}), schedule.decay_epochs and "
                f"schedule.decay_from are for schedule.decay `linear` or `cosine`"
            )
        if bool(self.step_percents) != (self.decay == "step"):
            problems.append("schedule.step_percents is for schedule.decay `step`, which needs it")
        if list(self.step_percents) != sorted(self.step_percents):
            problems.append("schedule.step_percents must be ascending")
        return problems
