"""Recipe -> optimizer, learning rate, and what is frozen."""

from typing import Any

from torch import nn

from vit21k.config.schema import Recipe
from vit21k.errors import UsageError
from vit21k.optim.optimizers import OptimPlan
from vit21k.optim.param_groups import GroupRules
from vit21k.optim.schedule import LrSchedule

_RULES = ("weight_decay", "decay_params", "decay_multipliers", "lr_multipliers", "layer_decay")
_OTHER = ("kind", "lr", "betas", "eps", "momentum", "momentum_dtype")


def optim_plan_of(recipe: Recipe) -> OptimPlan:
    """Return which optimizer, with which numbers."""
    fields = recipe.optim.model_dump(include={*_OTHER})
    rules = GroupRules(**recipe.optim.model_dump(include={*_RULES}))
    return OptimPlan(**fields, muon_lr=recipe.optim.muon_lr or recipe.optim.lr, rules=rules)


def lr_schedule_of(recipe: Recipe, *, total_steps: int, steps_per_epoch: int) -> LrSchedule:
    """Return the factor on the peak learning rate, by the number of updates made.

    Raises:
        UsageError: The warm-up, or warm-up and cooldown, are longer than the run.
    """
    fields, peak_lr = recipe.schedule, recipe.optim.lr
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


def loss_options_of(recipe: Recipe) -> dict[str, Any]:
    """Return the options of the loss function beside logits and labels."""
    loss = recipe.loss
    if loss.kind != "sigmoid":
        return {"smoothing": loss.smoothing}
    return {
        "smoothing": loss.smoothing,
        "smoothing_floor": loss.smoothing_floor or "e",
        "class_reduction": loss.class_reduction,
    }


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
