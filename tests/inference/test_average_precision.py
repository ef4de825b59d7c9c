import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

metrics = pytest.importorskip("sklearn.metrics")

from vit21k.inference.metrics import average_precision

CELLS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


def histograms(cells):
    """One class: of each bin, how many images with the label and how many without."""
    hits = torch.tensor([[with_label for with_label, _ in cells]], dtype=torch.int32)
    return hits, hits + torch.tensor([[without for _, without in cells]], dtype=torch.int32)


def spread(cells):
    """Labels and bins of the single images."""
    pairs = [
        (label, bin_)
        for bin_, counts in enumerate(cells)
        for label, count in zip((1, 0), counts, strict=True)
        for _ in range(count)
    ]
    return np.array([label for label, _ in pairs]), np.array([bin_ for _, bin_ in pairs], float)


@given(CELLS.filter(lambda cells: any(with_label for with_label, _ in cells)))
@settings(max_examples=60)
def test_it_is_sklearns_when_images_of_a_bin_are_ties(cells):
    labels, scores = spread(cells)

    found = average_precision(*histograms(cells))

    assert found.value_K.item() == pytest.approx(metrics.average_precision_score(labels, scores))


@given(
    CELLS.filter(lambda cells: any(with_label for with_label, _ in cells)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.3, 0.999]),
)
@settings(max_examples=80)
def test_no_order_within_the_bins_leaves_the_bounds(cells, seed, spread_within_bin):
    labels, scores = spread(cells)
    steps = np.random.default_rng(seed).integers(0, 4, len(scores)) / 4 * spread_within_bin

    found = average_precision(*histograms(cells))

    exact = metrics.average_precision_score(labels, scores + steps)
    assert found.low_K.item() - 1e-9 <= exact <= found.high_K.item() + 1e-9
    assert found.low_K.item() - 1e-9 <= found.value_K.item() <= found.high_K.item() + 1e-9


def test_worst_and_best_order_of_one_bin():
    hits, everything = histograms([(2, 3)])

    found = average_precision(hits, everything)

    assert found.value_K.item() == pytest.approx(2 / 5)
    assert found.low_K.item() == pytest.approx((1 / 4 + 2 / 5) / 2)
    assert found.high_K.item() == pytest.approx(1)


def test_a_class_without_images_has_none():
    hits, everything = histograms([(0, 3), (0, 0)])

    assert average_precision(hits, everything).value_K.isnan().all()
