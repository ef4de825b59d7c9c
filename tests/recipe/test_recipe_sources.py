"""What every published recipe comes to, against values read in its source at the recipe's commit.

The values here are written down from the sources, not from the recipe files: learning rates from
the sources' formulas, which parameters decay, how weights start, what is dropped and augmented.
"""

import math
import re

import pytest
import torch

from vit21k.models.layers import DropPath
from vit21k.models.registry import build_model
from vit21k.optim.optimizers import param_groups
from vit21k.recipe.load import header_of, load_recipe, shipped_recipes, source_name
from vit21k.training.builders import build_schedule
from vit21k.training.context import model_args_of, new_model

PUBLISHED = [name for name in shipped_recipes() if source_name(name) != "ours"]
WIDTH, CLASSES = 64, 200


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_names_the_commits_of_its_source_or_says_why_there_is_none(name):
    commit = load_recipe(name).commit

    if source_name(name) == "ours" and commit.startswith("none: "):
        return
    first = commit.partition(";")[0].split(", ")
    assert all(
        re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{7,40}|package \w+ [\d.]+", part) for part in first
    ), commit
    assert "@" in first[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("finetune_google_in1k", ("85.05", "dropout 0.1", "train[:99%]")),
        ("finetune_google_cifar10", ("99.02", "without dropout", "train[:98%]")),
        ("finetune_google_cifar100", ("92.06", "without dropout", "train[:98%]")),
        ("finetune_google_folder_10k", ("92.06", "without dropout", "train[:98%]")),
        ("pretrain_google_b16_in21k", ("84.53", "without dropout", "train[:99%]")),
        ("pretrain_google_l16_in21k", ("85.05", "dropout 0.1", "train[:99%]")),
        ("pretrain_augreg_b16_in21k", ("nothing published", "aug medium1", "full[51200:]")),
        ("pretrain_augreg_l16_in21k", ("nothing published", "aug strong1")),
        ("pretrain_augreg_s16_in21k", ("nothing published", "0.03 instead of 0.1")),
        ("pretrain_augreg_ti16_in21k", ("nothing published", "0.03 instead of 0.1")),
        ("pretrain_augreg_s32_in21k", ("79.58", "class token instead of mean")),
        ("pretrain_augreg_b32_in21k", ("nothing published", "aug light1")),
        ("pretrain_augreg_b8_in21k", ("no figure",)),
        ("pretrain_augreg_r26_s32_in21k", ("83.85", "384 pixels")),
        ("pretrain_augreg_r50_l32_in21k", ("85.99", "384 pixels")),
        ("pretrain_deit3_b16_in21k", ("56.46", "does not name", "85.7")),
        ("finetune_deit3_b16_in21k_to_in1k", ("85.70", "pretrain_deit3_b16_in21k")),
        ("pretrain_pit_ti_in1k", ("73.0", "AdamP")),
        ("pretrain_deit3_b16_in1k", ("82.87", "192 pixels", "finetune_deit3_b16_in1k")),
    ],
)
def test_a_figure_stands_with_what_it_was_reached_with(name, words):
    reached = header_of(name).notes["Reached there"]

    assert [word for word in words if word not in reached] == []


