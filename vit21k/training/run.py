"""Recipe -> objects -> loop: the one place that puts a run together.

Layout of a run::

    runs/<name>/
      recipe.yaml          the resolved recipe, every field spelled out
      metrics.jsonl        a line every few steps, and a line an evaluation
      checkpoints/latest   name of the newest checkpoint
      checkpoints/step-00000100/   config.json, model.safetensors, optimizer.safetensors, state.json
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vit21k.atomic import write_atomic
from vit21k.checkpoint.initialise import InitReport, initialise_from
from vit21k.checkpoint.optimizer_state import optimizers_to_tensors, tensors_to_optimizers
from vit21k.checkpoint.store import Checkpoint, find_latest, save_checkpoint
from vit21k.config.recipe import dump_recipe
from vit21k.config.schema import Recipe
from vit21k.data.loader import Batch, EvalLoader, TrainLoader
from vit21k.distributed import World, init_world
from vit21k.errors import CheckpointError, UsageError
from vit21k.inference.evaluate import evaluate
from vit21k.lock import locked
from vit21k.training import parts
from vit21k.training.forecast import (
    Forecast,
    fit_device_batch_size,
    forecast,
    measure_images_per_second,
)
from vit21k.training.loop import Hooks, Plan, Progress, train
from vit21k.training.optim import build_optimizers
from vit21k.training.run_log import RunLog
from vit21k.training.split_data import SplitData, open_split_data
from vit21k.training.stop_signal import StopSignal

_TRIAL_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run happens.  Nothing of it changes what is learnt, but for rounding.

    Attributes:
        manifests: Folder of train.parquet and val.parquet.
        root: Image root, if the tree has moved since it was hashed.
        run_dir: What the run writes.
        device: As torch names it: "cpu", "cuda", ...
        num_workers: Threads that decode, for each process.
        device_batch_size: Pictures in one forward pass; None: as the recipe says, if they fit.
    """

    manifests: Path
    root: Path | None
    run_dir: Path
    device: str
    num_workers: int
    device_batch_size: int | None


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who hears what the run has to say; called on the first process only."""

    note: Callable[[str], None]
    warn: Callable[[str], None]
    forecast: Callable[[Forecast], None]
    initialised: Callable[[InitReport], None]
    line: Callable[[Mapping[str, Any]], None]


def train_run(
    recipe: Recipe, place: Place, listener: Listener, *, init: str | None, fresh: bool = False
) -> bool:
    """Run *recipe* from its newest checkpoint, or from the start, to its end.

    Args:
        recipe: What to train and how.
        place: Where.
        listener: Hears about it.
        init: Pretrained run, checkpoint or model folder to start from; not read on a resume.
        fresh: Start over although there are checkpoints; they are left alone until replaced.

    Returns:
        Whether the run is finished; False if a signal ended it, after its state was saved.

    Raises:
        UsageError: Recipe, data and processes do not fit together.
        CheckpointError: The checkpoints are damaged or belong to another run.
        NonFiniteLossError: Training diverged.
    """
    world = init_world(place.device)
    lock = locked(place.run_dir, command="train") if world.rank == 0 else nullcontext()
    try:
        with lock, StopSignal() as stop:
            return _train(recipe, place, listener, world, stop, init=init, fresh=fresh)
    finally:
        world.close()


def _train(
    recipe: Recipe,
    place: Place,
    listener: Listener,
    world: World,
    stop: StopSignal,
    *,
    init: str | None,
    fresh: bool,
) -> bool:
    data = open_split_data(place.manifests, place.root)
    args = parts.model_args_of(recipe, num_classes=len(data.classes))
    sampler = parts.sampler_of(recipe, len(data.train), world)
    plan = parts.plan_of(recipe, sampler.steps_per_epoch)
    checkpoint = None if fresh else _resumable(recipe, place, data, listener)
    model = _model(recipe, args, data, init, checkpoint, listener).to(place.device).train()
    optimizers = build_optimizers(model, parts.optim_plan_of(recipe))
    progress = Progress()
    if checkpoint:
        tensors_to_optimizers(checkpoint.optimizer_tensors(), model, optimizers)
        progress = Progress(**checkpoint.state["progress"])

    device_batch_size = _device_batch_size(recipe, place, args, listener)
    loss_of = partial(parts.loss_of, recipe=recipe, device=torch.device(place.device))
    if progress.step < plan.total_steps:
        trial = partial(_trial_step, model, loss_of, recipe.model.img_size)
        listener.forecast(_forecast(args, plan, progress, trial))
    loader = TrainLoader(
        data.train,
        sampler,
        parts.train_transform_of(recipe),
        device_batch_size=device_batch_size,
        num_workers=place.num_workers,
        seed=recipe.seed,
        on_bad_image=recipe.data.on_bad_image,
    )
    log = RunLog(
        place.run_dir,
        resumed_step=progress.step,
        resumed_images=progress.images_seen,
        total_steps=plan.total_steps,
        every_steps=plan.log_every_steps,
        peak_lr=recipe.optim.lr,
        tell=listener.line if world.rank == 0 else None,
    )
    hooks = Hooks(
        micro_batches=loader.micro_batches,
        loss_of=loss_of,
        log_step=log.log_step,
        evaluate=partial(_evaluate, recipe, place, data, world, device_batch_size),
        log_evaluation=log.log_evaluation,
        save=partial(_save, recipe, place, data, args, world, model, optimizers),
        should_stop=lambda: stop.received is not None,
    )
    try:
        return train(plan, progress, model=model, optimizers=optimizers, hooks=hooks, world=world)
    finally:
        loader.close()
        log.close()
        _report_skipped(loader, listener)


def _resumable(
    recipe: Recipe, place: Place, data: SplitData, listener: Listener
) -> Checkpoint | None:
    """Return the newest intact checkpoint of the run, if it has any.

    Raises:
        CheckpointError: It is that of another recipe or other data.
    """
    checkpoint, warnings = find_latest(place.run_dir)
    for warning in warnings:
        listener.warn(warning)
    if checkpoint is None:
        return None
    mine, its = parts.identity_of(recipe), checkpoint.state["recipe"]
    if different := _differences(its, mine):
        raise CheckpointError(
            f"`{place.run_dir}` holds a run of another recipe: {'; '.join(different)}",
            hint="give another --run-dir, or start over with --fresh",
        )
    if checkpoint.state["train_manifest"] != data.fingerprint:
        raise CheckpointError(
            f"`{place.run_dir}` holds a run on another train.parquet than that of "
            f"`{place.manifests}`",
            hint="give its --manifests, another --run-dir, or start over with --fresh",
        )
    listener.note(f"going on from step {checkpoint.state['progress']['step']:,}")
    return checkpoint


def _differences(its: Mapping[str, Any], mine: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return ``field: theirs, not mine`` for every field that differs."""
    lines = []
    for name in sorted({*its, *mine}):
        old, new = its.get(name), mine.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name} is {old}, not {new}")
    return lines


