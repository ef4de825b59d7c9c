"""Recipe -> how many pictures go through the model at a time, and the memory they take."""

from collections.abc import Mapping
from typing import Any

import torch

from vit21k.config.schema import Recipe
from vit21k.models.cost import activation_bytes_per_image
from vit21k.optim.state_bytes import state_bytes_of
from vit21k.training.forecast import fit_device_batch_size

_FLOAT_BYTES = 4


def activation_bytes_of(recipe: Recipe, args: Mapping[str, Any]) -> int:
    """Return about how many bytes a training step keeps of one picture.

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
    """Return how many pictures one forward and backward pass takes.

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
    """Return *device_batch_size*, or one that parts no pair of pictures that are to be mixed."""
    if not recipe.augment.mixes:
        return device_batch_size
    return max(2, device_batch_size - device_batch_size % 2)
