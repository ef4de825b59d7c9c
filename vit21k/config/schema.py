"""The fields of a recipe.

Rules: a field is a number or a word, never code; a unit is part of its name; nothing is computed
here, derived values belong to what uses them.  The docstring under a field is its documentation in
`vit21k recipes fields`.  A field without a default must be in every recipe.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vit21k.config.augment_section import AugmentSection
from vit21k.config.curriculum_section import CurriculumSection
from vit21k.config.data_section import DataSection
from vit21k.config.distill_section import DistillSection
from vit21k.config.ema_section import EmaSection
from vit21k.config.fields import NonNegativeInt, Positive, PositiveInt, Section, all_well, shown
from vit21k.config.model_section import ModelSection
from vit21k.config.optim_sections import LossSection, OptimSection, ScheduleSection
from vit21k.config.parallel_section import ParallelSection
from vit21k.config.run_section import RunSection
from vit21k.config.step_section import StepSection


class Recipe(Section):
    """One training run."""

    stage: Literal["pretrain", "finetune"]
    """`pretrain`: weights from scratch; `finetune`: weights from another run, with a new head."""
    source: str = ""
    """Where the numbers come from."""
    commit: str = ""
    """Repositories and commits that the numbers were read at, or why there are none."""
    epochs: Positive | None = None
    """Length of the run in passes over the training images; or give `total_steps`."""
    total_steps: PositiveInt | None = None
    """Length of the run in optimizer steps; or give `epochs`."""
    seed: Annotated[NonNegativeInt, Field(lt=2**63)] = 0
    """Seeds the first weights, the order of the images, and augmentation."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """`bf16`: matrix products in bfloat16 (autocast), weights and optimizer stay float32; `fp16`:
    in float16, with a scaled loss, for GPUs without bfloat16; `auto`: `bf16` if the device has
    instructions for it, else `fp32`; a resumed run keeps what it began with."""
    model: ModelSection
    data: DataSection
    augment: AugmentSection = AugmentSection()
    curriculum: CurriculumSection = CurriculumSection()
    loss: LossSection
    distill: DistillSection = DistillSection()
    optim: OptimSection
    schedule: ScheduleSection = ScheduleSection()
    ema: EmaSection = EmaSection()
    parallel: ParallelSection = ParallelSection()
    step: StepSection = StepSection()
    run: RunSection = RunSection()

    @property
    def products_in(self) -> Literal["fp32", "bf16", "fp16"]:
        """The precision, once it is known what `auto` means on the device."""
        if self.precision == "auto":
            raise ValueError("precision: auto is not resolved")
        return self.precision

    @model_validator(mode="after")
    def _check_across_sections(self) -> Self:
        return all_well(self, [*self._wrong_schedule(), *self._wrong_parts()])

    def _wrong_schedule(self) -> list[str]:
        problems = []
        if (self.epochs is None) == (self.total_steps is None):
            problems.append(
                f"exactly one of epochs ({shown(self.epochs)}) and "
                f"total_steps ({shown(self.total_steps)}) must be given"
            )
        if self.total_steps is not None and self.schedule.warmup_steps >= self.total_steps:
            problems.append(
                f"schedule.warmup_steps ({self.schedule.warmup_steps}) must be less than "
                f"total_steps ({self.total_steps})"
            )
        if self.schedule.end_lr > self.optim.lr:
            problems.append(
                f"schedule.end_lr ({self.schedule.end_lr}) must not be over "
                f"optim.lr ({self.optim.lr})"
            )
        if self.schedule.warmup_start_lr > self.optim.lr:
            problems.append(
                f"schedule.warmup_start_lr ({self.schedule.warmup_start_lr}) must not be over "
                f"optim.lr ({self.optim.lr})"
            )
        return problems

    def _wrong_parts(self) -> list[str]:
        problems = self.curriculum.problems_at(self.model.img_size)
        if self.parallel.kind == "fsdp" and self.optim.kind in ("muon", "lamb"):
            problems.append(
                f"parallel.kind fsdp is not for optim.kind `{self.optim.kind}`, which needs whole "
                f"matrices; use ddp"
            )
        if self.distill.kind is not None and self.loss.kind != "softmax":
            problems.append(
                f"distill.kind ({self.distill.kind}) is for loss.kind `softmax`, not "
                f"`{self.loss.kind}`"
            )
        if self.data.eval_resize is not None and self.data.eval_resize < self.model.img_size:
            problems.append(
                f"data.eval_resize ({self.data.eval_resize}) must not be under "
                f"model.img_size ({self.model.img_size})"
            )
        if self.augment.mixes and self.data.global_batch_size % 2:
            problems.append(
                f"data.global_batch_size ({self.data.global_batch_size}) must be even: "
                "augment.mixup_alpha and augment.cutmix_alpha mix pairs of pictures"
            )
        return problems
