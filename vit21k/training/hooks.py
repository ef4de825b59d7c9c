"""What asks a run to stop at the next point where its state is whole: a signal, an error of data.

SIGTERM: Kubernetes, Slurm's preemption, torchrun to its processes.  SIGUSR1: Slurm some minutes
before the time limit (``--signal=USR1@...``).  SIGINT: Ctrl-C.


What the loop calls: the next images, the loss, the log, the evaluation, the checkpoint.
"""

import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import FrameType, TracebackType
from typing import Any, Self

from torch import nn

from vit21k.checkpoint.store import BackgroundWriter
from vit21k.data.loader import Batch, EvalLoader, TrainLoader
from vit21k.data.sampler import StepSampler
from vit21k.errors import ImageError, Vit21kError
from vit21k.inference.evaluate import evaluate
from vit21k.inference.metrics import SemanticAccuracy
from vit21k.training import context
from vit21k.training.builders import label_loss_of, loss_of, policy_of, train_transform_of
from vit21k.training.checkpoints import BestWatch, Saver, plain_copy
from vit21k.training.context import Listener, RunContext, TrainState
from vit21k.training.curriculum import StagedLoader
from vit21k.training.gradients import in_lockstep, most_passes
from vit21k.training.log import RunLog, Watching
from vit21k.training.loop import Hooks, Progress
from vit21k.training.step import patch_dropper_of

# torchrun passes on what it gets, so that its processes hear of one request twice.
_SAME_REQUEST_SECONDS = 3.0