# What a source sets, beside what is tested below: batch, length, loss, optimizer, average, split of
# the evaluation.  None: the source has no such thing.
NOTHING = {"policy": None, "cutout": 0, "erase_rate": 0, "mixup_alpha": 0, "cutmix_alpha": 0}
DEIT_AUGMENT = {
    "policy": "rand_increasing", "num_ops": 2, "magnitude": 9, "magnitude_std": 0.5,
    "mixup_alpha": 0.8, "cutmix_alpha": 1, "mix_rate": 1, "switch_rate": 0.5,
}  # fmt: skip
DEIT3_AUGMENT = {
    "policy": "three_augment", "color_jitter": 0.3, "cutmix_alpha": 1, "mix_rate": 1,
    "erase_rate": 0,
}  # fmt: skip
SIMPLE = {"crop": "simple", "interpolation": "bicubic", "hflip_rate": 0.5}
ERASED = {"erase_rate": 0.25, "erase_fill": "pixel"}
CENTER_256 = {"eval_mode": "center_crop", "eval_resize": 256, "eval_interpolation": "bicubic"}
SQUASHED = {"eval_mode": "squash", "eval_interpolation": "bilinear", "interpolation": "bilinear"}
GOOGLE_DATA = {"crop_scale": (0.05, 1), "crop_ratio": (0.75, 1.33), "interpolation": "bilinear"}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
ADAM = {"kind": "adamw", "betas": (0.9, 0.999), "eps": 1e-8}
SGD = {"kind": "sgd", "momentum": 0.9}
VALUES = {
    "pretrain_l16_in21k": {
        "": {"epochs": 90},
        "data": {"global_batch_size": 4096, "drop_last": True, "crop_scale": (0.08, 1),
                 "interpolation": "bicubic", "hflip_rate": 0.5, **CENTER_256, **HALF},
        "augment": NOTHING,
        "loss": {"kind": "sigmoid", "smoothing": 1e-4, "class_reduction": "sum"},
        "optim": {**ADAM, "weight_decay": 0.15, "grad_clip_norm": None},
        "ema": {"decay": None},
    },
    "pretrain_b16_in1k": {
        "": {"epochs": 300},
        "data": {"global_batch_size": 4096, "drop_last": False, "crop_scale": (0.05, 1)},
        "loss": {"kind": "sigmoid", "smoothing": 1e-4},
        "optim": {**ADAM, "weight_decay": 0.3, "grad_clip_norm": 1},
    },
    "finetune_l16_384_in1k": {
        "": {"epochs": 8},
        "model": {"img_size": 384, "proj_drop_rate": 0.1, "pos_embed_resize": "bicubic"},
        "data": {"global_batch_size": 512, "drop_last": True, "crop_scale": (0.05, 1), **SQUASHED},
        "loss": {"kind": "softmax", "smoothing": 0},
        "optim": {**SGD, "weight_decay": 1e-4, "grad_clip_norm": 1.5},
    },
    "finetune_b16_384_in1k": {
        "": {"epochs": 8},
        "optim": {**SGD, "lr": 3e-3, "weight_decay": 1e-4, "grad_clip_norm": 0.5},
    },
    "finetune_google_in1k": {
        "": {"total_steps": 20_000},
        "model": {"proj_drop_rate": 0.1, "pos_embed_resize": "bilinear_align_corners"},
        "data": {"global_batch_size": 512, "drop_last": True, **GOOGLE_DATA, **SQUASHED, **HALF},
        "augment": NOTHING,
        "loss": {"kind": "softmax", "smoothing": 0},
        "optim": {**SGD, "momentum_dtype": "bf16", "weight_decay": 0, "grad_clip_norm": 1},
    },
    "finetune_google_cifar10": {
        "": {"total_steps": 10_000}, "model": {"proj_drop_rate": 0, "pos_drop_rate": 0},
        "optim": {"lr": 0.01},
    },
    "finetune_google_cifar100": {
        "": {"total_steps": 10_000}, "model": {"proj_drop_rate": 0, "pos_drop_rate": 0},
        "optim": {"lr": 0.03},
    },
    "pretrain_google_l16_in21k": {
        "": {"epochs": 90},
        "model": {"representation_size": 1024, "proj_drop_rate": 0.1, "pos_drop_rate": 0.1},
        "data": {"global_batch_size": 4096, **GOOGLE_DATA},
        "loss": {"kind": "sigmoid", "smoothing": 0, "class_reduction": "sum"},
        "optim": {**ADAM, "weight_decay": 0.03, "grad_clip_norm": None},
    },
    "pretrain_google_b16_in21k": {"model": {"representation_size": 768}},
    "pretrain_augreg_b16_in21k": {
        "": {"epochs": 300},
        "model": {"global_pool": "avg", "class_token": False, "fc_norm": False,
                  "representation_size": None, "proj_drop_rate": 0, "drop_path_rate": 0},
        "data": {"global_batch_size": 4096, **GOOGLE_DATA, "hflip_rate": 0.5, "eval_resize": 256},
        "augment": {"policy": "rand_big_vision", "num_ops": 2, "magnitude": 10,
                    "mixup_alpha": 0.2, "cutmix_alpha": 0, "erase_rate": 0},
        "optim": {**ADAM, "momentum_dtype": "bf16", "weight_decay": 1e-4 / 1e-3,
                  "grad_clip_norm": 1},
    },
    "pretrain_augreg_l16_in21k": {"augment": {"magnitude": 15, "mixup_alpha": 0.5}},
    "pretrain_augreg_s16_in21k": {"augment": {"magnitude": 0, "mixup_alpha": 0}},
    "pretrain_augreg_ti16_in21k": {
        "model": {"name": "vit_tiny_patch16_224", "global_pool": "avg"},
        "augment": {"policy": None, "mixup_alpha": 0},
    },
    "pretrain_augreg_s32_in21k": {
        "model": {"name": "vit_small_patch32_224", "global_pool": "avg"},
        "augment": {"policy": None, "mixup_alpha": 0},
    },
    "pretrain_augreg_b32_in21k": {
        "model": {"name": "vit_base_patch32_224", "global_pool": "avg"},
        "augment": {"policy": "rand_big_vision", "magnitude": 10, "mixup_alpha": 0.2},
    },
    "pretrain_augreg_b8_in21k": {
        "model": {"name": "vit_base_patch8_224", "global_pool": "token", "class_token": True,
                  "representation_size": None, "drop_path_rate": 0, "proj_drop_rate": 0},
        "augment": {"policy": "rand_big_vision", "magnitude": 15, "mixup_alpha": 0.2},
        "optim": {"weight_decay": 0.1},
    },
    "pretrain_augreg_r26_s32_in21k": {
        "model": {"name": "vit_small_r26_s32_224", "class_token": True, "drop_path_rate": 0},
        "augment": {"policy": "rand_big_vision", "magnitude": 0, "mixup_alpha": 0},
        "optim": {"weight_decay": 0.1},
    },
    "pretrain_augreg_r50_l32_in21k": {
        "model": {"name": "vit_large_r50_s32_224", "class_token": True, "drop_path_rate": 0.1,
                  "proj_drop_rate": 0.1, "pos_drop_rate": 0.1},
        "augment": {"policy": "rand_big_vision", "magnitude": 15, "mixup_alpha": 0.2},
        "optim": {"weight_decay": 0.1},
    },
    "pretrain_miil_b16_in21kp": {
        "": {"epochs": 80},
        "model": {"qkv_bias": False},
        "data": {"global_batch_size": 8 * 64, "drop_last": False, "crop_scale": (1, 1),
                 "hflip_rate": 0, **SQUASHED, "mean": (0, 0, 0), "std": (1, 1, 1)},
        "augment": {**NOTHING, "policy": "rand_miil", "cutout": 0.5},
        "loss": {"kind": "semantic_softmax", "smoothing": 0.2},
        "optim": {"betas": (0.9, 0.999), "weight_decay": 1e-4, "grad_clip_norm": None},
    },
    "pretrain_mindcv_b32_in1k": {
        "": {"epochs": 300},
        "model": {"act_layer": "gelu_tanh", "norm_eps": 1e-7, "proj_drop_rate": 0},
        "data": {"global_batch_size": 8 * 512, "drop_last": True, "crop_scale": (0.08, 1),
                 "crop_ratio": (0.75, 1.333), "interpolation": "bicubic", **CENTER_256, **IMAGENET},
        "augment": {"policy": "rand", "magnitude": 9, "magnitude_std": 0.5, "erase_rate": 0,
                    "mixup_alpha": 0.8, "cutmix_alpha": 1, "mix_rate": 1, "switch_rate": 0.5},
        "loss": {"kind": "softmax", "smoothing": 0.1},
        "optim": {**ADAM, "weight_decay": 0.3, "grad_clip_norm": None},
        "ema": {"decay": None},
    },
    "pretrain_mindcv_l16_in1k": {"ema": {"decay": 0.9999, "warmup_steps": 2000}},
    "pretrain_mindcv_l32_in1k": {"ema": {"decay": None}},
    "pretrain_mindcv_v02_b32_in1k": {
        "": {"epochs": 600},
        "model": {"act_layer": "gelu_tanh", "norm_eps": 1e-7, "pos_drop_rate": 0.1,
                  "proj_drop_rate": 0.1, "attn_drop_rate": 0.1},
        "data": {"global_batch_size": 8 * 256},
        "augment": {"policy": "rand", "magnitude": 7, "magnitude_std": 0.5, "erase_rate": 0.1,
                    "erase_fill": "zero", "mixup_alpha": 0.2, "cutmix_alpha": 1, "mix_rate": 1},
        "optim": {**ADAM, "weight_decay": 0.025},
    },
    "pretrain_mindcv_v02_l16_in1k": {
        "": {"epochs": 300},
        "model": {"pos_drop_rate": 0.12, "proj_drop_rate": 0.12, "attn_drop_rate": 0.12},
        "data": {"global_batch_size": 8 * 48},
        "augment": {"magnitude": 9, "erase_rate": 0.15},
        "optim": {"weight_decay": 0.05},
    },
    "pretrain_mindcv_v02_l32_in1k": {
        "": {"epochs": 300}, "data": {"global_batch_size": 8 * 128},
        "augment": {"magnitude": 7, "erase_rate": 0.1}, "optim": {"weight_decay": 0.025},
    },
    "pretrain_mm_b16_in1k": {
        "": {"epochs": 300},
        "model": {"representation_size": 3072, "pos_drop_rate": 0.1, "proj_drop_rate": 0.1},
        "data": {"global_batch_size": 64 * 64, "drop_last": False, **CENTER_256, **IMAGENET},
        "augment": {**NOTHING, "policy": "auto_mmpretrain", "mixup_alpha": 0.2},
        "loss": {"kind": "softmax", "smoothing": 0.1 / 1.1},
        "optim": {**ADAM, "weight_decay": 0.3, "grad_clip_norm": 1},
    },
    "finetune_mm_b16_384_in1k": {
        "": {"epochs": 300},
        "model": {"representation_size": None, "img_size": 384},
        "data": {"interpolation": "bilinear", "eval_resize": 384, **HALF},
        "augment": NOTHING,
    },
    "pretrain_mm_b16_mae_in1k": {
        "": {"epochs": 300},
        "data": {"global_batch_size": 32 * 128, "drop_last": False, **CENTER_256, **IMAGENET},
        "augment": {**DEIT_AUGMENT, **ERASED},
        "loss": {"kind": "softmax", "smoothing": 0.1},
        "optim": {**ADAM, "betas": (0.9, 0.95), "weight_decay": 0.3, "grad_clip_norm": None},
        "ema": {"decay": 1 - 1e-4, "warmup_steps": 0},
    },
    "finetune_mm_b16_mae_in1k": {
        "": {"epochs": 100},
        "model": {"global_pool": "avg", "fc_norm": None},
        "data": {"global_batch_size": 8 * 128},
        "augment": {**DEIT_AUGMENT, **ERASED},
        "optim": {**ADAM, "weight_decay": 0.05, "layer_decay": 0.65},
        "ema": {"decay": None},
    },
    "pretrain_deit3_b16_in1k": {
        "": {"epochs": 800},
        "model": {"img_size": 192, "init_values": 1e-4},
        "data": {"global_batch_size": 8 * 256, "drop_last": True, "repeats": 3,
                 "crop_scale": (0.08, 1), "eval_resize": 192, **IMAGENET},
        "augment": {"policy": "three_augment", "color_jitter": 0.3, "erase_rate": 0,
                    "mixup_alpha": 0.8, "cutmix_alpha": 1, "switch_rate": 0.5},
        "loss": {"kind": "sigmoid", "class_reduction": "mean", "mixed_labels": "whole",
                 "smoothing": 0},
        "optim": {"kind": "lamb", "eps": 1e-8, "weight_decay": 0.05, "grad_clip_norm": 1},
        "ema": {"decay": 0.99996},
    },
    "finetune_deit3_b16_in1k": {
        "": {"epochs": 20},
        "model": {"img_size": 224, "init_values": 1e-4},
        "data": {"global_batch_size": 8 * 64, "repeats": 1, "eval_resize": 224},
        "augment": {**DEIT_AUGMENT, "color_jitter": 0, "erase_rate": 0},
        "loss": {"kind": "softmax", "smoothing": 0.1, "mixed_labels": "weighted"},
        "optim": {**ADAM, "weight_decay": 0.1, "grad_clip_norm": None},
    },
    "pretrain_deit3_b16_in21k": {
        "": {"epochs": 240},
        "model": {"name": "vit_base_patch16_224", "img_size": 224, "drop_path_rate": 0.1,
                  "drop_path_shape": "constant"},
        "data": {"global_batch_size": 64 * 4 * 8, "repeats": 1, "eval_resize": 224, **SIMPLE},
        "augment": {**DEIT3_AUGMENT, "mixup_alpha": 0},
        "loss": {"kind": "softmax", "smoothing": 0.1, "mixed_labels": "weighted"},
        "optim": {"kind": "lamb", "lr": 1e-3, "weight_decay": 0.02, "grad_clip_norm": 1},
        "schedule": {"warmup_epochs": 5, "end_lr": 1e-5},
    },
    "pretrain_deit3_s16_in21k": {
        "": {"epochs": 240}, "model": {"name": "vit_small_patch16_224", "drop_path_rate": 0.05},
        "data": {"global_batch_size": 128 * 2 * 8, **SIMPLE},
    },
    "pretrain_deit3_l16_in21k": {
        "": {"epochs": 240}, "model": {"name": "vit_large_patch16_224", "drop_path_rate": 0.3},
    },
    "pretrain_deit3_h14_in21k": {
        "": {"epochs": 90},
        "model": {"name": "vit_huge_patch14_224", "img_size": 9 * 14, "drop_path_rate": 0.5},
    },
    "finetune_deit3_b16_in21k_to_in1k": {
        "": {"epochs": 50},
        "model": {"name": "vit_base_patch16_224", "img_size": 224, "drop_path_rate": 0.15},
        "data": {"global_batch_size": 64 * 4 * 8, "repeats": 1, **SIMPLE},
        "augment": {**DEIT3_AUGMENT, "mixup_alpha": 0},
        "loss": {"kind": "softmax", "smoothing": 0.1},
        "optim": {"kind": "lamb", "lr": 3e-4, "weight_decay": 0.02},
    },
    "finetune_deit3_s16_in21k_to_in1k": {
        "": {"epochs": 50}, "model": {"name": "vit_small_patch16_224", "drop_path_rate": 0.05},
    },
    "finetune_deit3_l16_in21k_to_in1k": {
        "": {"epochs": 50}, "model": {"name": "vit_large_patch16_224", "drop_path_rate": 0.4},
    },
    "finetune_deit3_h14_in21k_to_in1k": {
        "": {"epochs": 50},
        "model": {"name": "vit_huge_patch14_224", "img_size": 224, "drop_path_rate": 0.45},
    },
    "pretrain_pit_ti_in1k": {
        "": {"epochs": 300},
        "data": {"global_batch_size": 1024, "drop_last": True, "repeats": 1, **CENTER_256,
                 **IMAGENET},
        "augment": {**DEIT_AUGMENT, **ERASED},
        "loss": {"kind": "softmax", "smoothing": 0.1},
        "optim": {**ADAM, "weight_decay": 0.05, "grad_clip_norm": None},
        "ema": {"decay": 0.99996},
    },
    "pretrain_pit_xs_in1k": {"data": {"repeats": 1}},
    "pretrain_pit_s_in1k": {"data": {"repeats": 1}},
    "pretrain_pit_b_in1k": {"data": {"repeats": 3}},
    "pretrain_pit_ti_distilled_in1k": {"distill": {"kind": "hard", "alpha": 0.5, "tau": 1}},
    "pretrain_pit_xs_distilled_in1k": {"distill": {"kind": "hard", "alpha": 0.5, "tau": 1}},
    "pretrain_pit_s_distilled_in1k": {"distill": {"kind": "hard", "alpha": 0.5, "tau": 1}},
    "pretrain_pit_b_distilled_in1k": {
        "data": {"repeats": 3}, "distill": {"kind": "hard", "alpha": 0.5, "tau": 1},
    },
    "pretrain_pit_ti_paddle_in1k": {
        "": {"epochs": 310},
        "data": {"global_batch_size": 4 * 256, "drop_last": True, "crop_scale": (0.05, 1),
                 "hflip_rate": 0, "eval_resize": 248, **IMAGENET},
        "augment": {"policy": "auto_paddle", **ERASED, "mixup_alpha": 0.8, "cutmix_alpha": 1,
                    "mix_rate": 1, "switch_rate": 0.5},
        "loss": {"kind": "softmax", "smoothing": 0.1},
        "optim": {**ADAM, "weight_decay": 0.05, "grad_clip_norm": 5},
        "ema": {"decay": 0.99996},
    },
    "finetune_google_folder_500": {"": {"total_steps": 500}, "model": {"proj_drop_rate": 0}},
    "finetune_google_folder_10k": {"": {"total_steps": 10_000}, "model": {"proj_drop_rate": 0}},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_comes_to_the_values_of_its_source(name):
    recipe = load_recipe(name)
    wrong = {}

    for section, values in VALUES[name].items():
        part = getattr(recipe, section) if section else recipe
        for field, value in values.items():
            found = getattr(part, field)
            same = found == value if isinstance(value, str | bool | None) else found == near(value)
            if not same:
                wrong[f"{section}.{field}"] = (found, value)

    assert not wrong


def near(value):
    return pytest.approx(value, rel=1e-9, abs=1e-15)


# Learning rates, from the sources' formulas.  PLSC, Google and big_vision: t counts updates; the
# warm-up multiplies by t / W.  timm: t counts epochs; DeiT's loop sets epoch e to the value of
# max(0, e - 1).  mmengine: linear by steps, then a cosine by epochs of 300 - W.
def half_cosine(peak, end, progress):
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))


