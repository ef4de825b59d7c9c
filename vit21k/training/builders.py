"""Build what a run needs from the sections of its recipe: transforms, order, schedule, memory."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vit21k.data.augment import CutoutFirst, Policy, policy_named
from vit21k.data.dataset import ImageRows
from vit21k.data.mix import DeviceTransform, Eraser, Mixer
from vit21k.data.sampler import ClassRows, StepSampler
from vit21k.data.transforms import EvalTransform, TrainTransform
from vit21k.distributed import World
from vit21k.errors import UsageError
from vit21k.models.cost import activation_bytes_per_image
from vit21k.optim.optimizers import state_bytes_of
from vit21k.optim.schedule import LrSchedule
from vit21k.recipe.schema import Recipe
from vit21k.training.curriculum import Curriculum
from vit21k.training.forecast import fit_device_batch_size


def train_transform_of(recipe: Recipe, img_size: int | None = None) -> TrainTransform:
    """Return how a training image is cropped and flipped; to *img_size*, if not the model's."""
    return TrainTransform(
        img_size or recipe.model.img_size,
        crop_scale=recipe.data.crop_scale,
        crop_ratio=recipe.data.crop_ratio,
        interpolation=recipe.data.interpolation,
        hflip=recipe.data.hflip_rate,
    )


def eval_transform_of(recipe: Recipe) -> EvalTransform:
    """Return what is done to an image in evaluation."""
    return EvalTransform(
        recipe.model.img_size,
        resize=recipe.data.eval_resize,
        mode=recipe.data.eval_mode,
        interpolation=recipe.data.eval_interpolation,
    )


def policy_of(recipe: Recipe) -> Policy | None:
    """Return what is done to a crop after that; None: nothing."""
    augment = recipe.augment
    policy = None if augment.policy is None else _policy_named(recipe)
    return CutoutFirst(augment.cutout, policy) if augment.cutout else policy


def _policy_named(recipe: Recipe) -> Policy:
    augment = recipe.augment
    assert augment.policy is not None  # noqa: S101 (the caller's condition)
    return policy_named(
        augment.policy,
        num_ops=augment.num_ops,
        magnitude=augment.magnitude,
        magnitude_std=augment.magnitude_std,
        color_jitter=augment.color_jitter,
        mean=recipe.data.mean,
        interpolation=recipe.data.interpolation,
    )


def device_transform_of(recipe: Recipe) -> DeviceTransform:
    """Return what is erased and mixed on the device."""
    augment, seed = recipe.augment, recipe.seed
    eraser = Eraser(seed=seed, rate=augment.erase_rate, fill=augment.erase_fill)
    mixer = Mixer(
        seed=seed,
        mixup_alpha=augment.mixup_alpha,
        cutmix_alpha=augment.cutmix_alpha,
        mix_rate=augment.mix_rate,
        switch_rate=augment.switch_rate,
    )
    return DeviceTransform(
        mean=recipe.data.mean,
        std=recipe.data.std,
        sums_to_one=recipe.loss.kind != "sigmoid",
        eraser=eraser if augment.erase_rate else None,
        mixer=mixer if augment.mixes else None,
    )


def build_curriculum(recipe: Recipe, steps_per_epoch: int) -> Curriculum:
    """Build what says how much of each image a step sees."""
    return Curriculum(
        section=recipe.curriculum,
        img_size=recipe.model.img_size,
        total_steps=total_steps_of(recipe, steps_per_epoch),
        seed=recipe.seed,
    )


def sampler_of(recipe: Recipe, pixels: ImageRows, world: World) -> StepSampler:
    """Return the order of the images for this process.

    Raises:
        UsageError: The global batch does not fit the images or the processes.
    """
    size, num_images = recipe.data.global_batch_size, len(pixels)
    unit = 2 * world.world_size if recipe.augment.mixes else world.world_size
    if size % unit:
        pairs = " pairs for each of" if recipe.augment.mixes else ""
        raise UsageError(
            f"data.global_batch_size ({size}) is not a multiple of{pairs} the "
            f"{world.world_size} processes",
            hint=f"take a multiple of {unit}",
        )
    if recipe.data.drop_last and num_images < size:
        raise UsageError(
            f"data.global_batch_size ({size}) is more than the {num_images:,} training images",
            hint=f"lower it: `--set data.global_batch_size={max(1, num_images // 4)}`",
        )
    balanced = recipe.data.sampling == "class_balanced"
    return StepSampler(
        num_images,
        global_batch_size=size,
        seed=recipe.seed,
        rank=world.rank,
        world_size=world.world_size,
        drop_last=recipe.data.drop_last,
        repeats=recipe.data.repeats,
        class_rows=ClassRows.from_images(pixels) if balanced else None,
    )


def total_steps_of(recipe: Recipe, steps_per_epoch: int) -> int:
    """Return the length of the run in optimizer steps."""
    return recipe.total_steps or max(1, round((recipe.epochs or 0) * steps_per_epoch))


