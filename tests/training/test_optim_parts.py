"""Recipe -> optimizer and learning rate: units, limits, and what contradicts itself."""

import re

import pytest
import torch

from vit21k.errors import RecipeError, UsageError
from vit21k.optim.optimizers import build_optimizers
from vit21k.recipe.load import load_recipe
from vit21k.training.builders import build_schedule, freeze
from vit21k.training.context import new_model
from vit21k.training.objective import loss_options

SMALL = ["total_steps=1000", "schedule.warmup_steps=0"]


def schedule(*settings):
    return build_schedule(load_recipe("tiny", [*SMALL, *settings]), steps_per_epoch=100)


@pytest.mark.parametrize(
    ("setting", "steps"),
    [
        ("warmup_steps=30", 30),
        ("warmup_epochs=2.5", 250),
        ("warmup_images=1920", 30),  # batches of 64
        ("warmup_percent=3", 30),
        ("warmup_percent=0.001", 1),
        ("warmup_percent=0", 0),
    ],
)
def test_a_warm_up_is_given_in_steps_epochs_images_or_percent(setting, steps):
    assert schedule(f"schedule.{setting}").warmup_steps == steps


def test_every_other_field_reaches_the_schedule_in_its_unit():
    made = schedule(
        "optim.lr=1e-2",
        "schedule.warmup_steps=10",
        "schedule.warmup_start_lr=1e-4",
        "schedule.end_lr=1e-3",
        "schedule.decay_epochs=9",
        "schedule.cooldown_percent=5",
    )
    drops = schedule("schedule.decay=step", "schedule.step_percents=[30, 60]")

    assert (made.start_factor, made.end_factor) == pytest.approx((1e-2, 1e-1))
    assert (made.decay_end, made.cooldown_steps) == (900, 50)
    assert drops.drops == (300, 600)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["schedule.warmup_epochs=10"], "the warm-up (1,000 steps) must be less than the 1,000"),
        (
            ["schedule.warmup_steps=600", "schedule.cooldown_percent=50"],
            "warm-up (600 steps) and cooldown (500) are more than the 1,000 steps",
        ),
        (
            ["schedule.warmup_steps=600", "schedule.decay_epochs=6"],
            "schedule.decay_epochs (6) must be more than the warm-up",
        ),
    ],
)
def test_lengths_that_do_not_fit_the_run_are_refused(settings, message):
    with pytest.raises(UsageError) as caught:
        schedule(*settings)

    assert message in caught.value.message


@pytest.mark.parametrize("total", [1, 1000])
@pytest.mark.parametrize("setting", ["warmup_epochs=20", "warmup_images=192000"])
def test_the_settings_of_the_hint_shorten_the_warm_up(setting, total):
    long = [f"total_steps={total}", f"schedule.{setting}"]
    with pytest.raises(UsageError) as caught:
        schedule(*long)

    hinted = re.findall("--set ([^ `]+)", caught.value.hint)

    assert schedule(*long, *hinted).warmup_steps == total // 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["schedule.warmup_epochs=1", "schedule.warmup_percent=1"],
            "give one of schedule.warmup_steps and schedule.warmup_epochs and schedule.warmup_",
        ),
        (
            ["schedule.cooldown_steps=1", "schedule.cooldown_percent=1"],
            "give one of schedule.cooldown_steps and schedule.cooldown_percent",
        ),
        (["schedule.first_epoch=1"], "schedule.first_epoch (1) is for schedule.lr_changes"),
        (["schedule.decay=rsqrt", "schedule.end_lr=1e-5"], "schedule.end_lr (1e-05)"),
        (["schedule.decay=step"], "schedule.decay `step` needs schedule.step_percents"),
        (["schedule.step_percents=[30]"], "schedule.step_percents ([30]) is for schedule.decay"),
        (
            ["schedule.decay=step", "schedule.step_percents=[60, 30]"],
            "schedule.step_percents must be ascending",
        ),
        (["schedule.warmup_start_lr=1"], "schedule.warmup_start_lr (1.0) must not exceed"),
        (["optim.kind=lamb", "optim.momentum_dtype=bf16"], "optim.momentum_dtype (bf16)"),
        (["loss.kind=softmax", "loss.smoothing_floor=e"], "loss.smoothing_floor (e)"),
        (["loss.kind=softmax", "loss.class_reduction=mean"], "loss.class_reduction (mean)"),
        (["loss.kind=softmax", "loss.mixed_labels=whole"], "loss.mixed_labels (whole)"),
    ],
)
def test_a_recipe_that_contradicts_itself_says_where(settings, message):
    with pytest.raises(RecipeError) as caught:
        load_recipe("tiny", settings)

    assert message in caught.value.message


def test_the_optimizers_numbers_are_the_recipes():
    recipe = load_recipe(
        "tiny",
        ["optim.layer_decay=0.65", "optim.lr_multipliers={head.*: 10}", "optim.weight_decay=0.2"],
    )

    model = new_model(recipe, num_classes=3)
    (optimizer,) = build_optimizers(model, recipe.optim)

    assert isinstance(optimizer, torch.optim.AdamW)
    groups = {id(param): group for group in optimizer.param_groups for param in group["params"]}
    head, first = groups[id(model.head.weight)], groups[id(model.pos_embed)]
    assert (head["peak_lr"], head["weight_decay"]) == (pytest.approx(2e-2), 0.2)
    assert groups[id(model.head.bias)]["weight_decay"] == 0
    num_layers = len(model.blocks) + 1
    assert (first["peak_lr"], first["weight_decay"]) == (pytest.approx(2e-3 * 0.65**num_layers), 0)


def test_plscs_smoothing_is_the_default_of_the_sigmoid_loss():
    options = loss_options(load_recipe("tiny", ["loss.smoothing=1e-4"]).loss)
    softmax = loss_options(load_recipe("tiny", ["loss.kind=softmax", "loss.smoothing=0.1"]).loss)

    assert options == {"smoothing": 1e-4, "smoothing_floor": "e", "class_reduction": "sum"}
    assert softmax == {"smoothing": 0.1}


def test_a_frozen_backbone_leaves_the_head_to_train():
    model = torch.nn.ModuleDict({"blocks": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})

    freeze(model, load_recipe("tiny", ["model.freeze=backbone"]).model)

    trained = [name for name, param in model.named_parameters() if param.requires_grad]
    assert trained == ["head.weight", "head.bias"]
