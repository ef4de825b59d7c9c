"""Parameter groups and optimizers.

Every group carries ``peak_lr``; the loop sets ``lr`` to it times the schedule's factor.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

# A transformer block of a ViT, or of a stage of a PiT.
_BLOCK = re.compile(r"(transformers\.\d+\.)?blocks\.")

DecayParams = Literal["all", "kernels", "none"]


@dataclass(frozen=True, kw_only=True)
class OptimPlan:
    """Which optimizer, with which numbers.

    Attributes:
        kind: ``adamw`` (decoupled weight decay), ``sgd`` (momentum, weight decay added to the
            gradient) or ``muon`` (Muon on the matrices of the blocks, AdamW on the rest).
        lr: Peak learning rate.
        muon_lr: Peak learning rate of Muon's matrices.
        betas: Of AdamW.
        eps: Of AdamW.
        momentum: Of SGD and Muon.
        weight_decay: On the parameters that *decay_params* names.
        decay_params: ``all``; ``kernels``: matrices of linear and convolution layers only;
            ``none``.
    """

    kind: Literal["adamw", "sgd", "muon"]
    lr: float
    muon_lr: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay_params: DecayParams = "all"


def build_optimizers(model: nn.Module, plan: OptimPlan) -> list[Optimizer]:
    """Return the optimizers that together update every parameter of *model* once a step."""
    if plan.kind != "muon":
        return [_elementwise(model.named_parameters(), plan)]
    matrices = [
        (name, param) for name, param in model.named_parameters() if _is_matrix(name, param)
    ]
    names = {name for name, _ in matrices}
    rest = [(name, param) for name, param in model.named_parameters() if name not in names]
    return [_muon(matrices, plan), _elementwise(rest, plan)]


def set_lr(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Set every group's learning rate to *factor* times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def _elementwise(named: Iterable[tuple[str, nn.Parameter]], plan: OptimPlan) -> Optimizer:
    groups = [group for group in _decay_groups(named, plan) if group["params"]]
    for group in groups:
        group["peak_lr"] = plan.lr
    if plan.kind == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr, momentum=plan.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=plan.lr, betas=plan.betas, eps=plan.eps, fused=True)


def _decay_groups(
    named: Iterable[tuple[str, nn.Parameter]], plan: OptimPlan
) -> list[dict[str, object]]:
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, param in named:
        (decayed if _is_decayed(name, param, plan.decay_params) else spared).append(param)
    return [
        {"params": decayed, "weight_decay": plan.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]


def _is_decayed(name: str, param: nn.Parameter, decay_params: DecayParams) -> bool:
    if decay_params == "kernels":
        return param.ndim > 1 and name.endswith(".weight")
    return decay_params == "all"


def _is_matrix(name: str, param: nn.Parameter) -> bool:
    is_in_block = _BLOCK.match(name) is not None
    return is_in_block and name.endswith(".weight") and param.ndim > 1


def _muon(named: list[tuple[str, nn.Parameter]], plan: OptimPlan) -> Optimizer:
    # `match_rms_adamw` scales an update to the size AdamW's would have, so learning rates of the
    # two are comparable (Liu et al. 2025, arXiv:2502.16982).
    return torch.optim.Muon(
        [{"params": [param for _, param in named], "peak_lr": plan.muon_lr}],
        lr=plan.muon_lr,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay if plan.decay_params != "none" else 0.0,
        adjust_lr_fn="match_rms_adamw",
    )