def build_schedule(recipe: Recipe, steps_per_epoch: int) -> LrSchedule:
    """Build the length of the run, and the factor on the peak learning rate of each update.

    Raises:
        UsageError: The warm-up, or warm-up and cooldown, are longer than the run.
    """
    fields, peak_lr = recipe.schedule, recipe.optim.lr
    total_steps = total_steps_of(recipe, steps_per_epoch)
    warmup_steps = _warmup_steps(recipe, total_steps, steps_per_epoch)
    cooldown_steps = fields.cooldown_steps or _share(fields.cooldown_percent, total_steps)
    decay_end = fields.decay_epochs and fields.decay_epochs * steps_per_epoch
    _check_lengths(recipe, warmup_steps, cooldown_steps, total_steps)
    if decay_end is not None and decay_end <= warmup_steps:
        raise UsageError(
            f"schedule.decay_epochs ({fields.decay_epochs:g}) must be more than the warm-up"
        )
    return LrSchedule(
        total_steps=total_steps,
        decay=fields.decay,
        warmup_steps=warmup_steps,
        start_factor=fields.warmup_start_lr / peak_lr,
        warmup_shape=fields.warmup_shape,
        end_factor=fields.end_lr / peak_lr,
        decay_end=decay_end,
        from_start=fields.decay_from == "start",
        timescale=fields.rsqrt_timescale_steps,
        drops=tuple(_share(percent, total_steps) for percent in fields.step_percents),
        drop_factor=fields.step_factor,
        cooldown_steps=cooldown_steps,
        changes=fields.lr_changes,
        steps_per_epoch=steps_per_epoch,
        first_epoch=fields.first_epoch,
    )


def freeze(model: nn.Module, recipe: Recipe) -> None:
    """Take what the recipe freezes out of training, in place: it gets no gradient."""
    if recipe.model.freeze == "backbone":
        for name, param in model.named_parameters():
            param.requires_grad_(name.startswith("head"))


def _warmup_steps(recipe: Recipe, total_steps: int, steps_per_epoch: int) -> int:
    fields = recipe.schedule
    if fields.warmup_epochs is not None:
        return max(1, round(fields.warmup_epochs * steps_per_epoch))
    if fields.warmup_images is not None:
        return max(1, round(fields.warmup_images / recipe.data.global_batch_size))
    return fields.warmup_steps or _share(fields.warmup_percent, total_steps)


def _share(percent: float | None, total_steps: int) -> int:
    """Return *percent* of the run in updates; at least one, unless it is nothing, as big_vision."""
    return max(1, round(percent / 100 * total_steps)) if percent else 0


def _check_lengths(
    recipe: Recipe, warmup_steps: int, cooldown_steps: int, total_steps: int
) -> None:
    if warmup_steps >= total_steps:
        raise UsageError(
            f"the warm-up ({warmup_steps:,} steps) must be less than the "
            f"{total_steps:,} steps of the run",
            hint=f"shorten it: `--set schedule.{_warmup_field(recipe)}=...`",
        )
    if warmup_steps + cooldown_steps > total_steps:
        raise UsageError(
            f"warm-up ({warmup_steps:,} steps) and cooldown ({cooldown_steps:,}) are more than "
            f"the {total_steps:,} steps of the run"
        )


def _warmup_field(recipe: Recipe) -> str:
    names = ("warmup_epochs", "warmup_images", "warmup_percent")
    given = (name for name in names if getattr(recipe.schedule, name) is not None)
    return next(given, "warmup_steps")


_FLOAT_BYTES = 4


def activation_bytes_of(recipe: Recipe, args: Mapping[str, Any]) -> int:
    """Return about how many bytes a training step keeps of one image.

    Args:
        recipe: Its precision, and what it computes again.
        args: Of the model.
    """
    return activation_bytes_per_image(
        args,
        4 if recipe.products_in == "fp32" else 2,
        recomputes=recipe.step.recompute == "cheap",
    )


def bytes_per_param_of(recipe: Recipe) -> int:
    """Return what training keeps of each weight: itself, gradient, moments, average; in bytes."""
    state = state_bytes_of(recipe.optim.kind, recipe.optim.momentum_dtype)
    averages = 0 if recipe.ema.decay is None else _FLOAT_BYTES
    return 2 * _FLOAT_BYTES + state + averages


def device_batch_size_of(
    recipe: Recipe, args: Mapping[str, Any], *, asked: int | None, device: torch.device
) -> int:
    """Return how many images one forward and backward pass takes.

    Args:
        recipe: How many it wants.
        args: Of the model.
        asked: What the user says, who is taken at their word; None: what fits into memory.
        device: Where.
    """
    return whole_pairs(
        recipe,
        asked
        or fit_device_batch_size(
            args,
            recipe.data.device_batch_size,
            device=device,
            bytes_per_param=bytes_per_param_of(recipe),
            activation_bytes=activation_bytes_of(recipe, args),
        ),
    )


def whole_pairs(recipe: Recipe, device_batch_size: int) -> int:
    """Return *device_batch_size*, or one that parts no pair of images that are to be mixed."""
    if not recipe.augment.mixes:
        return device_batch_size
    return max(2, device_batch_size - device_batch_size % 2)
