"""Momentum SGD and AdamW whose first moment is kept in bfloat16, as Google keeps it.

It halves the memory of that moment; weights, second moment and arithmetic stay float32
(big_vision#41: in bfloat16 those two lose accuracy).  What the old moment is multiplied with is
rounded to bfloat16, too, because JAX does it so: a recipe's 0.9 is 0.8984375 in Google's runs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class _HalfMomentum(Optimizer):
    """Base of both: what is alike in how their state begins, is updated and comes back."""

    _moment: str

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; a *closure* is not taken."""
        if closure is not None:
            raise TypeError(f"{type(self).__name__} takes no closure")
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, self.state[param], group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back a state; torch's own method makes every tensor one of the parameter's type."""
        super().load_state_dict(state_dict)
        for slots in self.state.values():
            slots[self._moment] = slots[self._moment].bfloat16()

    def _update(
        self, param: Tensor, grad: Tensor, slots: dict[str, Any], group: dict[str, Any]
    ) -> None:
        raise NotImplementedError


class HalfMomentumSGD(_HalfMomentum):
    """SGD: ``b = momentum b + g + decay p; p -= lr b``, where b is rounded to bfloat16 between.

    The update itself has the unrounded b.

    Source: ``optax.sgd(lr, momentum, accumulator_dtype="bfloat16")`` in vit_jax/train.py; the
    weight decay, which Google's recipes do not have, is that of `torch.optim.SGD`.
    """

    _moment = "momentum_buffer"

    def __init__(self, params: Any, *, lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    def _update(
        self, param: Tensor, grad: Tensor, slots: dict[str, Any], group: dict[str, Any]
    ) -> None:
        moved = grad.add(param, alpha=group["weight_decay"]) if group["weight_decay"] else grad
        if slots:
            old = slots[self._moment].to(param.dtype)
            moved = old.mul_(_bfloat16(group["momentum"])).add_(moved)
        slots[self._moment] = moved.bfloat16()
        param.add_(moved, alpha=-group["lr"])


class HalfMomentumAdamW(_HalfMomentum):
    """AdamW as `torch.optim.AdamW` has it, with ``exp_avg`` rounded to bfloat16 between updates.

    Source: ``scale_by_adam(mu_dtype="bfloat16")`` in big_vision's configurations.
    """

    _moment = "exp_avg"

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    def _update(
        self, param: Tensor, grad: Tensor, slots: dict[str, Any], group: dict[str, Any]
    ) -> None:
        if not slots:
            slots["step"] = torch.zeros(())
            slots["exp_avg"] = torch.zeros_like(param, dtype=torch.bfloat16)
            slots["exp_avg_sq"] = torch.zeros_like(param)
        slots["step"] += 1
        num_updates, (beta1, beta2) = slots["step"].item(), group["betas"]
        moment = slots["exp_avg"].to(param.dtype).mul_(_bfloat16(beta1))
        moment.add_(grad, alpha=1 - beta1)
        slots["exp_avg"] = moment.bfloat16()
        slots["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        spread = (slots["exp_avg_sq"] / (1 - beta2**num_updates)).sqrt_().add_(group["eps"])
        param.mul_(1 - group["lr"] * group["weight_decay"])
        param.addcdiv_(moment, spread, value=-group["lr"] / (1 - beta1**num_updates))


def _bfloat16(number: float) -> float:
    return float(torch.tensor(number, dtype=torch.bfloat16))
