"""The recipe fields of the pictures."""

from typing import Literal, Self

from pydantic import model_validator

from vit21k.config.fields import (
    Flag,
    Fraction,
    Interpolation,
    Number,
    Positive,
    PositiveInt,
    Section,
    all_well,
)


class DataSection(Section):
    """What one step reads, and what is done to a picture."""

    global_batch_size: PositiveInt
    """Images per optimizer step, over all devices."""
    device_batch_size: PositiveInt = 64
    """The most images one device takes in one forward pass; the rest is accumulated."""
    drop_last: Flag = True
    """Leave out the images of an epoch that do not fill a global batch."""
    crop_scale: tuple[Positive, Positive] = (0.08, 1.0)
    """Area of a random crop as fractions of the picture: least and most."""
    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """Width by height of a random crop: least and most."""
    interpolation: Interpolation = "bicubic"
    """How a training crop is resized."""
    hflip_rate: Fraction = 0.5
    """How often a training crop is mirrored."""
    eval_resize: PositiveInt | None = None
    """`center_crop` only: the short side before the crop, in pixels; null: `model.img_size`."""
    eval_mode: Literal["center_crop", "squash"] = "center_crop"
    """Resize the short side and crop the middle, or resize to a square whatever the shape."""
    eval_interpolation: Interpolation = "bicubic"
    """How a picture is resized for evaluation."""
    mean: tuple[Number, Number, Number] = (0.5, 0.5, 0.5)
    """Subtracted from red, green and blue in 0..1."""
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)
    """Red, green and blue are divided by this afterwards."""
    repeats: PositiveInt = 1
    """How often a picture comes in an epoch, augmented anew each time; an epoch is as long."""
    sampling: Literal["shuffle", "class_balanced"] = "shuffle"
    """`class_balanced`: every class equally often, each one's pictures in turn."""
    on_bad_image: Literal["fail", "skip", "replace"] = "replace"
    """An image that cannot be read or decoded: stop and name it; skip it and count it; or take
    another one, drawn from the seed, and count it, so that every batch keeps its size."""
    max_bad_rate: Fraction = 0.01
    """`skip` and `replace`: stop if more of the pictures are bad, counted over 1,000 or more."""

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        problems = [
            f"data.{name}: the least ({low}) must not be over the most ({high})"
            for name, (low, high) in (
                ("crop_scale", self.crop_scale),
                ("crop_ratio", self.crop_ratio),
            )
            if low > high
        ]
        if self.crop_scale[1] > 1:
            problems.append(
                f"data.crop_scale: at most the whole picture, 1, got {self.crop_scale[1]}"
            )
        if self.eval_mode == "squash" and self.eval_resize is not None:
            problems.append(
                f"data.eval_resize ({self.eval_resize}) is for data.eval_mode `center_crop`; "
                "with `squash` it must be null"
            )
        return all_well(self, problems)
