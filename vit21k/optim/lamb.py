"""LAMB: Adam whose step is scaled, matrix by matrix, to the size of the matrix."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lamb(Optimizer):
    """LAMB as DeiT III ran it: apex's ``FusedLAMB``, of which timm's ``Lamb`` is the copy.

    ``u = m / (sqrt(v) + eps) + decay p`` with Adam's unbiased m and v;
    ``p -= lr (|p| / |u|) u``, the ratio being 1 where either norm is 0, and for parameters
    without decay.  Both of those also clip the gradient's global norm to 1: here that is the
    recipe's `optim.grad_clip_norm`.

    Source: You et al., arXiv:1904.00962; timm/optim/lamb.py.
    """

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; a *closure* is not taken."""
        if closure is not None:
            raise TypeError("Lamb takes no closure")
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    _update(param, param.grad, self.state[param], group)


def _update(param: Tensor, grad: Tensor, slots: dict[str, Any], group: dict[str, Any]) -> None:
    if not slots:
        slots["step"] = torch.zeros(())
        slots["exp_avg"] = torch.zeros_like(param)
        slots["exp_avg_sq"] = torch.zeros_like(param)
    slots["step"] += 1
    num_updates, (beta1, beta2) = slots["step"].item(), group["betas"]
    slots["exp_avg"].mul_(beta1).add_(grad, alpha=1 - beta1)
    slots["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    spread = slots["exp_avg_sq"].sqrt().div_((1 - beta2**num_updates) ** 0.5).add_(group["eps"])
    update = (slots["exp_avg"] / (1 - beta1**num_updates)).div_(spread)
    if decay := group["weight_decay"]:
        update.add_(param, alpha=decay)
        param_norm, update_norm = torch.linalg.vector_norm(param), torch.linalg.vector_norm(update)
        usable = (param_norm > 0) & (update_norm > 0)
        update.mul_(torch.where(usable, param_norm / update_norm, torch.ones_like(param_norm)))
    param.add_(update, alpha=-group["lr"])
