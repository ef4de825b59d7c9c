"""The recipe fields of a run that begins with less of each image."""

from typing import Self

from pydantic import model_validator

from vit21k.config.fields import DropRate, Fraction, PositiveInt, Section, all_well


class CurriculumSection(Section):
    """Cheaper steps at first, whole images in the end.  Without a word of it: whole images."""

    patch_drop_rate: DropRate = 0.0
    """Share of each image's patches that are left out, others each time (PatchDropout, FLIP)."""
    img_sizes: tuple[PositiveInt, ...] = ()
    """Smaller image sizes to begin with, each for an equal part of the run before `full_tail`."""
    full_tail: Fraction = 0.2
    """Last part of the run, in which images have their full size and all their patches."""

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        problems = []
        if list(self.img_sizes) != sorted(set(self.img_sizes)):
            problems.append(f"curriculum.img_sizes ({list(self.img_sizes)}) must rise")
        return all_well(self, problems)

    def problems_at(self, img_size: int) -> list[str]:
        """Return what does not fit a model for images of *img_size*."""
        if not self.img_sizes or self.img_sizes[-1] < img_size:
            return []
        problem = (
            f"curriculum.img_sizes ({list(self.img_sizes)}) must be under model.img_size "
            f"({img_size}), with which the run ends"
        )
        return [problem]