def _model(
    recipe: Recipe,
    args: Mapping[str, Any],
    data: SplitData,
    init: str | None,
    checkpoint: Checkpoint | None,
    listener: Listener,
) -> nn.Module:
    model = parts.new_model(recipe, num_classes=len(data.classes))
    if checkpoint:
        model.load_state_dict(checkpoint.model_tensors())
    elif init is not None:
        report = initialise_from(
            model,
            init,
            args=args,
            classes=data.classes,
            pos_embed_mode=recipe.model.pos_embed_resize,
        )
        listener.initialised(report)
    elif recipe.stage == "finetune":
        raise UsageError(
            "fine-tuning starts from a pretrained model, and none was given",
            hint="name one with --init RUN, for example `--init runs/pretrain_l16_in21k`",
        )
    return model


def _device_batch_size(
    recipe: Recipe, place: Place, args: Mapping[str, Any], listener: Listener
) -> int:
    if place.device_batch_size is not None:
        return place.device_batch_size
    wanted = recipe.data.device_batch_size
    bytes_per_value = 2 if recipe.precision == "bf16" else 4
    fitting = fit_device_batch_size(
        args, wanted, device=torch.device(place.device), bytes_per_value=bytes_per_value
    )
    if fitting < wanted:
        listener.note(
            f"{fitting} images in one forward pass, not {wanted}: more do not fit into memory "
            f"(the global batch stays {recipe.data.global_batch_size:,})"
        )
    return fitting


def _forecast(
    args: Mapping[str, Any], plan: Plan, progress: Progress, trial: Callable[[int], None]
) -> Forecast:
    return forecast(
        args,
        num_steps=plan.total_steps - progress.step,
        global_batch_size=plan.global_batch_size,
        images_per_second=measure_images_per_second(trial, num_images=_TRIAL_IMAGES),
    )


def _trial_step(
    model: nn.Module, loss_of: Callable[[nn.Module, Batch], Tensor], img_size: int, num_images: int
) -> None:
    """Train on grey images and forget it: what a picture costs, without reading any."""
    batch = Batch(
        images_BCHW=torch.zeros(num_images, 3, img_size, img_size, dtype=torch.uint8),
        label_rows_L=torch.arange(num_images),
        label_ids_L=torch.zeros(num_images, dtype=torch.int64),
        rows_B=torch.zeros(num_images, dtype=torch.int64),
    )
    loss_of(model, batch).backward()
    model.zero_grad(set_to_none=True)


def _evaluate(
    recipe: Recipe,
    place: Place,
    data: SplitData,
    world: World,
    device_batch_size: int,
    model: nn.Module,
) -> dict[str, float]:
    loader = EvalLoader(
        data.val,
        parts.eval_transform_of(recipe),
        device_batch_size=device_batch_size,
        num_workers=place.num_workers,
        rank=world.rank,
        world_size=world.world_size,
        on_bad_image=recipe.data.on_bad_image,
    )
    metrics = evaluate(
        model,
        loader,
        loss_kind=recipe.loss.kind,
        mean=recipe.data.mean,
        std=recipe.data.std,
        device=torch.device(place.device),
        world=world,
    )
    return {f"{data.val_name}/{name}": value for name, value in metrics.items()}


def _save(
    recipe: Recipe,
    place: Place,
    data: SplitData,
    args: Mapping[str, Any],
    world: World,
    model: nn.Module,
    optimizers: list[Optimizer],
    progress: Progress,
) -> None:
    if world.rank == 0:
        write_atomic(place.run_dir / "recipe.yaml", dump_recipe(recipe).encode())
        save_checkpoint(
            place.run_dir,
            progress.step,
            model_state=model.state_dict(),
            model_config=parts.model_config_of(recipe, args, data.classes),
            optimizer_state=optimizers_to_tensors(model, optimizers),
            state={
                "progress": asdict(progress),
                "recipe": parts.identity_of(recipe),
                "train_manifest": data.fingerprint,
            },
            keep_last=recipe.run.keep_last,
        )
    world.barrier()


def _report_skipped(loader: TrainLoader, listener: Listener) -> None:
    if loader.num_skipped:
        listener.warn(f"{loader.num_skipped:,} pictures could not be decoded and were left out")
