"""Recipe -> objects -> loop: the one place that puts a run together.

Layout of a run::

    runs/<name>/
      recipe.yaml          the resolved recipe, every field spelled out
      metrics.jsonl        a line every few steps, and a line an evaluation
      checkpoints/latest   name of the newest checkpoint
      checkpoints/step-00000100/   config.json, model.safetensors, optimizer.safetensors, state.json
"""

import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from vit21k.atomic import write_atomic
from vit21k.checkpoint.initialise import InitReport, initialise_from
from vit21k.checkpoint.optimizer_state import optimizers_to_tensors, tensors_to_optimizers
from vit21k.checkpoint.store import Checkpoint, save_checkpoint
from vit21k.config.recipe import dump_recipe
from vit21k.config.schema import Recipe
from vit21k.data.loader import EvalLoader, TrainLoader
from vit21k.data.sampler import StepSampler
from vit21k.distributed import World, init_world
from vit21k.errors import (
    InterruptedRunError,
    TerminatedError,
    UsageError,
    Vit21kError,
)
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
from vit21k.training.resume import find_resumable
from vit21k.training.run_log import RunLog
from vit21k.training.split_data import SplitData, open_split_data
from vit21k.training.stop_signal import StopSignal


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


def _hear_nothing(_message: object) -> None:
    pass


_NOBODY = Listener(
    note=_hear_nothing,
    warn=_hear_nothing,
    forecast=_hear_nothing,
    initialised=_hear_nothing,
    line=_hear_nothing,
)


def train_run(
    recipe: Recipe, place: Place, listener: Listener, *, init: str | None, fresh: bool = False
) -> None:
    """Run *recipe* from its newest checkpoint, or from the start, to its end.

    Args:
        recipe: What to train and how.
        place: Where.
        listener: Hears about it.
        init: Pretrained run, checkpoint or model folder to start from; not read on a resume.
        fresh: Start over although there are checkpoints; they are left alone until replaced.

    Raises:
        TerminatedError: SIGTERM ended it, after its state was saved.
        InterruptedRunError: Ctrl-C did.
        UsageError: Recipe, data and processes do not fit together.
        CheckpointError: The checkpoints are damaged or belong to another run.
        NonFiniteLossError: Training diverged.
    """
    world = init_world(place.device)
    lock = locked(place.run_dir, command="train") if world.rank == 0 else nullcontext()
    try:
        with lock, StopSignal() as stop:
            data = open_split_data(place.manifests, place.root)
            args = parts.model_args_of(recipe, num_classes=len(data.classes))
            setup = _Setup(
                recipe=recipe,
                place=place,
                listener=listener if world.rank == 0 else _NOBODY,
                world=world,
                data=data,
                args=args,
            )
            if not _train(setup, stop, init=init, fresh=fresh):
                raise _stopped(stop, place.run_dir)
    finally:
        world.close()


@dataclass(frozen=True, kw_only=True)
class _Setup:
    """What every part of a run is made from."""

    recipe: Recipe
    place: Place
    listener: Listener
    world: World
    data: SplitData
    args: Mapping[str, Any]

    @property
    def device(self) -> torch.device:
        return torch.device(self.place.device)


def _train(setup: _Setup, stop: StopSignal, *, init: str | None, fresh: bool) -> bool:
    """Put the parts together and train; return whether the run came to its end."""
    recipe, listener, world = setup.recipe, setup.listener, setup.world
    sampler = parts.sampler_of(recipe, len(setup.data.train), world)
    plan = parts.plan_of(recipe, sampler.steps_per_epoch)
    checkpoint = None if fresh else _resumable(setup)
    model = _model(setup, init, checkpoint).to(setup.device).train()
    optimizers = build_optimizers(model, parts.optim_plan_of(recipe))
    progress = Progress()
    if checkpoint:
        tensors_to_optimizers(checkpoint.optimizer_tensors(), model, optimizers)
        progress = Progress(**checkpoint.state["progress"])

    loss_of = partial(parts.loss_of, recipe=recipe, device=setup.device)
    device_batch_size = _device_batch_size(setup)
    if steps_left := plan.total_steps - progress.step:
        rate = measure_images_per_second(model, loss_of, img_size=recipe.model.img_size)
        num_images = steps_left * plan.global_batch_size
        listener.forecast(forecast(setup.args, num_images=num_images, images_per_second=rate))

    loader = _train_loader(setup, sampler, device_batch_size)
    log = _run_log(setup, plan, progress)
    hooks = Hooks(
        micro_batches=loader.micro_batches,
        loss_of=loss_of,
        log_step=partial(_log_step, log, loader),
        evaluate=partial(_evaluate, setup, device_batch_size),
        log_evaluation=log.log_evaluation,
        save=partial(_save, setup, model, optimizers),
        should_stop=lambda: stop.received is not None,
    )
    with closing(loader), closing(log):
        finished = train(
            plan, progress, model=model, optimizers=optimizers, hooks=hooks, world=world
        )
    if loader.num_skipped:
        listener.warn(f"{loader.num_skipped:,} pictures could not be decoded and were left out")
    return finished


