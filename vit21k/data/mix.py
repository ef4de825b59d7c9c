"""Random erasing, mixup and cutmix of batches, on the device that trains."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vit21k.data.loader import Batch
from vit21k.data.rng import derive_key, uniform_values

EraseFill = Literal["pixel", "zero"]

_STREAM = 0x6572617365  # separates these random values from those of the crops
_WHETHER, _TOP, _LEFT, _FIRST_TRY = range(4)
_NUM_TRIES = 10
_AREA = (0.02, 1 / 3)
_LOG_RATIO = (math.log(0.3), math.log(1 / 0.3))


class ErasedBox(NamedTuple):
    """A box of an image in pixels, and the seed of its noise."""

    image: int
    top: int
    bottom: int
    left: int
    right: int
    noise_seed: int


@dataclass(frozen=True, kw_only=True)
class Eraser:
    """Selects boxes to erase: in some images a box of 2 % to a third of the area.

    Attributes:
        seed: Seed of the run.
        rate: Fraction of the images.
        fill: "pixel": normal noise for every value; "zero": the mean colour.

    Source: `RandomErasing` in timm/data/random_erasing.py; its modes `pixel` and `const`.
    MMPretrain's `rand` with a fill deviation is `pixel`.
    """

    seed: int
    rate: float
    fill: EraseFill

    def boxes(self, positions_B: NDArray[np.int64], side: int) -> list[ErasedBox]:
        """Return the boxes to erase in the images at *positions_B* of the run, of *side* pixels."""
        key = derive_key(_STREAM, self.seed)
        uniforms = uniform_values(key, positions_B, _FIRST_TRY + 2 * _NUM_TRIES)
        found = []
        for index in np.flatnonzero(uniforms[:, _WHETHER] < self.rate).tolist():
            box = _box(uniforms[index].tolist(), side)
            if box is not None:
                noise_seed = derive_key(key, int(positions_B[index])) >> 1
                found.append(ErasedBox(index, *box, noise_seed))
        return found


def _box(uniforms: list[float], side: int) -> tuple[int, int, int, int] | None:
    """Return top, bottom, left and right, or None if no try fits."""
    for column in range(_FIRST_TRY, _FIRST_TRY + 2 * _NUM_TRIES, 2):
        area = side * side * (_AREA[0] + uniforms[column] * (_AREA[1] - _AREA[0]))
        ratio = math.exp(_LOG_RATIO[0] + uniforms[column + 1] * (_LOG_RATIO[1] - _LOG_RATIO[0]))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if height < side and width < side:
            top = int(uniforms[_TOP] * (side - height + 1))
            left = int(uniforms[_LEFT] * (side - width + 1))
            return top, top + height, left, left + width
    return None


_MIX_STREAM = 0x6D6978  # separates these random values from those of the crops
_MIX_WHETHER, _WHICH, _Y, _X, _MIX_FIRST_TRY = range(5)
_MIX_NUM_TRIES = 40
_ID_BITS = 32


class MixPlan(NamedTuple):
    """How to mix the images of a batch.

    Attributes:
        partners_B: int64; the image it is mixed with; its own index if it is not mixed.
        shares_B: float64; remaining share of the image, 0 to 1.
        is_cut_B: bool; whether a box is pasted (cutmix), or the images are blended (mixup).
        boxes_B4: int64; top, bottom, left and right of the pasted box, in pixels.
    """

    partners_B: NDArray[np.int64]
    shares_B: NDArray[np.float64]
    is_cut_B: NDArray[np.bool_]
    boxes_B4: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """Selects the images to mix.

    Attributes:
        seed: Seed of the run.
        mixup_alpha: The share of a blend is Beta(a, a) distributed, 0 < a <= 1; 0: no mixup.
        cutmix_alpha: The same for the share that remains after pasting; 0: no cutmix.
        mix_rate: Fraction of the pairs that are mixed.
        switch_rate: How many of the mixed ones by cutmix, if there are both.
    """

    seed: int
    mixup_alpha: float
    cutmix_alpha: float
    mix_rate: float = 1.0
    switch_rate: float = 0.5

    def plan(self, positions_B: NDArray[np.int64], side: int) -> MixPlan:
        """Return how to mix the images of a batch.

        An image without its partner in the batch, because it could not be decoded or the epoch
        ended, is not mixed.

        Args:
            positions_B: Of the images in the run, ascending.
            side: Height and width of the images, in pixels.
        """
        B = len(positions_B)
        first_P = np.flatnonzero((positions_B[:-1] % 2 == 0) & (np.diff(positions_B) == 1))
        uniforms = uniform_values(
            derive_key(_MIX_STREAM, self.seed),
            positions_B[first_P] // 2,
            _MIX_FIRST_TRY + 2 * _MIX_NUM_TRIES,
        )
        mixed_P = uniforms[:, _MIX_WHETHER] < self.mix_rate
        first_P, uniforms = first_P[mixed_P], uniforms[mixed_P]
        cut_P = uniforms[:, _WHICH] < self._share_of_cutmix()
        alphas_P = np.where(cut_P, self.cutmix_alpha, self.mixup_alpha)
        shares_P = _beta(alphas_P, uniforms[:, _MIX_FIRST_TRY:])
        boxes_P4 = _boxes(shares_P, uniforms[:, _Y], uniforms[:, _X], side)
        shares_P = np.where(cut_P, 1 - _areas(boxes_P4) / side**2, shares_P)

        plan = MixPlan(
            partners_B=np.arange(B, dtype=np.int64),
            shares_B=np.ones(B),
            is_cut_B=np.zeros(B, dtype=np.bool_),
            boxes_B4=np.zeros((B, 4), dtype=np.int64),
        )
        for place_P, partner_P in ((first_P, first_P + 1), (first_P + 1, first_P)):
            plan.partners_B[place_P] = partner_P
            plan.shares_B[place_P] = shares_P
            plan.is_cut_B[place_P] = cut_P
            plan.boxes_B4[place_P] = boxes_P4
        return plan

    def _share_of_cutmix(self) -> float:
        if not self.mixup_alpha:
            return 1.0
        return self.switch_rate if self.cutmix_alpha else 0.0


def mix_labels(
    plan: MixPlan,
    label_rows_L: NDArray[np.int64],
    label_ids_L: NDArray[np.int64],
    label_weights_L: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return the labels of the mixed images: their own and their partners', weighted by shares.

    A class of both partners is one label with the sum of both weights; labels with weight 0 are
    dropped.

    Args:
        plan: How the images are mixed.
        label_rows_L: Which image each label belongs to.
        label_ids_L: Class index of each label.
        label_weights_L: The target at each label.

    Returns:
        label_rows_L, label_ids_L and label_weights_L after mixing, by row and class index.
    """
    receiver_L = plan.partners_B[label_rows_L]
    given_L = receiver_L != label_rows_L
    rows_L = np.concatenate([label_rows_L, receiver_L[given_L]])
    ids_L = np.concatenate([label_ids_L, label_ids_L[given_L]])
    weights_L = np.concatenate(
        [
            label_weights_L * plan.shares_B[label_rows_L],
            (label_weights_L * (1 - plan.shares_B[receiver_L]))[given_L],
        ]
    )
    keys_L, merged_L = np.unique((rows_L << _ID_BITS) | ids_L, return_inverse=True)
    sums_L = np.bincount(merged_L, weights=weights_L, minlength=len(keys_L)).astype(np.float32)
    keys_L, sums_L = keys_L[sums_L > 0], sums_L[sums_L > 0]
    return keys_L >> _ID_BITS, keys_L & ((1 << _ID_BITS) - 1), sums_L


