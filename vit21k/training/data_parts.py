"""Recipe -> what pictures a run takes, and what is done to them."""

from vit21k.config.schema import Recipe
from vit21k.data.augment import CutoutFirst, Policy, policy_named
from vit21k.data.class_rows import ClassRows
from vit21k.data.device_transforms import DeviceTransform
from vit21k.data.erase import Eraser
from vit21k.data.mix import Mixer
from vit21k.data.rows import PictureRows
from vit21k.data.sampler import StepSampler
from vit21k.data.transforms import TrainTransform
from vit21k.distributed import World
from vit21k.errors import UsageError


def train_transform_of(recipe: Recipe, img_size: int | None = None) -> TrainTransform:
    """Return how a training picture is cropped and flipped; to *img_size*, if not the model's."""
    return TrainTransform(
        img_size or recipe.model.img_size,
        crop_scale=recipe.data.crop_scale,
        crop_ratio=recipe.data.crop_ratio,
        interpolation=recipe.data.interpolation,
        hflip=recipe.data.hflip_rate,
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


def sampler_of(recipe: Recipe, pictures: PictureRows, world: World) -> StepSampler:
    """Return the order of the pictures for this process.

    Raises:
        UsageError: The global batch does not fit the pictures or the processes.
    """
    size, num_images = recipe.data.global_batch_size, len(pictures)
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
            f"data.global_batch_size ({size}) is more than the {num_images:,} training pictures",
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
        class_rows=ClassRows.from_pictures(pictures) if balanced else None,
    )
