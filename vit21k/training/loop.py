"""The training loop.  Read this file first.

One step: take the micro-batches of the global batch, add up their gradients, clip, update.  Now
and then: log, evaluate, save.  Everything else in the package exists to feed this loop, and what
it does is on this page.

`Progress` is all the state there is beside tensors and the loss scaler's: the order of the
images, their augmentation, dropout and the learning rate are functions of its step, so a resumed
run is the uninterrupted one to the bit.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vit21k.data.loader import Batch
from vit21k.distributed import World
from vit21k.errors import NonFiniteLossError
from vit21k.optim.optimizers import LossScaler, set_lr
from vit21k.optim.schedule import is_due
from vit21k.training.gradients import GradientSums, clip, dropout_seed, seed_dropout

DIVERGED_HINT = "lower the learning rate, lengthen the warm-up, or clip the gradient"


@dataclass
class Progress:
    """How far the run is.  Saved in every checkpoint."""

    step: int = 0
    """Optimizer updates made, or skipped."""
    images_seen: int = 0
    """Images trained on, over all processes; an image counts once each time."""
    skipped_updates: int = 0
    """Updates that the loss scaler skipped, because float16 had overflowed."""
    best: dict[str, float] = field(default_factory=dict)
    """The best value so far of the metric that is watched, by the name of the checkpoint."""
    images_replaced: int = 0
    """Of the images seen, those that stood in for bad ones."""
    empty_updates: int = 0
    """Of the skipped updates those without a single good image."""
    loss_sum: float = 0.0
    """Sum of the losses since the last line of the log."""
    num_losses: int = 0
    """How many these are."""
    owes_evaluation: bool = False
    """Whether an error ended the evaluation that was due at this step."""
    weight_norm: float | None = None
    """L2 norm of the weights at the last checkpoint."""

    def advance(self, num_images: int, *, is_update: bool) -> None:
        """Count a step of *num_images*, whether or not the weights were updated."""
        self.step += 1
        self.images_seen += num_images
        self.skipped_updates += not is_update
        self.empty_updates += not num_images


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to train, and how often to do the rest, in optimizer updates."""

    total_steps: int
    global_batch_size: int
    seed: int
    lr_factor: Callable[[int], float]
    """Factor on the peak learning rate, from the number of updates made."""
    grad_clip_norm: float | None
    log_every_steps: int
    eval_every_steps: int
    save_every_steps: int


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the loop calls.  Called on every process; they decide which one writes."""

    micro_batches: Callable[[int], Iterator[Batch]]
    """This process's share of the global batch, by the number of updates made."""
    loss_of: Callable[[nn.Module, Batch], Tensor]
    """Mean loss over the images of one micro-batch."""
    log_step: Callable[[Progress, dict[str, float]], None]
    """Receives ``loss``, ``lr_factor``, ``grad_norm`` and ``loss_scale`` of every step."""
    after_update: Callable[[int], None]
    """Takes the new weights in (EMA), after so many updates."""
    evaluate: Callable[[nn.Module], dict[str, float] | None]
    """Returns metrics by name, or None if an error of the data ended it, in every process; leaves
    the model in train mode."""
    log_evaluation: Callable[[Progress, dict[str, float]], None]
    note_best: Callable[[Progress, dict[str, float]], Sequence[str]]
    """Notes in *progress* what is better than ever; returns the names of those checkpoints."""
    save: Callable[[Progress, Sequence[str]], None]
    """Writes a checkpoint; it is also the best of the names given."""
    should_stop: Callable[[], bool]
    """Whether a signal or an error of the data asked this process to stop."""


def train(
    plan: Plan,
    progress: Progress,
    *,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    hooks: Hooks,
    world: World,
    scaler: LossScaler | None = None,
) -> bool:
    """Train until `plan.total_steps`, starting from *progress*.

    Args:
        plan: Length, schedule and periods.
        progress: Advanced in place; not at 0 when the run is resumed.
        model: On its device, in train mode; updated in place.
        optimizers: Over the parameters of *model*; their ``lr`` is overwritten.
        hooks: The rest of the program.
        world: The processes that train together.
        scaler: Of the loss, for float16; advanced in place.

    Returns:
        Whether the run is finished; False if `hooks.should_stop` or an evaluation ended it, after
        a save.

    Raises:
        NonFiniteLossError: The loss or its gradient is infinite or not a number; the weights are
            those before.
    """
    scaler = scaler or LossScaler()
    sums = GradientSums(model, world)
    device = sums.params[0].device
    if progress.owes_evaluation and not _evaluate(progress, model, hooks):
        return False
    while progress.step < plan.total_steps:
        seed_dropout(dropout_seed(plan.seed, progress.step, world.rank), device)
        factor = plan.lr_factor(progress.step)
        set_lr(optimizers, factor)

        total = _accumulate(sums, model, plan, progress.step, hooks, world, scaler.scale)
        if total.stop:
            hooks.save(progress, ())
            return False
        metrics = {"loss": total.loss, "lr_factor": factor, "grad_norm": 0.0}
        metrics["loss_scale"] = scaler.scale
        is_update = False
        if total.num_images:  # else every image was bad: the step counts, the weights stay
            _check(total.loss, progress.step + 1)
            metrics["grad_norm"] = clip(sums.params, plan.grad_clip_norm)
            is_update = scaler.accepts(metrics["grad_norm"], step=progress.step + 1)
        _update(optimizers, is_update=is_update)
        progress.advance(total.num_images, is_update=is_update)
        progress.images_replaced += total.num_replaced
        if is_update:
            hooks.after_update(progress.step - progress.skipped_updates)
        if not _do_what_is_due(plan, progress, model, hooks, metrics):
            return False
    return True


