"""What `train` would do, found out without writing anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from vit21k.checkpoint.initialise import InitSource, initialise_from
from vit21k.distributed import World
from vit21k.models.cost import num_params, train_flops_per_image
from vit21k.optim.optimizers import build_optimizers, state_bytes
from vit21k.optim.schedule import LrSchedule
from vit21k.recipe.schema import Recipe
from vit21k.training.builders import (
    activation_bytes_of,
    build_schedule,
    device_batch_size_of,
    sampler_of,
)
from vit21k.training.checkpoints import Begin, find_begin
from vit21k.training.context import (
    Fork,
    RunOptions,
    SplitData,
    model_args_of,
    new_model,
    open_split_data,
    resolve_precision,
)
from vit21k.training.forecast import measure_images_per_second
from vit21k.training.objective import Objective, build_objective
from vit21k.training.reporter import Reporter
from vit21k.training.run import identity_of

_NUM_SAMPLES = 400
_BYTES_PER_VALUE = 4


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What a run would be.

    Attributes:
        data: Counts of the images and classes that were found.
        model: Its name and cost.
        groups: Parameter groups, a row each: ``optimizer``, ``num_tensors``, ``num_params``,
            ``weight_decay``, ``lr_multiplier``.
        frozen: Parameters that no group has.
        memory: Estimated bytes of one process, by what they are for, and in all.
        steps: Length and periods, and where a run that is there would be resumed.
        schedule: (update, learning rate) along the run.
        time: ``images_per_second``, ``measured``, ``seconds`` for what is left.
    """

    data: Mapping[str, Any]
    model: Mapping[str, Any]
    groups: Sequence[Mapping[str, Any]]
    frozen: int
    memory: Mapping[str, int]
    steps: Mapping[str, Any]
    schedule: Sequence[tuple[int, float]]
    time: Mapping[str, Any]


def dry_run(
    recipe: Recipe,
    options: RunOptions,
    reporter: Reporter,
    *,
    init: InitSource | None,
    fork: Fork | None = None,
    fresh: bool = False,
    images_per_second: float | None = None,
) -> DryRun:
    """Find out what `train_run` with the same arguments would do; write nothing.

    Args:
        recipe: What to train and how.
        options: Where; the run's folder is neither made nor locked.
        reporter: Reports what is found on the way.
        init: Weights to start from; they are loaded, to see whether they fit.
        fork: A checkpoint of another run to start from.
        fresh: Start over although there are checkpoints.
        images_per_second: Rate to compute with; None: four images are trained on, to measure it,
            without compiling anything.

    Raises:
        UsageError: Recipe, data and weights do not fit together.
        DataError: The manifests or the weights are missing or damaged, or the run that is there is
            another one.
    """
    run_dir = None if fresh else options.run_dir
    recipe = resolve_precision(recipe, options.device, World(), run_dir=run_dir, reporter=reporter)
    data = open_split_data(options.manifests, options.root, reporter.note)
    args = model_args_of(recipe, num_classes=len(data.classes))
    device = torch.device(options.device)
    sampler = sampler_of(recipe, data.train, World())
    schedule = build_schedule(recipe, sampler.steps_per_epoch)
    objective = build_objective(recipe, data.classes, device, reporter)
    begin = find_begin(
        options.run_dir,
        identity=identity_of(recipe, data, objective),
        total_steps=schedule.total_steps,
        init=init,
        args=args,
        fork=fork,
        fresh=fresh,
        reporter=reporter,
    )
    model = _model(recipe, data, args, objective, init, reporter, begin)
    optimizers = build_optimizers(model, recipe.optim)
    rate = images_per_second or _measured_rate(recipe, model, objective, device)
    steps = _steps(recipe, schedule, begin)
    num_images = (schedule.total_steps - steps["resumes_at"]) * recipe.data.global_batch_size
    return DryRun(
        data=_data(data),
        model=_cost(recipe, args),
        groups=[row for optimizer in optimizers for row in _groups(optimizer, recipe.optim.lr)],
        frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad),
        memory=_memory(recipe, options, args, model, optimizers),
        steps=steps,
        schedule=_schedule(schedule, recipe.optim.lr),
        time=_time(num_images, rate, is_measured=images_per_second is None),
    )


