"""The recipe fields of the average of the weights."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from vit21k.config.fields import NonNegativeInt, Number, Section, all_well


class EmaSection(Section):
    """An exponential moving average of the weights, evaluated and saved beside them."""

    decay: Annotated[Number, Field(gt=0, lt=1)] | None = None
    """Share of the old average that stays at each update; null: no average."""
    warmup_steps: NonNegativeInt = 0
    """Update t has the decay times 1 - exp(-t / this), as in MindCV (2000); 0: the decay alone."""

    @model_validator(mode="after")
    def _check_decay(self) -> Self:
        problems = []
        if self.warmup_steps and self.decay is None:
            problems.append(f"ema.warmup_steps ({self.warmup_steps}) needs ema.decay")
        return all_well(self, problems)