def _train_loader(setup: _Setup, sampler: StepSampler, device_batch_size: int) -> TrainLoader:
    return TrainLoader(
        setup.data.train,
        sampler,
        parts.train_transform_of(setup.recipe),
        device_batch_size=device_batch_size,
        num_workers=setup.place.num_workers,
        seed=setup.recipe.seed,
        on_bad_image=setup.recipe.data.on_bad_image,
    )


def _run_log(setup: _Setup, plan: Plan, progress: Progress) -> RunLog:
    return RunLog(
        setup.place.run_dir,
        resumed_step=progress.step,
        resumed_images=progress.images_seen,
        total_steps=plan.total_steps,
        every_steps=plan.log_every_steps,
        peak_lr=setup.recipe.optim.lr,
        tell=setup.listener.line if setup.world.rank == 0 else None,
    )


def _log_step(
    log: RunLog, loader: TrainLoader, progress: Progress, metrics: Mapping[str, float]
) -> None:
    log.log_step(progress, {**metrics, "num_skipped": loader.num_skipped})


def _stopped(stop: StopSignal, run_dir: Path) -> Vit21kError:
    kind = InterruptedRunError if stop.received is signal.SIGINT else TerminatedError
    return kind(
        f"stopped by a signal; the state is saved in `{run_dir}`",
        hint="the same command goes on from there",
    )


def _resumable(setup: _Setup) -> Checkpoint | None:
    checkpoint = find_resumable(
        setup.place.run_dir,
        recipe=parts.identity_of(setup.recipe),
        train_manifest=setup.data.fingerprint,
        warn=setup.listener.warn,
    )
    if checkpoint:
        setup.listener.note(f"going on from step {checkpoint.step:,}")
    return checkpoint


def _model(setup: _Setup, init: str | None, checkpoint: Checkpoint | None) -> nn.Module:
    recipe, classes = setup.recipe, setup.data.classes
    model = parts.new_model(recipe, num_classes=len(classes))
    if checkpoint:
        model.load_state_dict(checkpoint.model_tensors())
    elif init is not None:
        resize = recipe.model.pos_embed_resize
        report = initialise_from(
            model, init, args=setup.args, classes=classes, pos_embed_mode=resize
        )
        setup.listener.initialised(report)
    elif recipe.stage == "finetune":
        raise UsageError(
            "fine-tuning starts from a pretrained model, and none was given",
            hint="name one with --init RUN, for example `--init runs/pretrain_l16_in21k`",
        )
    return model


def _device_batch_size(setup: _Setup) -> int:
    if setup.place.device_batch_size is not None:
        return setup.place.device_batch_size
    wanted = setup.recipe.data.device_batch_size
    bytes_per_value = 2 if setup.recipe.precision == "bf16" else 4
    fitting = fit_device_batch_size(
        setup.args, wanted, device=setup.device, bytes_per_value=bytes_per_value
    )
    if fitting < wanted:
        setup.listener.note(
            f"{fitting} images in one forward pass, not {wanted}: more do not fit into memory "
            f"(the global batch stays {setup.recipe.data.global_batch_size:,})"
        )
    return fitting


def _evaluate(setup: _Setup, device_batch_size: int, model: nn.Module) -> dict[str, float]:
    recipe = setup.recipe
    loader = EvalLoader(
        setup.data.val,
        parts.eval_transform_of(recipe),
        device_batch_size=device_batch_size,
        num_workers=setup.place.num_workers,
        rank=setup.world.rank,
        world_size=setup.world.world_size,
        on_bad_image=recipe.data.on_bad_image,
    )
    metrics = evaluate(
        model,
        loader,
        loss_kind=recipe.loss.kind,
        mean=recipe.data.mean,
        std=recipe.data.std,
        device=setup.device,
        world=setup.world,
        precision=recipe.precision,
    )
    return {f"{setup.data.val_name}/{name}": value for name, value in metrics.items()}


def _save(
    setup: _Setup, model: nn.Module, optimizers: Sequence[Optimizer], progress: Progress
) -> None:
    recipe, run_dir = setup.recipe, setup.place.run_dir
    if setup.world.rank == 0:
        write_atomic(run_dir / "recipe.yaml", dump_recipe(recipe).encode())
        save_checkpoint(
            run_dir,
            progress.step,
            model_state=model.state_dict(),
            model_config=parts.model_config_of(recipe, setup.args, setup.data.classes),
            optimizer_state=optimizers_to_tensors(model, optimizers),
            state={
                "progress": asdict(progress),
                "recipe": parts.identity_of(recipe),
                "train_manifest": setup.data.fingerprint,
            },
            keep_last=recipe.run.keep_last,
        )
    setup.world.barrier()
