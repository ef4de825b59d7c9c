"""Logits and sparse labels -> loss; or features and a head, in chunks of classes.

Labels travel sparse: label i says that image `label_rows_L[i]` of the batch carries the class
`label_ids_L[i]`.  No dense target is ever built: it would be 87 kB an image for 21,841 classes.

`chunked_multi_label_loss` never holds all logits.  The sigmoid loss is a sum over classes, so it
computes head and loss for a few hundred classes at a time: their logits, their part of the loss and
of all gradients, all in the forward pass.  Besides the gradients it takes the memory of one chunk.
(Chunks of images would add to the complete gradient of the head once a chunk; chunks of classes
write each part of it once.  The softmax loss needs all classes of an image at once; its logits, of
1,000 classes, are small.)

Dimensions: B images, D features, K classes, C classes of a chunk, L labels in the batch.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SmoothingFloor = Literal["e", "e/K"]
ClassReduction = Literal["sum", "mean"]

# Values of a slice of logits: little memory is needed in addition to the logits and their gradient.
# Smaller slices are no faster, and cost more where a thread waits for others.
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
    """Return ``y (1 - e) + floor``, written so that y = 1 stays exactly 1 if floor is e."""
    top = 1.0 + (floor - smoothing)
    return top if label_weights_L is None else top - (1 - smoothing) * (1 - label_weights_L)


def _dtype_inside(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _row_slices(logits_BK: Tensor) -> list[slice]:
    B, K = logits_BK.shape
    on_cpu = logits_BK.device.type == "cpu"
    step = max(1, (_CPU_SLICE_VALUES if on_cpu else _DEVICE_SLICE_VALUES) // max(K, 1))
    return [slice(start, start + step) for start in range(0, B, step)]


# Logits of a micro-batch above which the trainer takes this way: 134 MB in float32.  Below, they
# are small compared to the activations of the blocks.
_WORTHWHILE_VALUES = 1 << 25
# Logits of a chunk: enough for matrix products at full speed.
_CPU_CHUNK_VALUES = 1 << 20
_DEVICE_CHUNK_VALUES = 1 << 24
# Temporary values are computed for an eighth of a chunk's logits at a time.
_NUM_SPLITS = 8


def wants_chunks(model: nn.Module, num_images: int) -> bool:
    """Return whether the trainer should take this way: the logits of a batch would be large.

    It can be taken where logits are ``head(features(images))`` and this process has all weights.
    """
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear) or hasattr(head.weight, "full_tensor"):
        return False
    is_alone = hasattr(model, "features") and getattr(model, "head_dist", None) is None
    return is_alone and num_images * head.out_features >= _WORTHWHILE_VALUES


def chunked_multi_label_loss(  # noqa: PLR0913 (the options of `multi_label_loss`)
    features_BD: Tensor,
    head: nn.Linear,
    label_rows_L: Tensor,
    label_ids_L: Tensor,
    *,
    smoothing: float = 0.0,
    smoothing_floor: SmoothingFloor = "e",
    class_reduction: ClassReduction = "sum",
    label_weights_L: Tensor | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Return ``multi_label_loss(head(features_BD), ...)`` without holding the logits.

    Under bfloat16 autocast matrix products are in bfloat16, and everything else is in float32;
    else all is in the type of the head.

    Args:
        features_BD: What the head reads.
        head: The classifier.
        label_rows_L: As of `multi_label_loss`, and so the others.
        label_ids_L: Class index of each label.
        smoothing: Label smoothing.
        smoothing_floor: What every target is raised by.
        class_reduction: Over the classes.
        label_weights_L: y at each label; None: 1.
        chunk_size: Classes of a chunk; None: as fits the device.

    Returns:
        Scalar, float32.  Its backward pass can run once.
    """
    if label_weights_L is None:
        label_weights_L = head.weight.new_ones(len(label_rows_L))
    if chunk_size is None:
        on_cpu = features_BD.device.type == "cpu"
        values = _CPU_CHUNK_VALUES if on_cpu else _DEVICE_CHUNK_VALUES
        chunk_size = max(64, values // max(len(features_BD), 1))
    floor = smoothing if smoothing_floor == "e" else smoothing / head.out_features
    loss: Tensor = _ChunkedLoss.apply(
        features_BD,
        head.weight,
        head.bias,
        _Labels(label_rows_L, label_ids_L, (1 - smoothing) * label_weights_L, floor),
        chunk_size,
    )
    return loss / head.out_features if class_reduction == "mean" else loss


class _Labels(NamedTuple):
    """What the logits are compared with."""

    rows_L: Tensor
    ids_L: Tensor
    targets_L: Tensor
    """Above the floor."""
    floor: float
    """Target of every class of every image."""


class _ChunkedLoss(torch.autograd.Function):
    """The loss, whose gradients exist before anybody asks for them."""

    @staticmethod
    def forward(
        ctx: Any,
        features_BD: Tensor,
        weight_KD: Tensor,
        bias_K: Tensor | None,
        labels: _Labels,
        chunk_size: int,
    ) -> Tensor:
        device = features_BD.device.type
        dtype = _product_dtype(device, weight_KD.dtype)
        x_BD = features_BD.detach().to(dtype)
        gradients = _Gradients(features_BD, weight_KD, bias_K, ctx.needs_input_grad)
        loss = x_BD.new_zeros((), dtype=torch.promote_types(weight_KD.dtype, torch.float32))
        with torch.autocast(device, enabled=False):
            for part in _chunks(len(weight_KD), chunk_size):
                w_CD = weight_KD.detach()[part].to(dtype)
                z_BC = F.linear(x_BD, w_CD).to(loss.dtype)
                if bias_K is not None:
                    z_BC += bias_K.detach()[part]
                loss += _loss_and_slope(z_BC, part.start, labels)
                gradients.add(part, z_BC, x_BD, w_CD)
        ctx.gradients = gradients
        ctx.num_images = len(features_BD)
        return loss / len(features_BD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of the chunked loss were already handed out")
        gradients, ctx.gradients = ctx.gradients, None
        scale = grad_loss / ctx.num_images
        scaled = (g if g is None else g.mul_(scale) for g in gradients.all())
        return (*scaled, None, None)


class _Gradients:
    """Sums over the chunks, of the parts that somebody wants."""

    def __init__(
        self,
        features_BD: Tensor,
        weight_KD: Tensor,
        bias_K: Tensor | None,
        wanted: tuple[bool, ...],
    ) -> None:
        of_sums = torch.promote_types(features_BD.dtype, weight_KD.dtype)
        self._dtype = features_BD.dtype
        self._features_BD = torch.zeros_like(features_BD, dtype=of_sums) if wanted[0] else None
        self._weight_KD = torch.empty_like(weight_KD) if wanted[1] else None
        self._bias_K = torch.empty_like(bias_K) if wanted[2] and bias_K is not None else None

    def add(self, part: slice, slope_BC: Tensor, x_BD: Tensor, w_CD: Tensor) -> None:
        """Add what the logits of a chunk do to the loss, *slope_BC*, times what made them."""
        if self._bias_K is not None:
            self._bias_K[part] = slope_BC.sum(dim=0)
        slope_BC = slope_BC.to(x_BD.dtype)
        if self._weight_KD is not None:
            self._weight_KD[part] = slope_BC.T @ x_BD
        if self._features_BD is None:
            return
        if self._features_BD.dtype == x_BD.dtype:
            self._features_BD.addmm_(slope_BC, w_CD)
        else:
            self._features_BD += slope_BC @ w_CD

    def all(self) -> Iterator[Tensor | None]:
        """Yield those by features, weight and bias."""
        features_BD = self._features_BD
        yield None if features_BD is None else features_BD.to(self._dtype)
        yield self._weight_KD
        yield self._bias_K


def _loss_and_slope(z_BC: Tensor, start: int, labels: _Labels) -> Tensor:
    """Return the loss of a chunk, summed over its images, and replace *z_BC* by its slope.

    No label is looked for, as that would make the host wait for the device: those of other chunks
    take part with a weight of 0.
    """
    rows_L, ids_L, targets_L, floor = labels
    B, C = z_BC.shape
    inside_L = (ids_L >= start) & (ids_L < start + C)
    places_L = rows_L * C + (ids_L - start).clamp(0, C - 1)
    targets_L = torch.where(inside_L, targets_L.to(z_BC.dtype), 0.0)
    loss = -(z_BC.view(-1)[places_L] * targets_L).sum()
    for z_RC in z_BC.split(max(1, B // _NUM_SPLITS)):
        loss += F.softplus(z_RC).sum()
        if floor:
            loss -= floor * z_RC.sum()
    z_BC.sigmoid_()
    if floor:
        z_BC -= floor
    z_BC.view(-1).index_add_(0, places_L, targets_L, alpha=-1)
    return loss


def _product_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """Return the type of matrix products.

    Not float16, which is short of small numbers: gradients are formed before the loss is scaled.
    """
    if not torch.is_autocast_enabled(device):
        return dtype
    return torch.bfloat16 if torch.get_autocast_dtype(device) == torch.bfloat16 else torch.float32


def _chunks(num_classes: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, num_classes)) for start in range(0, num_classes, size))
