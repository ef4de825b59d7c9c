"""Build transforms, sampler, schedule and batch sizes from the sections of a recipe."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vit21k.data.augment import CutoutFirst, Policy, policy_named
from vit21k.data.dataset import ImageRows
from vit21k.data.mix import DeviceTransform, Eraser, Mixer
from vit21k.data.sampler import ClassRows, StepSampler
from vit21k.data.transforms import EvalTransform, SimpleCropTransform, TrainTransform
from vit21k.device import Precision
from vit21k.distributed import World
from vit21k.errors import UsageError
from vit21k.models.cost import activation_bytes_per_image
from vit21k.optim.optimizers import state_bytes_of
from vit21k.optim.schedule import LrSchedule
from vit21k.recipe.schema import (
    AugmentSection,
    DataSection,
    EmaSection,
    ModelSection,
    OptimSection,
    Recipe,
    ScheduleSection,
    StepSection,
)
from vit21k.training.forecast import fit_device_batch_size


def train_transform_of(data: DataSection, img_size: int) -> TrainTransform:
    """Return the random crop and flip of training images."""
    if data.crop == "simple":
        return SimpleCropTransform(img_size, data.interpolation, data.hflip_rate)
    return TrainTransform(
        img_size,
        crop_scale=data.crop_scale,
        crop_ratio=data.crop_ratio,
        interpolation=data.interpolation,
        hflip=data.hflip_rate,
    )


def eval_transform_of(data: DataSection, img_size: int) -> EvalTransform:
    """Return the resizing and crop of images in evaluation."""
    return EvalTransform(
        img_size,
        resize=data.eval_resize,
        mode=data.eval_mode,
        interpolation=data.eval_interpolation,
    )


def policy_of(augment: AugmentSection, data: DataSection) -> Policy | None:
    """Return the augmentation of a crop; None: there is none."""
    policy = None
    if augment.policy is not None:
        policy = policy_named(
            augment.policy,
            num_ops=augment.num_ops,
            magnitude=augment.magnitude,
            magnitude_std=augment.magnitude_std,
            color_jitter=augment.color_jitter,
            mean=data.mean,
            interpolation=data.interpolation,
        )
    return CutoutFirst(augment.cutout, policy) if augment.cutout else policy


def device_transform_of(
    augment: AugmentSection, data: DataSection, *, sums_to_one: bool, seed: int
) -> DeviceTransform:
    """Return erasing and mixing on the device.

    Args:
        augment: Rates.
        data: Mean and standard deviation of the images.
        sums_to_one: Whether the label weights of an image add up to 1.
        seed: Of the run.
    """
    eraser = Eraser(seed=seed, rate=augment.erase_rate, fill=augment.erase_fill)
    mixer = Mixer(
        seed=seed,
        mixup_alpha=augment.mixup_alpha,
        cutmix_alpha=augment.cutmix_alpha,
        mix_rate=augment.mix_rate,
        switch_rate=augment.switch_rate,
    )
    return DeviceTransform(
        mean=data.mean,
        std=data.std,
        sums_to_one=sums_to_one,
        eraser=eraser if augment.erase_rate else None,
        mixer=mixer if augment.mixes else None,
    )


def sampler_of(recipe: Recipe, pixels: ImageRows, world: World, *, in_pairs: bool) -> StepSampler:
    """Return the order of the images for this process.

    Args:
        recipe: Batch size, repeats, sampling and seed.
        pixels: The training images.
        world: The processes.
        in_pairs: Whether pairs of images are mixed.

    Raises:
        UsageError: The global batch does not fit the images or the processes.
    """
    data = recipe.data
    size, num_images = data.global_batch_size, len(pixels)
    unit = 2 * world.world_size if in_pairs else world.world_size
    if size % unit:
        pairs = " pairs for each of" if in_pairs else ""
        raise UsageError(
            f"data.global_batch_size ({size}) is not a multiple of{pairs} the "
            f"{world.world_size} processes",
            hint=f"take a multiple of {unit}",
        )
    if data.drop_last and num_images < size:
        raise UsageError(
            f"data.global_batch_size ({size}) is more than the {num_images:,} training images",
            hint=f"lower it: `{_smaller_batch(recipe, num_images, unit)}`",
        )
    balanced = data.sampling == "class_balanced"
    return StepSampler(
        num_images,
        global_batch_size=size,
        seed=recipe.seed,
        rank=world.rank,
        world_size=world.world_size,
        drop_last=data.drop_last,
        repeats=data.repeats,
        class_rows=ClassRows.from_images(pixels) if balanced else None,
    )


def _smaller_batch(recipe: Recipe, num_images: int, unit: int) -> str:
    """Return the settings for a batch of a quarter of the images, and a warm-up that fits it."""
    size = max(1, num_images // 4 // unit) * unit
    settings = f"--set data.global_batch_size={size}"
    data = recipe.data.model_copy(update={"global_batch_size": size})
    smaller = recipe.model_copy(update={"data": data})
    steps_per_epoch = max(1, num_images // size)
    total_steps = recipe.total_steps or max(1, round((recipe.epochs or 0) * steps_per_epoch))
    warmup_steps = _warmup_steps(smaller, total_steps, steps_per_epoch)
    if warmup_steps >= total_steps:
        settings += f" {_shorter_warmup(recipe.schedule, total_steps)}"
    return settings


def build_schedule(recipe: Recipe, steps_per_epoch: int) -> LrSchedule:
    """Build the schedule of the learning rate, which has the length of the run.

    Raises:
        UsageError: The warm-up, or warm-up and cooldown, are longer than the run.
    """
    section, peak_lr = recipe.schedule, recipe.optim.lr
    total_steps = recipe.total_steps or max(1, round((recipe.epochs or 0) * steps_per_epoch))
    schedule = LrSchedule(
        total_steps=total_steps,
        decay=section.decay,
        warmup_steps=_warmup_steps(recipe, total_steps, steps_per_epoch),
        start_factor=section.warmup_start_lr / peak_lr,
        warmup_shape=section.warmup_shape,
        end_factor=section.end_lr / peak_lr,
        decay_end=section.decay_epochs and section.decay_epochs * steps_per_epoch,
        from_start=section.decay_from == "start",
        timescale=section.rsqrt_timescale_steps,
        drops=tuple(_share(percent, total_steps) for percent in section.step_percents),
        drop_factor=section.step_factor,
        cooldown_steps=section.cooldown_steps or _share(section.cooldown_percent, total_steps),
        changes=section.lr_changes,
        steps_per_epoch=steps_per_epoch,
        first_epoch=section.first_epoch,
    )
    _check_lengths(schedule, section)
    return schedule


def _warmup_steps(recipe: Recipe, total_steps: int, steps_per_epoch: int) -> int:
    section = recipe.schedule
    if section.warmup_epochs is not None:
        return max(1, round(section.warmup_epochs * steps_per_epoch))
    if section.warmup_images is not None:
        return max(1, round(section.warmup_images / recipe.data.global_batch_size))
    return section.warmup_steps or _share(section.warmup_percent, total_steps)


def _share(percent: float | None, total_steps: int) -> int:
    """Return *percent* of the run in updates; at least one unless it is 0, as in big_vision."""
    return max(1, round(percent / 100 * total_steps)) if percent else 0


def _check_lengths(schedule: LrSchedule, section: ScheduleSection) -> None:
    warmup_steps, total_steps = schedule.warmup_steps, schedule.total_steps
    if warmup_steps >= total_steps:
        raise UsageError(
            f"the warm-up ({warmup_steps:,} steps) must be less than the "
            f"{total_steps:,} steps of the run",
            hint=f"shorten it: `{_shorter_warmup(section, total_steps)}`",
        )
    if warmup_steps + schedule.cooldown_steps > total_steps:
        raise UsageError(
            f"warm-up ({warmup_steps:,} steps) and cooldown ({schedule.cooldown_steps:,}) are more "
            f"than the {total_steps:,} steps of the run"
        )
    if schedule.decay_end is not None and schedule.decay_end <= warmup_steps:
        raise UsageError(
            f"schedule.decay_epochs ({section.decay_epochs:g}) must be more than the warm-up"
        )


def _shorter_warmup(section: ScheduleSection, total_steps: int) -> str:
    """Return the settings for a warm-up over the first tenth of the run."""
    names = ("warmup_epochs", "warmup_images", "warmup_percent")
    resets = [f" --set schedule.{name}=null" for name in names if getattr(section, name)]
    return f"--set schedule.warmup_steps={total_steps // 10}{''.join(resets)}"


def freeze(model: nn.Module, section: ModelSection) -> None:
    """Exclude from training, in place, what *section* freezes: it gets no gradient."""
    if section.freeze == "backbone":
        for name, param in model.named_parameters():
            param.requires_grad_(name.startswith("head"))


_FLOAT_BYTES = 4


def activation_bytes_of(args: Mapping[str, Any], precision: Precision, step: StepSection) -> int:
    """Estimate the bytes that a training step stores for one image, for a model of *args*."""
    bytes_per_value = _FLOAT_BYTES if precision == "fp32" else 2
    return activation_bytes_per_image(args, bytes_per_value, recompute=step.recompute == "cheap")


def bytes_per_param_of(optim: OptimSection, ema: EmaSection) -> int:
    """Return the bytes of each parameter: weight, gradient, state of the optimizer, average."""
    averages = 0 if ema.decay is None else _FLOAT_BYTES
    return 2 * _FLOAT_BYTES + state_bytes_of(optim.kind, optim.momentum_dtype) + averages


def device_batch_size_of(
    recipe: Recipe, args: Mapping[str, Any], *, asked: int | None, device: torch.device
) -> int:
    """Return the number of images in one forward and backward pass.

    Args:
        recipe: The run.
        args: Of the model.
        asked: The user's number, which is not checked; None: the recipe's, or as many as fit into
            memory.
        device: Of the model.
    """
    fitting = asked or fit_device_batch_size(
        args,
        recipe.data.device_batch_size,
        device=device,
        bytes_per_param=bytes_per_param_of(recipe.optim, recipe.ema),
        activation_bytes=activation_bytes_of(args, recipe.products_in, recipe.step),
    )
    return complete_pairs(recipe.augment, fitting)


def complete_pairs(augment: AugmentSection, device_batch_size: int) -> int:
    """Return *device_batch_size*, or the even number below it if pairs of images are mixed."""
    if not augment.mixes:
        return device_batch_size
    return max(2, device_batch_size - device_batch_size % 2)
