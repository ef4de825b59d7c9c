"""The training loop.  Read this file first.

One step: take the micro-batches of the global batch, add up their gradients, clip, update.  Now
and then: log, evaluate, save.  Everything else in the package exists to feed this loop, and what
it does is on this page.

`Progress.step` is all the state there is: the order of the pictures, their augmentation, dropout
and the learning rate are functions of it, so a resumed run is the uninterrupted one to the bit.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vit21k.data.loader import Batch
from vit21k.distributed import World
from vit21k.errors import NonFiniteLossError
from vit21k.training.optim import set_lr
from vit21k.training.schedule import is_due


@dataclass
class Progress:
    """How far the run is.  Saved in every checkpoint."""

    step: int = 0
    """Optimizer updates made."""
    images_seen: int = 0
    """Pictures trained on, over all processes; a picture counts once each time."""


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
    """Mean loss over the pictures of one micro-batch."""
    log_step: Callable[[Progress, dict[str, float]], None]
    """Receives ``loss``, ``lr_factor`` and ``grad_norm`` of every step."""
    evaluate: Callable[[nn.Module], dict[str, float]]
    """Returns metrics by name; leaves the model in train mode."""
    log_evaluation: Callable[[Progress, dict[str, float]], None]
    save: Callable[[Progress], None]
    """Writes a checkpoint."""
    should_stop: Callable[[], bool]
    """Whether a signal asked this process to stop."""


def train(
    plan: Plan,
    progress: Progress,
    *,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    hooks: Hooks,
    world: World,
) -> bool:
    """Train until `plan.total_steps`, starting from *progress*.

    Args:
        plan: Length, schedule and periods.
        progress: Advanced in place; not at 0 when the run is resumed.
        model: On its device, in train mode; updated in place.
        optimizers: Over the parameters of *model*; their ``lr`` is overwritten.
        hooks: The rest of the program.
        world: The processes that train together.

    Returns:
        Whether the run is finished; False if `hooks.should_stop` ended it, after a save.

    Raises:
        NonFiniteLossError: The loss is infinite or not a number; the weights are those before.
    """
    while progress.step < plan.total_steps:
        torch.manual_seed(_dropout_seed(plan.seed, progress.step, world.rank))
        factor = plan.lr_factor(progress.step)
        set_lr(optimizers, factor)

        loss, num_images, stop = _accumulate(model, plan, progress.step, hooks, world)
        if stop:
            hooks.save(progress)
            return False
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss is {loss} at step {progress.step + 1}; "
                f"the last good state is the checkpoint before it",
                hint="lower the learning rate, lengthen the warm-up, or clip the gradient",
            )
        grad_norm = _clip(model, plan.grad_clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        progress.step += 1
        progress.images_seen += num_images
        step, total_steps = progress.step, plan.total_steps
        hooks.log_step(progress, {"loss": loss, "lr_factor": factor, "grad_norm": grad_norm})
        if is_due(step, every_steps=plan.eval_every_steps, total_steps=total_steps):
            hooks.log_evaluation(progress, hooks.evaluate(model))
        if is_due(step, every_steps=plan.save_every_steps, total_steps=total_steps):
            hooks.save(progress)
    return True


def _accumulate(
    model: nn.Module, plan: Plan, step: int, hooks: Hooks, world: World
) -> tuple[float, int, bool]:
    """Add up the gradient of the mean loss over one global batch.

    Returns:
        The mean loss and the number of pictures, over all processes, and whether any process was
        asked to stop (then there is no gradient).
    """
    loss_sum, num_images = torch.zeros(()), 0
    for batch in hooks.micro_batches(step):
        if hooks.should_stop():
            break
        loss = hooks.loss_of(model, batch) * (len(batch.rows_B) / plan.global_batch_size)
        loss.backward()
        loss_sum = loss_sum.to(loss.device) + loss.detach()
        num_images += len(batch.rows_B)
    # The one point where the host waits for the device.
    totals = torch.tensor([float(loss_sum), num_images, hooks.should_stop()], dtype=torch.float64)
    loss_total, images_total, num_stops = world.all_reduce_sum(totals).tolist()
    if num_stops:
        model.zero_grad(set_to_none=True)
        return math.nan, 0, True

    world.all_reduce_gradients(model)
    # Fewer pictures than planned: the last batch of an epoch, or some that could not be decoded.
    scale = plan.global_batch_size / images_total if images_total else math.nan
    if scale != 1:
        for param in model.parameters():
            if param.grad is not None:
                param.grad.mul_(scale)
    return loss_total * scale, int(images_total), False


def _clip(model: nn.Module, max_norm: float | None) -> float:
    """Clip the gradient to *max_norm*, if there is one; return its norm before."""
    gradients = [param.grad for param in model.parameters() if param.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return float(norm)


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return a seed of its own for every step and process (splitmix64's mixer)."""
    mask = (1 << 64) - 1
    mixed = (
        seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB
    ) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return (mixed ^ (mixed >> 31)) >> 1
