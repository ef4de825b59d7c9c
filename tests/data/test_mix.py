"""Oracles: dense targets, the paper's and timm's boxes, and a plain loop over pixels."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vit21k.data import mix
from vit21k.data.loader import Batch
from vit21k.data.mix import DeviceTransform, Eraser, Mixer, mix_images, mix_labels
from vit21k.data.transforms import normalise
from vit21k.losses.sparse import multi_label_loss, single_label_loss

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")
both = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}


def batch_of(size, *, side=12, first=0, num_classes=7, seed=0):
    """Return a batch with none, one or several labels for an image."""
    random = np.random.default_rng(seed)
    dense = random.random((size, num_classes)) < 0.3
    rows, ids = np.nonzero(dense)
    images = random.integers(0, 256, (size, 3, side, side), dtype=np.uint8)
    positions = np.arange(first, first + size)
    return Batch(*(torch.from_numpy(part) for part in (images, rows, ids, positions, positions)))


def transform_of(*, sums_to_one=False, seed=5, **mixing):
    mixer = Mixer(seed=seed, **{**both, **mixing})
    return DeviceTransform(mean=MEAN, std=STD, sums_to_one=sums_to_one, mixer=mixer)


def dense_targets(batch, num_classes, *, sums_to_one=False):
    target = torch.zeros(len(batch.rows_B), num_classes, dtype=torch.float64)
    target[batch.label_rows_L, batch.label_ids_L] = 1.0
    if sums_to_one:
        target /= target.sum(1, keepdim=True).clamp(min=1)
    return target


def mixed_targets(batch, plan, num_classes, **options):
    """Return dense targets mixed by timm: y * share + y[partner] * (1 - share)."""
    target = dense_targets(batch, num_classes, **options)
    share = torch.from_numpy(plan.shares_B)[:, None]
    return target * share + target[torch.from_numpy(plan.partners_B)] * (1 - share)


@pytest.mark.parametrize("sums_to_one", [False, True])
@given(size=st.integers(1, 12), seed=st.integers(0, 99), first=st.integers(0, 5))
@settings(max_examples=40)
def test_mixed_labels_are_the_nonzeros_of_mixed_dense_targets(sums_to_one, size, seed, first):
    batch = batch_of(size, first=first, seed=seed)
    transform = transform_of(sums_to_one=sums_to_one, seed=seed)
    plan = transform.mixer.plan(batch.positions_B.numpy(), 12)

    _, rows, ids, weights = transform(batch, CPU)

    sparse = torch.zeros(size, 7, dtype=torch.float64)
    sparse.index_put_((rows, ids), weights.double(), accumulate=True)
    expected = mixed_targets(batch, plan, 7, sums_to_one=sums_to_one)
    torch.testing.assert_close(sparse, expected, rtol=1e-6, atol=1e-7)
    pairs = list(zip(rows.tolist(), ids.tolist(), strict=True))
    assert pairs == sorted(set(pairs))


@pytest.mark.parametrize("smoothing", [0.0, 1e-4])
def test_the_loss_of_a_mixed_batch_is_dense_bce_of_mixed_targets(smoothing):
    batch = batch_of(16)
    transform = transform_of()
    plan = transform.mixer.plan(batch.positions_B.numpy(), 12)
    logits = torch.randn(16, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = mixed_targets(batch, plan, 7) * (1 - smoothing) + smoothing

    _, rows, ids, weights = transform(batch, CPU)
    loss = multi_label_loss(logits, rows, ids, smoothing=smoothing, label_weights_L=weights)

    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_loss_of_a_mixed_batch_is_cross_entropy_of_mixed_targets():
    timm_mixup = pytest.importorskip("timm.data.mixup")
    ids = torch.arange(8) % 7
    positions = torch.arange(8)
    images = batch_of(8).images_BCHW
    batch = Batch(images, positions, ids, positions, positions)
    transform = transform_of(sums_to_one=True)
    plan = transform.mixer.plan(positions.numpy(), 12)
    logits = torch.randn(8, 7, generator=torch.Generator().manual_seed(0))
    one_hot = timm_mixup.one_hot(ids, 7, on_value=0.9 + 0.1 / 7, off_value=0.1 / 7)
    share = torch.from_numpy(plan.shares_B).float()[:, None]
    target = one_hot * share + one_hot[torch.from_numpy(plan.partners_B)] * (1 - share)

    _, rows, ids, weights = transform(batch, CPU)
    loss = single_label_loss(logits, rows, ids, smoothing=0.1, label_weights_L=weights)

    expected = -(target * F.log_softmax(logits, 1)).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("mixing", [{"cutmix_alpha": 0.0}, {"mixup_alpha": 0.0}, {}])
def test_mixed_pixels_are_those_of_a_plain_loop(mixing):
    batch = batch_of(12)
    transform = transform_of(**mixing)
    plan = transform.mixer.plan(batch.positions_B.numpy(), 12)
    before = batch.images_BCHW.double()
    expected = before.clone()
    for index, (partner, share, is_cut, box) in enumerate(zip(*plan, strict=True)):
        top, bottom, left, right = box
        if is_cut:
            pasted = before[partner][:, top:bottom, left:right]
            expected[index][:, top:bottom, left:right] = pasted
            assert share == pytest.approx(1 - (bottom - top) * (right - left) / 144)
        else:
            expected[index] = before[index] * share + before[partner] * (1 - share)

    images = transform(batch, CPU).images_BCHW

    assert images.dtype == torch.float32
    torch.testing.assert_close(images.double(), expected, rtol=1e-5, atol=1e-4)
    assert set(plan.is_cut_B.tolist()) == (
        {True, False} if not mixing else {"mixup_alpha" in mixing}
    )


def papers_box(side, share, center_x, center_y):
    """`rand_bbox` of clovaai/CutMix-PyTorch, for a square: top, bottom, left and right."""
    cut = int(side * np.sqrt(1.0 - share))
    edges = [
        np.clip(center + sign * (cut // 2), 0, side)
        for center in (center_y, center_x)
        for sign in (-1, 1)
    ]
    return [int(edge) for edge in edges]


@pytest.mark.parametrize("side", [12, 15, 224])
def test_pasted_boxes_are_those_of_the_paper_for_odd_sizes_too(side):
    mixer = Mixer(seed=1, mixup_alpha=0.0, cutmix_alpha=1.0)
    shares = np.random.default_rng(0).random(400)
    y, x = np.random.default_rng(1).random((2, 400))

    boxes = mix._boxes(shares, y, x, side)

    assert ((side * np.sqrt(1 - shares)).astype(int) % 2 == 1).any()
    for box, share, at_y, at_x in zip(boxes.tolist(), shares, y, x, strict=True):
        assert box == papers_box(side, share, int(at_x * side), int(at_y * side))
    plan = mixer.plan(np.arange(400), side)
    height, width = np.diff(plan.boxes_B4.reshape(-1, 2, 2)).reshape(-1, 2).T
    np.testing.assert_allclose(plan.shares_B, 1 - height * width / side**2)


@pytest.mark.parametrize("side", [15, 32, 224])
def test_erased_boxes_are_timms(monkeypatch, side):
    random_erasing = pytest.importorskip("timm.data.random_erasing")
    rng = np.random.default_rng(0)
    for _ in range(100):
        uniforms = rng.random(mix._FIRST_TRY + 2 * mix._NUM_TRIES).tolist()
        shapes = iter(uniforms[mix._FIRST_TRY :])
        places = iter(uniforms[mix._TOP : mix._FIRST_TRY])
        fake = SimpleNamespace(
            random=lambda: 0.0,
            uniform=lambda low, high, shapes=shapes: low + next(shapes) * (high - low),
            randint=lambda low, high, places=places: int(next(places) * (high - low + 1)) + low,
        )
        monkeypatch.setattr(random_erasing, "random", fake)
        image = torch.ones(3, side, side)
        random_erasing.RandomErasing(probability=1, mode="const", device="cpu")(image)

        top, bottom, left, right = mix._box(uniforms, side)

        expected = torch.ones(3, side, side)
        expected[:, top:bottom, left:right] = 0
        assert torch.equal(image, expected)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_shares_have_the_moments_of_their_beta_distribution(alpha):
    mixer = Mixer(seed=3, mixup_alpha=alpha, cutmix_alpha=0.0)

    shares = mixer.plan(np.arange(40_000), 8).shares_B[::2]

    assert shares.mean() == pytest.approx(0.5, abs=0.01)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    assert shares.min() >= 0
    assert shares.max() <= 1


def test_rates_are_kept():
    mixer = Mixer(seed=3, mixup_alpha=1.0, cutmix_alpha=1.0, mix_rate=0.7, switch_rate=0.3)

    plan = mixer.plan(np.arange(40_000), 64)

    is_mixed = plan.partners_B != np.arange(40_000)
    assert is_mixed.mean() == pytest.approx(0.7, abs=0.02)
    assert plan.is_cut_B[is_mixed].mean() == pytest.approx(0.3, abs=0.02)
    assert (plan.partners_B[plan.partners_B] == np.arange(40_000)).all()


@given(cut=st.integers(1, 15), seed=st.integers(0, 50))
@settings(max_examples=30)
def test_a_batch_in_parts_of_pairs_is_mixed_like_the_whole(cut, seed):
    whole = batch_of(32, first=64, seed=seed)
    transform = transform_of(seed=seed)
    parts = [
        batch_of(32, first=64, seed=seed)._replace(
            images_BCHW=whole.images_BCHW[part], positions_B=whole.positions_B[part]
        )
        for part in (slice(0, 2 * cut), slice(2 * cut, 32))
    ]

    images = [
        mix_images(part.images_BCHW, transform.mixer.plan(part.positions_B.numpy(), 12))
        for part in parts
    ]

    assert torch.equal(torch.cat(images), transform(whole, CPU).images_BCHW)


def test_an_image_whose_partner_is_not_there_is_not_mixed():
    mixer = Mixer(seed=0, **both)

    plan = mixer.plan(np.array([3, 4, 5, 6, 9, 12, 13]), 16)

    assert plan.partners_B.tolist() == [0, 2, 1, 3, 4, 6, 5]
    assert plan.shares_B[[0, 3, 4]].tolist() == [1, 1, 1]


def test_a_class_that_both_partners_carry_stays_whole():
    plan = Mixer(seed=0, mixup_alpha=0.2, cutmix_alpha=0.0).plan(np.array([0, 1]), 16)

    rows, ids, weights = mix_labels(plan, np.array([0, 1, 1]), np.array([4, 2, 4]), np.ones(3))

    share = plan.shares_B[0]
    assert rows.tolist() == [0, 0, 1, 1]
    assert ids.tolist() == [2, 4, 2, 4]
    assert weights.tolist() == pytest.approx([1 - share, 1.0, share, 1.0])
    assert weights[1] == weights[3] == 1.0


def test_a_label_of_which_nothing_remains_is_none():
    plan = Mixer(seed=0, mixup_alpha=1.0, cutmix_alpha=0.0).plan(np.array([0, 1]), 16)
    plan.shares_B[:] = 0

    rows, ids, weights = mix_labels(plan, np.array([0, 1]), np.array([4, 2]), np.ones(2))

    assert (rows.tolist(), ids.tolist(), weights.tolist()) == ([0, 1], [2, 4], [1.0, 1.0])


def test_without_positions_or_work_images_stay_bytes():
    batch = batch_of(4)
    nothing = DeviceTransform(mean=MEAN, std=STD, sums_to_one=False)
    without_positions = batch._replace(positions_B=torch.empty(0, dtype=torch.int64))

    for left in (nothing(batch, CPU), transform_of()(without_positions, CPU)):
        assert left.images_BCHW is batch.images_BCHW
        assert left.label_weights_L is None
        assert torch.equal(left.label_ids_L, batch.label_ids_L)


def erased_by(fill, rate=1.0, *, size=64, side=64):
    batch = batch_of(size, side=side)
    eraser = Eraser(seed=2, rate=rate, fill=fill)
    transform = DeviceTransform(mean=MEAN, std=STD, sums_to_one=False, eraser=eraser)
    return batch, eraser.boxes(batch.positions_B.numpy(), side), transform(batch, CPU).images_BCHW


def test_erased_boxes_are_zero_after_normalisation_and_the_rest_is_untouched():
    batch, boxes, images = erased_by("zero")

    normalised = normalise(images, MEAN, STD)

    untouched = torch.ones(64, 64, 64, dtype=torch.bool)
    for image, top, bottom, left, right, _ in boxes:
        assert normalised[image, :, top:bottom, left:right].abs().max() < 1e-5
        untouched[image, top:bottom, left:right] = False
    where = untouched[:, None].expand_as(images)
    assert torch.equal(images[where], batch.images_BCHW.float()[where])


def test_noise_is_standard_normal_after_normalisation_and_the_same_again():
    _, boxes, images = erased_by("pixel")
    again = erased_by("pixel")[2]

    values = torch.cat(
        [
            normalise(images, MEAN, STD)[image, :, top:bottom, left:right].flatten()
            for image, top, bottom, left, right, _ in boxes
        ]
    )

    assert torch.equal(images, again)
    assert values.mean().item() == pytest.approx(0, abs=0.02)
    assert values.std().item() == pytest.approx(1, abs=0.02)
    assert len({box.noise_seed for box in boxes}) == len(boxes)


def test_boxes_keep_to_the_areas_ratios_and_rate_of_the_sources():
    side, size = 224, 8000
    boxes = Eraser(seed=0, rate=0.25, fill="zero").boxes(np.arange(size), side)
    heights = np.array([box.bottom - box.top for box in boxes])
    widths = np.array([box.right - box.left for box in boxes])

    areas = heights * widths / side**2
    assert len(boxes) / size == pytest.approx(0.25, abs=0.02)
    assert areas.min() == pytest.approx(0.02, abs=0.003)
    assert areas.max() == pytest.approx(1 / 3, abs=0.01)
    assert (heights / widths).max() < 1 / 0.3 * 1.06
    assert min(box.top for box in boxes) == 0
    assert max(box.bottom for box in boxes) == side


def test_erasing_does_not_depend_on_the_rest_of_the_batch():
    eraser = Eraser(seed=7, rate=0.5, fill="pixel")

    whole = eraser.boxes(np.arange(40), 32)
    parts = [
        box._replace(image=box.image + start)
        for start in (0, 13)
        for box in eraser.boxes(np.arange(start, 13 if start == 0 else 40), 32)
    ]

    assert parts == whole
