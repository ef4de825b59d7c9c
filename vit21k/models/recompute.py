"""Trade cheap arithmetic for memory: compute it a second time instead of keeping its result.

Matrix products, convolutions and attention are kept; norms, GELU, dropout, additions and changes
of type are computed again in the backward pass.  Random numbers are the same both times, so
gradients are those of the plain way.

Source: selective activation checkpointing as capi (arXiv:2502.08769) uses it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

_DEAR = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "_scaled_mm",
    "convolution",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
_DEAR_OPERATIONS = frozenset(
    getattr(torch.ops.aten, name).default for name in _DEAR if hasattr(torch.ops.aten, name)
)
_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def recompute_cheap(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Return ``function(*arguments)``, keeping only what is dear to compute for the backward pass.

    Without gradients this is a plain call.
    """
    if not torch.is_grad_enabled():
        return function(*arguments)
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(function, *arguments, use_reentrant=False, context_fn=contexts)


def _policy(_context: Any, operation: Any, *inputs: Any, **_: Any) -> CheckpointPolicy:
    if operation in _DEAR_OPERATIONS and not _ends_branch(operation, inputs):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _ends_branch(operation: Any, inputs: tuple[Any, ...]) -> bool:
    """Return whether this is the second layer of an MLP, the product that makes rows shorter.

    Its result is only added to something, so that the backward pass does not ask for it, and does
    not compute it again either.
    """
    if operation not in _PRODUCTS:
        return False
    *_, left, right = inputs
    return bool(left.shape[1] > right.shape[1])
