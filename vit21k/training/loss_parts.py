"""Recipe -> the loss of a micro-batch: of its labels, and of a teacher beside them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit21k.config.schema import Recipe
from vit21k.data.loader import Batch
from vit21k.errors import UsageError
from vit21k.inference.evaluate import LossFunction, normalise
from vit21k.losses.chunked import chunked_multi_label_loss, wants_chunks
from vit21k.losses.hierarchical import Levels, semantic_softmax_loss
from vit21k.losses.sparse import LOSSES, multi_label_loss
from vit21k.manifest.classes import ClassList
from vit21k.models.precision import autocast
from vit21k.training.data_parts import device_transform_of
from vit21k.training.distill import Distillation, open_teacher
from vit21k.training.objective import Objective
from vit21k.training.optim_parts import loss_options_of


def objective_of(
    recipe: Recipe, classes: ClassList, device: torch.device, *, warn: Callable[[str], None]
) -> Objective:
    """Return what the loss of *recipe* needs beside its numbers.

    Raises:
        UsageError: A teacher is asked for and none is named, or it is for other classes.
        CheckpointError: The teacher is damaged, or there is none.
        ManifestError: The tree of classes is missing, damaged, or for another class list.
    """
    levels = None
    if recipe.loss.kind == "semantic_softmax":
        tree = recipe.loss.tree
        levels = Levels.of(classes) if tree is None else Levels.read(Path(tree), classes)
        if not levels.classes_HC:
            raise UsageError("loss.kind `semantic_softmax` needs classes, at least two of a level")
        levels = levels.to(device)
    return Objective(levels=levels, distillation=_distillation_of(recipe, classes, device, warn))


def _distillation_of(
    recipe: Recipe, classes: ClassList, device: torch.device, warn: Callable[[str], None]
) -> Distillation | None:
    fields = recipe.distill
    if fields.kind is None:
        return None
    if fields.teacher is None:
        raise UsageError(
            f"the recipe learns from a teacher (distill.kind `{fields.kind}`), and none was given",
            hint="name one with --teacher RUN, or do without: `--set distill.kind=null`",
        )
    teacher = open_teacher(fields.teacher, classes, device)
    for warning in teacher.card.warnings:
        warn(f"the teacher: {warning}; `vit21k export --to safetensors` keeps what is right")
    if teacher.card.classes.fingerprint != classes.fingerprint:
        warn(
            "the teacher's classes are called otherwise than the pictures'; they are taken to be "
            "in the same order"
        )
    return Distillation(
        teacher=teacher,
        kind=fields.kind,
        alpha=fields.alpha,
        tau=fields.tau,
        precision=recipe.products_in,
    )


def label_loss_of(recipe: Recipe, objective: Objective) -> LossFunction:
    """Return the loss of labels, but for its smoothing."""
    if objective.levels is not None:
        return partial(semantic_softmax_loss, levels=objective.levels)
    if recipe.loss.kind == "sigmoid":
        return partial(multi_label_loss, class_reduction=recipe.loss.class_reduction)
    return LOSSES[recipe.loss.kind]


def loss_of(
    model: nn.Module,
    batch: Batch,
    *,
    recipe: Recipe,
    device: torch.device,
    objective: Objective,
    drop_patches: Callable[[Batch], Tensor | None] | None = None,
) -> Tensor:
    """Return the mean loss over the pictures of one micro-batch: forward pass and loss.

    Args:
        model: In train mode, on *device*.
        batch: The pictures.
        recipe: What the loss is.
        device: Where.
        objective: What it is beside numbers.
        drop_patches: Returns which patches of each picture are seen; None: all.
    """
    kept = None if drop_patches is None else drop_patches(batch)
    pictures, rows, ids, weights = device_transform_of(recipe)(batch, device)
    images = normalise(pictures, recipe.data.mean, recipe.data.std)
    inputs = (images,) if kept is None else (images, kept)
    if recipe.loss.mixed_labels == "whole":
        weights = None
    options = {"label_weights_L": weights, **loss_options_of(recipe)}
    if recipe.loss.kind == "sigmoid" and wants_chunks(model, len(images)):
        with autocast(device, recipe.products_in):
            whole: Any = model  # has `features` and a linear `head`, or it would not want chunks
            return chunked_multi_label_loss(
                whole.features(*inputs), whole.head, rows, ids, **options
            )
    with autocast(device, recipe.products_in):
        answer = model(*inputs)
    label_loss = label_loss_of(recipe, objective)
    if objective.distillation is None:
        return label_loss(answer, rows, ids, **options)
    return objective.distillation.loss(
        answer, pictures, lambda logits: label_loss(logits, rows, ids, **options)
    )
