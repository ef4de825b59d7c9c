"""Mixup and cutmix of pairs of pictures: who is mixed with whom, how much, and the labels of that.

The pictures at the positions 2k and 2k + 1 of the run are partners, and what is drawn for them is a
function of the seed and k.  So the same pictures are mixed in the same way whatever the number of
processes and the size of a micro-batch.  timm draws one mode and one share for a whole batch (its
mode `batch`; ours is its mode `pair`); in expectation this is the same, with less noise.
big_vision's larger share for the picture itself makes no difference here: the other partner gets
the smaller one.

Dimensions: B images, P pairs, L labels.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit21k.data.draws import uniform_draws
from vit21k.data.mix64 import derive_key

_STREAM = 0x6D6978  # keeps these draws apart from those of the crops
_WHETHER, _WHICH, _Y, _X, _FIRST_TRY = range(5)
_NUM_TRIES = 40
_ID_BITS = 32


class MixPlan(NamedTuple):
    """What becomes of each picture of a batch.

    Attributes:
        partners_B: int64; the picture it is mixed with: its own place if it is not mixed.
        shares_B: float64; how much of it remains, 0 to 1.
        is_cut_B: bool; whether it is pasted into (cutmix), not blended (mixup).
        boxes_B4: int64; top, bottom, left and right of what is pasted, in pixels.
    """

    partners_B: NDArray[np.int64]
    shares_B: NDArray[np.float64]
    is_cut_B: NDArray[np.bool_]
    boxes_B4: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """Draws what is mixed with what.

    Attributes:
        seed: Seed of the run.
        mixup_alpha: The share of a blend is Beta(a, a) distributed, 0 < a <= 1; 0: none is blended.
        cutmix_alpha: The same of the share that remains where a box is pasted.
        mix_rate: How many of the pairs are mixed at all.
        switch_rate: How many of the mixed ones by cutmix, if there are both.
    """

    seed: int
    mixup_alpha: float
    cutmix_alpha: float
    mix_rate: float = 1.0
    switch_rate: float = 0.5

    def plan(self, positions_B: NDArray[np.int64], side: int) -> MixPlan:
        """Return what becomes of the pictures of a batch.

        A picture whose partner is not in the batch, because it could not be decoded or the epoch
        ended before it, is not mixed.

        Args:
            positions_B: Of the pictures in the run, ascending.
            side: Height and width of the pictures, in pixels.
        """
        B = len(positions_B)
        first_P = np.flatnonzero((positions_B[:-1] % 2 == 0) & (np.diff(positions_B) == 1))
        draws = uniform_draws(
            derive_key(_STREAM, self.seed),
            positions_B[first_P] // 2,
            _FIRST_TRY + 2 * _NUM_TRIES,
        )
        mixed_P = draws[:, _WHETHER] < self.mix_rate
        first_P, draws = first_P[mixed_P], draws[mixed_P]
        cut_P = draws[:, _WHICH] < self._share_of_cutmix()
        alphas_P = np.where(cut_P, self.cutmix_alpha, self.mixup_alpha)
        shares_P = _beta(alphas_P, draws[:, _FIRST_TRY:])
        boxes_P4 = _boxes(shares_P, draws[:, _Y], draws[:, _X], side)
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
    """Return the labels of the mixed pictures: their own and their partners', by their shares.

    A class that both partners carry is one label with the sum of both weights; a label of which
    nothing remains is none.

    Args:
        plan: Who is mixed with whom.
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


def _beta(alphas_P: NDArray[np.float64], draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Beta(a, a) numbers from (P, 2 tries) uniform ones.

    Source: Johnk, "Erzeugung von betaverteilten und gammaverteilten Zufallszahlen" (1964).  For
    a <= 1 at least half of the tries succeed.
    """
    inverse_P1 = 1 / alphas_P[:, None]
    x, y = draws[:, 0::2] ** inverse_P1, draws[:, 1::2] ** inverse_P1
    accepted = (x + y <= 1) & (x + y > 0)
    rows, tries = np.arange(len(draws)), accepted.argmax(axis=1)
    x_P, y_P = x[rows, tries], y[rows, tries]
    found_P = accepted[rows, tries]
    return np.where(found_P, x_P / np.where(found_P, x_P + y_P, 1), 0.5)


def _boxes(
    shares_P: NDArray[np.float64], y_P: NDArray[np.float64], x_P: NDArray[np.float64], side: int
) -> NDArray[np.int64]:
    """Return boxes of an area of 1 - share, cut off at the border.

    Half of the side, rounded down, lies on either side of the center, so that an odd side loses a
    pixel: `rand_bbox` of the paper's code (clovaai/CutMix-PyTorch), of MMPretrain, and of the timm
    that the recipes were made with (1.0.31 keeps the odd pixel).
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
