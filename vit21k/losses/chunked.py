"""Features and sparse labels -> multi-label loss, head included, without ever holding the logits.

The sigmoid loss is a sum over classes, so the head and the loss go together through a few hundred
classes at a time: their logits, their part of the loss and of all gradients, all in the forward
pass; then they are forgotten.  Beside the gradients, which every way returns, it takes the memory
of one such chunk.  (Chunks of images would do, too, but would add to the whole gradient of the head
once a chunk; chunks of classes write each part of it once.  The softmax loss needs all classes of
an image at once and has no such form here: its logits, of 1,000 classes, are small.)

Dimensions: B images, D features, K classes, C classes of a chunk, L labels in the batch.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vit21k.losses.sparse import ClassReduction, SmoothingFloor

# Logits of a micro-batch above which the trainer takes this way: 134 MB in float32.  Below, they
# are small beside what the blocks keep.
_WORTHWHILE_VALUES = 1 << 25
# Logits of a chunk: enough for matrix products at full speed.
_CPU_CHUNK_VALUES = 1 << 20
_DEVICE_CHUNK_VALUES = 1 << 24
# What is computed beside a chunk's logits is an eighth of them at a time.
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
