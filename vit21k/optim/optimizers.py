"""Parameter groups and optimizers: SGD, AdamW, LAMB, bfloat16 momentum, loss scaling.

A rule gives every parameter two factors, for the learning rate and for the weight decay;
parameters with equal factors make a group.  A group carries ``peak_lr``: the loop sets its ``lr``
to that times the schedule's factor.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vit21k.device import Precision
from vit21k.errors import NonFiniteLossError, UsageError
from vit21k.recipe.schema import OptimSection

Named = Sequence[tuple[str, nn.Parameter]]

# A transformer block of a ViT, or of a stage of a PiT; what leads from one stage to the next.
_BLOCK = re.compile(r"(?:transformers\.(\d+)\.)?blocks\.(\d+)\.")
_POOL = re.compile(r"transformers\.(\d+)\.pool\.")
_EMBEDDINGS = ("cls_token", "pos_embed", "patch_embed.")


def param_groups(model: nn.Module, section: OptimSection) -> dict[str, tuple[float, float]]:
    """Return (factor on the learning rate, weight decay) of every parameter that is trained.

    They depend on the kind, the layer and the name of the parameter; see the fields of *section*
    and `layer_ids`.

    Raises:
        UsageError: A pattern matches no parameter of *model*.
    """
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    for option in ("decay_multipliers", "lr_multipliers"):
        _check_patterns(getattr(section, option), dict(model.named_parameters()), option)
    layers = layer_ids(trained)
    top = max(layers.values(), default=0)
    return {
        name: (
            section.layer_decay ** (top - layers[name]) * _multiplier(section.lr_multipliers, name),
            _base_decay(name, param, section) * _multiplier(section.decay_multipliers, name),
        )
        for name, param in trained.items()
    }


def as_groups(
    named: Named, factors: Mapping[str, tuple[float, float]], *, lr: float
) -> list[dict[str, Any]]:
    """Return torch's parameter groups: fastest first, and of equally fast ones the decayed first.

    Args:
        named: The parameters to group.
        factors: What `param_groups` returned.
        lr: Peak learning rate at a factor of 1.
    """
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, param in named:
        members.setdefault(factors[name], []).append(param)
    return [
        {"params": members[key], "peak_lr": lr * key[0], "weight_decay": key[1]}
        for key in sorted(members, reverse=True)
    ]


def layer_ids(names: Iterable[str]) -> dict[str, int]:
    """Return the layer of every parameter, counted from the image.

    Layer 0 has the embeddings, 1 to n the n blocks, n + 1 all that comes after them: the last
    norm, the representation layer, the head.  A PiT's blocks are counted through its stages; the
    pooling before a stage belongs to the first block of it.

    Source: BEiT, optim_factory.py; MMPretrain's `VisionTransformer.get_layer_depth` is the same.
    timm's `param_groups_layer_decay` differs in one thing: a norm before the pooling belongs to
    the last block there.
    """
    names = list(names)
    blocks = sorted({_place(match) for name in names if (match := _BLOCK.match(name))})
    number = {block: index + 1 for index, block in enumerate(blocks)}
    ids = {}
    for name in names:
        if name.startswith(_EMBEDDINGS):
            ids[name] = 0
        elif match := _BLOCK.match(name):
            ids[name] = number[_place(match)]
        elif match := _POOL.match(name):
            ids[name] = number[int(match[1]), 0]
        else:
            ids[name] = len(blocks) + 1
    return ids


def is_block_matrix(name: str, param: nn.Parameter) -> bool:
    """Return whether this is a matrix inside a transformer block."""
    return _BLOCK.match(name) is not None and name.endswith(".weight") and param.ndim > 1


def _place(match: re.Match[str]) -> tuple[int, int]:
    return int(match[1] or 0), int(match[2])


def _base_decay(name: str, param: nn.Parameter, section: OptimSection) -> float:
    is_kernel = param.ndim > 1 and name.endswith(".weight")
    decays = {"all": True, "not_1d": param.ndim > 1, "kernels": is_kernel, "none": False}
    return section.weight_decay if decays[section.decay_params] else 0.0


def _multiplier(multipliers: Mapping[str, float], name: str) -> float:
    matching = (value for pattern, value in multipliers.items() if fnmatchcase(name, pattern))
    return next(matching, 1.0)


def _check_patterns(patterns: Iterable[str], names: Iterable[str], option: str) -> None:
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"optim.{option}: `{pattern}` matches no parameter of the model",
                hint=f"its parameters are called like `{names[0]}`, `{names[-1]}`",
            )


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


_BY_CLASS = {
    "AdamW": 8,
    "Lamb": 8,
    "HalfMomentumAdamW": 6,
    "SGD": 4,
    "HalfMomentumSGD": 2,
    "Muon": 4,
}
_BY_KIND = {"adamw": 8, "lamb": 8, "sgd": 4, "muon": 4}
_SPARED_BY_HALF_MOMENTUM = 2


def state_bytes(optimizer: Optimizer) -> int:
    """Return what *optimizer* keeps for each value."""
    return _BY_CLASS[type(optimizer).__name__]


def state_bytes_of(kind: str, momentum_dtype: Literal["fp32", "bf16"]) -> int:
    """Return what an optimizer of a recipe keeps for each value; of Muon, for those of matrices."""
    spared = _SPARED_BY_HALF_MOMENTUM if momentum_dtype == "bf16" else 0
    return _BY_KIND[kind] - spared


_FIRST_SCALE = 2.0**16
_GROWTH, _BACKOFF = 2.0, 0.5
_STEPS_TO_GROWTH = 2000
# Without any scaling left, an overflow is no matter of float16 any more.
_LEAST_SCALE = 2.0**-14
_LARGEST_SCALE = 2.0**126


@dataclass
class LossScaler:
    """The factor on the loss, and whether an update is made.

    Attributes:
        scale: The factor; a power of two, so that scaling changes no rounding.
        good_steps: Updates since it was last changed.
        is_fixed: There is no scaling: a gradient that is not finite ends the run.
    """

    scale: float = 1.0
    good_steps: int = 0
    is_fixed: bool = True

    def accepts(self, grad_norm: float, *, step: int) -> bool:
        """Return whether to update with a gradient of this norm, and adapt the scale.

        Args:
            grad_norm: Of the gradient after the scale was taken out of it.
            step: Number of the update, from 1, for the message.

        Raises:
            NonFiniteLossError: The gradient is not finite, and scaling is not the reason.
        """
        is_finite = math.isfinite(grad_norm)
        if self.is_fixed:
            if not is_finite:
                raise NonFiniteLossError(
                    f"the norm of the gradient is {grad_norm} at step {step}",
                    hint="lower the learning rate, lengthen the warm-up, or clip the gradient",
                )
            return True
        if is_finite:
            self._grow()
        else:
            self._back_off(step)
        return is_finite

    def state(self) -> dict[str, float]:
        """Return what a resume needs, as JSON values."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Put back what `state` returned."""
        self.scale, self.good_steps = state["scale"], int(state["good_steps"])

    def _grow(self) -> None:
        self.good_steps += 1
        if self.good_steps == _STEPS_TO_GROWTH:
            self.scale, self.good_steps = min(self.scale * _GROWTH, _LARGEST_SCALE), 0

    def _back_off(self, step: int) -> None:
        self.scale, self.good_steps = self.scale * _BACKOFF, 0
        if self.scale < _LEAST_SCALE:
            raise NonFiniteLossError(
                f"the gradient is not finite at step {step}, however little the loss is scaled",
                hint="lower the learning rate, or use precision bf16 or fp32",
            )


