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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vit21k import __version__
from vit21k.atomic import write_atomic
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
from vit21k.optim.schedule import LrSchedule
from vit21k.recipe.load import dump_recipe
from vit21k.recipe.schema import Recipe
from vit21k.training.builders import (
    build_curriculum,
    build_schedule,
    device_batch_size_of,
    sampler_of,
    whole_pairs,
)
from vit21k.training.checkpoints import (
    Identity,
    Saver,
    check_same_start,
    find_begin,
    restore,
    short_digest,
)
from vit21k.training.context import (
    NAMED_BY_CONTENT,
    Fork,
    Progress,
    RunContext,
    RunOptions,
    SplitData,
    TrainState,
    build_train_state,
    model_args_of,
    model_config_of,
    new_model,
    open_split_data,
    recipe_identity,
    resolve_precision,
)
from vit21k.training.curriculum import PatchDropper, check_curriculum
from vit21k.training.forecast import forecast, measure_images_per_second
from vit21k.training.log import (
    StepLosses,
    build_meters,
    explaining_divergence,
    norm_of,
    open_log,
    write_run_facts,
)
from vit21k.training.loop import Evaluation, StagedLoader, StopSignal, Trainer
from vit21k.training.objective import Objective, build_objective
from vit21k.training.reporter import Reporter
from vit21k.training.step import TRIALS_FILE, prepare_model

if TYPE_CHECKING:
    from vit21k.checkpoint.initialise import InitReport, InitSource


