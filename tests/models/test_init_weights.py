import math
from typing import get_args

import pytest
import torch

from vit21k.models.init_weights import Scheme, init_vit
from vit21k.models.registry import get_model

WIDTH = 192
SCHEMES = get_args(Scheme)


def model_with(**args):
    torch.manual_seed(9)
    model = get_model("vit_tiny_patch16_224", img_size=32, depth=1, representation_size=96)
    init_vit(model, generator=torch.Generator().manual_seed(0), **args)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def is_uniform(weight, bound):
    return (
        weight.abs().max().item() <= bound
        and weight.abs().max().item() > 0.99 * bound
        and abs(weight.std().item() - bound / math.sqrt(3)) < 0.03 * bound
    )


def is_normal(weight, std, rel=0.05):
    return weight.std().item() == pytest.approx(std, rel=rel) and (
        abs(weight.mean().item()) < 0.15 * std
    )


def test_plsc_draws_xavier_for_the_fused_matrix_and_a_wide_patch_embedding():
    weights = model_with(scheme="plsc", head_init="xavier", head_bias_init=-10.0)

    assert is_uniform(weights["blocks.0.attn.qkv.weight"], math.sqrt(6 / (4 * WIDTH)))
    assert is_uniform(weights["blocks.0.attn.proj.weight"], math.sqrt(6 / (2 * WIDTH)))
    assert is_uniform(weights["blocks.0.mlp.fc1.weight"], math.sqrt(6 / (5 * WIDTH)))
    assert is_uniform(weights["pre_logits.fc.weight"], math.sqrt(6 / (WIDTH + 96)))
    assert is_uniform(weights["head.weight"], math.sqrt(6 / (96 + 1000)))
    assert is_normal(weights["patch_embed.proj.weight"], 0.05103)  # PLSC's, for 16 pixels
    assert is_normal(weights["pos_embed"], 0.02, rel=0.1)
    assert is_normal(weights["blocks.0.mlp.fc1.bias"], 1e-6, rel=0.1)
    assert (weights["head.bias"] == -10).all()
    for name in ("cls_token", "patch_embed.proj.bias", "blocks.0.attn.qkv.bias", "norm.bias"):
        assert (weights[name] == 0).all(), name


def test_google_draws_queries_keys_and_values_by_themselves():
    weights = model_with(scheme="google")

    assert is_uniform(weights["blocks.0.attn.qkv.weight"], math.sqrt(6 / (2 * WIDTH)))
    assert is_normal(weights["patch_embed.proj.weight"], 0.03608)  # flax's LeCun, for 16 pixels
    assert is_normal(weights["pre_logits.fc.weight"], math.sqrt(1 / WIDTH))
    cut = 2 * math.sqrt(1 / WIDTH) / 0.8796
    assert weights["pre_logits.fc.weight"].abs().max().item() == pytest.approx(cut, rel=0.02)
    assert (weights["head.weight"] == 0).all()


def test_timm_draws_small_normal_weights():
    weights = model_with(scheme="timm")

    for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        assert is_normal(weights[f"blocks.0.{name}.weight"], 0.02)
        assert (weights[f"blocks.0.{name}.bias"] == 0).all()
    assert is_uniform(weights["patch_embed.proj.weight"], 1 / math.sqrt(768))
    assert is_normal(weights["cls_token"], 1e-6, rel=0.3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_generator_alone_decides(scheme):
    first, second = model_with(scheme=scheme), model_with(scheme=scheme)

    assert all(torch.equal(first[name], second[name]) for name in first)


OPTIONS = [
    {"representation_size": 8},
    {"reg_tokens": 2, "qk_norm": True, "norm_layer": "rmsnorm", "global_pool": "map"},
    {"distilled": True, "pre_norm": True, "mlp_layer": "swiglu", "pos_embed": "none"},
]


@pytest.mark.parametrize("args", OPTIONS, ids=str)
def test_registers_and_the_distillation_token_do_not_start_equal(args):
    model = get_model("vit_tiny_patch16_224", img_size=32, depth=1, **args)
    init_vit(model, scheme="plsc")

    tokens = [t[0] for t in (model.cls_token, model.dist_token, model.reg_token) if t is not None]
    assert len(torch.cat(tokens).unique(dim=0)) == model.num_prefix_tokens


@pytest.mark.parametrize("args", OPTIONS, ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_parameter_is_overwritten(scheme, args):
    model = get_model("vit_tiny_patch16_224", img_size=32, depth=2, **args)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)

    init_vit(model, scheme=scheme, head_init="xavier")

    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_model_without_head_has_none_to_draw():
    model = get_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=0)

    init_vit(model)

    assert (model.norm.weight == 1).all()
