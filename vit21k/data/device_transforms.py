"""What is done to a batch on the device that trains: erasing and mixing, before normalisation.

What is drawn is drawn on the host, from the seed and the positions of the pictures, and so are the
mixed labels made; only pixels are worked on here.  A batch that nothing is done to stays uint8.

Dimensions: B images, C colours, H W pixels, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit21k.data.batch_decoder import Batch
from vit21k.data.erase import ErasedBox, Eraser
from vit21k.data.mix import Mixer, MixPlan, mix_labels

_LARGEST = 255.0


class Augmented(NamedTuple):
    """A batch on its device.

    Attributes:
        images_BCHW: 0 to 255, not normalised: uint8, or float32 if anything was done to it.
        label_rows_L: int64; which image each label belongs to.
        label_ids_L: int64; class index of each label; (row, id) pairs are distinct.
        label_weights_L: float32; the target at each label where images are mixed; else None.
    """

    images_BCHW: Tensor
    label_rows_L: Tensor
    label_ids_L: Tensor
    label_weights_L: Tensor | None


@dataclass(frozen=True, kw_only=True)
class DeviceTransform:
    """Erases and mixes.

    Attributes:
        mean: Of red, green and blue, 0 to 1: the colour of what is erased.
        std: Of the same: the deviation of noise, so that it is 1 after normalisation.
        sums_to_one: Whether the targets of an image add up to 1 (softmax), or each is 1 (sigmoid).
        eraser: What is erased; None: nothing.
        mixer: What is mixed; None: nothing.
    """

    mean: Sequence[float]
    std: Sequence[float]
    sums_to_one: bool
    eraser: Eraser | None = None
    mixer: Mixer | None = None

    def __call__(self, batch: Batch, device: torch.device) -> Augmented:
        """Return *batch* on *device*, erased and mixed; without positions only moved there."""
        images_BCHW = batch.images_BCHW.to(device, non_blocking=True)
        rows_L, ids_L = batch.label_rows_L, batch.label_ids_L
        if not len(batch.positions_B):
            return Augmented(images_BCHW, _send(rows_L, device), _send(ids_L, device), None)
        positions_B, side = batch.positions_B.numpy(), images_BCHW.shape[-1]
        if self.eraser and (boxes := self.eraser.boxes(positions_B, side)):
            images_BCHW = images_BCHW.float()
            _erase(images_BCHW, boxes, self.mean, self.std, noise=self.eraser.fill == "pixel")
        if not self.mixer:
            return Augmented(images_BCHW, _send(rows_L, device), _send(ids_L, device), None)
        plan = self.mixer.plan(positions_B, side)
        mixed = mix_labels(plan, rows_L.numpy(), ids_L.numpy(), self._targets(rows_L.numpy()))
        rows_L, ids_L, weights_L = (_send(torch.from_numpy(part), device) for part in mixed)
        return Augmented(mix_images(images_BCHW, plan), rows_L, ids_L, weights_L)

    def _targets(self, label_rows_L: NDArray[np.int64]) -> NDArray[np.float64]:
        if not self.sums_to_one:
            return np.ones(len(label_rows_L))
        targets_L: NDArray[np.float64] = 1 / np.bincount(label_rows_L)[label_rows_L]
        return targets_L


def mix_images(images_BCHW: Tensor, plan: MixPlan) -> Tensor:
    """Return the images blended with, or pasted into by, their partners; float32."""
    device, side = images_BCHW.device, images_BCHW.shape[-1]
    partners_B = _send(torch.from_numpy(plan.partners_B), device)
    is_cut_B111 = _send(torch.from_numpy(plan.is_cut_B), device).view(-1, 1, 1, 1)
    shares_B111 = _send(torch.from_numpy(plan.shares_B.astype(np.float32)), device).view(
        -1, 1, 1, 1
    )
    boxes_4B11 = _send(torch.from_numpy(plan.boxes_B4), device).t().reshape(4, -1, 1, 1)
    top, bottom, left, right = boxes_4B11
    places = torch.arange(side, device=device)
    in_rows_BH1 = (places.view(-1, 1) >= top) & (places.view(-1, 1) < bottom)
    in_box_B1HW = (in_rows_BH1 & (places >= left) & (places < right)).unsqueeze(1)
    kept_B1HW = torch.where(is_cut_B111, (~in_box_B1HW).float(), shares_B111)
    images_BCHW = images_BCHW.float()
    return torch.lerp(images_BCHW[partners_B], images_BCHW, kept_B1HW)


def _erase(
    images_BCHW: Tensor,
    boxes: Sequence[ErasedBox],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    noise: bool,
) -> None:
    """Overwrite boxes of the images, in place, by what is 0 or standard normal once normalised."""
    device = images_BCHW.device
    mean_C11 = torch.tensor(mean, device=device).view(-1, 1, 1) * _LARGEST
    std_C11 = torch.tensor(std, device=device).view(-1, 1, 1) * _LARGEST
    generator = torch.Generator(device)
    for image, top, bottom, left, right, noise_seed in boxes:
        part_CHW = images_BCHW[image, :, top:bottom, left:right]
        if not noise:
            part_CHW.copy_(mean_C11.expand_as(part_CHW))
            continue
        generator.manual_seed(noise_seed)
        values_CHW = torch.randn(part_CHW.shape, generator=generator, device=device)
        part_CHW.copy_(values_CHW * std_C11 + mean_C11)


def _send(values: Tensor, device: torch.device) -> Tensor:
    """Copy to *device*; to a GPU from pinned memory, so that the host does not wait."""
    if device.type == "cuda" and not values.is_cuda:
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
