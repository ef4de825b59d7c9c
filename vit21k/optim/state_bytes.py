"""What optimizers keep for each value that they update, in bytes."""

from typing import Literal

from torch.optim import Optimizer

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
