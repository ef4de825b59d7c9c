"""Histograms of scores -> average precision of each class, and how far off it can be.

Dimensions: K classes, H bins, in ascending order of score.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_CLASSES_AT_ONCE = 256
"""Classes worked on together: what is needed beside the histograms stays under 20 MB."""


class AveragePrecision(NamedTuple):
    """Average precision of each class, float64; NaN for a class without pictures.

    Attributes:
        value_K: Of the binned scores: pictures in one bin are ties.
        low_K: The exact scores give no less than this, ...
        high_K: ... and no more than this.
    """

    value_K: Tensor
    low_K: Tensor
    high_K: Tensor


def average_precision(hits_KH: Tensor, all_KH: Tensor) -> AveragePrecision:
    """Return the average precision of each class.

    It is scikit-learn's: the mean, over the pictures of a class, of the precision among all
    pictures that score no less; nothing is interpolated.

    Args:
        hits_KH: How many pictures of each class have a score in each bin.
        all_KH: How many pictures have.
    """
    K = len(hits_KH)
    # Written in place: small results kept between the large passing ones would hold the heap open,
    # and half a gigabyte of it, on some runs and not on others.
    ap = AveragePrecision(*torch.empty(3, K, dtype=torch.float64))
    for start in range(0, K, _CLASSES_AT_ONCE):
        part = slice(start, start + _CLASSES_AT_ONCE)
        values = _of_classes(hits_KH[part].cpu().double(), all_KH[part].cpu().double())
        for whole_K, value_K in zip(ap, values, strict=True):
            whole_K[part] = value_K
    return ap


def _of_classes(hits_KH: Tensor, all_KH: Tensor) -> AveragePrecision:
    hits_KH, all_KH = hits_KH.flip(1), all_KH.flip(1)  # best scores first
    true_KH, taken_KH = hits_KH.cumsum(1), all_KH.cumsum(1)
    false_KH = taken_KH - true_KH
    false_before_KH = false_KH - (all_KH - hits_KH)
    num_K = hits_KH.sum(1)
    value_K = (hits_KH * _share(true_KH, taken_KH)).sum(1)
    # No picture of a class does better than if all of its bin came before all others of the bin.
    high_K = (hits_KH * _share(true_KH, true_KH + false_before_KH)).sum(1)
    # At worst all others come first.  With t true and f false ones before it, the i-th picture of
    # the bin then has the precision (t + i) / (t + f + i); digamma adds up 1 / (t + f + i).
    harmonic_KH = torch.digamma(taken_KH + 1) - torch.digamma(taken_KH - hits_KH + 1)
    low_K = (hits_KH - false_KH * harmonic_KH).sum(1)
    return AveragePrecision(value_K / num_K, low_K / num_K, high_K / num_K)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole; 0 where both are 0."""
    return part / whole.clamp(min=1)
