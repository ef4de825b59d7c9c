"""The recipe fields of augmentation beyond crop and flip."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vit21k.config.fields import (
    Fraction,
    NonNegative,
    Number,
    PositiveInt,
    Section,
    all_well,
)

# Beta(a, a) is drawn in a way that is for a <= 1, which is all that recipes use.
_Alpha = Annotated[Number, Field(ge=0, le=1)]


class AugmentSection(Section):
    """What is done to a training crop, and to pairs of them.  Without a word of it: nothing."""

    policy: Literal[
        "rand", "rand_increasing", "rand_big_vision", "rand_miil", "auto", "auto_mmpretrain",
        "auto_paddle", "three_augment", None,
    ] = None  # fmt: skip
    """`rand`: timm's and MindCV's RandAugment; `rand_increasing`: the same with `inc1`, as DeiT;
    `rand_big_vision`: AugReg's; `rand_miil`: MIIL's; `auto`: AutoAugment's 25 pairs for ImageNet;
    `auto_mmpretrain`, `auto_paddle`: the same as MMPretrain's and PaddleViT's code does it;
    `three_augment`: DeiT III."""
    cutout: Fraction = 0.0
    """Before the policy: a square of this share of the side in one random colour, as in MIIL."""
    num_ops: PositiveInt = 2
    """RandAugment: operations on a picture, one after the other; `rand_miil` has 2."""
    magnitude: NonNegative = 9.0
    """RandAugment: how strong; 10 is the end of timm's scale; `rand_miil` draws it."""
    magnitude_std: NonNegative = 0.0
    """`rand` and `rand_increasing`: standard deviation of the magnitude."""
    color_jitter: Fraction = 0.0
    """`three_augment`: most change of brightness, contrast and saturation."""
    erase_rate: Fraction = 0.0
    """How often a box of 2 % to a third of the picture is erased."""
    erase_fill: Literal["pixel", "zero"] = "pixel"
    """Erase by noise in every pixel, or by the mean colour."""
    mixup_alpha: _Alpha = 0.0
    """Blend pairs of pictures, with shares from Beta(a, a); 0: not."""
    cutmix_alpha: _Alpha = 0.0
    """Paste a box of a picture into another, of an area from Beta(a, a); 0: not."""
    mix_rate: Fraction = 1.0
    """How many of the pairs are mixed."""
    switch_rate: Fraction = 0.5
    """How many of the mixed pairs by cutmix, where there is mixup too."""

    @property
    def mixes(self) -> bool:
        """Whether pairs of pictures are mixed."""
        return bool(self.mixup_alpha or self.cutmix_alpha)

    @model_validator(mode="after")
    def _check_policy(self) -> Self:
        problems = []
        if self.color_jitter and self.policy != "three_augment":
            problems.append(
                f"augment.color_jitter ({self.color_jitter}) is for augment.policy `three_augment`;"
                " with other policies the recipes of others switch it off without a word"
            )
        if self.magnitude_std and self.policy not in {"rand", "rand_increasing"}:
            problems.append(
                f"augment.magnitude_std ({self.magnitude_std}) is for augment.policy `rand` and "
                "`rand_increasing`"
            )
        return all_well(self, problems)
