"""Recipe -> objects -> loop: puts a run together; dry runs.

Layout of a run::

    runs/<name>/
      recipe.yaml          the resolved recipe, with every field
      run.json             other facts: its length, its model's size, its device
      metrics.jsonl        a line every few steps, and a line for each evaluation
      checkpoints/latest   name of the newest checkpoint
      checkpoints/best     name of the best one, if the recipe has a best_metric; best-ema
      checkpoints/step-00000100/   config.json, model.safetensors, optimizer.safetensors, state.json
"""

import json
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import nn
from torch.optim import Optimizer

from vit21k import __version__
from vit21k.atomic import write_atomic
from vit21k.checkpoint.initialise import InitSource
from vit21k.checkpoint.store import BackgroundWriter, Checkpoint, set_run_aside
from vit21k.distributed import World, explaining_lost_peers, init_world
from vit21k.errors import (
    InterruptedRunError,
    LostPeerError,
    TerminatedError,
    UsageError,
    Vit21kError,
)
from vit21k.lock import locked
from vit21k.models.cost import num_params, train_flops_per_image
from vit21k.optim.optimizers import build_optimizers, state_bytes
from vit21k.optim.schedule import LrSchedule
from vit21k.recipe.load import dump_recipe
from vit21k.recipe.schema import Recipe
from vit21k.training.builders import (
    activation_bytes_of,
    build_schedule,
    complete_pairs,
    device_batch_size_of,
    sampler_of,
)
from vit21k.training.checkpoints import Identity, Saver, find_begin, restore
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
    resolve_precision,
)
from vit21k.training.curriculum import Curriculum, PatchDropper, check_curriculum
from vit21k.training.forecast import Forecast, measure_images_per_second
from vit21k.training.log import (
    StepLosses,
    build_meters,
    explaining_divergence,
    norm_of,
    open_log,
    write_run_facts,
)
from vit21k.training.loop import Evaluation, StagedLoader, StopSignal, Trainer
from vit21k.training.objective import build_objective
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
        recipe: The recipe.
        options: Of the command line.
        reporter: Used on the first process only.
        init: Weights to start from: as for `load_model`, with or without options; a resumed run
            must have started from them.
        fork: A checkpoint of another run to start from, with its optimizer and step; a resumed run
            must have started from it.
        fresh: Start over, and set the existing run aside.

    Raises:
        TerminatedError: SIGTERM ended it, after its state was saved.
        InterruptedRunError: Ctrl-C did.
        UsageError: Recipe, data and processes do not fit together, or the processes do not start
            from the same state.
        CheckpointError: The checkpoints are damaged or belong to another run.
        DataError: Images are bad or missing; the state was saved.
        NonFiniteLossError: Training diverged.
        LostPeerError: Another process has ended.
    """
    if init is not None and fork is not None:
        raise UsageError("--init and --resume-from both say what to begin with; give one")
    run_dir = None if fresh else options.run_dir
    world = init_world(options.device)
    try:
        with explaining_lost_peers(world), ExitStack() as stack:
            with world.in_agreement():
                if world.rank == 0:
                    stack.enter_context(locked(options.run_dir, command="train"))
                stop = stack.enter_context(StopSignal())
            reporter = reporter if world.rank == 0 else Reporter()
            recipe = resolve_precision(
                recipe, options.device, world, run_dir=run_dir, reporter=reporter
            )
            with world.in_agreement():
                run = open_run(recipe, options, reporter, world)
            with world.in_agreement():
                start = find_start(run, init=init, fork=fork, fresh=fresh)
                if fresh and world.rank == 0 and (kept := set_run_aside(options.run_dir)):
                    reporter.note(f"starting over; the run that was here is kept in `{kept}`")
            if not _train(run, start, stop):
                raise _stopped(world, stop, options.run_dir)
    finally:
        world.close()


def open_run(recipe: Recipe, options: RunOptions, reporter: Reporter, world: World) -> RunContext:
    """Open the data and build the loss; *recipe* has a resolved precision."""
    data = open_split_data(options.manifests, options.root, reporter.note, options.cache)
    objective = build_objective(recipe, data.classes, torch.device(options.device), reporter)
    in_pairs = recipe.augment.mixes
    sampler = sampler_of(recipe, data.train, world, in_pairs=in_pairs)
    return RunContext(
        recipe=recipe,
        options=options,
        reporter=reporter,
        world=world,
        data=data,
        args=model_args_of(recipe, num_classes=len(data.classes)),
        objective=objective,
        sampler=sampler,
        schedule=build_schedule(recipe, sampler.steps_per_epoch),
    )


@dataclass(frozen=True, kw_only=True)
class Start:
    """The state that a run starts from.

    Attributes:
        model: With its first weights, or those of *checkpoint*; on the CPU.
        identity: Part of every checkpoint of the run.
        checkpoint: Of this run, or of the one that it is a fork of; None: there is none yet.
        is_fork: Whether *checkpoint* is another run's.
    """

    model: nn.Module
    identity: Mapping[str, Any]
    checkpoint: Checkpoint | None
    is_fork: bool


def find_start(
    run: RunContext,
    *,
    init: "str | InitSource | None",
    fork: Fork | None,
    fresh: bool,
    needs_init: bool = True,
) -> Start:
    """Return the state that *run* starts from; no process waits for another here.

    Args:
        run: The run.
        init: As for `train_run`, and so *fork* and *fresh*.
        fork: A checkpoint of another run.
        fresh: Ignore the checkpoints of the run.
        needs_init: Refuse fine-tuning without *init* instead of warning.
    """
    identity = Identity.of(run)
    begin = find_begin(run, identity, init=init, fork=fork, fresh=fresh)
    model = new_model(run.recipe, num_classes=len(run.data.classes))
    origin = begin.origin
    if begin.checkpoint is not None:
        model.load_state_dict(begin.checkpoint.model_tensors())
    elif init is not None:
        origin = _initialise(run, model, init).origin
    elif run.recipe.stage == "finetune":
        problem = "fine-tuning starts from a pretrained model, and none was given"
        if needs_init:
            hint = "name one with --init RUN, for example `--init runs/pretrain_l16_in21k`"
            raise UsageError(problem, hint=hint)
        run.reporter.warn(f"{problem}: name one with --init")
    best_metric = run.recipe.run.best_metric
    return Start(
        model=model,
        identity={**asdict(identity), "origin": origin, "best_metric": best_metric},
        checkpoint=begin.checkpoint,
        is_fork=begin.is_fork,
    )


def _initialise(run: RunContext, model: Any, init: "str | InitSource") -> "InitReport":
    from vit21k.checkpoint.initialise import initialise_from  # noqa: PLC0415 (all formats)

    report = initialise_from(
        model,
        init,
        args=run.args,
        classes=run.data.classes,
        pos_embed_mode=run.recipe.model.pos_embed_resize,
    )
    run.reporter.initialised(report)
    return report


def _train(run: RunContext, start: Start, stop: StopSignal) -> bool:
    """Build everything that takes part, and train; return whether the run is finished."""
    world, run_dir, origin = run.world, run.options.run_dir, start.identity["origin"]
    device_batch_size = _device_batch_size(run)
    state = _train_state(run, start, device_batch_size)
    with world.in_agreement():
        progress = _restored(run, start, state)
    _report_forecast(run, state, progress)
    patches = _patch_dropper(run)
    if world.rank == 0:
        write_atomic(run_dir / "recipe.yaml", dump_recipe(run.recipe).encode())
    # The writer is left last: whatever happens, a write that has started is finished.
    with BackgroundWriter() as writer, closing(StagedLoader(run, device_batch_size)) as loader:
        meters = build_meters(run, state.model)
        write_run_facts(run, meters, origin)
        losses = StepLosses(run.data.train, run_dir, world.rank)
        with (
            closing(open_log(run, progress, meters)) as log,
            losses.explaining(),
            explaining_divergence(run, progress, writer, origin),
        ):
            trainer = Trainer(
                run=run,
                state=state,
                loader=loader,
                patches=patches,
                evaluation=Evaluation(run, state, device_batch_size, stop),
                log=log,
                meters=meters,
                losses=losses,
                checkpoints=_saver(run, start, state, writer),
                stop=stop,
            )
            if start.is_fork:  # the other run may be gone when this one is resumed
                trainer.checkpoints.save(progress)
            finished = trainer.train(progress)
    world.barrier()  # no process leaves before the last checkpoint is written
    _report_skipped(run, progress)
    return finished


def _train_state(run: RunContext, start: Start, device_batch_size: int) -> TrainState:
    """Build the train state, after a check that it is the same in all processes."""
    _check_same_start(run, start)
    if start.checkpoint is None:
        for tensor in start.model.state_dict().values():
            run.world.broadcast(tensor)  # rounding may differ between processors
    model = prepare_model(run, start.model, device_batch_size=device_batch_size)
    return build_train_state(run, model)


def _saver(run: RunContext, start: Start, state: TrainState, writer: BackgroundWriter) -> Saver:
    return Saver(
        run_dir=run.options.run_dir,
        state=state,
        identity=start.identity,
        model_config=model_config_of(run.recipe, run.args, run.data.classes),
        keep_last=run.recipe.run.keep_last,
        total_steps=run.schedule.total_steps,
        world=run.world,
        writer=writer,
    )


def _patch_dropper(run: RunContext) -> PatchDropper:
    """Return what chooses patches, if the model can see parts of an image."""
    curriculum = Curriculum.of(run.recipe, run.schedule.total_steps)
    check_curriculum(curriculum, run.args)
    return PatchDropper(curriculum, patch_size=run.args["patch_size"], device=run.device)


def _check_same_start(run: RunContext, start: Start) -> None:
    """Check that all processes start from the same state.

    Raises:
        UsageError: Something differs; every process raises it.
    """
    checkpoint, trials = start.checkpoint, run.options.run_dir / TRIALS_FILE
    facts = {
        "step": 0 if checkpoint is None else checkpoint.step,
        "checkpoint": None if checkpoint is None else _short_digest(checkpoint.state),
        "recipe": _short_digest(run.recipe.model_dump(mode="json", exclude=NAMED_BY_CONTENT)),
        "train.parquet": start.identity["train_manifest"][:12],
        "val.parquet": start.identity["val_manifest"][:12],
        "objective": start.identity["objective"],
        "first weights": _short_digest(start.identity["origin"]),
        "trials": _short_digest(trials.read_text() if trials.is_file() else None),
        "vit21k": __version__,
        "torch": torch.__version__,
    }
    folder = f"run folder `{run.options.run_dir.absolute()}`"
    found = run.world.gather([facts, folder])
    first = found[0]
    for rank, other in enumerate(found):
        names = [name for name, value in first[0].items() if other[0][name] != value]
        if not names:
            continue
        shown = [
            ", ".join([*(f"{name} {its[name]}" for name in names), its_folder])
            for its, its_folder in (first, other)
        ]
        raise UsageError(
            "the processes of this run do not begin with the same state: "
            f"process 0 ({shown[0]}), process {rank} ({shown[1]})",
            hint="every process needs the same run folder, manifests and recipe: put them on a "
            "disk that all machines share",
        )


def _short_digest(value: Any) -> str | None:
    """Return some digits that identify a JSON value; None for None."""
    if value is None:
        return None
    text = json.dumps(value, sort_keys=True, default=str)
    return xxhash.xxh3_128_hexdigest(text.encode())[:12]


def _restored(run: RunContext, start: Start, state: TrainState) -> Progress:
    """Restore the train state of the checkpoint; return the progress of the run."""
    checkpoint, progress = start.checkpoint, Progress()
    if checkpoint is not None:
        progress = restore(checkpoint, state)
        metric = run.recipe.run.best_metric
        if start.is_fork or checkpoint.state.get("best_metric", metric) != metric:
            progress.best = {}  # of another run, or by another metric
        verb = "forking" if start.is_fork else "resuming"
        run.reporter.note(f"{verb} from step {checkpoint.step:,} of `{checkpoint.path}`")
    return progress


def _report_forecast(run: RunContext, state: TrainState, progress: Progress) -> None:
    """Measure a step, and report the time of the run."""
    if progress.weight_norm is None:
        progress.weight_norm = norm_of(state.model)
    if steps_left := run.schedule.total_steps - progress.step:
        img_size = run.recipe.model.img_size
        rate = measure_images_per_second(state.model, run.objective.loss, img_size=img_size)
        num_images = steps_left * run.recipe.data.global_batch_size
        run.reporter.forecast(
            Forecast(args=run.args, num_images=num_images, images_per_second=rate)
        )


def _report_skipped(run: RunContext, progress: Progress) -> None:
    reporter = run.reporter
    if overflows := progress.skipped_updates - progress.empty_updates:
        reporter.note(f"{overflows:,} updates were skipped: float16 overflowed")
    if progress.empty_updates:
        reporter.warn(
            f"{progress.empty_updates:,} updates were skipped: every image of the batch was bad"
        )
    if num_skipped := run.sampler.num_before(progress.step) - progress.images_seen:
        reporter.warn(f"{num_skipped:,} images could not be decoded and were skipped")
    if progress.images_replaced:
        reporter.warn(f"{progress.images_replaced:,} images could not be decoded and were replaced")


def _stopped(world: World, stop: StopSignal, run_dir: Path) -> Vit21kError | OSError:
    """Return the reason why the run stopped, after its state was saved; all processes call it."""
    reports = world.gather(stop.error and str(stop.error))
    saved = f"the state of the run is saved in `{run_dir}`"
    if stop.error is not None:
        if isinstance(stop.error, Vit21kError):
            stop.error.message += f"\n{saved}"
        return stop.error
    if other := next(((rank, text) for rank, text in enumerate(reports) if text), None):
        rank, text = other
        return LostPeerError(f"stopped because of process {rank}: {text}\n{saved}")
    kind = InterruptedRunError if stop.received is signal.SIGINT else TerminatedError
    return kind(
        f"stopped by a signal; the state is saved in `{run_dir}`",
        hint="rerun the same command to resume",
    )


def _device_batch_size(run: RunContext) -> int:
    recipe, asked = run.recipe, run.options.device_batch_size
    wanted = recipe.data.device_batch_size
    fitting = device_batch_size_of(recipe, run.args, asked=asked, device=run.device)
    if asked is None and fitting < complete_pairs(recipe.augment, wanted):
        run.reporter.note(
            f"{fitting} images in one forward pass, not {wanted}: more do not fit into memory "
            f"(the global batch stays {recipe.data.global_batch_size:,})"
        )
    return fitting


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
