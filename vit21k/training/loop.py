"""The training loop.  Read this file first.

One step: take the micro-batches of the global batch, add their gradients, clip, update.
Periodically: log, evaluate, save.  `Trainer` calls all of it by name.

`Progress` is the only state besides tensors and the loss scaler's: the order of the images, their
augmentation, dropout and the learning rate are functions of its step, so a resumed run is
bit-identical to an uninterrupted one.
"""

import math
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vit21k.data.loader import Batch, EvalLoader, TrainLoader
from vit21k.distributed import unsharded
from vit21k.errors import ImageError, NonFiniteLossError, Vit21kError
from vit21k.inference.evaluate import evaluate
from vit21k.inference.metrics import SemanticAccuracy
from vit21k.models.registry import build_model
from vit21k.optim.optimizers import set_lr
from vit21k.optim.schedule import is_due
from vit21k.training.builders import eval_transform_of, policy_of, train_transform_of
from vit21k.training.checkpoints import DIVERGED_HINT, Saver, note_best
from vit21k.training.context import Progress, RunContext, TrainState
from vit21k.training.curriculum import Curriculum, PatchDropper
from vit21k.training.gradients import (
    GradientSums,
    clip,
    dropout_seed,
    most_passes,
    seed_dropout,
    with_dummies,
)
from vit21k.training.log import Meters, RunLog, StepLosses

# torchrun forwards signals, so that its processes receive one request twice.
_SAME_REQUEST_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """Trains a model.  Every process has one and calls it at the same time.

    Attributes:
        run: Recipe, images, loss and schedule.
        state: Updated in place; the learning rates of its optimizers are overwritten.
        loader: The images, in micro-batches.
        patches: The patches of the images that the model sees.
        evaluation: Of the weights and their average.
        log: Lines of metrics.
        meters: Other measurements for the log.
        losses: Of the current step, to explain one that is not finite.
        checkpoints: Saves the state.
        stop: Signals and errors that stop this process.
    """

    run: RunContext
    state: TrainState
    loader: "StagedLoader"
    patches: PatchDropper
    evaluation: "Evaluation"
    log: RunLog
    meters: Meters
    losses: StepLosses
    checkpoints: Saver
    stop: "StopSignal"

    def train(self, progress: Progress) -> bool:
        """Train until the end of the schedule, starting from *progress*, which is advanced.

        Returns:
            Whether the run is finished; False if a signal or an error of the data ended it, after
            a checkpoint.

        Raises:
            NonFiniteLossError: The loss or its gradient is infinite or not a number; the weights
                are those before.
        """
        recipe, state, world = self.run.recipe, self.state, self.run.world
        sums = GradientSums(state.model, self.run.objective.loss, world, recipe.model.img_size)
        device = sums.params[0].device
        if progress.owes_evaluation and not self._evaluate(progress):
            return False
        while progress.step < self.run.schedule.total_steps:
            seed_dropout(dropout_seed(recipe.seed, progress.step, world.rank), device)
            factor = self.run.schedule(progress.step)
            set_lr(state.optimizers, factor)

            total = self._accumulate(sums, progress.step)
            if total.stop:
                self.checkpoints.save(progress)
                return False
            metrics = {"loss": total.loss, "lr_factor": factor, "grad_norm": 0.0}
            metrics["loss_scale"] = state.scaler.scale
            is_update = False
            if total.num_images:  # else every image was bad: the step counts, the weights stay
                _check(total.loss, progress.step + 1)
                metrics["grad_norm"] = clip(sums.params, recipe.optim.grad_clip_norm)
                is_update = state.scaler.accepts(metrics["grad_norm"], step=progress.step + 1)
            _update(state.optimizers, is_update=is_update)
            progress.advance(total.num_images, is_update=is_update)
            progress.images_replaced += total.num_replaced
            if is_update and state.ema is not None:
                state.ema.update(progress.step - progress.skipped_updates)
            if not self._do_what_is_due(progress, metrics):
                return False
        return True

    def _accumulate(self, sums: GradientSums, step: int) -> "_Total":
        """Compute the gradient of the mean loss over one global batch, in every process."""
        global_batch_size = self.run.recipe.data.global_batch_size
        loss_scale = self.state.scaler.scale
        loss_sum, num_images, num_replaced = torch.zeros(()), 0, 0
        for batch, is_last in _and_whether_last(self._micro_batches(sums, step)):
            stops = self.stop.is_asked and not sums.is_sharded
            if stops and self.run.world.world_size == 1:
                break
            weight = len(batch.rows_B) / global_batch_size
            loss = sums.add(
                batch,
                self.patches(batch),
                weight=weight * loss_scale,
                is_last=is_last or stops,
            )
            self.losses.note(batch, loss)
            loss_sum = loss_sum.to(loss.device) + loss * weight
            num_images += len(batch.rows_B)
            num_replaced += batch.num_replaced
            if stops:  # after a pass that sums: the other processes wait for it
                break
        # The one point where the host waits for the device.
        mine = [float(loss_sum), num_images, num_replaced, self.stop.is_asked]
        totals = self.run.world.all_reduce_sum(torch.tensor(mine, dtype=torch.float64))
        loss_total, images_total, replaced_total, num_stops = totals.tolist()
        if num_stops:
            self.state.model.zero_grad(set_to_none=True)
            return _Total(math.nan, 0, 0, stop=True)

        # Fewer images than planned: the last batch of an epoch, or some could not be decoded.
        scale = global_batch_size / images_total if images_total else math.nan
        for param in sums.params if scale != loss_scale else ():
            if param.grad is not None:
                param.grad.mul_(scale / loss_scale)
        return _Total(loss_total * scale, int(images_total), int(replaced_total), stop=False)

    def _micro_batches(self, sums: GradientSums, step: int) -> Iterator[Batch]:
        """Yield this process's micro-batches of a step, and report each one."""
        self.losses.start_step(step)
        batches = self.meters.waiting(self.stop.guarded(self.loader.micro_batches(step)))
        batches = self._reported(batches, step)
        if self.run.world.world_size == 1:
            return batches
        num_passes = 1
        if sums.is_sharded:
            num_passes = most_passes(self.run.sampler, self.loader.device_batch_size)
        return with_dummies(batches, num_passes, self.run.recipe.model.img_size, step)

    def _reported(self, batches: Iterable[Batch], step: int) -> Iterator[Batch]:
        num_done, num_images = 0, self.run.sampler.num_rows(step)
        for batch in batches:
            yield batch
            num_done += len(batch.rows_B)
            self.run.reporter.micro_step(step, num_done, num_images)

    def _do_what_is_due(self, progress: Progress, metrics: dict[str, float]) -> bool:
        """Log, evaluate and save, each in its period; return whether the run may continue."""
        periods, total_steps = self.run.recipe.run, self.run.schedule.total_steps
        self.checkpoints.writer.check()  # report an error of the last checkpoint before the next
        # Over all processes, and since the run began, however often it was resumed.
        num_skipped = self.run.sampler.num_before(progress.step) - progress.images_seen
        counts = {"num_skipped": num_skipped, "num_replaced": progress.images_replaced}
        self.log.log_step(progress, {**metrics, **counts})
        is_save_due = is_due(
            progress.step, every_steps=periods.save_every_steps, total_steps=total_steps
        )
        if is_due(progress.step, every_steps=periods.eval_every_steps, total_steps=total_steps):
            return self._evaluate(progress, is_save_due=is_save_due)
        if is_save_due:
            self.checkpoints.save(progress)
        return True

    def _evaluate(self, progress: Progress, *, is_save_due: bool = True) -> bool:
        """Evaluate, save if that is due or there is a best; return whether the run may continue.

        After an error in an evaluation, the state is saved, and a resumed run begins with it.
        """
        metrics = self.evaluation.metrics()
        progress.owes_evaluation = metrics is None
        if metrics is None:
            self.checkpoints.save(progress)
            return False
        self.log.log_evaluation(progress, metrics)
        metric, val_name = self.run.recipe.run.best_metric, self.run.data.val_name
        best = note_best(progress.best, metrics, metric=metric, val_name=val_name)
        if best or is_save_due:
            self.checkpoints.save(progress, best)
        return True


