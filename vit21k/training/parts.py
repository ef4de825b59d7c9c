"""Recipe -> the parts of a run.  Each function reads the fields that one part needs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vit21k.checkpoint.model_folder import EvalSettings, model_config
from vit21k.chunked_loss import chunked_multi_label_loss, wants_chunks
from vit21k.config.schema import Recipe
from vit21k.data.loader import Batch
from vit21k.data.transforms import EvalTransform
from vit21k.inference.evaluate import normalise
from vit21k.losses import LOSSES
from vit21k.manifest.classes import ClassList
from vit21k.models.base import ImageClassifier
from vit21k.models.init_weights import init_vit
from vit21k.models.precision import autocast
from vit21k.models.registry import get_model, model_args
from vit21k.training.data_parts import device_transform_of
from vit21k.training.loop import Plan
from vit21k.training.optim_parts import freeze, loss_options_of, lr_schedule_of

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
    "representation_size",
    "act_layer",
    "pos_drop_rate",
    "proj_drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
)
# What may differ between a run and its continuation: it changes no weight, but for rounding.
_NOT_IDENTITY: dict[str, Any] = {
    "source": True,
    "run": True,
    "parallel": True,
    "step": {"compile", "attention", "recompute"},
    "data": {"device_batch_size"},
}


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


def plan_of(recipe: Recipe, steps_per_epoch: int) -> Plan:
    """Return length, schedule and periods.

    Raises:
        UsageError: The warm-up is longer than the run.
    """
    total_steps = recipe.total_steps or max(1, round((recipe.epochs or 0) * steps_per_epoch))
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
    return model_config(recipe.model.name, args, classes, settings, recipe.loss.kind)


def identity_of(recipe: Recipe) -> dict[str, Any]:
    """Return what a run must have in common with a checkpoint that it goes on from."""
    fields: dict[str, Any] = recipe.model_dump(mode="json", exclude=_NOT_IDENTITY)
    return fields


def loss_of(model: nn.Module, batch: Batch, *, recipe: Recipe, device: torch.device) -> Tensor:
    """Return the mean loss over the pictures of one micro-batch: forward pass and loss."""
    images, rows, ids, weights = device_transform_of(recipe)(batch, device)
    images = normalise(images, recipe.data.mean, recipe.data.std)
    options = {"label_weights_L": weights, **loss_options_of(recipe)}
    if recipe.loss.kind == "sigmoid" and wants_chunks(model, len(images)):
        with autocast(device, recipe.precision):
            return chunked_multi_label_loss(
                model.features(images), model.head, rows, ids, **options
            )
    with autocast(device, recipe.precision):
        logits = model(images)
    return LOSSES[recipe.loss.kind](logits, rows, ids, **options)
