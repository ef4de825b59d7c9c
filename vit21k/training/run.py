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
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vit21k import __version__
from vit21k.atomic import write_atomic
from vit21k.checkpoint.initialise import InitReport, InitSource, initialise_from, origin_of
from vit21k.checkpoint.store import BackgroundWriter, Checkpoint, set_run_aside
from vit21k.data.sampler import StepSampler
from vit21k.distributed import World, explaining_lost_peers, init_world
from vit21k.errors import (
    InterruptedRunError,
    LostPeerError,
    TerminatedError,
    UsageError,
    Vit21kError,
)
from vit21k.lock import locked
from vit21k.recipe.load import dump_recipe
from vit21k.recipe.schema import Recipe
from vit21k.training import builders, context
from vit21k.training.builders import Objective, device_batch_size_of, sampler_of, whole_pairs
from vit21k.training.checkpoints import (
    Identity,
    check_same_start,
    find_begin,
    restore,
    short_digest,
)
from vit21k.training.context import (
    NOBODY,
    Fork,
    Listener,
    Place,
    RunContext,
    SplitData,
    TrainState,
    learner_of,
    open_split_data,
)
from vit21k.training.forecast import forecast, measure_images_per_second
from vit21k.training.hooks import StopSignal, hooks_of, saver_of, train_loader_of
from vit21k.training.log import explaining_divergence, norm_of, watching
from vit21k.training.loop import Hooks, Plan, Progress, train
from vit21k.training.step import TRIALS_FILE, prepare_model


def train_run(
    recipe: Recipe,
    place: Place,
    listener: Listener,
    *,
    init: str | InitSource | None,
    fork: Fork | None = None,
    fresh: bool = False,
) -> None:
    """Run *recipe* from its newest checkpoint, or from the start, to its end.

    Args:
        recipe: What to train and how.
        place: Where.
        listener: Hears about it.
        init: Weights to start from: what `load_model` takes, or more of it; on a resume, what the
            run must have begun with.
        fork: A checkpoint of another run to start from, with its optimizer and step; on a resume,
            what the run must have begun with.
        fresh: Start over although there are checkpoints; the run that was there is set aside.

    Raises:
        TerminatedError: SIGTERM ended it, after its state was saved.
        InterruptedRunError: Ctrl-C did.
        UsageError: Recipe, data and processes do not fit together, or the processes do not begin
            with the same state.
        CheckpointError: The checkpoints are damaged or belong to another run.
        DataError: Images are bad or gone; the state was saved.
        NonFiniteLossError: Training diverged.
        LostPeerError: Another process has ended.
    """
    if init is not None and fork is not None:
        raise UsageError("--init and --resume-from both say what to begin with; give one")
    world = init_world(place.device)
    try:
        with explaining_lost_peers(world), ExitStack() as stack:
            with world.in_agreement():
                if world.rank == 0:
                    stack.enter_context(locked(place.run_dir, command="train"))
                stop = stack.enter_context(StopSignal())
            hears = listener if world.rank == 0 else NOBODY
            recipe = context.resolve_precision(
                recipe,
                place.device,
                world,
                run_dir=None if fresh else place.run_dir,
                listener=hears,
            )
            with world.in_agreement():
                setup = _setup(recipe, place, hears, world)
            if not _train(setup, stop, init=init, fork=fork, fresh=fresh):
                raise _stopped(world, stop, place.run_dir)
    finally:
        world.close()