def _beta(alphas_P: NDArray[np.float64], uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Beta(a, a) values from (P, 2 tries) uniform ones.

    Source: Johnk, "Erzeugung von betaverteilten und gammaverteilten Zufallszahlen" (1964).  For
    a <= 1 at least half of the tries succeed.
    """
    inverse_P1 = 1 / alphas_P[:, None]
    x, y = uniforms[:, 0::2] ** inverse_P1, uniforms[:, 1::2] ** inverse_P1
    accepted = (x + y <= 1) & (x + y > 0)
    rows, tries = np.arange(len(uniforms)), accepted.argmax(axis=1)
    x_P, y_P = x[rows, tries], y[rows, tries]
    found_P = accepted[rows, tries]
    return np.where(found_P, x_P / np.where(found_P, x_P + y_P, 1), 0.5)


def _boxes(
    shares_P: NDArray[np.float64], y_P: NDArray[np.float64], x_P: NDArray[np.float64], side: int
) -> NDArray[np.int64]:
    """Return boxes of an area of 1 - share, clipped at the border.

    Half of the side, rounded down, is on either side of the center, so that an uneven side loses a
    pixel: `rand_bbox` of the paper's code (clovaai/CutMix-PyTorch), of MMPretrain, and of the timm
    that the recipes were made with (1.0.31 keeps that pixel).
    """
    cut_P = (side * np.sqrt(1 - shares_P)).astype(np.int64)
    edges = []
    for center_P in ((y_P * side).astype(np.int64), (x_P * side).astype(np.int64)):
        edges.append(np.clip(center_P - cut_P // 2, 0, side))
        edges.append(np.clip(center_P + cut_P // 2, 0, side))
    return np.stack(edges, axis=1)


def _areas(boxes_P4: NDArray[np.int64]) -> NDArray[np.int64]:
    areas_P: NDArray[np.int64] = (boxes_P4[:, 1] - boxes_P4[:, 0]) * (
        boxes_P4[:, 3] - boxes_P4[:, 2]
    )
    return areas_P


_LARGEST = 255.0


class Augmented(NamedTuple):
    """A batch on its device.

    Attributes:
        images_BCHW: 0 to 255, not normalised: uint8, or float32 if erased or mixed.
        label_rows_L: int64; row in the batch of each label.
        label_ids_L: int64; class index of each label; (row, id) pairs are distinct.
        label_weights_L: float32; target of each label of mixed images; else None.
    """

    images_BCHW: Tensor
    label_rows_L: Tensor
    label_ids_L: Tensor
    label_weights_L: Tensor | None


@dataclass(frozen=True, kw_only=True)
class DeviceTransform:
    """Erases and mixes.

    Attributes:
        mean: Mean of red, green and blue, 0 to 1: the colour of erased boxes.
        std: Standard deviation of the same: that of noise, so that it is 1 after normalisation.
        sums_to_one: Whether the targets of an image sum to 1 (softmax), or each is 1 (sigmoid).
        eraser: Random erasing; None: none.
        mixer: What is mixed; None: nothing.
    """

    mean: Sequence[float]
    std: Sequence[float]
    sums_to_one: bool
    eraser: Eraser | None = None
    mixer: Mixer | None = None

    def __call__(self, batch: Batch, device: torch.device) -> Augmented:
        """Return *batch* on *device*, erased and mixed; only moved if it has no positions."""
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
    """Return the images mixed with their partners; float32."""
    device, side = images_BCHW.device, images_BCHW.shape[-1]
    partners_B = _send(torch.from_numpy(plan.partners_B), device)
    is_cut_B111 = _send(torch.from_numpy(plan.is_cut_B), device).view(-1, 1, 1, 1)
    shares_B111 = _send(torch.from_numpy(plan.shares_B.astype(np.float32)), device).view(
        -1, 1, 1, 1
    )
    boxes_4B11 = _send(torch.from_numpy(plan.boxes_B4), device).t().reshape(4, -1, 1, 1)
    top, bottom, left, right = boxes_4B11
    pixels = torch.arange(side, device=device)
    in_rows_BH1 = (pixels.view(-1, 1) >= top) & (pixels.view(-1, 1) < bottom)
    in_box_B1HW = (in_rows_BH1 & (pixels >= left) & (pixels < right)).unsqueeze(1)
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
    """Overwrite boxes of the images, in place, with 0 or normal noise (after normalisation)."""
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
    """Copy to *device*; to a GPU asynchronously from pinned memory."""
    if device.type == "cuda" and not values.is_cuda:
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
