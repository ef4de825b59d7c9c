"""Parameter groups and optimizers: SGD, AdamW, LAMB, bfloat16 momentum, loss scaling.

Every parameter has a factor on the learning rate and a weight decay; parameters with the same ones
form a group.  The loop sets the ``lr`` of a group to its ``peak_lr`` times the schedule's factor.
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

# A transformer block of a ViT, or of a stage of a PiT; the pooling before a stage.
_BLOCK = re.compile(r"(?:transformers\.(\d+)\.)?blocks\.(\d+)\.")
_POOL = re.compile(r"transformers\.(\d+)\.pool\.")
_EMBEDDINGS = ("cls_token", "dist_token", "reg_token", "pos_embed", "patch_embed.", "norm_pre.")


def param_groups(model: nn.Module, section: OptimSection) -> dict[str, tuple[float, float]]:
    """Return (factor on the learning rate, weight decay) of every trained parameter.

    See the fields of *section*, and `layer_ids`.

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
    """Return torch's parameter groups, in descending order of learning rate and weight decay.

    Args:
        named: The parameters to group.
        factors: The result of `param_groups`.
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
    """Return the layer of every parameter, counted from the input.

    Layer 0 has the embeddings, layers 1 to n the n blocks, layer n + 1 the rest: last norm,
    representation layer, head.  The blocks of a PiT are numbered across its stages; the pooling
    before a stage belongs to the stage's first block.

    Source: BEiT, optim_factory.py; MMPretrain's `VisionTransformer.get_layer_depth` is the same.
    In timm's `param_groups_layer_decay`, a norm before the pooling belongs to the last block.
    """
    names = list(names)
    blocks = sorted({_block(match) for name in names if (match := _BLOCK.match(name))})
    number = {block: index + 1 for index, block in enumerate(blocks)}
    ids = {}
    for name in names:
        if name.startswith(_EMBEDDINGS):
            ids[name] = 0
        elif match := _BLOCK.match(name):
            ids[name] = number[_block(match)]
        elif match := _POOL.match(name):
            ids[name] = number[int(match[1]), 0]
        else:
            ids[name] = len(blocks) + 1
    return ids


def is_block_matrix(name: str, param: nn.Parameter) -> bool:
    """Return whether this is a matrix inside a transformer block."""
    return _BLOCK.match(name) is not None and name.endswith(".weight") and param.ndim > 1


def _block(match: re.Match[str]) -> tuple[int, int]:
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
                hint=f"its parameters have names such as `{names[0]}`, `{names[-1]}`",
            )


class _PerParameter(Optimizer):
    """Base of optimizers that update one parameter at a time.

    Attributes:
        half: Name of the momentum if it is stored in bfloat16 between updates.
    """

    half: str | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; a *closure* is not supported."""
        if closure is not None:
            raise TypeError(f"{type(self).__name__} does not support a closure")
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, self.state[param], group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; torch's method converts all tensors to the type of the parameter."""
        super().load_state_dict(state_dict)
        for slots in self.state.values() if self.half else ():
            slots[self.half] = slots[self.half].bfloat16()

    def _update(
        self, param: Tensor, grad: Tensor, slots: dict[str, Any], group: dict[str, Any]
    ) -> None:
        raise NotImplementedError

    def _adam(
        self, param: Tensor, grad: Tensor, slots: dict[str, Any], group: dict[str, Any]
    ) -> Tensor:
        """Advance Adam's moments, and return ``m / (sqrt(v) + eps)`` of the unbiased ones."""
        (beta1, beta2), dtype = group["betas"], param.dtype
        if self.half:
            beta1, dtype = _rounded(beta1), torch.bfloat16
        if not slots:
            slots["step"] = torch.zeros(())
            slots["exp_avg"] = torch.zeros_like(param, dtype=dtype)
            slots["exp_avg_sq"] = torch.zeros_like(param)
        slots["step"] += 1
        num_updates = slots["step"].item()
        moment = slots["exp_avg"].to(param.dtype) * beta1 + (1 - group["betas"][0]) * grad
        slots["exp_avg"] = moment.to(dtype)
        slots["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = (slots["exp_avg_sq"] / (1 - beta2**num_updates)).sqrt_().add_(group["eps"])
        return (moment / (1 - group["betas"][0] ** num_updates)).div_(root)


class Lamb(_PerParameter):
    """LAMB as in DeiT III: apex's ``FusedLAMB``, of which timm's ``Lamb`` is a copy.

    ``u = m / (sqrt(v) + eps) + decay p`` with Adam's unbiased m and v; ``p -= lr (|p| / |u|) u``.
    The ratio is 1 if either norm is 0, and for parameters without decay.  apex and timm also clip
    the global norm of the gradient to 1: here that is the recipe's `optim.grad_clip_norm`.

    Source: You et al., arXiv:1904.00962; timm/optim/lamb.py.
    """

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    def _update(
        self, param: Tensor, grad: Tensor, slots: dict[str, Any], group: dict[str, Any]
    ) -> None:
        update = self._adam(param, grad, slots, group)
        if decay := group["weight_decay"]:
            update.add_(param, alpha=decay)
            ratio = torch.linalg.vector_norm(param) / torch.linalg.vector_norm(update)
            usable = ratio.isfinite() & (ratio > 0)
            update.mul_(torch.where(usable, ratio, torch.ones_like(ratio)))
        param.add_(update, alpha=-group["lr"])


class HalfMomentumAdamW(_PerParameter):
    """`torch.optim.AdamW` with ``exp_avg`` stored in bfloat16 between updates.

    Source: ``scale_by_adam(mu_dtype="bfloat16")`` in big_vision's configurations.
    """

    half = "exp_avg"

    def __init__(self, params: Any, *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    def _update(
        self, param: Tensor, grad: Tensor, slots: dict[str, Any], group: dict[str, Any]
    ) -> None:
        update = self._adam(param, grad, slots, group)
        param.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


class HalfMomentumSGD(_PerParameter):
    """SGD: ``b = momentum b + g + decay p; p -= lr b``, with b stored in bfloat16 between updates.

    The update uses b before rounding.

    Source: ``optax.sgd(lr, momentum, accumulator_dtype="bfloat16")`` in vit_jax/train.py; the
    weight decay, which Google's recipes do not have, is that of `torch.optim.SGD`.
    """

    half = "momentum_buffer"

    def __init__(self, params: Any, *, lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    def _update(
        self, param: Tensor, grad: Tensor, slots: dict[str, Any], group: dict[str, Any]
    ) -> None:
        moved = grad.add(param, alpha=group["weight_decay"])
        if slots:
            moved.add_(slots["momentum_buffer"].to(param.dtype).mul_(_rounded(group["momentum"])))
        slots["momentum_buffer"] = moved.bfloat16()
        param.add_(moved, alpha=-group["lr"])


def _rounded(number: float) -> float:
    """Return *number* in bfloat16."""
    return float(torch.tensor(number, dtype=torch.bfloat16))


_STATE_BYTES = {"adamw": 8, "lamb": 8, "sgd": 4, "muon": 4}


def state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of the state of *optimizer* for each value."""
    name = type(optimizer).__name__.lower()
    kind = name.removeprefix("halfmomentum")
    return state_bytes_of(kind, "fp32" if kind == name else "bf16")


def state_bytes_of(kind: str, momentum_dtype: Literal["fp32", "bf16"]) -> int:
    """Return the bytes of an optimizer's state for each value; of Muon, for those of matrices."""
    return _STATE_BYTES[kind] - (2 if momentum_dtype == "bf16" else 0)


_FIRST_SCALE = 2.0**16
_GROWTH, _BACKOFF = 2.0, 0.5
_STEPS_TO_GROWTH = 2000
# Below this scale, float16 is not the reason of an overflow.
_LEAST_SCALE = 2.0**-14
_LARGEST_SCALE = 2.0**126


@dataclass
class LossScaler:
    """The factor on the loss; it decides whether an update is skipped.

    Attributes:
        scale: The factor; a power of two, so that scaling does not change rounding.
        good_steps: Updates since its last change.
        is_fixed: There is no scaling: a gradient that is not finite ends the run.
    """

    scale: float = 1.0
    good_steps: int = 0
    is_fixed: bool = True

    def accepts(self, grad_norm: float, *, step: int) -> bool:
        """Return whether to update with a gradient of this norm, and adapt the scale.

        Args:
            grad_norm: Of the gradient divided by the scale.
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
        """Return the state for checkpoints, as JSON values."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Load a result of `state`."""
        self.scale, self.good_steps = state["scale"], int(state["good_steps"])

    def _grow(self) -> None:
        self.good_steps += 1
        if self.good_steps == _STEPS_TO_GROWTH:
            self.scale, self.good_steps = min(self.scale * _GROWTH, _LARGEST_SCALE), 0

    def _back_off(self, step: int) -> None:
        self.scale, self.good_steps = self.scale * _BACKOFF, 0
        if self.scale < _LEAST_SCALE:
            raise NonFiniteLossError(
                f"the gradient is not finite at step {step} with the smallest loss scale",
                hint="lower the learning rate, or use precision bf16 or fp32",
            )


def loss_scaler_of(precision: Precision) -> LossScaler:
    """Return the scaler of a precision; it scales only with "fp16"."""
    if precision != "fp16":
        return LossScaler()
    return LossScaler(scale=_FIRST_SCALE, is_fixed=False)


_FUSED_ADAMW = partial(torch.optim.AdamW, fused=True)


def build_optimizers(model: nn.Module, section: OptimSection) -> list[Optimizer]:
    """Build the optimizers that together update every trained parameter of *model*.

    Raises:
        UsageError: The pattern of a multiplier matches no parameter.
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
    """Set the learning rate of every group to *factor* times its peak."""
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
    # `match_rms_adamw` scales updates to the size of AdamW's, so that learning rates of the two are
    # comparable (Liu et al. 2025, arXiv:2502.16982).
    return torch.optim.Muon(
        groups, lr=lr, momentum=section.momentum, adjust_lr_fn="match_rms_adamw"
    )