def train_run(
    recipe: Recipe,
    options: RunOptions,
    reporter: Reporter,
    *,
    init: "str | InitSource | None",
    fork: Fork | None = None,
    fresh: bool = False,
) -> None:
    """Run *recipe* from its newest checkpoint, or from the start, to its end.

    Args:
        recipe: What to train and how.
        options: Where.
        reporter: Used on the first process only.
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
    world = init_world(options.device)
    try:
        with explaining_lost_peers(world), ExitStack() as stack:
            with world.in_agreement():
                if world.rank == 0:
                    stack.enter_context(locked(options.run_dir, command="train"))
                stop = stack.enter_context(StopSignal())
            reporter = reporter if world.rank == 0 else Reporter()
            recipe = resolve_precision(
                recipe,
                options.device,
                world,
                run_dir=None if fresh else options.run_dir,
                reporter=reporter,
            )
            with world.in_agreement():
                run = _context(recipe, options, reporter, world)
            with world.in_agreement():
                start = _start(run, init=init, fork=fork, fresh=fresh)
            if not _train(run, start, stop):
                raise _stopped(world, stop, options.run_dir)
    finally:
        world.close()


def _context(recipe: Recipe, options: RunOptions, reporter: Reporter, world: World) -> RunContext:
    data = open_split_data(options.manifests, options.root, reporter.note, options.cache)
    return RunContext(
        recipe=recipe,
        options=options,
        reporter=reporter,
        world=world,
        data=data,
        args=model_args_of(recipe, num_classes=len(data.classes)),
        objective=build_objective(recipe, data.classes, torch.device(options.device), reporter),
    )


@dataclass(frozen=True, kw_only=True)
class _Start:
    """What a run starts from.

    Attributes:
        sampler: The order of its images.
        schedule: Its length and learning rate.
        model: With its first weights, or those of *checkpoint*; on the CPU.
        identity: What every checkpoint says of the run.
        checkpoint: Of this run, or of the one that it is a fork of; None: it begins.
        is_fork: Whether *checkpoint* is another run's.
    """

    sampler: StepSampler
    schedule: LrSchedule
    model: nn.Module
    identity: Mapping[str, Any]
    checkpoint: Checkpoint | None
    is_fork: bool


def _start(
    run: RunContext, *, init: "str | InitSource | None", fork: Fork | None, fresh: bool
) -> _Start:
    """Find out what the run starts from; no process waits for another here."""
    recipe, run_dir = run.recipe, run.options.run_dir
    sampler = sampler_of(recipe, run.data.train, run.world)
    schedule = build_schedule(recipe, sampler.steps_per_epoch)
    identity = identity_of(recipe, run.data, run.objective)
    begin = find_begin(
        run_dir,
        identity=identity,
        total_steps=schedule.total_steps,
        init=init,
        args=run.args,
        fork=fork,
        fresh=fresh,
        reporter=run.reporter,
    )
    model, report = _model(run, init, begin.checkpoint)
    origin = begin.origin if report is None else report.origin
    if fresh and run.world.rank == 0 and (kept := set_run_aside(run_dir)):
        run.reporter.note(f"starting over; the run that was here is kept in `{kept}`")
    return _Start(
        sampler=sampler,
        schedule=schedule,
        model=model,
        identity={**asdict(identity), "origin": origin, "best_metric": recipe.run.best_metric},
        checkpoint=begin.checkpoint,
        is_fork=begin.is_fork,
    )


def identity_of(recipe: Recipe, data: SplitData, objective: Objective) -> Identity:
    """Return what a run and its continuation have in common."""
    return Identity(
        recipe=recipe_identity(recipe),
        train_manifest=data.fingerprint,
        val_manifest=data.val_fingerprint,
        objective=dict(objective.fingerprints),
    )


def _train(run: RunContext, start: _Start, stop: StopSignal) -> bool:
    """Build everything that takes part, and train; return whether the run came to its end."""
    world, sampler, total_steps = run.world, start.sampler, start.schedule.total_steps
    origin, device_batch_size = start.identity["origin"], _device_batch_size(run)
    state = _train_state(run, start, device_batch_size)
    with world.in_agreement():
        progress = _restored(run, start, state)
    if progress.weight_norm is None:
        progress.weight_norm = norm_of(state.model)
    if steps_left := total_steps - progress.step:
        _report_forecast(run, state, steps_left * run.recipe.data.global_batch_size)
    patches = _patch_dropper(run, sampler)
    loader = StagedLoader(run, sampler, device_batch_size)
    _write_recipe(run)
    # The writer leaves last: whatever happens, what is being written is finished.
    with BackgroundWriter() as writer, closing(loader):
        meters = build_meters(run, state.model)
        write_run_facts(run, total_steps, meters, origin)
        losses = StepLosses(run.data.train, run.options.run_dir, world.rank)
        with (
            closing(open_log(run, total_steps, progress, meters)) as log,
            losses.explaining(),
            explaining_divergence(run, progress, writer, origin),
        ):
            trainer = Trainer(
                run=run,
                schedule=start.schedule,
                state=state,
                sampler=sampler,
                loader=loader,
                patches=patches,
                evaluation=Evaluation(
                    run=run, state=state, device_batch_size=device_batch_size, stop=stop
                ),
                log=log,
                meters=meters,
                losses=losses,
                checkpoints=_saver(run, start, state, writer),
                stop=stop,
            )
            if start.is_fork:  # the other run may be gone when this one is resumed
                trainer.checkpoints.save(progress)
            finished = trainer.train(progress)
    world.barrier()  # nobody leaves before the last checkpoint is written
    _report_skipped(run, progress, sampler)
    return finished


def _train_state(run: RunContext, start: _Start, device_batch_size: int) -> TrainState:
    """Build the train state that all processes begin with; they check that it is the same."""
    _check_same_start(run, start)
    if start.checkpoint is None:
        for tensor in start.model.state_dict().values():
            run.world.broadcast(tensor)  # rounding may differ between processors
    model = prepare_model(run, start.model, device_batch_size=device_batch_size)
    return build_train_state(run, model)


def _write_recipe(run: RunContext) -> None:
    if run.world.rank == 0:
        write_atomic(run.options.run_dir / "recipe.yaml", dump_recipe(run.recipe).encode())


def _saver(run: RunContext, start: _Start, state: TrainState, writer: BackgroundWriter) -> Saver:
    return Saver(
        run_dir=run.options.run_dir,
        state=state,
        identity=start.identity,
        model_config=model_config_of(run.recipe, run.args, run.data.classes),
        keep_last=run.recipe.run.keep_last,
        total_steps=start.schedule.total_steps,
        world=run.world,
        writer=writer,
    )


def _patch_dropper(run: RunContext, sampler: StepSampler) -> PatchDropper:
    """Return what says which patches are seen.

    Raises:
        UsageError: The model cannot see less of an image, and the recipe wants it to.
    """
    curriculum = build_curriculum(run.recipe, sampler.steps_per_epoch)
    check_curriculum(curriculum, run.args)
    return PatchDropper(curriculum, patch_size=run.args["patch_size"], device=run.device)


def _check_same_start(run: RunContext, start: _Start) -> None:
    """Check that all processes begin with the same state."""
    checkpoint, trials = start.checkpoint, run.options.run_dir / TRIALS_FILE
    recipe = run.recipe.model_dump(mode="json", exclude=NAMED_BY_CONTENT)
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
    check_same_start(run.world, facts, run.options.run_dir)


def _restored(run: RunContext, start: _Start, state: TrainState) -> Progress:
    """Return the progress of the run, and put the train state where the checkpoint was."""
    checkpoint = start.checkpoint
    if checkpoint is None:
        return Progress()
    progress = restore(checkpoint, state)
    metric = run.recipe.run.best_metric
    if start.is_fork or checkpoint.state.get("best_metric", metric) != metric:
        progress.best = {}  # of another run, or by another metric
    verb = "forking" if start.is_fork else "resuming"
    run.reporter.note(f"{verb} from step {checkpoint.step:,} of `{checkpoint.path}`")
    return progress


def _report_forecast(run: RunContext, state: TrainState, num_images: int) -> None:
    """Measure a step, and report how long training on so many images takes."""
    img_size = run.recipe.model.img_size
    rate = measure_images_per_second(state.model, run.objective.loss, img_size=img_size)
    run.reporter.forecast(forecast(run.args, num_images=num_images, images_per_second=rate))


def _report_skipped(run: RunContext, progress: Progress, sampler: StepSampler) -> None:
    reporter = run.reporter
    if overflows := progress.skipped_updates - progress.empty_updates:
        reporter.note(f"{overflows:,} updates were skipped: float16 overflowed")
    if progress.empty_updates:
        reporter.warn(
            f"{progress.empty_updates:,} updates were skipped: every image of the batch was bad"
        )
    if num_skipped := sampler.num_before(progress.step) - progress.images_seen:
        reporter.warn(f"{num_skipped:,} images could not be decoded and were skipped")
    if progress.images_replaced:
        reporter.warn(f"{progress.images_replaced:,} images could not be decoded and were replaced")


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
    run: RunContext, init: "str | InitSource | None", checkpoint: Checkpoint | None
) -> tuple[nn.Module, "InitReport | None"]:
    """Return the model with the weights to start from, and where the first ones came from."""
    recipe, classes = run.recipe, run.data.classes
    model = new_model(recipe, num_classes=len(classes))
    run.objective.prepare(model)
    report = None
    if checkpoint:
        model.load_state_dict(checkpoint.model_tensors())
    elif init is not None:
        from vit21k.checkpoint.initialise import initialise_from  # noqa: PLC0415 (all formats)

        resize = recipe.model.pos_embed_resize
        report = initialise_from(model, init, args=run.args, classes=classes, pos_embed_mode=resize)
        run.reporter.initialised(report)
    elif recipe.stage == "finetune":
        raise UsageError(
            "fine-tuning starts from a pretrained model, and none was given",
            hint="name one with --init RUN, for example `--init runs/pretrain_l16_in21k`",
        )
    return model, report


def _device_batch_size(run: RunContext) -> int:
    asked, wanted = run.options.device_batch_size, run.recipe.data.device_batch_size
    fitting = device_batch_size_of(run.recipe, run.args, asked=asked, device=run.device)
    if asked is None and fitting < whole_pairs(run.recipe, wanted):
        run.reporter.note(
            f"{fitting} images in one forward pass, not {wanted}: more do not fit into memory "
            f"(the global batch stays {run.recipe.data.global_batch_size:,})"
        )
    return fitting
