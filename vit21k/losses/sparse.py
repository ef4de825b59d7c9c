"""Logits and sparse labels -> loss.

Labels travel sparse: label i says that image `label_rows_L[i]` of the batch carries the class
`label_ids_L[i]`.  No dense target is ever built: it would be 87 kB an image for 21,841 classes.

Dimensions: B images, K classes, L labels in the batch.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SmoothingFloor = Literal["e", "e/K"]
ClassReduction = Literal["sum", "mean"]

# Logits are worked on in slices of about so many values, so that little is needed beside the logits
# and their gradient.  Smaller slices are no faster, and cost more where a thread waits for others.
_CPU_SLICE_VALUES = 1 << 21
_DEVICE_SLICE_VALUES = 1 << 26


def multi_label_loss(
    logits_BK: Tensor,
    label_rows_L: Tensor,
    label_ids_L: Tensor,
    *,
    smoothing: float = 0.0,
    smoothing_floor: SmoothingFloor = "e",
    class_reduction: ClassReduction = "sum",
    label_weights_L: Tensor | None = None,
) -> Tensor:
    """Sigmoid cross-entropy, summed over classes and averaged over images.

    Cross-entropy against a target y is ``softplus(z) - y z``, so the labels take part in a gather
    only.  With smoothing e the target is

    - ``y (1 - e) + e`` with the floor "e" (PLSC): positives stay 1, negatives are e, and the loss
      cannot fall below ``(K - 1) H(e)``, which is 22.3 for 21,841 classes and 1e-4;
    - ``y (1 - e) + e / K`` with the floor "e/K" (timm's `BinaryCrossEntropy`, MindCV): positives
      are ``1 - e + e / K``, negatives ``e / K``.

    Args:
        logits_BK: Scores before the sigmoid.  Of any type; the computation is in float32.
        label_rows_L: Which image of the batch each label belongs to.  An image may have none.
        label_ids_L: Class index of each label.  (row, id) pairs are distinct.
        smoothing: e, as above.
        smoothing_floor: What every target is raised by, as above.
        class_reduction: "sum" over the K classes, or their "mean": a K-th of it, which is what
            torch's and timm's losses give by default, and DeiT's recipes train with.
        label_weights_L: float32; y at each label, 0 to 1, where images are mixed.  None: 1.

    Returns:
        Scalar, float32.

    Source: `ViTCELoss` in plsc/loss/celoss.py; `sigmoid_xent` in big_vision/utils.py has no
    smoothing and is the same else.
    """
    num_classes = max(logits_BK.shape[1], 1)
    floor = smoothing if smoothing_floor == "e" else smoothing / num_classes
    loss: Tensor = _MultiLabelLoss.apply(
        logits_BK, label_rows_L, label_ids_L, label_weights_L, smoothing, floor
    )
    return loss / num_classes if class_reduction == "mean" else loss


def single_label_loss(
    logits_BK: Tensor,
    label_rows_L: Tensor,
    label_ids_L: Tensor,
    *,
    smoothing: float = 0.0,
    label_weights_L: Tensor | None = None,
) -> Tensor:
    """Softmax cross-entropy, averaged over images.

    An image with m labels has the target 1/m on each; with one label this is
    `torch.nn.functional.cross_entropy` with `label_smoothing`.  An image without labels adds 0.

    Args:
        logits_BK: Scores before the softmax.  Of any type; the computation is in float32.
        label_rows_L: Which image of the batch each label belongs to.
        label_ids_L: Class index of each label.  (row, id) pairs are distinct.
        smoothing: e: the target is ``y (1 - e) + e / K``, as in torch, timm, MindCV and PLSC's
            `CELoss`.  MMPretrain's "classy_vision" ``(y + e / K) / (1 + e)`` is this with
            ``e / (1 + e)`` for e.  (PLSC's `ViTCELoss` has another form for softmax, and no
            published recipe uses that.)
        label_weights_L: float32; y at each label, where images are mixed: those of an image add up
            to 1.  None: 1/m, as above.

    Returns:
        Scalar, float32.
    """
    log_probs_BK = F.log_softmax(logits_BK, dim=1, dtype=_dtype_inside(logits_BK))
    num_labels_B = log_probs_BK.new_zeros(len(logits_BK)).index_add_(
        0, label_rows_L, log_probs_BK.new_ones(len(label_rows_L))
    )
    weights_L = 1 / num_labels_B[label_rows_L] if label_weights_L is None else label_weights_L
    loss = -(log_probs_BK[label_rows_L, label_ids_L] * weights_L).sum()
    if smoothing:
        uniform_B = -log_probs_BK.mean(dim=1) * (num_labels_B > 0)
        loss = (1 - smoothing) * loss + smoothing * uniform_B.sum()
    return loss / len(logits_BK)


LOSSES = {"sigmoid": multi_label_loss, "softmax": single_label_loss}
"""By the name that recipes give them: what turns the logits into probabilities."""


class _MultiLabelLoss(torch.autograd.Function):
    """`multi_label_loss` that keeps nothing for the backward pass but the logits themselves."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_BK: Tensor,
        label_rows_L: Tensor,
        label_ids_L: Tensor,
        label_weights_L: Tensor | None,
        smoothing: float,
        floor: float,
    ) -> Tensor:
        ctx.save_for_backward(logits_BK, label_rows_L, label_ids_L, label_weights_L)
        ctx.smoothing, ctx.floor = smoothing, floor
        dtype = _dtype_inside(logits_BK)
        sums_B = logits_BK.new_empty(len(logits_BK), dtype=dtype)
        for rows in _row_slices(logits_BK):
            z_BK = logits_BK[rows].to(dtype)
            sums_B[rows] = F.softplus(z_BK).sum(dim=1)
            if floor:
                sums_B[rows] -= floor * z_BK.sum(dim=1)
        of_labels_L = logits_BK[label_rows_L, label_ids_L].to(dtype)
        if label_weights_L is not None:
            of_labels_L *= label_weights_L
        return (sums_B.sum() - (1 - smoothing) * of_labels_L.sum()) / len(logits_BK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        logits_BK, label_rows_L, label_ids_L, label_weights_L = ctx.saved_tensors
        dtype = _dtype_inside(logits_BK)
        scale = grad_loss / len(logits_BK)
        grad_BK = torch.empty_like(logits_BK)
        for rows in _row_slices(logits_BK):
            slope_BK = torch.sigmoid(logits_BK[rows].to(dtype))
            if ctx.floor:
                slope_BK -= ctx.floor
            torch.mul(slope_BK, scale, out=grad_BK[rows])
        # At a label: sigmoid(z) - target, rounded once, to the type of the logits.
        slope_L = torch.sigmoid(logits_BK[label_rows_L, label_ids_L].to(dtype))
        slope_L -= _targets(label_weights_L, ctx.smoothing, ctx.floor)
        grad_BK[label_rows_L, label_ids_L] = (slope_L * scale).to(grad_BK.dtype)
        return grad_BK, None, None, None, None, None


def _targets(label_weights_L: Tensor | None, smoothing: float, floor: float) -> Tensor | float:
    """Return ``y (1 - e) + floor``, written so that y = 1 stays 1 to the bit where floor is e."""
    top = 1.0 + (floor - smoothing)
    return top if label_weights_L is None else top - (1 - smoothing) * (1 - label_weights_L)


def _dtype_inside(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _row_slices(logits_BK: Tensor) -> list[slice]:
    B, K = logits_BK.shape
    on_cpu = logits_BK.device.type == "cpu"
    step = max(1, (_CPU_SLICE_VALUES if on_cpu else _DEVICE_SLICE_VALUES) // max(K, 1))
    return [slice(start, start + step) for start in range(0, B, step)]
