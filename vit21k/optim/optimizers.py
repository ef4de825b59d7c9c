"""Optimizers over the groups of `param_groups`.

Every group carries ``peak_lr``; the loop sets ``lr`` to it times the schedule's factor.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from vit21k.optim.half_momentum import HalfMomentumAdamW, HalfMomentumSGD
from vit21k.optim.lamb import Lamb
from vit21k.optim.param_groups import GroupRules, as_groups, is_block_matrix, param_groups

_FUSED_ADAMW = partial(torch.optim.AdamW, fused=True)


@dataclass(frozen=True, kw_only=True)
class OptimPlan:
    """Which optimizer, with which numbers.

    Attributes:
        kind: ``adamw`` (decoupled weight decay), ``sgd`` (momentum, weight decay added to the
            gradient), ``lamb``, or ``muon`` (Muon on the matrices of the blocks, AdamW on the
            rest).
        lr: Peak learning rate.
        muon_lr: Peak learning rate of Muon's matrices.
        betas: Of AdamW and LAMB.
        eps: Of AdamW and LAMB.
        momentum: Of SGD and Muon.
        momentum_dtype: What the first moment of AdamW and SGD is kept in.
        rules: Weight decay, and factors on the learning rate, by parameter.
    """

    kind: Literal["adamw", "sgd", "lamb", "muon"]
    lr: float
    muon_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    momentum_dtype: Literal["fp32", "bf16"] = "fp32"
    rules: GroupRules = field(default_factory=GroupRules)


def build_optimizers(model: nn.Module, plan: OptimPlan) -> list[Optimizer]:
    """Return the optimizers that together update every parameter of *model* that is trained.

    Raises:
        UsageError: A multiplier's pattern matches no parameter, or nothing is left to train.
    """
    factors = param_groups(model, plan.rules)
    named = [(name, param) for name, param in model.named_parameters() if name in factors]
    matrices = [pair for pair in named if plan.kind == "muon" and is_block_matrix(*pair)]
    names = {name for name, _ in matrices}
    rest = [pair for pair in named if pair[0] not in names]
    optimizers = [_elementwise(as_groups(rest, factors, lr=plan.lr), plan)]
    if matrices:
        optimizers.insert(0, _muon(as_groups(matrices, factors, lr=plan.muon_lr), plan))
    return optimizers


def set_lr(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Set every group's learning rate to *factor* times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def _elementwise(groups: list[dict[str, Any]], plan: OptimPlan) -> Optimizer:
    in_half = plan.momentum_dtype == "bf16"
    if plan.kind == "sgd":
        if in_half:
            return HalfMomentumSGD(groups, lr=plan.lr, momentum=plan.momentum)
        return torch.optim.SGD(groups, lr=plan.lr, momentum=plan.momentum, fused=True)
    adam = Lamb if plan.kind == "lamb" else HalfMomentumAdamW if in_half else _FUSED_ADAMW
    return adam(groups, lr=plan.lr, betas=plan.betas, eps=plan.eps)


def _muon(groups: list[dict[str, Any]], plan: OptimPlan) -> Optimizer:
    # `match_rms_adamw` scales an update to the size AdamW's would have, so learning rates of the
    # two are comparable (Liu et al. 2025, arXiv:2502.16982).
    return torch.optim.Muon(
        groups, lr=plan.muon_lr, momentum=plan.momentum, adjust_lr_fn="match_rms_adamw"
    )