def _time(num_images: int, rate: float, *, is_measured: bool) -> dict[str, Any]:
    return {
        "images_per_second": rate,
        "measured": is_measured,
        "seconds": num_images / rate,
    }


def _model(
    recipe: Recipe,
    data: SplitData,
    args: Mapping[str, Any],
    objective: Objective,
    init: InitSource | None,
    reporter: Reporter,
    begin: Begin,
) -> nn.Module:
    """Return the model with the weights that it begins with."""
    model = new_model(recipe, num_classes=len(data.classes))
    objective.prepare(model)
    if begin.checkpoint is not None:
        model.load_state_dict(begin.checkpoint.model_tensors())
    elif init is not None:
        resize = recipe.model.pos_embed_resize
        reporter.initialised(
            initialise_from(model, init, args=args, classes=data.classes, pos_embed_mode=resize)
        )
    elif recipe.stage == "finetune":
        reporter.warn("fine-tuning needs first weights: name them with `--init`")
    return model


def _measured_rate(
    recipe: Recipe, model: nn.Module, objective: Objective, device: torch.device
) -> float:
    model = model.to(device).train()
    return measure_images_per_second(model, objective.loss, img_size=recipe.model.img_size)


def _cost(recipe: Recipe, args: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": recipe.model.name,
        "num_params": num_params(args),
        "flops_per_image": train_flops_per_image(args),
    }


def _data(data: SplitData) -> dict[str, Any]:
    return {
        "root": str(data.train.root),
        "num_train_images": len(data.train),
        "num_with_several_labels": data.train.num_multi_label,
        "num_val_images": len(data.val),
        "val_metrics_are_called": data.val_name,
        "num_classes": len(data.classes),
    }


def _groups(optimizer: Optimizer, lr: float) -> list[dict[str, Any]]:
    return [
        {
            "optimizer": type(optimizer).__name__,
            "num_tensors": len(group["params"]),
            "num_params": sum(param.numel() for param in group["params"]),
            "weight_decay": group["weight_decay"],
            "lr_multiplier": group["peak_lr"] / lr,
        }
        for group in optimizer.param_groups
    ]


def _memory(
    recipe: Recipe,
    options: RunOptions,
    args: Mapping[str, Any],
    model: nn.Module,
    optimizers: Sequence[Optimizer],
) -> dict[str, int]:
    """Estimate the memory of one process that holds the whole model, in bytes."""
    device_batch_size = device_batch_size_of(
        recipe, args, asked=options.device_batch_size, device=torch.device(options.device)
    )
    params = list(model.parameters())
    trained = [
        (state_bytes(optimizer), param.numel())
        for optimizer in optimizers
        for group in optimizer.param_groups
        for param in group["params"]
    ]
    parts_of_it = {
        "weights": sum(param.numel() for param in params) * _BYTES_PER_VALUE,
        "gradients": sum(size for _, size in trained) * _BYTES_PER_VALUE,
        "optimizer": sum(num_bytes * size for num_bytes, size in trained),
        "average": 0 if recipe.ema.decay is None else sum(p.numel() for p in params) * 4,
        "activations": activation_bytes_of(recipe, args) * device_batch_size,
    }
    return {
        "device_batch_size": device_batch_size,
        **parts_of_it,
        "total": sum(parts_of_it.values()),
    }


def _steps(recipe: Recipe, schedule: LrSchedule, begin: Begin) -> dict[str, Any]:
    found = begin.checkpoint
    return {
        "total_steps": schedule.total_steps,
        "steps_per_epoch": schedule.steps_per_epoch,
        "epochs": schedule.total_steps / schedule.steps_per_epoch,
        "global_batch_size": recipe.data.global_batch_size,
        "resumes_at": 0 if found is None else found.step,
    }


def _schedule(schedule: LrSchedule, lr: float) -> list[tuple[int, float]]:
    last = schedule.total_steps - 1
    count = min(_NUM_SAMPLES, schedule.total_steps)
    steps = sorted({round(index * last / max(1, count - 1)) for index in range(count)})
    return [(step, lr * schedule(step)) for step in steps]
