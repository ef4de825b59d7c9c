"""Learning-rate schedule, periods of a run, average of the weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vit21k.distributed import local_part, shard_like

Decay = Literal["linear", "cosine", "rsqrt", "step"]
Changes = Literal["every_step", "every_epoch", "every_epoch_after_warmup"]


@dataclass(frozen=True, kw_only=True)
class LrSchedule:
    """The factor on the peak learning rate: a warm-up to 1, then decay.

    With t updates made so far (0 to ``total_steps - 1``), W `warmup_steps` and T `decay_end`:

    - warm-up, t < W: ``s + (1 - s) t / W`` from s = `start_factor`; with the shape "cosine"
      ``s + (1 - s) (1 - cos(pi t / W)) / 2``.
    - linear and cosine: with ``p = (t - W) / (T - W)``, or ``t / T`` if `from_start`, clipped to 0
      and 1, and e = `end_factor`: ``e + (1 - e) (1 - p)`` and ``e + (1 - e) (1 + cos(pi p)) / 2``.
    - rsqrt: ``1 / sqrt(1 + (t - W) / timescale)``.
    - step: `drop_factor` to the power of the number of `drops` that are at most t.
    - cooldown: the above times ``min(1, (total_steps - t) / cooldown_steps)``.

    If the learning rate changes once per epoch, t is that of the first update of the epoch.  Epochs
    are numbered from `first_epoch`; an epoch before number 0 has the value of epoch 0.

    Sources: PLSC, plsc/scheduler/lr_scheduler.py, `ViTLRScheduler`, the same as
    google-research/vision_transformer, vit_jax/utils.py; big_vision/utils.py,
    `create_learning_rate_schedule`; timm's `CosineLRScheduler`, whose default `warmup_prefix=False`
    is `from_start`; mindcv/scheduler/dynamic_lr.py; torch's `MultiStepLR` and `OneCycleLR`.

    Attributes:
        total_steps: Updates of the run.
        decay: Shape of the decay.
        warmup_steps: May be 0; less than *total_steps*.
        start_factor: Factor of the first update, if there is a warm-up.
        warmup_shape: Shape of the warm-up.
        end_factor: Factor at the end of linear and cosine decay.
        decay_end: Update at which they end; None: *total_steps*.
        from_start: Whether they are counted from the start of the run, not from the end of the
            warm-up.
        timescale: Of rsqrt, in updates.
        drops: Updates at which "step" drops, ascending.
        drop_factor: Factor of each drop.
        cooldown_steps: Number of last updates, in which the factor decreases to 0.
        changes: When the factor changes.
        steps_per_epoch: Updates in an epoch.
        first_epoch: Number of the first epoch, if the factor changes every epoch.
    """

    total_steps: int
    decay: Decay = "cosine"
    warmup_steps: int = 0
    start_factor: float = 0.0
    warmup_shape: Literal["linear", "cosine"] = "linear"
    end_factor: float = 0.0
    decay_end: float | None = None
    from_start: bool = False
    timescale: int = 10_000
    drops: tuple[int, ...] = ()
    drop_factor: float = 0.1
    cooldown_steps: int = 0
    changes: Changes = "every_step"
    steps_per_epoch: int = 1
    first_epoch: int = 0

    def __call__(self, step: int) -> float:
        """Return the factor for the update after *step* updates."""
        at = self._changed_at(step)
        factor = self._warmup(at) if at < self.warmup_steps else self._decayed(at)
        if self.cooldown_steps:
            factor *= min(1.0, (self.total_steps - step) / self.cooldown_steps)
        return factor

    def _changed_at(self, step: int) -> int:
        epoch_began = step // self.steps_per_epoch * self.steps_per_epoch
        if self.changes == "every_epoch":
            return max(0, epoch_began + self.first_epoch * self.steps_per_epoch)
        if self.changes == "every_epoch_after_warmup" and step >= self.warmup_steps:
            return max(epoch_began, self.warmup_steps)
        return step

    def _warmup(self, at: int) -> float:
        share = at / self.warmup_steps
        if self.warmup_shape == "cosine":
            share = 0.5 * (1 - math.cos(math.pi * share))
        return self.start_factor + (1 - self.start_factor) * share

    def _decayed(self, at: int) -> float:
        if self.decay == "rsqrt":
            return 1 / math.sqrt(1 + (at - self.warmup_steps) / self.timescale)
        if self.decay == "step":
            return self.drop_factor ** sum(drop <= at for drop in self.drops)
        start = 0 if self.from_start else self.warmup_steps
        end = self.total_steps if self.decay_end is None else self.decay_end
        done = min(max((at - start) / (end - start), 0.0), 1.0)
        left = 1 - done if self.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.end_factor + (1 - self.end_factor) * left


def is_due(step: int, *, every_steps: int, total_steps: int) -> bool:
    """Return whether an action with a period of *every_steps* is due after *step* updates.

    It is always due at the last step; with *every_steps* 0, only there.
    """
    return step == total_steps or (every_steps > 0 and step % every_steps == 0)


class Ema:
    """Exponential moving average of the parameters of a model.

    After update t the average is ``d * average + (1 - d) * weights`` with ``d = decay``, or with a
    warm-up ``d = decay * (1 - exp(-t / warmup_steps))``.

    Source: timm's `ModelEma`, as in DeiT (decay 0.99996, no warm-up); the warm-up is that of
        mindcv/utils/train_step.py (warmup_steps = 2000).

    Args:
        model: Its current parameters are the first average.
        decay: d, 0 to 1.
        warmup_steps: Updates until d is 63 % of *decay*; 0: no warm-up.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup_steps: int = 0) -> None:
        self._model = model
        self._decay = decay
        self._warmup_steps = warmup_steps
        self._averages = {name: param.detach().clone() for name, param in model.named_parameters()}

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Update the averages after update *num_updates*."""
        decay = self._decay
        if self._warmup_steps:
            decay *= 1 - math.exp(-num_updates / self._warmup_steps)
        params = [local_part(param) for _, param in self._model.named_parameters()]
        averages = [local_part(average) for average in self._averages.values()]
        torch._foreach_lerp_(averages, params, 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """Return the `state_dict` of the model with averages as parameters; not copies."""
        return {**self._model.state_dict(), **self._averages}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load averages that `tensors` returned, unsharded, on any device."""
        for name, average in self._averages.items():
            local_part(average).copy_(local_part(shard_like(tensors[name], average)))