def deit_lr(epoch, *, peak, epochs, low=1e-5, warmup=5):
    t = max(0, epoch - 1)
    return 1e-6 + (peak - 1e-6) * t / warmup if t < warmup else half_cosine(peak, low, t / epochs)


S = 1251
LEARNING_RATES = {
    "pretrain_l16_in21k": (3466, {
        0: 0, 5000: 5e-4, 10_000: 1e-3, 10_000 + (90 * 3466 - 10_000) // 2: (1e-3 + 1e-5) / 2,
        90 * 3466: 1e-5}),
    "pretrain_b16_in1k": (313, {
        0: 0, 10_000: 3e-3, 10_000 + (93_900 - 10_000) // 2: 1.5e-3, 93_900: 0}),
    "finetune_l16_384_in1k": (2502, {0: 0, 250: 0.0075, 500: 0.015, (500 + 20_016) // 2: 0.0075}),
    "finetune_google_in1k": (1, {0: 0, 250: 0.015, 500: 0.03, 10_250: 0.015, 20_000: 0}),
    "pretrain_google_l16_in21k": (3027, {0: 0, 10_000: 1e-3, 90 * 3027: 1e-5}),
    "pretrain_augreg_b16_in21k": (3027, {
        0: 0, 10_000: 1e-3, 10_000 + (300 * 3027 - 10_000) // 2: 5e-4, 300 * 3027: 0}),
    # OneCycleLR: max_lr 3e-4, div_factor 20, pct_start 0.1, final_div_factor 1e4.
    "pretrain_miil_b16_in21kp": (1000, {
        0: 1.5e-5, 4000: (1.5e-5 + 3e-4) / 2, 8000: 3e-4, 44_000: (3e-4 + 1.5e-9) / 2,
        80_000: 1.5e-9}),
    "pretrain_mindcv_b32_in1k": (312, {
        0: 1.6e-5, 15 * 312: (1.6e-5 + 1.6e-3) / 2, 30 * 312: 1.6e-3,
        165 * 312: 0.8e-3, 300 * 312: 0}),
    "pretrain_mindcv_v02_b32_in1k": (625, {
        0: 0, 32 * 625: 3e-3, 316 * 625: (3e-3 + 1e-6) / 2, 600 * 625: 1e-6}),
    "pretrain_mindcv_v02_l16_in1k": (3336, {0: 0, 32 * 3336: 5e-4, 300 * 3336: 1e-5}),
    "pretrain_mindcv_v02_l32_in1k": (1251, {0: 0, 32 * S: 1.5e-3, 300 * S: 1e-6}),
    "pretrain_mm_b16_in1k": (313, {
        0: 3e-7, 30 * 313: 3e-3, 31 * 313 - 1: 3e-3,
        **{(30 + k) * 313 + at: half_cosine(3e-3, 0, k / 270)
           for k in (1, 135, 269) for at in (0, 312)}}),
    "pretrain_mm_b16_mae_in1k": (313, {
        0: 1.6e-6, 20 * 313: 1.6e-3, 21 * 313 - 1: 1.6e-3,
        **{(20 + k) * 313 + at: half_cosine(1.6e-3, 1e-5, k / 280)
           for k in (1, 140, 279) for at in (0, 312)}}),
    "finetune_mm_b16_mae_in1k": (1252, {
        0: 2e-7, 5 * 1252: 2e-3, 5 * 1252 + 626: half_cosine(2e-3, 1e-6, 0.5 / 95),
        100 * 1252: 1e-6}),
    "pretrain_deit3_b16_in1k": (625, {
        epoch * 625 + at: deit_lr(epoch, peak=3e-3, epochs=800)
        for epoch in (0, 1, 2, 5, 6, 401, 799) for at in (0, 624)}),
    "pretrain_deit3_b16_in21k": (6931, {
        0: 1e-6, 2 * 6931: 1e-6 + (1e-3 - 1e-6) / 5, 6 * 6931: deit_lr(6, peak=1e-3, epochs=240),
        120 * 6931: deit_lr(120, peak=1e-3, epochs=240)}),
    "finetune_deit3_b16_in1k": (2502, {0: 1e-6, 2502: 1e-6, 2 * 2502: 1e-6 + 9e-6 / 5,
                                       6 * 2502: 1e-5, 20 * 2502 - 1: 1e-5}),
    "pretrain_pit_ti_in1k": (S, {
        epoch * S + at: deit_lr(epoch, peak=1e-3, epochs=300)
        for epoch in (0, 1, 2, 5, 6, 151, 299) for at in (0, S - 1)}),
    "pretrain_pit_b_in1k": (S, {
        epoch * S: deit_lr(epoch, peak=1e-3, epochs=300, warmup=10) for epoch in (0, 10, 11, 299)}),
    # The logs of paddle_pit, epochs 1, 20, 75, 143, 226 and 300 on.
    "pretrain_pit_ti_paddle_in1k": (S, {
        0: 5.0475e-5, 19 * S: 9.8912e-4, 74 * S: half_cosine(1e-3, 5e-6, 0.25), 142 * S: 5.39e-4,
        225 * S: 1.47e-4, 305 * S: 5e-6}),
}  # fmt: skip


@pytest.mark.parametrize("name", LEARNING_RATES)
def test_the_learning_rates_are_the_sources(name):
    recipe = load_recipe(name)
    steps_per_epoch, expected = LEARNING_RATES[name]
    factor = build_schedule(recipe, steps_per_epoch)

    found = {step: factor(step) * recipe.optim.lr for step in expected}

    rel = 1e-3 if "paddle" in name else 1e-6
    assert found == pytest.approx(expected, rel=rel, abs=1e-12)


def small(name):
    """Return the recipe with a small model of its kind."""
    recipe = load_recipe(name)
    if recipe.model.name.startswith("pit"):
        distilled = "_distilled" if "distilled" in recipe.model.name else ""
        changes = [f"model.name=pit_ti{distilled}_224", "model.img_size=32"]
    else:
        patch_size = (
            1 if "_s32_" in recipe.model.name else 16
        )  # of a hybrid, after the convolutions
        changes = ["model.img_size=32", f"model.patch_size={patch_size}"]
        changes += [f"model.embed_dim={WIDTH}"]
        changes += ["model.depth=4", "model.num_heads=2"]
        if recipe.model.representation_size:
            changes.append("model.representation_size=32")
    if recipe.data.eval_resize:
        changes.append("data.eval_resize=32")
    return load_recipe(name, changes)


NORMS, TOKENS = {"norms and biases"}, {"tokens"}
UNDECAYED = {
    "PLSC": set(),
    "Google": NORMS | TOKENS,
    "big_vision": NORMS | TOKENS,
    "MIIL": NORMS,
    "MindCV": NORMS,
    "MMPretrain": NORMS | TOKENS,
    "DeiT": NORMS | TOKENS,
    "paddle_pit": set(),
    # filter_bias_and_bn of v0.2.2 filters nothing, paramwise_cfg has no norm_decay_mult.
    "pretrain_mindcv_v02_b32_in1k": set(),
    "pretrain_mindcv_v02_l16_in1k": set(),
    "pretrain_mindcv_v02_l32_in1k": set(),
    **dict.fromkeys(["pretrain_mm_b16_in1k", "finetune_mm_b16_384_in1k"], TOKENS),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sources_parameters_decay(name):
    recipe = small(name)
    with torch.device("meta"):
        model = build_model(model_args_of(recipe, num_classes=3))
    section = recipe.optim.model_copy(update={"weight_decay": 1.0, "lr_multipliers": {}})

    undecayed = {name for name, (_, decay) in param_groups(model, section).items() if not decay}

    kinds = {"tokens": set(), "norms and biases": set()}
    for param_name, param in model.named_parameters():
        if param_name in ("pos_embed", "cls_token"):
            kinds["tokens"].add(param_name)
        elif param.ndim == 1:
            kinds["norms and biases"].add(param_name)
    expected = UNDECAYED.get(name, UNDECAYED[source_name(name)])
    assert undecayed == set().union(*(kinds[kind] for kind in expected))


def uniform_std(bound):
    return bound / math.sqrt(3)


XAVIER_HEAD = math.sqrt(2 / (WIDTH + CLASSES))
XAVIER_QKV = math.sqrt(2 / (WIDTH + 3 * WIDTH))
XAVIER = math.sqrt(2 / (WIDTH + 4 * WIDTH))
TORCH = uniform_std(1 / math.sqrt(WIDTH))
PIXELS = 3 * 16 * 16
# Standard deviations: head, qkv, first layer of the MLP, patches, positions, class token.
FIRST_WEIGHTS = {
    "pretrain_l16_in21k": (
        math.sqrt(2 / (32 + CLASSES)), XAVIER_QKV, XAVIER, math.sqrt(2 / PIXELS), 0.02, 0),
    "finetune_google_in1k": (
        0, math.sqrt(1 / WIDTH), XAVIER, math.sqrt(1 / PIXELS), 0.02, 0),
    "pretrain_augreg_b16_in21k": (
        0, math.sqrt(1 / WIDTH), XAVIER, math.sqrt(1 / PIXELS), 1 / math.sqrt(WIDTH), None),
    "pretrain_mindcv_b32_in1k": (
        XAVIER_HEAD, XAVIER_QKV, XAVIER, math.sqrt(2 / (PIXELS + WIDTH)), 0.8796 * 0.02, 0.0176),
    "pretrain_mindcv_v02_b32_in1k": (0.01, 0.01, 0.01, 0.01, 1, 1),
    "pretrain_mm_b16_in1k": (0, TORCH, XAVIER, math.sqrt(1 / PIXELS), 0.02, 0),
    "pretrain_mm_b16_mae_in1k": (
        0, 0.02, XAVIER, uniform_std(1 / math.sqrt(PIXELS)), 0.02, 0),
    "finetune_mm_b16_mae_in1k": (2e-5, 0.02, XAVIER, None, 0.02, 0),
    "pretrain_deit3_b16_in1k": (0.02, 0.02, 0.02, uniform_std(1 / math.sqrt(PIXELS)), 0.02, 0.02),
    "pretrain_pit_ti_in1k": (
        uniform_std(1 / 16), uniform_std(1 / 8), uniform_std(1 / 8),
        uniform_std(1 / math.sqrt(PIXELS)), 0.02, 0.02),
    "pretrain_pit_ti_paddle_in1k": (
        math.sqrt(2 / (256 + CLASSES)), XAVIER_QKV, XAVIER, math.sqrt(2 / PIXELS), 0.02, 0.02),
}  # fmt: skip


@pytest.mark.parametrize("name", FIRST_WEIGHTS)
def test_weights_start_as_in_the_source(name):
    weights = dict(new_model(small(name), num_classes=CLASSES).named_parameters())
    stage = "transformers.0." if name.startswith("pretrain_pit") else ""
    patch = "patch_embed.conv" if stage else "patch_embed.proj"
    names = ("head.weight", f"{stage}blocks.0.attn.qkv.weight", f"{stage}blocks.0.mlp.fc1.weight",
             f"{patch}.weight", "pos_embed", "cls_token")  # fmt: skip

    for name_of, std in zip(names, FIRST_WEIGHTS[name], strict=True):
        if std is not None:
            # 64 values of a class token have an error of a tenth.
            rel = 0.3 if name_of == "cls_token" else 0.12
            assert weights[name_of].std().item() == pytest.approx(std, rel=rel), name_of
    bias = {"pretrain_l16_in21k": -10, "pretrain_augreg_b16_in21k": -10}.get(name, 0)
    if name != "pretrain_pit_ti_in1k":
        assert (weights["head.bias"] == bias).all()


def test_torchs_default_head_has_a_bias_of_torchs():
    head = new_model(small("pretrain_pit_ti_in1k"), num_classes=CLASSES).head

    assert head.bias.std().item() == pytest.approx(uniform_std(1 / 16), rel=0.15)
    assert head.bias.abs().max().item() <= 1 / 16


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("pretrain_deit3_b16_in1k", [0.2] * 4),
        ("finetune_deit3_b16_in1k", [0.2] * 4),
        ("pretrain_pit_ti_in1k", [0.1 * index / 12 for index in range(12)]),
        ("pretrain_pit_b_in1k", [0.1 * index / 12 for index in range(12)]),
        ("pretrain_pit_ti_paddle_in1k", [0.0] * 12),
        ("pretrain_mindcv_b32_in1k", [0.1 * index / 3 for index in range(4)]),
        ("pretrain_mindcv_l16_in1k", [0.2 * index / 3 for index in range(4)]),
        ("pretrain_mm_b16_mae_in1k", [0.1 * index / 3 for index in range(4)]),
        ("pretrain_mm_b16_in1k", [0.0] * 4),
        ("pretrain_l16_in21k", [0.0] * 4),
    ],
)
def test_stochastic_depth_is_that_of_the_source(name, rates):
    model = new_model(small(name), num_classes=3)
    by_block = {}
    for block_name, module in model.named_modules():
        if isinstance(module, DropPath):
            by_block.setdefault(block_name.rpartition(".")[0], []).append(module.drop_rate)

    assert [max(found) for found in by_block.values()] == pytest.approx(rates)


@pytest.mark.parametrize(
    ("name", "rate"),
    [("b32", 0.1), ("l16", 0.15), ("l32", 0.1), ("v02_b32", 0.0)],
)
def test_mindcvs_drop_rate_is_dropout_before_the_head(name, rate):
    model = new_model(small(f"pretrain_mindcv_{name}_in1k"), num_classes=3).train()

    features = model.forward_head(torch.ones(400, 2, WIDTH), pre_logits=True)

    assert model.head_drop.p == rate
    assert (features == 0).float().mean().item() == pytest.approx(rate, abs=0.02)
    assert features.mean().item() == pytest.approx(1, abs=0.02)
