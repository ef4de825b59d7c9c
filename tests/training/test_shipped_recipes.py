"""Every shipped recipe makes a model, an optimizer, a schedule and transforms, and takes a step.

Models of their own size are built on the meta device; the one that takes a step is small.
"""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import CLASSES, save_run

from vit21k.data.augment import augment_in_place
from vit21k.data.loader import Batch
from vit21k.models.cost import num_params
from vit21k.models.registry import build_model
from vit21k.optim.optimizers import build_optimizers, set_lr
from vit21k.optim.schedule import Ema
from vit21k.recipe.load import load_recipe, shipped_recipes
from vit21k.training.builders import (
    build_schedule,
    eval_transform_of,
    policy_of,
    train_transform_of,
)
from vit21k.training.context import model_args_of, new_model
from vit21k.training.objective import build_objective
from vit21k.training.reporter import Reporter

CPU = torch.device("cpu")
SIDE, STEPS_PER_EPOCH = 32, 1000
PUBLISHED_PARAMS = {
    # plsc_google_bigvision.md, section 0, and naver-ai's modules: with 1,000 or 21,841 classes.
    ("pretrain_l16_in21k", 21_841): 326_738_257,
    ("pretrain_google_l16_in21k", 21_843): 326_740_307,
    ("finetune_l16_384_in1k", 1000): 304_715_752,
    ("pretrain_b16_in1k", 1000): 87_158_248,
    ("finetune_b16_384_in1k", 1000): 86_859_496,
    ("pretrain_mindcv_b32_in1k", 1000): 88_224_232,
    ("pretrain_mindcv_l16_in1k", 1000): 304_326_632,
    ("pretrain_mindcv_v02_l32_in1k", 1000): 306_535_400,
    ("pretrain_pit_ti_paddle_in1k", 1000): 4_847_272,
    ("pretrain_pit_b_distilled_in1k", 1000): 74_790_096,
}


class Strict(Reporter):
    """A reporter for which a warning is a failure."""

    def warn(self, text):
        pytest.fail(text)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return str(save_run(tmp_path_factory.mktemp("teacher") / "run", loss_kind="softmax"))


def small(name, teacher):
    """Return the recipe with a small model and a small batch."""
    recipe = load_recipe(name)
    changes = [f"model.img_size={SIDE}", "data.global_batch_size=4", "data.device_batch_size=4"]
    changes.append("model.head_init=xavier")  # of zeros, nothing reaches what is below
    if recipe.model.name.startswith("pit"):
        distilled = "_distilled" if "distilled" in recipe.model.name else ""
        changes.append(f"model.name=pit_ti{distilled}_224")
    else:
        patch_size = (
            1 if "_s32_" in recipe.model.name else 16
        )  # of a hybrid, after the convolutions
        changes += [f"model.patch_size={patch_size}", "model.embed_dim=32", "model.depth=2"]
        changes += ["model.num_heads=2", "model.mlp_ratio=2"]
        if recipe.model.representation_size:
            changes.append("model.representation_size=16")
    if recipe.precision == "auto":
        changes.append("precision=bf16")
    if recipe.data.eval_resize:
        changes.append(f"data.eval_resize={SIDE}")
    if recipe.distill.kind:
        changes.append(f"distill.teacher={teacher}")
    return load_recipe(name, changes)


def batch_of(recipe):
    """Return a batch of images that went through the recipe's transforms."""
    generator = np.random.default_rng(0)
    transform, policy = (
        train_transform_of(recipe.data, SIDE),
        policy_of(recipe.augment, recipe.data),
    )
    crops = np.empty((4, 3, SIDE, SIDE), dtype=np.uint8)
    for crop in crops:
        image = Image.fromarray(generator.integers(0, 255, (40, 50, 3), dtype=np.uint8))
        transform(image, generator.random(transform.num_uniforms), crop)
        if policy is not None:
            augment_in_place(crop, policy, generator.random(policy.num_uniforms).tolist())
    rows = torch.arange(4)
    return Batch(torch.from_numpy(crops), rows, rows % len(CLASSES), rows, positions_B=rows)


@pytest.mark.parametrize("name", shipped_recipes())
def test_it_makes_its_model_as_it_is(name):
    args = model_args_of(load_recipe(name), num_classes=1000)

    with torch.device("meta"):
        model = build_model(args)

    assert sum(param.numel() for param in model.parameters()) == num_params(args)


