"""What the comments of the shipped recipes say, and that they say it of every one."""

import re

import pytest

from vit21k.recipe.load import (
    SOURCES,
    by_source,
    header_of,
    load_recipe,
    recipe_lines,
    shipped_recipes,
    source_name,
)

PUBLISHED = [name for name in shipped_recipes() if source_name(name) != "ours"]


def test_every_recipe_has_a_source_that_is_listed():
    assert sorted(name for _, name in by_source()) == shipped_recipes()
    assert {source for source, _ in by_source()} <= set(SOURCES)


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_says_what_it_is_where_it_is_from_and_how_to_run_it(name):
    header = header_of(name)

    assert header.summary.endswith(".")
    assert header.notes["Source"]
    assert re.search(rf"--recipe {name}\b|--stage (pretrain|finetune)", header.command)
    assert load_recipe(name).stage == "pretrain" or "--init" in header.command


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_says_where_what_it_sets_is_from(name):
    silent = [line.field for line in recipe_lines(name) if not line.remark]

    # What is left without a remark is what every source has alike.
    assert set(silent) <= {
        "seed", "stage", "model.name", "model.img_size", "model.global_pool", "model.act_layer",
        "model.attn_drop_rate", "model.drop_path_rate", "model.head_bias_init", "model.init_scheme",
        "model.head_init", "model.proj_drop_rate", "data.drop_last", "data.device_batch_size",
        "data.crop_ratio", "data.hflip_rate", "data.interpolation", "data.eval_resize",
        "data.eval_mode", "data.eval_interpolation", "data.mean", "data.std", "data.on_bad_image",
        "loss.kind", "loss.smoothing", "optim.kind", "optim.lr", "optim.betas", "optim.eps",
        "optim.momentum", "optim.weight_decay", "optim.grad_clip_norm", "schedule.decay",
        "schedule.end_lr", "augment.num_ops", "augment.magnitude", "augment.magnitude_std",
        "augment.switch_rate", "model.pos_embed_resize",
    }  # fmt: skip


def test_the_fields_of_a_recipe_are_its_own_and_say_where_they_are_from():
    lines = {line.field: line for line in recipe_lines("finetune_google_cifar10")}

    assert lines["optim.lr"].value == "0.01"
    assert "b16" in lines["optim.lr"].remark
    assert "schedule.warmup_steps" not in lines
    assert lines["total_steps"].value == "10_000"


def test_a_header_is_read_paragraph_by_paragraph():
    header = header_of("pretrain_google_l16_in21k")

    assert list(header.notes) == ["Source", "Reached there", "Which value counts", "Verified here"]
    assert header.notes["Reached there"].startswith("49.90 % prec@1")
    assert header.notes["Reached there"].endswith("(finetune_google_in1k).")
    assert header.command == "vit21k train --recipe pretrain_google_l16_in21k"
