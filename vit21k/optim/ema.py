"""An exponential moving average of the weights, evaluated and saved beside them."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vit21k.distributed import local_part, spread_like


class Ema:
    """Averages the parameters of a model over its updates.

    After update t the average is ``d * average + (1 - d) * weights`` with ``d = decay``, or
    ``d = decay * (1 - exp(-t / warmup_steps))`` where the first weights are to be forgotten soon.

    Source: timm's `ModelEma`, as DeiT uses it (decay 0.99996, no warm-up); the warm-up is that of
        mindcv/utils/train_step.py (warmup_steps = 2000).

    Args:
        model: Its parameters, where they are now, are the first average.
        decay: Share of the old average that stays, 0 to 1.
        warmup_steps: Updates in which the decay comes to 63 % of itself; 0: none.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup_steps: int = 0) -> None:
        self._model = model
        self._decay = decay
        self._warmup_steps = warmup_steps
        self._averages = {name: param.detach().clone() for name, param in model.named_parameters()}

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Take the weights in, after *num_updates* of them were made."""
        decay = self._decay
        if self._warmup_steps:
            decay *= 1 - math.exp(-num_updates / self._warmup_steps)
        params = [local_part(param) for _, param in self._model.named_parameters()]
        averages = [local_part(average) for average in self._averages.values()]
        torch._foreach_lerp_(averages, params, 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """Return the model's `state_dict` with the averages for parameters; not copies."""
        return {**self._model.state_dict(), **self._averages}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the averages back that `tensors` returned, whole and on any device."""
        for name, average in self._averages.items():
            local_part(average).copy_(local_part(spread_like(tensors[name], average)))