@pytest.mark.parametrize(("name", "num_classes"), PUBLISHED_PARAMS)
def test_its_model_has_as_many_parameters_as_published(name, num_classes):
    args = model_args_of(load_recipe(name), num_classes=num_classes)

    assert num_params(args) == PUBLISHED_PARAMS[name, num_classes]


@pytest.mark.parametrize("name", shipped_recipes())
def test_it_takes_a_step(name, teacher):
    recipe = small(name, teacher)
    schedule = build_schedule(recipe, STEPS_PER_EPOCH if recipe.epochs else 1)
    model = new_model(recipe, num_classes=len(CLASSES)).train()
    objective = build_objective(recipe, CLASSES, CPU, Strict())
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizers = build_optimizers(model, recipe.optim)
    ema = recipe.ema.decay and Ema(model, decay=recipe.ema.decay, warmup_steps=0)

    set_lr(optimizers, schedule(schedule.total_steps // 2))
    loss = objective.loss(model, batch_of(recipe))
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    if ema:
        ema.update(1)

    changed = {
        name for name, param in model.named_parameters() if not torch.equal(param, before[name])
    }
    assert torch.isfinite(loss)
    assert 0 < schedule(schedule.total_steps // 2) <= 1
    assert "head.weight" in changed
    assert (changed <= {"head.weight", "head.bias"}) == (recipe.model.freeze == "backbone")


@pytest.mark.parametrize("name", shipped_recipes())
def test_it_evaluates_at_the_size_of_its_model(name):
    recipe = load_recipe(name)
    crop = np.empty((3, recipe.model.img_size, recipe.model.img_size), dtype=np.uint8)

    eval_transform_of(recipe.data, recipe.model.img_size)(
        Image.new("RGB", (300, 200), (10, 20, 30)), crop
    )

    assert crop.reshape(3, -1).mean(axis=1) == pytest.approx([10, 20, 30])


@pytest.mark.parametrize(
    ("name", "steps_per_epoch", "step", "lr"),
    [
        ("pretrain_l16_in21k", 3462, 0, 0.0),
        ("pretrain_l16_in21k", 3462, 10_000, 1e-3),
        ("pretrain_google_l16_in21k", 3462, 90 * 3462, 1e-5),
        # paddle_pit, the learning rates of its logs, epoch by epoch: 1, 20, 75, 143, 226, 300 on.
        ("pretrain_pit_ti_paddle_in1k", 1251, 0 * 1251, 5.05e-5),
        ("pretrain_pit_ti_paddle_in1k", 1251, 19 * 1251, 9.891e-4),
        ("pretrain_pit_ti_paddle_in1k", 1251, 74 * 1251, 8.54e-4),
        ("pretrain_pit_ti_paddle_in1k", 1251, 142 * 1251, 5.39e-4),
        ("pretrain_pit_ti_paddle_in1k", 1251, 225 * 1251, 1.47e-4),
        ("pretrain_pit_ti_paddle_in1k", 1251, 305 * 1251, 5e-6),
        # timm's cosine, which DeiT uses: counted from the first epoch.
        ("pretrain_pit_ti_in1k", 1251, 0, 1e-6),
        (
            "pretrain_pit_ti_in1k",
            1251,
            6 * 1251 + 7,
            1e-5 + 0.99e-3 * 0.5 * (1 + math.cos(math.pi / 60)),
        ),
        # MindCV: a hundredth of the peak, the peak when the warm-up ends, and 0 at the end.
        ("pretrain_mindcv_b32_in1k", 312, 0, 1.6e-5),
        ("pretrain_mindcv_b32_in1k", 312, 30 * 312, 1.6e-3),
        ("pretrain_mindcv_v02_b32_in1k", 625, 600 * 625, 1e-6),
        ("pretrain_mm_b16_in1k", 313, 0, 3e-7),
        ("finetune_mm_b16_mae_in1k", 1252, 100 * 1252, 1e-6),
        ("pretrain_miil_b16_in21kp", 1000, 8000, 3e-4),
        ("finetune_folder_balanced", 10, 601, 1e-3),
    ],
)
def test_its_learning_rate_is_the_sources(name, steps_per_epoch, step, lr):
    recipe = load_recipe(name)

    factor = build_schedule(recipe, steps_per_epoch)(step)

    assert factor * recipe.optim.lr == pytest.approx(lr, rel=2e-3, abs=1e-12)
