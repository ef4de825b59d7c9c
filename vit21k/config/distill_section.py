"""The recipe fields of learning from another model."""

from typing import Literal, Self

from pydantic import model_validator

from vit21k.config.fields import Fraction, Positive, Section, all_well


class DistillSection(Section):
    """Learning from a trained model's answers, beside the labels."""

    kind: Literal["hard", "soft"] | None = None
    """What is learnt from: the teacher's best class, or all its scores; null: no teacher."""
    teacher: str | None = None
    """A run, a file of weights or an address, as for `--init`; or give `--teacher`."""
    alpha: Fraction = 0.5
    """Share of the teacher in the loss; the labels have the rest."""
    tau: Positive = 1.0
    """`soft`: what both models' scores are divided by; above 1 the small ones count more."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        problems = []
        if self.teacher is not None and self.kind is None:
            problems.append(
                f"distill.teacher ({self.teacher}) is not asked without distill.kind "
                "(`hard` or `soft`)"
            )
        return all_well(self, problems)
