"""What `train` would do, without writing anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from vit21k.checkpoint.initialise import InitSource
from vit21k.distributed import World
from vit21k.models.cost import num_params, train_flops_per_image
from vit21k.optim.optimizers import build_optimizers, state_bytes
from vit21k.optim.schedule import LrSchedule
from vit21k.recipe.schema import Recipe
from vit21k.training.builders import activation_bytes_of, device_batch_size_of
from vit21k.training.context import Fork, RunContext, RunOptions, SplitData, resolve_precision
from vit21k.training.forecast import measure_images_per_second
from vit21k.training.reporter import Reporter
from vit21k.training.run import find_start, open_run

_NUM_SAMPLES = 400
_BYTES_PER_VALUE = 4


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """The facts of a run.

    Attributes:
        data: Counts of images and classes.
        model: Its name and cost.
        groups: Parameter groups, a row each: ``optimizer``, ``num_tensors``, ``num_params``,
            ``weight_decay``, ``lr_multiplier``.
        frozen: Number of parameters in no group.
        memory: Estimated bytes of one process, by purpose, and in all.
        steps: Length, and the step from which an existing run would resume.
        schedule: (update, learning rate) along the run.
        time: ``images_per_second``, ``measured``, ``seconds`` for the rest of the run.
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
    """Return what `train_run` with the same arguments would do; the run is neither made nor locked.

    The weights of *init* are loaded, to check that they fit.  *images_per_second* is used for the
    estimate of the time; None: the rate of a step of four images, without compiling anything.

    Raises:
        UsageError: Recipe, data and weights do not fit together.
        DataError: The manifests or the weights are missing or damaged, or there is another run.
    """
    run_dir = None if fresh else options.run_dir
    recipe = resolve_precision(recipe, options.device, World(), run_dir=run_dir, reporter=reporter)
    run = open_run(recipe, options, reporter, World())
    start = find_start(run, init=init, fork=fork, fresh=fresh, needs_init=False)
    model, first = start.model, 0 if start.checkpoint is None else start.checkpoint.step
    optimizers = build_optimizers(model, recipe.optim)
    rate = images_per_second or measure_images_per_second(
        model.to(run.device).train(), run.objective.loss, img_size=recipe.model.img_size
    )
    num_images = (run.schedule.total_steps - first) * recipe.data.global_batch_size
    return DryRun(
        data=_data(run.data),
        model={
            "name": recipe.model.name,
            "num_params": num_params(run.args),
            "flops_per_image": train_flops_per_image(run.args),
        },
        groups=[row for optimizer in optimizers for row in _groups(optimizer, recipe.optim.lr)],
        frozen=sum(p.numel() for p in model.parameters() if not p.requires_grad),
        memory=_memory(run, model, optimizers),
        steps={**_steps(run), "resumes_at": first},
        schedule=_samples(run.schedule, recipe.optim.lr),
        time={
            "images_per_second": rate,
            "measured": images_per_second is None,
            "seconds": num_images / rate,
        },
    )


def _data(data: SplitData) -> dict[str, Any]:
    return {
        "root": str(data.train.root),
        "num_train_images": len(data.train),
        "num_with_several_labels": data.train.num_multi_label,
        "num_val_images": len(data.val),
        "val_metrics_are_called": data.val_name,
        "num_classes": len(data.classes),
    }


def _steps(run: RunContext) -> dict[str, Any]:
    schedule = run.schedule
    return {
        "total_steps": schedule.total_steps,
        "steps_per_epoch": schedule.steps_per_epoch,
        "epochs": schedule.total_steps / schedule.steps_per_epoch,
        "global_batch_size": run.recipe.data.global_batch_size,
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


def _memory(run: RunContext, model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, int]:
    """Estimate the memory of one process with all weights, in bytes."""
    recipe, asked = run.recipe, run.options.device_batch_size
    device_batch_size = device_batch_size_of(recipe, run.args, asked=asked, device=run.device)
    activations = activation_bytes_of(run.args, recipe.products_in, recipe.step)
    weights = sum(param.numel() for param in model.parameters()) * _BYTES_PER_VALUE
    trained = [
        (state_bytes(optimizer), param.numel())
        for optimizer in optimizers
        for group in optimizer.param_groups
        for param in group["params"]
    ]
    purposes = {
        "weights": weights,
        "gradients": sum(size for _, size in trained) * _BYTES_PER_VALUE,
        "optimizer": sum(num_bytes * size for num_bytes, size in trained),
        "average": 0 if recipe.ema.decay is None else weights,
        "activations": activations * device_batch_size,
    }
    return {
        "device_batch_size": device_batch_size,
        **purposes,
        "total": sum(purposes.values()),
    }


def _samples(schedule: LrSchedule, lr: float) -> list[tuple[int, float]]:
    last = schedule.total_steps - 1
    count = min(_NUM_SAMPLES, schedule.total_steps)
    steps = sorted({round(index * last / max(1, count - 1)) for index in range(count)})
    return [(step, lr * schedule(step)) for step in steps]