def _update(optimizers: Sequence[Optimizer], *, is_update: bool) -> None:
    for optimizer in optimizers:
        if is_update:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _check(loss: float, step: int) -> None:
    """Raise if the loss of an update is no number."""
    if not math.isfinite(loss):
        raise NonFiniteLossError(
            f"the loss is {loss} at step {step}",
            hint=DIVERGED_HINT,
        )


def _do_what_is_due(
    plan: Plan, progress: Progress, model: nn.Module, hooks: Hooks, metrics: dict[str, float]
) -> bool:
    """Log, evaluate and save, each in its period; return whether the run may continue."""
    step, total_steps = progress.step, plan.total_steps
    hooks.log_step(progress, metrics)
    is_save_due = is_due(step, every_steps=plan.save_every_steps, total_steps=total_steps)
    if is_due(step, every_steps=plan.eval_every_steps, total_steps=total_steps):
        return _evaluate(progress, model, hooks, is_save_due=is_save_due)
    if is_save_due:
        hooks.save(progress, ())
    return True


def _evaluate(
    progress: Progress, model: nn.Module, hooks: Hooks, *, is_save_due: bool = True
) -> bool:
    """Evaluate, and save if that is due or there is a best; return whether the run may continue.

    An evaluation that an error ended is owed: the state is saved, and a resumed run begins with it.
    """
    evaluated = hooks.evaluate(model)
    progress.owes_evaluation = evaluated is None
    if evaluated is None:
        hooks.save(progress, ())
        return False
    hooks.log_evaluation(progress, evaluated)
    best = hooks.note_best(progress, evaluated)
    if best or is_save_due:
        hooks.save(progress, best)
    return True


class _Total(NamedTuple):
    """What came of a global batch, over all processes."""

    loss: float
    """Mean over the images; not a number if there are none."""
    num_images: int
    num_replaced: int
    stop: bool
    """Whether any process was asked to stop; then there is no gradient."""


def _accumulate(
    sums: GradientSums,
    model: nn.Module,
    plan: Plan,
    step: int,
    hooks: Hooks,
    world: World,
    loss_scale: float,
) -> _Total:
    """Add up the gradient of the mean loss over one global batch, in every process."""
    loss_sum, num_images, num_replaced = torch.zeros(()), 0, 0
    for batch, is_last in _and_whether_last(hooks.micro_batches(step)):
        if hooks.should_stop() and not sums.in_lockstep:
            break
        loss = hooks.loss_of(model, batch) * (len(batch.rows_B) / plan.global_batch_size)
        sums.backward(loss * loss_scale, is_last=is_last)
        loss_sum = loss_sum.to(loss.device) + loss.detach()
        num_images += len(batch.rows_B)
        num_replaced += batch.num_replaced
    sums.finish()
    # The one point where the host waits for the device.
    mine = [float(loss_sum), num_images, num_replaced, hooks.should_stop()]
    totals = world.all_reduce_sum(torch.tensor(mine, dtype=torch.float64))
    loss_total, images_total, replaced_total, num_stops = totals.tolist()
    if num_stops:
        model.zero_grad(set_to_none=True)
        return _Total(math.nan, 0, 0, stop=True)

    # Fewer images than planned: the last batch of an epoch, or some that could not be decoded.
    scale = plan.global_batch_size / images_total if images_total else math.nan
    for param in sums.params if scale != loss_scale else ():
        if param.grad is not None:
            param.grad.mul_(scale / loss_scale)
    return _Total(loss_total * scale, int(images_total), int(replaced_total), stop=False)


def _and_whether_last(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Yield each of *batches*, and whether it is the last one."""
    before: Batch | None = None
    for batch in batches:
        if before is not None:
            yield before, False
        before = batch
    if before is not None:
        yield before, True
