"""Who decays and who learns how fast: timm's rules as oracle, and the rules of the recipes."""

import pytest

timm = pytest.importorskip("timm")

from timm.optim import param_groups_layer_decay, param_groups_weight_decay

from vit21k.errors import UsageError
from vit21k.models.registry import get_model
from vit21k.optim.optimizers import build_optimizers, layer_ids, param_groups
from vit21k.recipe.schema import OptimSection


def rules(**fields):
    """Return a section whose weight decay is of all parameters, unless *fields* say otherwise."""
    return OptimSection(**{"kind": "adamw", "lr": 1.0, "decay_params": "all", **fields})


TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}


def vit(**changes):
    return get_model("vit_tiny_patch16_224", num_classes=3, **{**TINY, **changes})


def timms_vit(**changes):
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, **{**TINY, **changes})


def by_name(model, groups):
    """Return timm's groups as (factor on the learning rate, weight decay) by parameter."""
    names = {id(param): name for name, param in model.named_parameters()}
    return {
        names[id(param)]: (group.get("lr_scale", 1.0), group["weight_decay"])
        for group in groups
        for param in group["params"]
    }


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_layer_decay_is_timms_but_for_the_norm_before_pooling(pool):
    model = timms_vit(global_pool=pool)
    expected = by_name(
        model,
        param_groups_layer_decay(
            model,
            weight_decay=0.05,
            layer_decay=0.65,
            no_weight_decay_list=model.no_weight_decay(),
        ),
    )

    section = rules(weight_decay=0.05, decay_params="kernels", layer_decay=0.65)
    factors = param_groups(vit(global_pool=pool), section)

    different = {name for name in expected if factors[name] != expected[name]}
    assert factors.keys() == expected.keys()
    # BEiT and MMPretrain put it beside the head, as we do.
    assert different == ({"norm.weight", "norm.bias"} if pool == "token" else set())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "pit_ti_224"])
def test_kernels_are_what_timm_decays(name):
    model = timm.create_model(name, num_classes=3)
    expected = by_name(
        model,
        param_groups_weight_decay(
            model, weight_decay=0.05, no_weight_decay_list=model.no_weight_decay()
        ),
    )
    ours = get_model(name, num_classes=3)

    factors = param_groups(ours, rules(weight_decay=0.05, decay_params="kernels"))

    assert factors == expected


def test_a_pits_layers_are_counted_through_its_stages():
    ids = layer_ids(name for name, _ in get_model("pit_ti_224", num_classes=3).named_parameters())

    assert ids["pos_embed"] == ids["cls_token"] == ids["patch_embed.conv.weight"] == 0
    assert ids["transformers.0.blocks.0.attn.qkv.weight"] == 1
    assert ids["transformers.0.blocks.1.norm1.bias"] == 2
    assert (
        ids["transformers.1.pool.conv.weight"] == ids["transformers.1.blocks.0.mlp.fc1.bias"] == 3
    )
    assert ids["transformers.2.pool.fc.bias"] == ids["transformers.2.blocks.0.norm1.weight"] == 9
    assert ids["transformers.2.blocks.3.mlp.fc2.weight"] == 12
    assert ids["norm.weight"] == ids["head.weight"] == 13


def test_mmpretrains_vit_decays_all_but_tokens_and_positions():
    section = rules(weight_decay=0.3, decay_multipliers={"cls_token": 0, "pos_embed": 0})

    factors = param_groups(vit(), section)

    spared = {name for name, (_, decay) in factors.items() if decay == 0}
    assert spared == {"cls_token", "pos_embed"}


def test_the_first_multiplier_that_matches_counts():
    section = rules(
        weight_decay=0.1,
        lr_multipliers={"head.bias": 2, "head.*": 10},
        decay_multipliers={"head.*": 0.5},
    )

    factors = param_groups(vit(), section)

    assert factors["head.bias"] == (2, 0.05)
    assert factors["head.weight"] == (10, 0.05)
    assert factors["norm.weight"] == (1, 0.1)


@pytest.mark.parametrize("option", ["lr_multipliers", "decay_multipliers"])
def test_a_pattern_that_matches_nothing_is_an_error(option):
    with pytest.raises(UsageError, match=rf"optim.{option}: `heda.\*` matches no parameter"):
        param_groups(vit(), rules(**{option: {"heda.*": 2.0}}))


def test_what_is_frozen_is_in_no_group():
    model = vit()
    for name, param in model.named_parameters():
        param.requires_grad_(name.startswith("head"))

    (optimizer,) = build_optimizers(model, OptimSection(kind="sgd", lr=0.1))

    (group,) = optimizer.param_groups
    assert [id(param) for param in group["params"]] == [id(p) for p in model.head.parameters()]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_groups_carry_the_rules_numbers_to_the_optimizer(kind):
    model = vit()
    section = OptimSection(kind=kind, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    optimizers = build_optimizers(model, section)

    given = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for param in group["params"]:
                given[id(param)] = (group["peak_lr"], group["weight_decay"])

    by_name = {name: given[id(param)] for name, param in model.named_parameters()}
    assert by_name == param_groups(model, section)
