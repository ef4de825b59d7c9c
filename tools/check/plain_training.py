"""Training as a plain script: timm's ViT-B, torch's losses, optimizer and schedulers.

Nothing here comes from vit21k.  `oracle_training.py` holds it against a run of a recipe.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

ImageRow = tuple[Path, Sequence[int]]
"""A file of the model's size, and its classes."""
Batches = Sequence[Sequence[ImageRow]]


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """The numbers of a run, by the names that torch and timm give them."""

    img_size: int
    num_classes: int
    depth: int
    embed_dim: int
    num_heads: int
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    warmup_steps: int
    start_factor: float
    total_steps: int
    label_smoothing: float
    mean: float
    std: float
    max_norm: float = 0.0
    layer_decay: float = 1.0


def train_plsc(numbers: Numbers, weights: dict[str, Tensor], batches: Batches) -> list[float]:
    """Return the losses of PLSC's recipe: BCE summed over classes, all decayed, clipped."""
    model = _timm_model(numbers, global_pool="token")
    width = numbers.embed_dim
    model.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), model.head)
    renamed = {"pre_logits.fc.": "head.0.", "head.": "head.2."}
    model.load_state_dict({_rename(name, renamed): value for name, value in weights.items()})
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=numbers.lr, betas=numbers.betas, weight_decay=numbers.weight_decay
    )
    return _train(model, optimizer, numbers, batches, _plsc_loss)


def train_after_mae(numbers: Numbers, weights: dict[str, Tensor], batches: Batches) -> list[float]:
    """Return the losses of fine-tuning after MAE: softmax, mean pooling, layer-wise decay."""
    model = _timm_model(numbers, global_pool="avg")
    model.load_state_dict(weights)
    groups = param_groups_layer_decay(
        model,
        weight_decay=numbers.weight_decay,
        layer_decay=numbers.layer_decay,
        no_weight_decay_list=model.no_weight_decay(),
    )
    for group in groups:
        group["lr"] = numbers.lr * group["lr_scale"]
    optimizer = torch.optim.AdamW(groups, lr=numbers.lr, betas=numbers.betas)
    return _train(model, optimizer, numbers, batches, _softmax_loss)


def _timm_model(numbers: Numbers, *, global_pool: str) -> Any:
    return timm.create_model(
        "vit_base_patch16_224",
        img_size=numbers.img_size,
        num_classes=numbers.num_classes,
        depth=numbers.depth,
        embed_dim=numbers.embed_dim,
        num_heads=numbers.num_heads,
        global_pool=global_pool,
    )


def _rename(name: str, renamed: dict[str, str]) -> str:
    for start, other in renamed.items():
        if name.startswith(start):
            return other + name.removeprefix(start)
    return name


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    numbers: Numbers,
    batches: Batches,
    loss_of: Callable[[Tensor, Tensor, float], Tensor],
) -> list[float]:
    warmup = LinearLR(optimizer, numbers.start_factor, 1.0, total_iters=numbers.warmup_steps)
    cosine = CosineAnnealingLR(optimizer, T_max=numbers.total_steps - numbers.warmup_steps)
    scheduler = SequentialLR(optimizer, [warmup, cosine], milestones=[numbers.warmup_steps])
    losses = []
    model.train()
    for batch in batches:
        images = torch.stack([_read(path, numbers) for path, _ in batch])
        targets = torch.zeros(len(batch), numbers.num_classes)
        for row, (_, classes) in enumerate(batch):
            targets[row, list(classes)] = 1.0
        loss = loss_of(model(images), targets, numbers.label_smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if numbers.max_norm:
            nn.utils.clip_grad_norm_(model.parameters(), numbers.max_norm)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


def _read(path: Path, numbers: Numbers) -> Tensor:
    with Image.open(path) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return (pixels.permute(2, 0, 1) / 255 - numbers.mean) / numbers.std


def _plsc_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    # In float32 torch's own loss is too high by 7e-6 of its value here: for each of many classes it
    # takes the small difference of two numbers near 10.
    targets = targets.double() * (1 - smoothing) + smoothing
    losses = F.binary_cross_entropy_with_logits(logits.double(), targets, reduction="none")
    return losses.sum(1).mean()


def _softmax_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    shares = targets / targets.sum(1, keepdim=True)
    return F.cross_entropy(logits, shares, label_smoothing=smoothing)