def _setup(recipe: Recipe, place: Place, hears: Listener, world: World) -> RunContext:
    data = open_split_data(place.manifests, place.root, hears.note)
    return RunContext(
        recipe=recipe,
        place=place,
        listener=hears,
        world=world,
        data=data,
        args=context.model_args_of(recipe, num_classes=len(data.classes)),
        objective=builders.objective_of(
            recipe, data.classes, torch.device(place.device), warn=hears.warn
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What a run starts from.

    Attributes:
        sampler: The order of its images.
        plan: Its length and periods.
        model: With its first weights, or those of *checkpoint*; on the CPU.
        identity: What every checkpoint says of the run.
        checkpoint: Of this run, or of the one that it is a fork of; None: it begins.
        is_fork: Whether *checkpoint* is another run's.
    """

    sampler: StepSampler
    plan: Plan
    model: nn.Module
    identity: Mapping[str, Any]
    checkpoint: Checkpoint | None
    is_fork: bool


def _start(
    setup: RunContext, *, init: str | InitSource | None, fork: Fork | None, fresh: bool
) -> _Start:
    """Find out what the run starts from; no process waits for another here."""
    recipe, run_dir = setup.recipe, setup.place.run_dir
    sampler = sampler_of(recipe, setup.data.train, setup.world)
    plan = context.plan_of(recipe, sampler.steps_per_epoch)
    identity = identity_of(recipe, setup.data, setup.objective)
    begin = find_begin(
        run_dir,
        identity=identity,
        total_steps=plan.total_steps,
        init_origin=None if init is None else partial(origin_of, init, setup.args),
        fork=fork,
        fresh=fresh,
        warn=setup.listener.warn,
    )
    model, report = _model(setup, init, begin.checkpoint)
    origin = begin.origin if report is None else report.origin
    if fresh and setup.world.rank == 0 and (kept := set_run_aside(run_dir)):
        setup.listener.note(f"starting over; the run that was here is kept in `{kept}`")
    return _Start(
        sampler=sampler,
        plan=plan,
        model=model,
        identity={**asdict(identity), "origin": origin, "best_metric": recipe.run.best_metric},
        checkpoint=begin.checkpoint,
        is_fork=begin.is_fork,
    )


def identity_of(recipe: Recipe, data: SplitData, objective: Objective) -> Identity:
    """Return what a run and its continuation have in common."""
    return Identity(
        recipe=context.identity_of(recipe),
        train_manifest=data.fingerprint,
        val_manifest=data.val_fingerprint,
        objective=dict(objective.fingerprints),
    )


def _train(
    setup: RunContext,
    stop: StopSignal,
    *,
    init: str | InitSource | None,
    fork: Fork | None,
    fresh: bool,
) -> bool:
    """Put the parts together and train; return whether the run came to its end."""
    world = setup.world
    with world.in_agreement():
        start = _start(setup, init=init, fork=fork, fresh=fresh)
    _check_same_start(setup, start)
    if start.checkpoint is None:
        for tensor in start.model.state_dict().values():
            world.broadcast(tensor)  # rounding may differ between processors
    plan, sampler = start.plan, start.sampler
    device_batch_size = _device_batch_size(setup)
    model = prepare_model(setup, start.model, device_batch_size=device_batch_size)
    learner = learner_of(setup, model)
    with world.in_agreement():
        progress = _restored(setup, start, learner)

    if steps_left := plan.total_steps - progress.step:
        _tell_forecast(setup, learner, steps_left * plan.global_batch_size)

    loader = train_loader_of(setup, sampler, device_batch_size)
    _write_recipe(setup)
    # The writer leaves last: whatever happens, what is being written is finished.
    with (
        BackgroundWriter() as writer,
        closing(loader),
        watching(setup, plan, progress, learner.model, start.identity["origin"]) as watchers,
    ):
        saver = saver_of(
            setup, learner, writer, identity=start.identity, total_steps=plan.total_steps
        )
        hooks = hooks_of(
            setup,
            learner,
            loader=loader,
            sampler=sampler,
            watching=watchers,
            device_batch_size=device_batch_size,
            stop=stop,
            saver=saver,
        )
        with explaining_divergence(setup, progress, writer, start.identity["origin"]):
            finished = _train_from(start, progress, learner, hooks, world)
    world.barrier()  # nobody leaves before the last checkpoint is written
    _tell_what_was_left_out(setup, progress, sampler)
    return finished


def _write_recipe(setup: RunContext) -> None:
    if setup.world.rank == 0:
        text = dump_recipe(setup.recipe)
        write_atomic(setup.place.run_dir / "recipe.yaml", text.encode())


def _train_from(
    start: _Start, progress: Progress, learner: TrainState, hooks: Hooks, world: World
) -> bool:
    """Train to the end; return whether it was reached."""
    if progress.weight_norm is None:
        progress.weight_norm = norm_of(learner.model)
    if start.is_fork:
        hooks.save(progress, ())  # the other run may be gone when this one is resumed
    return train(
        start.plan,
        progress,
        model=learner.model,
        optimizers=learner.optimizers,
        hooks=hooks,
        world=world,
        scaler=learner.scaler,
    )


def _check_same_start(setup: RunContext, start: _Start) -> None:
    """Check that all processes begin with the same state."""
    checkpoint, trials = start.checkpoint, setup.place.run_dir / TRIALS_FILE
    recipe = setup.recipe.model_dump(mode="json", exclude=context.NAMED_BY_CONTENT)
    facts = {
        "step": 0 if checkpoint is None else checkpoint.step,
        "checkpoint": None if checkpoint is None else short_digest(checkpoint.state),
        "recipe": short_digest(recipe),
        "train.parquet": start.identity["train_manifest"][:12],
        "val.parquet": start.identity["val_manifest"][:12],
        "objective": start.identity["objective"],
        "first weights": short_digest(start.identity["origin"]),
        "trials": short_digest(trials.read_text() if trials.is_file() else None),
        "vit21k": __version__,
        "torch": torch.__version__,
    }
    check_same_start(setup.world, facts, setup.place.run_dir)


def _restored(setup: RunContext, start: _Start, learner: TrainState) -> Progress:
    """Return how far the run is, and put the learner where the checkpoint was."""
    checkpoint = start.checkpoint
    if checkpoint is None:
        return Progress()
    progress = restore(checkpoint, learner)
    metric = setup.recipe.run.best_metric
    if start.is_fork or checkpoint.state.get("best_metric", metric) != metric:
        progress.best = {}  # of another run, or by another metric
    verb = "forking" if start.is_fork else "resuming"
    setup.listener.note(f"{verb} from step {checkpoint.step:,} of `{checkpoint.path}`")
    return progress


def _tell_forecast(setup: RunContext, learner: TrainState, num_images: int) -> None:
    """Measure a step, and tell how long so many images take."""
    loss_of = partial(
        builders.loss_of, recipe=setup.recipe, device=setup.device, objective=setup.objective
    )
    img_size = setup.recipe.model.img_size
    rate = measure_images_per_second(learner.model, loss_of, img_size=img_size)
    setup.listener.forecast(forecast(setup.args, num_images=num_images, images_per_second=rate))


def _tell_what_was_left_out(setup: RunContext, progress: Progress, sampler: StepSampler) -> None:
    listener = setup.listener
    if overflows := progress.skipped_updates - progress.empty_updates:
        listener.note(f"{overflows:,} updates were skipped: float16 overflowed")
    if progress.empty_updates:
        listener.warn(
            f"{progress.empty_updates:,} updates were skipped: every image of the batch was bad"
        )
    if num_skipped := sampler.num_before(progress.step) - progress.images_seen:
        listener.warn(f"{num_skipped:,} images could not be decoded and were skipped")
    if progress.images_replaced:
        listener.warn(f"{progress.images_replaced:,} images could not be decoded and were replaced")


def _stopped(world: World, stop: StopSignal, run_dir: Path) -> Vit21kError | OSError:
    """Return why the run was stopped, its state being saved; all processes call it."""
    reports = world.gather(stop.error and str(stop.error))
    if stop.error is not None:
        if isinstance(stop.error, Vit21kError):
            stop.error.message += f"\nthe state of the run is saved in `{run_dir}`"
        return stop.error
    if other := next(((rank, text) for rank, text in enumerate(reports) if text), None):
        rank, text = other
        return LostPeerError(
            f"stopped because of process {rank}: {text}\nthe state of the run is saved in "
            f"`{run_dir}`"
        )
    kind = InterruptedRunError if stop.received is signal.SIGINT else TerminatedError
    return kind(
        f"stopped by a signal; the state is saved in `{run_dir}`",
        hint="rerun the same command to resume",
    )


def _model(
    setup: RunContext, init: str | InitSource | None, checkpoint: Checkpoint | None
) -> tuple[nn.Module, InitReport | None]:
    """Return the model with the weights to start from, and where the first ones came from."""
    recipe, classes = setup.recipe, setup.data.classes
    model = context.new_model(recipe, num_classes=len(classes))
    setup.objective.prepare(model)
    report = None
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
    return model, report


def _device_batch_size(setup: RunContext) -> int:
    asked, wanted = setup.place.device_batch_size, setup.recipe.data.device_batch_size
    fitting = device_batch_size_of(setup.recipe, setup.args, asked=asked, device=setup.device)
    if asked is None and fitting < whole_pairs(setup.recipe, wanted):
        setup.listener.note(
            f"{fitting} images in one forward pass, not {wanted}: more do not fit into memory "
            f"(the global batch stays {setup.recipe.data.global_batch_size:,})"
        )
    return fitting
