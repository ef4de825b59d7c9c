"""Recipe -> the parts of a run.  Each function reads the fields that one part needs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vit21k.checkpoint.model_folder import EvalSettings, model_config
from vit21k.checkpoint.store import find_latest
from vit21k.config.schema import Recipe
from vit21k.data.transforms import EvalTransform
from vit21k.distributed import World
from vit21k.manifest.classes import ClassList
from vit21k.models.base import ImageClassifier
from vit21k.models.init_weights import init_vit
from vit21k.models.precision import Precision, best_precision, is_emulated
from vit21k.models.registry import get_model, model_args
from vit21k.training.curriculum import Curriculum
from vit21k.training.loop import Plan
from vit21k.training.optim_parts import freeze, lr_schedule_of
from vit21k.training.setup import Listener

_MODEL_OVERRIDES = (
    "img_size",
    "patch_size",
    "embed_dim",
    "depth",
    "num_heads",
    "global_pool",
    "class_token",
    "fc_norm",
    "mlp_ratio",
    "qkv_bias",
    "norm_eps",
    "init_values",
    "representation_size",
    "act_layer",
    "pos_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
    "drop_path_shape",
    "head_drop_rate",
)
# What may differ between a run and its continuation: it changes no weight, but for rounding; and
# what is done about bad pictures, so that a run that they stopped can go on.
_NOT_IDENTITY: dict[str, Any] = {
    "source": True,
    "commit": True,
    "run": True,
    "parallel": True,
    "step": {"compile", "attention", "recompute"},
    "data": {"device_batch_size", "on_bad_image", "max_bad_rate"},
    "loss": {"tree"},  # what they name is in the state by its content
    "distill": {"teacher"},
}

NAMED_BY_CONTENT: dict[str, Any] = {"source": True, "loss": {"tree"}, "distill": {"teacher"}}
"""Fields that may differ between the processes of a run: a file may have other names elsewhere."""


def overrides_of(recipe: Recipe) -> dict[str, Any]:
    """Return the model's arguments that the recipe sets beside its name."""
    fields = recipe.model.model_dump(include=set(_MODEL_OVERRIDES))
    return {name: value for name, value in fields.items() if value is not None}


def model_args_of(recipe: Recipe, *, num_classes: int) -> dict[str, Any]:
    """Return every argument of the model's constructor."""
    return model_args(recipe.model.name, num_classes=num_classes, **overrides_of(recipe))


def new_model(recipe: Recipe, *, num_classes: int) -> ImageClassifier:
    """Return the model with its first weights, a function of the recipe alone."""
    model = get_model(recipe.model.name, num_classes=num_classes, **overrides_of(recipe))
    init_vit(
        model,
        scheme=recipe.model.init_scheme,
        head_init=recipe.model.head_init,
        head_init_std=recipe.model.head_init_std,
        head_bias_init=recipe.model.head_bias_init,
        generator=torch.Generator().manual_seed(recipe.seed),
    )
    freeze(model, recipe)
    return model


def eval_transform_of(recipe: Recipe) -> EvalTransform:
    """Return what is done to a picture in evaluation."""
    return EvalTransform(
        recipe.model.img_size,
        resize=recipe.data.eval_resize,
        mode=recipe.data.eval_mode,
        interpolation=recipe.data.eval_interpolation,
    )


def resolve_precision(
    recipe: Recipe, device: str, world: World, *, run_dir: Path | None, listener: Listener
) -> Recipe:
    """Return *recipe* with the precision that `auto` means; say if its precision is emulated.

    A run that is resumed keeps its precision.  Processes must agree: one without bfloat16 means
    that all compute in float32.

    Args:
        recipe: What to train and how.
        device: Where.
        world: All processes call this.
        run_dir: The run that is resumed if it has checkpoints; None: a new one.
        listener: Hears which precision was chosen.
    """
    if recipe.precision == "auto":
        recorded = _recorded_precision(run_dir)
        wanted = recorded or best_precision(device)
        votes = torch.tensor([float(wanted == "fp32")], device=device)
        chosen = "fp32" if world.all_reduce_sum(votes).item() else wanted
        recipe = recipe.model_copy(update={"precision": chosen})
        why = "as the run began" if recorded else f"auto, on this {torch.device(device).type}"
        listener.note(f"precision: {chosen} ({why})")
    if is_emulated(device, recipe.products_in):
        listener.warn(
            f"precision {recipe.precision} is emulated on this {torch.device(device).type}, which "
            "has no instructions for it: training is many times slower than with "
            "`--set precision=fp32`, which is another run"
        )
    return recipe


def _recorded_precision(run_dir: Path | None) -> Precision | None:
    """Return the precision of the run's checkpoints; None if it has none."""
    if run_dir is None or not run_dir.is_dir():
        return None
    checkpoint = find_latest(run_dir, only=()).checkpoint
    return None if checkpoint is None else checkpoint.state["recipe"].get("precision")


def total_steps_of(recipe: Recipe, steps_per_epoch: int) -> int:
    """Return the length of the run in optimizer steps."""
    return recipe.total_steps or max(1, round((recipe.epochs or 0) * steps_per_epoch))


def curriculum_of(recipe: Recipe, steps_per_epoch: int) -> Curriculum:
    """Return how much of each image a step sees."""
    return Curriculum(
        img_size=recipe.model.img_size,
        early_img_sizes=recipe.curriculum.img_sizes,
        patch_drop_rate=recipe.curriculum.patch_drop_rate,
        full_tail=recipe.curriculum.full_tail,
        total_steps=total_steps_of(recipe, steps_per_epoch),
        seed=recipe.seed,
    )


def plan_of(recipe: Recipe, steps_per_epoch: int) -> Plan:
    """Return length, schedule and periods.

    Raises:
        UsageError: The warm-up is longer than the run.
    """
    total_steps = total_steps_of(recipe, steps_per_epoch)
    return Plan(
        total_steps=total_steps,
        global_batch_size=recipe.data.global_batch_size,
        seed=recipe.seed,
        lr_factor=lr_schedule_of(recipe, total_steps=total_steps, steps_per_epoch=steps_per_epoch),
        grad_clip_norm=recipe.optim.grad_clip_norm,
        log_every_steps=recipe.run.log_every_steps,
        eval_every_steps=recipe.run.eval_every_steps,
        save_every_steps=recipe.run.save_every_steps,
    )


def model_config_of(recipe: Recipe, args: Mapping[str, Any], classes: ClassList) -> dict[str, Any]:
    """Return the `config.json` that travels with the weights."""
    settings = EvalSettings(
        img_size=recipe.model.img_size,
        mode=recipe.data.eval_mode,
        resize=recipe.data.eval_resize,
        interpolation=recipe.data.eval_interpolation,
        mean=recipe.data.mean,
        std=recipe.data.std,
    )
    # A softmax of all classes: those of different levels are not weighed against each other.
    loss_kind = "softmax" if recipe.loss.kind == "semantic_softmax" else recipe.loss.kind
    return model_config(recipe.model.name, args, classes, settings, loss_kind)


def identity_of(recipe: Recipe) -> dict[str, Any]:
    """Return what a run must have in common with a checkpoint that it goes on from."""
    fields: dict[str, Any] = recipe.model_dump(mode="json", exclude=_NOT_IDENTITY)
    return fields
