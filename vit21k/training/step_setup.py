"""The recipe's section `step` -> a model that computes as it says."""

from functools import partial

from torch import nn

from vit21k.data.sampler import StepSampler
from vit21k.models.precision import DTYPES
from vit21k.models.vit import VisionTransformer
from vit21k.training import parts
from vit21k.training.curriculum import PatchDropper, check_curriculum
from vit21k.training.loss_parts import loss_of
from vit21k.training.setup import Setup
from vit21k.training.step_parts import StepPlan, prepare_step


def prepare_model(setup: Setup, model: nn.Module, *, device_batch_size: int) -> nn.Module:
    """Return *model* on its device, in train mode, and fast; to be sharded after this, not before.

    Raises:
        UsageError: The device has no float8.
        MissingExtraError: float8 is asked for and torchao is not installed.
    """
    recipe = setup.recipe
    if recipe.curriculum.img_sizes and isinstance(model, VisionTransformer):
        model.takes_smaller_images = True
    model = model.to(setup.device).train()
    notes = prepare_step(
        model,
        StepPlan(
            **recipe.step.model_dump(),
            img_size=recipe.model.img_size,
            device_batch_size=device_batch_size,
            dtype=DTYPES[recipe.products_in],
        ),
        loss_of=partial(loss_of, recipe=recipe, device=setup.device, objective=setup.objective),
        device=setup.device,
        run_dir=setup.place.run_dir,
        world=setup.world,
    )
    for note in notes:
        setup.listener.note(note)
    return model


def patch_dropper_of(setup: Setup, sampler: StepSampler) -> PatchDropper | None:
    """Return what says which patches are seen; None: all are, in the whole run.

    Raises:
        UsageError: The model cannot see less of an image, and the recipe wants it to.
    """
    curriculum = parts.curriculum_of(setup.recipe, sampler.steps_per_epoch)
    check_curriculum(curriculum, setup.args)
    if not curriculum.patch_drop_rate:
        return None
    return PatchDropper(
        curriculum,
        patch_size=setup.args["patch_size"],
        device=setup.device,
    )
