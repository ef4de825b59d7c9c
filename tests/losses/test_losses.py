"""Oracle: torch's dense losses, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vit21k.losses import sparse
from vit21k.losses.sparse import multi_label_loss, single_label_loss


@st.composite
def batches(draw):
    """Draw logits_BK and label pairs: several, one or no labels for an image."""
    B, K = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    dense = torch.tensor(
        draw(st.lists(st.lists(st.booleans(), min_size=K, max_size=K), min_size=B, max_size=B))
    )
    seed = draw(st.integers(0, 1000))
    logits = 6 * torch.randn(B, K, generator=torch.Generator().manual_seed(seed)).double()
    rows, ids = dense.nonzero(as_tuple=True)
    return logits, rows, ids


def dense_multi_label_loss(logits, rows, ids, smoothing):
    target = torch.zeros_like(logits)
    target[rows, ids] = 1.0
    target = target * (1 - smoothing) + smoothing
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()


@st.composite
def weighted_batches(draw):
    """Draw logits_BK, label pairs and a target between 0 and 1 at each."""
    logits, rows, ids = draw(batches())
    seed = draw(st.integers(0, 1000))
    weights = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed)).double()
    return logits, rows, ids, weights


def value_and_gradient(loss_function, logits, *args):
    logits = logits.clone().requires_grad_()
    loss = loss_function(logits, *args)
    (3 * loss).backward()
    return loss.detach(), logits.grad


@given(batch=batches(), smoothing=st.sampled_from([0.0, 1e-4, 0.3]))
@settings(max_examples=60)
def test_the_sparse_loss_and_its_gradient_are_those_of_dense_bce(batch, smoothing):
    logits, rows, ids = batch

    loss, grad = value_and_gradient(
        lambda z: multi_label_loss(z, rows, ids, smoothing=smoothing), logits
    )
    expected, expected_grad = value_and_gradient(dense_multi_label_loss, *batch, smoothing)

    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-12)


@given(batch=weighted_batches(), smoothing=st.sampled_from([0.0, 1e-4, 0.3]))
@settings(max_examples=60)
def test_the_loss_of_mixed_labels_and_its_gradient_are_those_of_dense_bce(batch, smoothing):
    logits, rows, ids, weights = batch
    target = torch.zeros_like(logits).index_put_((rows, ids), weights)
    target = target * (1 - smoothing) + smoothing

    loss, grad = value_and_gradient(
        lambda z: multi_label_loss(z, rows, ids, smoothing=smoothing, label_weights_L=weights),
        logits,
    )
    expected, expected_grad = value_and_gradient(
        lambda z: F.binary_cross_entropy_with_logits(z, target, reduction="none").sum(1).mean(),
        logits,
    )

    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 1e-4])
def test_weights_of_one_change_no_bit(smoothing):
    logits = torch.randn(8, 300, generator=torch.Generator().manual_seed(0)) * 4
    rows, ids = torch.arange(8), torch.arange(8) * 7

    plain = value_and_gradient(
        lambda z: multi_label_loss(z, rows, ids, smoothing=smoothing), logits
    )
    weighted = value_and_gradient(
        lambda z: multi_label_loss(
            z, rows, ids, smoothing=smoothing, label_weights_L=torch.ones(8)
        ),
        logits,
    )

    assert all(torch.equal(*pair) for pair in zip(plain, weighted, strict=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_with_mixed_labels_is_torchs_cross_entropy_with_probabilities(smoothing):
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(1)).double()
    rows, ids = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([3, 1, 0, 4, 8, 5])
    weights = torch.tensor([0.25, 0.75, 0.5, 0.375, 0.125, 1.0])
    target = torch.zeros_like(logits).index_put_((rows, ids), weights.double())

    loss, grad = value_and_gradient(
        lambda z: single_label_loss(z, rows, ids, smoothing=smoothing, label_weights_L=weights),
        logits,
    )
    expected, expected_grad = value_and_gradient(
        lambda z: F.cross_entropy(z, target, label_smoothing=smoothing), logits
    )

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, expected_grad)


def test_float32_gradients_equal_torchs_to_the_last_bit_without_smoothing():
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0)) * 4
    rows, ids = torch.arange(64), torch.arange(64) * 7

    loss, grad = value_and_gradient(lambda z: multi_label_loss(z, rows, ids), logits)
    expected, expected_grad = value_and_gradient(dense_multi_label_loss, logits, rows, ids, 0.0)

    assert torch.equal(grad, expected_grad)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_with_in_float32(dtype):
    logits = (torch.randn(8, 21_841, generator=torch.Generator().manual_seed(0)) * 3 - 8).to(dtype)
    rows, ids = torch.arange(8), torch.arange(8) * 1000

    loss, grad = value_and_gradient(lambda z: multi_label_loss(z, rows, ids), logits)
    expected, expected_grad = value_and_gradient(
        dense_multi_label_loss, logits.double(), rows, ids, 0.0
    )

    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, expected_grad.to(dtype))


@pytest.mark.parametrize(
    ("num_classes", "smoothing", "expected"),
    [
        (21_841, 0.0, 10.9916),
        (21_841, 1e-4, 32.8316),
        (21_843, 0.0, 10.9916),
        (21_843, 1e-4, 32.8336),
        (1000, 0.0, 10.0454),
        (1000, 1e-4, 11.0444),
    ],
)
def test_the_first_loss_of_a_pretraining_is_the_known_one(num_classes, smoothing, expected):
    """Head bias -10, one label an image: PLSC's and Google's first step."""
    logits = torch.full((4, num_classes), -10.0)

    loss = multi_label_loss(logits, torch.arange(4), torch.arange(4), smoothing=smoothing)

    assert loss.item() == pytest.approx(expected, abs=1e-4)  # 4 decimals, and float32


def test_logits_of_zero_cost_the_logarithm_of_two_for_each_class():
    loss = multi_label_loss(torch.zeros(3, 21_841), torch.arange(3), torch.arange(3))

    assert loss.item() == pytest.approx(21_841 * math.log(2), rel=1e-6)


def test_smoothing_has_the_known_floor():
    """(K - 1) H(e): 22.2993 for 21,841 classes and e = 1e-4."""
    logits = torch.full((1, 21_841), math.log(1e-4 / (1 - 1e-4)))
    logits[0, 5] = 40.0

    loss = multi_label_loss(logits, torch.tensor([0]), torch.tensor([5]), smoothing=1e-4)

    assert loss.item() == pytest.approx(22.2993, abs=2e-3)


def test_float32_sums_over_21841_classes_lose_nothing():
    logits = torch.randn(16, 21_841, generator=torch.Generator().manual_seed(1)) * 3 - 6
    rows, ids = torch.arange(16), torch.arange(16)

    single = multi_label_loss(logits, rows, ids, smoothing=1e-4)
    double = multi_label_loss(logits.double(), rows, ids, smoothing=1e-4)

    assert single.item() == pytest.approx(double.item(), rel=1e-6)


def test_slices_of_the_batch_change_nothing(monkeypatch):
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(1))
    rows, ids = torch.tensor([0, 0, 3, 6]), torch.tensor([1, 2, 3, 4])
    whole, whole_grad = value_and_gradient(
        lambda z: multi_label_loss(z, rows, ids, smoothing=0.1), logits
    )

    monkeypatch.setattr(sparse, "_CPU_SLICE_VALUES", 100)
    sliced, sliced_grad = value_and_gradient(
        lambda z: multi_label_loss(z, rows, ids, smoothing=0.1), logits
    )

    torch.testing.assert_close(sliced, whole)
    torch.testing.assert_close(sliced_grad, whole_grad)


def test_an_image_without_labels_is_all_negatives():
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(1))
    none = torch.empty(0, dtype=torch.long)

    loss = multi_label_loss(logits, none, none)

    torch.testing.assert_close(loss, F.softplus(logits).sum(1).mean())


@pytest.mark.parametrize("class_reduction", ["sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_floor_e_over_k_is_timms_binary_cross_entropy(smoothing, class_reduction):
    timm_loss = pytest.importorskip("timm.loss")
    oracle = timm_loss.BinaryCrossEntropy(smoothing, sum_classes=class_reduction == "sum")
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(1)).double()
    ids = torch.tensor([3, 1, 4, 1, 5])

    loss, grad = value_and_gradient(
        lambda z: multi_label_loss(
            z,
            torch.arange(5),
            ids,
            smoothing=smoothing,
            smoothing_floor="e/K",
            class_reduction=class_reduction,
        ),
        logits,
    )
    expected, expected_grad = value_and_gradient(lambda z: oracle(z, ids), logits)

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, expected_grad)


@given(
    batch=batches(),
    smoothing=st.sampled_from([0.0, 1e-4, 0.3]),
    floor=st.sampled_from(["e", "e/K"]),
    class_reduction=st.sampled_from(["sum", "mean"]),
)
@settings(max_examples=60)
def test_every_smoothing_of_weighted_labels_is_dense_bce_on_its_formula(
    batch, smoothing, floor, class_reduction
):
    logits, rows, ids = batch
    weights = torch.rand(len(rows), generator=torch.Generator().manual_seed(2)).double()
    target = torch.zeros_like(logits)
    target[rows, ids] = weights
    raised_by = smoothing if floor == "e" else smoothing / logits.shape[1]
    target = target * (1 - smoothing) + raised_by
    classes = 1 if class_reduction == "sum" else logits.shape[1]

    loss, grad = value_and_gradient(
        lambda z: multi_label_loss(
            z,
            rows,
            ids,
            smoothing=smoothing,
            smoothing_floor=floor,
            class_reduction=class_reduction,
            label_weights_L=weights,
        ),
        logits,
    )
    expected, expected_grad = value_and_gradient(
        lambda z: (
            F.binary_cross_entropy_with_logits(z, target, reduction="none").sum(1).mean() / classes
        ),
        logits,
    )

    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-12)


def test_classy_visions_smoothing_is_ours_with_e_over_one_plus_e():
    """MMPretrain's ViT-B/16: (y + e / K) / (1 + e), e = 0.1."""
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(1)).double()
    ids = torch.tensor([3, 1, 4, 1, 5])
    target = (F.one_hot(ids, 9) + 0.1 / 9) / 1.1

    loss = single_label_loss(logits, torch.arange(5), ids, smoothing=0.1 / 1.1)

    torch.testing.assert_close(loss, F.cross_entropy(logits, target))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_with_one_label_is_torchs_cross_entropy(smoothing):
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(1)).double()
    ids = torch.tensor([3, 1, 4, 1, 5])

    loss, grad = value_and_gradient(
        lambda z: single_label_loss(z, torch.arange(5), ids, smoothing=smoothing), logits
    )
    expected, expected_grad = value_and_gradient(
        lambda z: F.cross_entropy(z, ids, label_smoothing=smoothing), logits
    )

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, expected_grad)


@given(batch=batches(), smoothing=st.sampled_from([0.0, 0.1]))
@settings(max_examples=30)
def test_softmax_with_m_labels_has_the_target_one_over_m_on_each(batch, smoothing):
    logits, rows, ids = batch
    target = torch.zeros_like(logits)
    target[rows, ids] = 1.0
    labelled = target.sum(1, keepdim=True) > 0
    target = target / target.sum(1, keepdim=True).clamp(min=1)
    target = (target * (1 - smoothing) + smoothing / logits.shape[1]) * labelled

    loss, grad = value_and_gradient(
        lambda z: single_label_loss(z, rows, ids, smoothing=smoothing), logits
    )
    expected, expected_grad = value_and_gradient(
        lambda z: -(target * F.log_softmax(z, 1)).sum(1).mean(), logits
    )

    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-9)


def test_softmax_of_half_precision_logits_is_float32():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(1)).bfloat16()

    loss = single_label_loss(logits, torch.arange(5), torch.arange(5))

    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), torch.arange(5)))
