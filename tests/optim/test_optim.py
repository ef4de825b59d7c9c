"""Parameter groups: what decays, what Muon updates, what the schedule scales."""

import pytest
import torch

from vit21k.models.registry import get_model
from vit21k.optim.optimizers import build_optimizers, set_lr, state_bytes, state_bytes_of
from vit21k.recipe.schema import OptimSection

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.fixture
def model():
    return get_model("vit_tiny_patch16_224", num_classes=3, **TINY)


def groups_of(model, optimizers):
    names = {id(param): name for name, param in model.named_parameters()}
    return [
        ({names[id(param)] for param in group["params"]}, group)
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]


@pytest.mark.parametrize("kind", ["adamw", "sgd", "lamb", "muon"])
def test_every_parameter_is_updated_by_exactly_one_group(model, kind):
    optimizers = build_optimizers(model, OptimSection(kind=kind, lr=0.1))

    names = [name for group, _ in groups_of(model, optimizers) for name in group]

    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_all_means_all_and_kernels_means_no_bias_norm_or_position(model):
    everything = build_optimizers(
        model, OptimSection(kind="adamw", lr=0.1, weight_decay=0.3, decay_params="all")
    )
    kernels = build_optimizers(
        model, OptimSection(kind="adamw", lr=0.1, weight_decay=0.3, decay_params="kernels")
    )

    assert [group["weight_decay"] for _, group in groups_of(model, everything)] == [0.3]
    decayed, spared = groups_of(model, kernels)
    assert decayed[1]["weight_decay"] == 0.3
    assert "blocks.0.mlp.fc1.weight" in decayed[0]
    assert "patch_embed.proj.weight" in decayed[0]
    assert spared[1]["weight_decay"] == 0
    assert {"pos_embed", "cls_token", "norm.weight", "head.bias"} <= spared[0]


def test_muon_updates_the_matrices_of_the_blocks_only(model):
    optimizers = build_optimizers(model, OptimSection(kind="muon", lr=1e-3, muon_lr=2e-3))

    (muon_names, muon_group), *_ = groups_of(model, optimizers)

    assert muon_names == {
        f"blocks.{block}.{layer}.weight"
        for block in (0, 1)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert muon_group["peak_lr"] == 2e-3


def test_the_schedule_scales_every_group_from_its_own_peak(model):
    optimizers = build_optimizers(model, OptimSection(kind="muon", lr=1e-3, muon_lr=2e-3))

    set_lr(optimizers, 0.5)

    assert [group["lr"] for _, group in groups_of(model, optimizers)] == [1e-3, 5e-4]


def test_sgd_adds_the_decay_to_the_gradient_and_starts_its_momentum_with_it():
    # PLSC: g += wd p; the first momentum is g; p -= lr buf.  By hand: p = 2, grad = 1.
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 2.0)
    (sgd,) = build_optimizers(
        layer, OptimSection(kind="sgd", lr=0.1, weight_decay=0.5, decay_params="all")
    )

    for _ in range(2):
        layer.weight.grad = torch.ones_like(layer.weight)
        sgd.step()

    first = 2 - 0.1 * (1 + 0.5 * 2)
    second = first - 0.1 * (0.9 * 2 + 1 + 0.5 * first)
    assert layer.weight.item() == pytest.approx(second)


KEPT = [(kind, "fp32") for kind in ("adamw", "sgd", "lamb", "muon")]


@pytest.mark.parametrize(("kind", "momentum_dtype"), [*KEPT, ("adamw", "bf16"), ("sgd", "bf16")])
def test_an_optimizer_keeps_as_many_bytes_as_a_plan_counts(model, kind, momentum_dtype):
    section = OptimSection(kind=kind, lr=0.1, momentum_dtype=momentum_dtype)
    optimizers = build_optimizers(model, section)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    for optimizer in optimizers:
        optimizer.step()
        for param, state in optimizer.state.items():
            moments = [value for value in state.values() if value.shape == param.shape]
            num_bytes = sum(moment.nbytes for moment in moments)
            assert num_bytes == state_bytes(optimizer) * param.numel()
    assert state_bytes(optimizers[0]) == state_bytes_of(kind, momentum_dtype)