class StopSignal:
    """While it is entered, a signal is noted instead of ending the process.

    Only a second Ctrl-C, some seconds after the first signal, does what it did before: whoever
    sends SIGTERM again has SIGKILL.

    Attributes:
        received: The signal that came first, if one did.
        error: What went wrong with the data of this process; it is raised once the state is saved.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.error: Vit21kError | OSError | None = None
        self._received_at = 0.0
        self._previous = {signum: signal.getsignal(signum) for signum in self._SIGNALS}

    @property
    def is_asked(self) -> bool:
        """Whether there is a reason to stop."""
        return self.received is not None or self.error is not None

    def guarded(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield *batches* until one cannot be had; what is wrong with it is noted."""
        try:
            yield from batches
        except (Vit21kError, OSError) as error:
            self.error = self.error or error

    def __enter__(self) -> Self:
        for signum in self._SIGNALS:
            signal.signal(signum, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = signal.Signals(signum), now
        elif signum == signal.SIGINT and now - self._received_at > _SAME_REQUEST_SECONDS:
            signal.signal(signum, self._previous[signal.SIGINT])
            signal.raise_signal(signum)


def hooks_of(
    setup: RunContext,
    learner: TrainState,
    *,
    loader: StagedLoader,
    sampler: StepSampler,
    watching: Watching,
    device_batch_size: int,
    stop: StopSignal,
    saver: Saver,
) -> Hooks:
    """Return what the loop calls for the run of *setup*."""
    micro_batches = partial(_micro_batches, loader, sampler, setup.listener, watching, stop)
    if learner.is_sharded:
        micro_batches = partial(
            in_lockstep,
            micro_batches,
            most_passes(sampler, device_batch_size),
            setup.recipe.model.img_size,
        )
    watch = BestWatch(setup.recipe.run.best_metric, setup.data.val_name)
    return Hooks(
        micro_batches=micro_batches,
        loss_of=watching.losses.watch(
            partial(
                loss_of,
                recipe=setup.recipe,
                device=setup.device,
                objective=setup.objective,
                drop_patches=patch_dropper_of(setup, sampler),
            )
        ),
        after_update=partial(_after_update, learner),
        log_step=partial(_log_step, watching.log, sampler, saver.writer),
        evaluate=partial(_evaluate, setup, learner, device_batch_size, stop),
        log_evaluation=watching.log.log_evaluation,
        note_best=lambda progress, metrics: watch.note(progress.best, metrics),
        save=saver.save,
        should_stop=lambda: stop.is_asked,
    )


def train_loader_of(
    setup: RunContext, sampler: StepSampler, device_batch_size: int
) -> StagedLoader:
    """Return the loader of the training images, in the size that each step wants."""
    curriculum = context.curriculum_of(setup.recipe, sampler.steps_per_epoch)
    open_loader = partial(_loader_of, setup, sampler, device_batch_size)
    return StagedLoader(curriculum.stages(), open_loader)


def _loader_of(
    setup: RunContext, sampler: StepSampler, device_batch_size: int, img_size: int
) -> TrainLoader:
    return TrainLoader(
        setup.data.train,
        sampler,
        train_transform_of(setup.recipe, img_size),
        policy=policy_of(setup.recipe),
        device_batch_size=device_batch_size,
        num_workers=setup.place.num_workers,
        seed=setup.recipe.seed,
        on_bad_image=setup.recipe.data.on_bad_image,
        max_bad_rate=setup.recipe.data.max_bad_rate,
        device=setup.device,
    )


def _micro_batches(
    loader: StagedLoader,
    sampler: StepSampler,
    listener: Listener,
    watching: Watching,
    stop: StopSignal,
    step: int,
) -> Iterator[Batch]:
    """Yield the micro-batches of a step, and report each one: a step can take hours on a CPU."""
    watching.losses.start_step(step)
    num_done, num_images = 0, sampler.num_rows(step)
    for batch in watching.meters.waiting(stop.guarded(loader.micro_batches(step))):
        yield batch
        num_done += len(batch.rows_B)
        listener.micro_step(step, num_done, num_images)


def _after_update(learner: TrainState, num_updates: int) -> None:
    if learner.ema is not None:
        learner.ema.update(num_updates)


def _log_step(
    log: RunLog,
    sampler: StepSampler,
    writer: BackgroundWriter,
    progress: Progress,
    metrics: Mapping[str, float],
) -> None:
    writer.check()  # what went wrong with the last checkpoint is not kept until the next
    # Over all processes, and since the run began, however often it was resumed.
    num_skipped = sampler.num_before(progress.step) - progress.images_seen
    counts = {"num_skipped": num_skipped, "num_replaced": progress.images_replaced}
    log.log_step(progress, {**metrics, **counts})


def _evaluate(
    setup: RunContext,
    learner: TrainState,
    device_batch_size: int,
    stop: StopSignal,
    model: nn.Module,
) -> dict[str, float] | None:
    """Return the metrics of the weights, and of their average; None: an error ended it."""
    if learner.is_sharded:
        # A whole copy: in eval the processes have different numbers of batches.
        model = plain_copy(setup.args, model.state_dict(), setup.device)
    metrics = _evaluate_one(setup, device_batch_size, stop, model, setup.data.val_name)
    if metrics is not None and learner.ema is not None:
        averaged = plain_copy(setup.args, learner.ema.tensors(), setup.device)
        name = f"{setup.data.val_name}_ema"
        of_average = _evaluate_one(setup, device_batch_size, stop, averaged, name)
        metrics = None if of_average is None else {**metrics, **of_average}
    return metrics


def _evaluate_one(
    setup: RunContext, device_batch_size: int, stop: StopSignal, model: nn.Module, split: str
) -> dict[str, float] | None:
    recipe = setup.recipe
    loader = EvalLoader(
        setup.data.val,
        context.eval_transform_of(recipe),
        device_batch_size=device_batch_size,
        num_workers=setup.place.num_workers,
        rank=setup.world.rank,
        world_size=setup.world.world_size,
        on_bad_image="fail" if recipe.data.on_bad_image == "fail" else "skip",
    )
    levels = setup.objective.levels
    measures = [] if levels is None else [SemanticAccuracy(levels)]
    metrics: dict[str, float] = {}
    try:
        metrics = evaluate(
            model,
            stop.guarded(loader),
            loss_function=label_loss_of(recipe, setup.objective),
            mean=recipe.data.mean,
            std=recipe.data.std,
            device=setup.device,
            world=setup.world,
            precision=recipe.products_in,
            measures=measures,
        )
    except ImageError as error:  # in every process: not one image could be decoded
        stop.error = stop.error or error
    finally:
        loader.close()
    if setup.world.is_any(stop.error is not None):
        return None
    metrics.update((measure.name, measure.value()) for measure in measures)
    return {f"{split}/{name}": value for name, value in metrics.items()}


def saver_of(
    setup: RunContext,
    learner: TrainState,
    writer: BackgroundWriter,
    *,
    identity: Mapping[str, Any],
    total_steps: int,
) -> Saver:
    """Return what saves the checkpoints of the run; *identity* goes into each ``state.json``."""
    return Saver(
        run_dir=setup.place.run_dir,
        learner=learner,
        identity=identity,
        model_config=context.model_config_of(setup.recipe, setup.args, setup.data.classes),
        keep_last=setup.recipe.run.keep_last,
        total_steps=total_steps,
        world=setup.world,
        writer=writer,
    )