class _Total(NamedTuple):
    """Totals of a global batch, over all processes."""

    loss: float
    """Mean over the images; not a number if there are none."""
    num_images: int
    num_replaced: int
    stop: bool
    """Whether any process was asked to stop; then there is no gradient."""


def _update(optimizers: Sequence[Optimizer], *, is_update: bool) -> None:
    for optimizer in optimizers:
        if is_update:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _check(loss: float, step: int) -> None:
    """Raise if the loss of an update is not a finite number."""
    if not math.isfinite(loss):
        raise NonFiniteLossError(f"the loss is {loss} at step {step}", hint=DIVERGED_HINT)


def _and_whether_last(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Yield each of *batches*, and whether it is the last one."""
    before: Batch | None = None
    for batch in batches:
        if before is not None:
            yield before, False
        before = batch
    if before is not None:
        yield before, True


class StagedLoader:
    """The training images of each step, in the size that its stage of the curriculum has.

    There is one `TrainLoader` for each stage, opened at its first step.
    """

    def __init__(self, run: RunContext, device_batch_size: int) -> None:
        self.device_batch_size = device_batch_size
        self._run = run
        self._stages = Curriculum.of(run.recipe, run.schedule.total_steps).stages()
        self._img_size = 0
        self._loader: TrainLoader | None = None

    def micro_batches(self, step: int) -> Iterator[Batch]:
        """Yield the images of the 0-based *step*; see `TrainLoader.micro_batches`."""
        img_size = next(size for first, size in reversed(self._stages) if step >= first)
        if self._loader is None or img_size != self._img_size:
            self.close()
            self._img_size, self._loader = img_size, self._open(img_size)
        yield from self._loader.micro_batches(step)

    def close(self) -> None:
        """Join the threads."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None

    def _open(self, img_size: int) -> TrainLoader:
        recipe = self._run.recipe
        return TrainLoader(
            self._run.data.train,
            self._run.sampler,
            train_transform_of(recipe.data, img_size),
            policy=policy_of(recipe.augment, recipe.data),
            device_batch_size=self.device_batch_size,
            num_workers=self._run.options.num_workers,
            seed=recipe.seed,
            on_bad_image=recipe.data.on_bad_image,
            max_bad_rate=recipe.data.max_bad_rate,
            device=self._run.device,
        )


class StopSignal:
    """While it is entered, a signal is noted instead of ending the process.

    SIGTERM: Kubernetes, Slurm's preemption, torchrun to its processes.  SIGUSR1: Slurm some minutes
    before the time limit (``--signal=USR1@...``).  SIGINT: Ctrl-C; only a second one, some seconds
    after the first signal, ends the process.

    Attributes:
        received: The first signal, if there was one.
        error: Error of the data of this process; it is raised once the state is saved.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self, same_request_seconds: float = _SAME_REQUEST_SECONDS) -> None:
        self.received: signal.Signals | None = None
        self.error: Vit21kError | OSError | None = None
        self._same_request_seconds = same_request_seconds
        self._received_at = 0.0
        self._previous = {signum: signal.getsignal(signum) for signum in self._SIGNALS}

    @property
    def is_asked(self) -> bool:
        """Whether there is a reason to stop."""
        return self.received is not None or self.error is not None

    def guarded(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield *batches* until one fails; keep its error."""
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
        elif signum == signal.SIGINT and now - self._received_at > self._same_request_seconds:
            signal.signal(signum, self._previous[signal.SIGINT])
            signal.raise_signal(signum)


@dataclass(frozen=True)
class Evaluation:
    """Evaluates a run on its val split: the weights, and their average if there is one."""

    run: RunContext
    state: TrainState
    device_batch_size: int
    stop: StopSignal

    def metrics(self) -> dict[str, float] | None:
        """Evaluate the weights and their average, on all processes together.

        The model is in train mode afterwards.

        Returns:
            Metrics by name, in every process; None: an error of the data ended it.
        """
        model, args, device = self.state.model, self.run.args, self.run.device
        if self.state.is_sharded:
            # A complete copy: in evaluation the processes have different numbers of batches.
            model = complete_copy(args, model.state_dict(), device)
        metrics = self._metrics_of(model, self.run.data.val_name)
        if metrics is not None and self.state.ema is not None:
            averaged = complete_copy(args, self.state.ema.tensors(), device)
            of_average = self._metrics_of(averaged, f"{self.run.data.val_name}_ema")
            metrics = None if of_average is None else {**metrics, **of_average}
        return metrics

    def _metrics_of(self, model: nn.Module, split: str) -> dict[str, float] | None:
        recipe, world, objective = self.run.recipe, self.run.world, self.run.objective
        loader = EvalLoader(
            self.run.data.val,
            eval_transform_of(recipe.data, recipe.model.img_size),
            device_batch_size=self.device_batch_size,
            num_workers=self.run.options.num_workers,
            rank=world.rank,
            world_size=world.world_size,
            on_bad_image="fail" if recipe.data.on_bad_image == "fail" else "skip",
        )
        measures = [] if objective.levels is None else [SemanticAccuracy(objective.levels)]
        metrics: dict[str, float] = {}
        try:
            metrics = evaluate(
                model,
                self.stop.guarded(loader),
                loss_function=objective.label_loss,
                mean=recipe.data.mean,
                std=recipe.data.std,
                device=self.run.device,
                world=world,
                precision=recipe.products_in,
                measures=measures,
            )
        except ImageError as error:  # in every process: not one image could be decoded
            self.stop.error = self.stop.error or error
        finally:
            loader.close()
        if world.is_any(self.stop.error is not None):
            return None
        metrics.update((measure.name, measure.value()) for measure in measures)
        return {f"{split}/{name}": value for name, value in metrics.items()}


def complete_copy(
    args: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device
) -> nn.Module:
    """Return a model with *tensors* for weights; all processes call it if they are sharded.

    Args:
        args: Of the model's constructor.
        tensors: Its `state_dict`; complete tensors on *device* are not copied.
        device: Of the model.
    """
    with torch.device("meta"):  # no time is lost on first weights
        model = build_model(args)
    here = {name: unsharded(tensor.detach()).to(device) for name, tensor in tensors.items()}
    model.load_state_dict(here, assign=True)
    return model