def loss_scaler_of(precision: Precision) -> LossScaler:
    """Return the scaler that a precision needs: one that does nothing, but for "fp16"."""
    if precision != "fp16":
        return LossScaler()
    return LossScaler(scale=_FIRST_SCALE, is_fixed=False)


_FUSED_ADAMW = partial(torch.optim.AdamW, fused=True)


def build_optimizers(model: nn.Module, section: OptimSection) -> list[Optimizer]:
    """Build the optimizers that together update every parameter of *model* that is trained.

    Raises:
        UsageError: A multiplier's pattern matches no parameter, or nothing is left to train.
    """
    factors = param_groups(model, section)
    named = [(name, param) for name, param in model.named_parameters() if name in factors]
    matrices = [pair for pair in named if section.kind == "muon" and is_block_matrix(*pair)]
    names = {name for name, _ in matrices}
    rest = [pair for pair in named if pair[0] not in names]
    optimizers = [_elementwise(as_groups(rest, factors, lr=section.lr), section)]
    if matrices:
        muon_lr = section.muon_lr or section.lr
        optimizers.insert(0, _muon(as_groups(matrices, factors, lr=muon_lr), muon_lr, section))
    return optimizers


def set_lr(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Set every group's learning rate to *factor* times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def _elementwise(groups: list[dict[str, Any]], section: OptimSection) -> Optimizer:
    in_half = section.momentum_dtype == "bf16"
    if section.kind == "sgd":
        if in_half:
            return HalfMomentumSGD(groups, lr=section.lr, momentum=section.momentum)
        return torch.optim.SGD(groups, lr=section.lr, momentum=section.momentum, fused=True)
    adam = Lamb if section.kind == "lamb" else HalfMomentumAdamW if in_half else _FUSED_ADAMW
    return adam(groups, lr=section.lr, betas=section.betas, eps=section.eps)


def _muon(groups: list[dict[str, Any]], lr: float, section: OptimSection) -> Optimizer:
    # `match_rms_adamw` scales an update to the size AdamW's would have, so learning rates of the
    # two are comparable (Liu et al. 2025, arXiv:2502.16982).
    return torch.optim.Muon(
        groups, lr=lr, momentum=section.momentum, adjust_lr_fn="match_rms_adamw"
    )
