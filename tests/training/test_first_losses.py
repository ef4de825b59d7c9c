"""The first loss of shipped recipes: known before a run begins, and a sign of a mistake if not met.

The models are built from the recipes, at their width and image size.  All have one block instead
of 12 or 24: where the head's weights start as zeros, what is below it does not reach the loss.
They compute in float32, as every processor can.
"""

import math

import pytest
import torch

from vit21k.data.loader import Batch
from vit21k.recipe.load import load_recipe
from vit21k.training.context import new_model
from vit21k.training.objective import Objective

ROUNDED = 5e-5 + 5e-5
"""Known losses have four decimals; the rest is for float32 sums of 21,843 terms."""


def first_loss(name, num_classes, *settings, num_images=2):
    """Return the loss of images with one label each, before any update."""
    recipe = load_recipe(name, ["model.depth=1", "precision=fp32", *settings])
    generator = torch.Generator().manual_seed(0)
    size = recipe.model.img_size
    batch = Batch(
        images_BCHW=torch.randint(
            256, (num_images, 3, size, size), dtype=torch.uint8, generator=generator
        ),
        label_rows_L=torch.arange(num_images),
        label_ids_L=torch.randint(num_classes, (num_images,), generator=generator),
        rows_B=torch.arange(num_images),
        positions_B=torch.empty(0, dtype=torch.int64),
    )
    model = new_model(recipe, num_classes=num_classes).eval()  # without dropout, no chance
    with torch.no_grad():
        loss = Objective(recipe=recipe, device=torch.device("cpu")).loss(model, batch)
    return loss.item()


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [
        ("pretrain_google_b16_in21k", 21_843, 10.9916),
        ("pretrain_google_l16_in21k", 21_841, 10.9916),
        ("pretrain_augreg_s16_in21k", 21_843, 10.9916),
        ("finetune_google_in1k", 1000, math.log(1000)),
        ("finetune_google_cifar10", 10, math.log(10)),
        ("finetune_l16_384_in1k", 1000, math.log(1000)),
        ("pretrain_mm_b16_in1k", 1000, math.log(1000)),  # smoothed: equal logits, so the same
    ],
)
def test_it_is_the_known_one(name, num_classes, expected):
    assert first_loss(name, num_classes) == pytest.approx(expected, abs=ROUNDED)


@pytest.mark.parametrize(
    ("name", "num_classes", "settings", "expected"),
    [
        ("pretrain_l16_in21k", 21_841, [], 32.8316),
        ("pretrain_l16_in21k", 21_843, [], 32.8336),
        ("pretrain_b16_in1k", 1000, [], 11.0444),
        ("pretrain_b16_in1k", 1000, ["loss.smoothing=0"], 10.0454),
        ("pretrain_l16_in21k", 21_841, ["model.head_bias_init=0"], 21_841 * math.log(2)),
        ("pretrain_b16_in1k", 1000, ["model.head_bias_init=0"], 693.1472),
        # big_vision's vit_i1k
        ("pretrain_b16_in1k", 1000, ["model.head_bias_init=-6.9", "loss.smoothing=0"], 7.9073),
    ],
)
def test_it_is_the_known_one_with_a_head_of_zeros(name, num_classes, settings, expected):
    loss = first_loss(name, num_classes, "model.head_init=zeros", *settings)

    assert loss == pytest.approx(expected, rel=1e-6, abs=ROUNDED)


@pytest.mark.parametrize(
    ("name", "num_classes", "expected"),
    [("pretrain_l16_in21k", 21_841, 32.83), ("pretrain_b16_in1k", 1000, 11.04)],
)
def test_plscs_head_of_small_random_weights_is_near_it(name, num_classes, expected):
    loss = first_loss(name, num_classes, num_images=8)

    assert loss == pytest.approx(expected, abs=0.5)
