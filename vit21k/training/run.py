"""Recipe -> objects -> loop: the one place that puts a run together.

Layout of a run::

    runs/<name>/
      recipe.yaml          the resolved recipe, every field spelled out
      run.json             what else the run is: its length, its model's size, its device
      metrics.jsonl        a line every few steps, and a line an evaluation
      checkpoints/latest   name of the newest checkpoint
      checkpoints/best     name of the best one, if the recipe watches a metric; best-ema
      checkpoints/step-00000100/   config.json, model.safetensors, optimizer.safetensors, state.json
"""

import signal
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import nn

from vit21k.checkpoint.background import BackgroundWriter
from vit21k.checkpoint.initialise import InitSource, initialise_from
from vit21k.checkpoint.store import Checkpoint
from vit21k.config.schema import Recipe
from vit21k.data.sampler import StepSampler
from vit21k.distributed import init_world
from vit21k.errors import InterruptedRunError, TerminatedError, UsageError, Vit21kError
from vit21k.lock import locked
from vit21k.training import loss_parts, parts
from vit21k.training.data_parts import sampler_of
from vit21k.training.forecast import (
    forecast,
    measure_images_per_second,
)
from vit21k.training.hooks import hooks_of, train_loader_of
from vit21k.training.learner import Learner, learner_of
from vit21k.training.loop import Progress, train
from vit21k.training.memory_parts import device_batch_size_of, whole_pairs
from vit21k.training.resume import find_resumable, restore
from vit21k.training.setup import NOBODY, Listener, Place, Setup
from vit21k.training.split_data import open_split_data
from vit21k.training.staged_loader import StagedLoader
from vit21k.training.step_setup import prepare_model
from vit21k.training.stop_signal import StopSignal
from vit21k.training.watching import watching


def train_run(
    recipe: Recipe,
    place: Place,
    listener: Listener,
    *,
    init: str | InitSource | None,
    fresh: bool = False,
) -> None:
    """Run *recipe* from its newest checkpoint, or from the start, to its end.

    Args:
        recipe: What to train and how.
        place: Where.
        listener: Hears about it.
        init: Weights to start from: what `load_model` takes, or more of it; not read on a resume.
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
            hears = listener if world.rank == 0 else NOBODY
            recipe = parts.resolve_precision(
                recipe,
                place.device,
                world,
                run_dir=None if fresh else place.run_dir,
                listener=hears,
            )
            data = open_split_data(place.manifests, place.root, hears.note)
            args = parts.model_args_of(recipe, num_classes=len(data.classes))
            setup = Setup(
                recipe=recipe,
                place=place,
                listener=hears,
                world=world,
                data=data,
                args=args,
                objective=loss_parts.objective_of(
                    recipe, data.classes, torch.device(place.device), warn=hears.warn
                ),
            )
            if not _train(setup, stop, init=init, fresh=fresh):
                raise _stopped(stop, place.run_dir)
    finally:
        world.close()


def _train(setup: Setup, stop: StopSignal, *, init: str | InitSource | None, fresh: bool) -> bool:
    """Put the parts together and train; return whether the run came to its end."""
    recipe, world = setup.recipe, setup.world
    sampler = sampler_of(recipe, setup.data.train, world)
    plan = parts.plan_of(recipe, sampler.steps_per_epoch)
    checkpoint = None if fresh else _resumable(setup)
    device_batch_size = _device_batch_size(setup)
    model = _model(setup, init, checkpoint)
    learner = learner_of(setup, prepare_model(setup, model, device_batch_size=device_batch_size))
    progress = restore(checkpoint, learner) if checkpoint else Progress()

    if steps_left := plan.total_steps - progress.step:
        _tell_forecast(setup, learner, steps_left * plan.global_batch_size)

    loader = train_loader_of(setup, sampler, device_batch_size)
    # The writer leaves last: whatever happens, what is being written is finished.
    with (
        BackgroundWriter() as writer,
        closing(loader),
        watching(setup, plan, progress, learner.model) as watchers,
    ):
        hooks = hooks_of(
            setup,
            learner,
            loader=loader,
            sampler=sampler,
            watching=watchers,
            device_batch_size=device_batch_size,
            stop=stop,
            writer=writer,
        )
        finished = train(
            plan,
            progress,
            model=learner.model,
            optimizers=learner.optimizers,
            hooks=hooks,
            world=world,
            scaler=learner.scaler,
        )
    world.barrier()  # nobody leaves before the last checkpoint is written
    _tell_what_was_left_out(setup, progress, sampler, loader)
    return finished


def _tell_forecast(setup: Setup, learner: Learner, num_images: int) -> None:
    """Measure a step, and tell how long so many pictures take."""
    loss_of = partial(
        loss_parts.loss_of, recipe=setup.recipe, device=setup.device, objective=setup.objective
    )
    img_size = setup.recipe.model.img_size
    rate = measure_images_per_second(learner.model, loss_of, img_size=img_size)
    setup.listener.forecast(forecast(setup.args, num_images=num_images, images_per_second=rate))


def _tell_what_was_left_out(
    setup: Setup, progress: Progress, sampler: StepSampler, loader: StagedLoader
) -> None:
    listener = setup.listener
    if progress.skipped_updates:
        listener.note(f"{progress.skipped_updates:,} updates were left out: float16 overflowed")
    if num_left_out := sampler.num_before(progress.step) - progress.images_seen:
        listener.warn(f"{num_left_out:,} pictures could not be decoded and were left out")
    elif loader.num_skipped:
        listener.warn(f"{loader.num_skipped:,} pictures could not be decoded and were replaced")


def _stopped(stop: StopSignal, run_dir: Path) -> Vit21kError:
    kind = InterruptedRunError if stop.received is signal.SIGINT else TerminatedError
    return kind(
        f"stopped by a signal; the state is saved in `{run_dir}`",
        hint="the same command goes on from there",
    )


def _resumable(setup: Setup) -> Checkpoint | None:
    checkpoint = find_resumable(
        setup.place.run_dir,
        recipe=parts.identity_of(setup.recipe),
        train_manifest=setup.data.fingerprint,
        objective=setup.objective.fingerprints,
        warn=setup.listener.warn,
    )
    if checkpoint:
        setup.listener.note(f"going on from step {checkpoint.step:,}")
    return checkpoint


def _model(setup: Setup, init: str | InitSource | None, checkpoint: Checkpoint | None) -> nn.Module:
    recipe, classes = setup.recipe, setup.data.classes
    model = parts.new_model(recipe, num_classes=len(classes))
    setup.objective.prepare(model)
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


def _device_batch_size(setup: Setup) -> int:
    asked, wanted = setup.place.device_batch_size, setup.recipe.data.device_batch_size
    fitting = device_batch_size_of(setup.recipe, setup.args, asked=asked, device=setup.device)
    if asked is None and fitting < whole_pairs(setup.recipe, wanted):
        setup.listener.note(
            f"{fitting} images in one forward pass, not {wanted}: more do not fit into memory "
            f"(the global batch stays {setup.recipe.data.global_batch_size:,})"
        )
    return fitting
