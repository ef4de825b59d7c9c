"""Recomputation and attention backends change what is kept and how fast, not what comes out."""

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode

from vit21k.device import autocast
from vit21k.models import attention
from vit21k.models.attention import AttentionShape, Trial, fastest, try_backends, use_backend
from vit21k.models.layers import Attention
from vit21k.models.registry import build_model, model_args

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


def small_model(*, recompute=False, **args):
    torch.manual_seed(0)
    args = model_args("vit_tiny_patch16_224", num_classes=5, **{**SMALL, **args})
    model = build_model(args, recompute=recompute)
    torch.nn.init.normal_(model.head.weight)
    return model.train()


def loss_and_gradients(model, precision="fp32"):
    dtype = next(model.parameters()).dtype
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    model.zero_grad()
    torch.manual_seed(2)
    with autocast("cpu", precision):
        loss = model(images).to(dtype).logsumexp(dim=1).sum()
    loss.backward()
    return loss.detach(), [param.grad for param in model.parameters()]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "args",
    [
        {},
        {"proj_drop_rate": 0.2, "drop_path_rate": 0.3},
        {"global_pool": "avg"},
        {"rope": "dinov3", "pos_embed": "none"},
        {"qk_norm": True, "mlp_layer": "swiglu", "norm_layer": "rmsnorm", "reg_tokens": 2},
        {"global_pool": "map", "class_token": False, "pre_norm": True, "act_layer": "quick_gelu"},
    ],
    ids=str,
)
def test_recomputation_changes_no_bit_of_loss_and_gradients(precision, args):
    loss, gradients = loss_and_gradients(small_model(**args), precision)
    again = small_model(recompute=True, **args)
    loss_again, gradients_again = loss_and_gradients(again, precision)

    assert torch.equal(loss_again, loss)
    assert all(map(torch.equal, gradients_again, gradients))


def test_recomputation_runs_norms_again_and_linear_layers_and_attention_not():
    class Counts(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    def counts(model):
        with Counts() as seen:
            loss_and_gradients(model)
        return {
            name: seen.names.count(name) for name in ("native_layer_norm", "gelu", "addmm", "mm")
        } | {"attention": sum("scaled_dot_product" in name for name in seen.names)}

    plain = counts(small_model())
    again = counts(small_model(recompute=True))

    assert again["native_layer_norm"] == plain["native_layer_norm"] + 2 * SMALL["depth"]
    assert again["gelu"] == plain["gelu"] + SMALL["depth"]
    assert [again[name] for name in ("addmm", "mm", "attention")] == [
        plain[name] for name in ("addmm", "mm", "attention")
    ]


def test_every_backend_that_works_here_gives_the_same_gradients():
    model = small_model().double()  # backends add up in another order
    loss, gradients = loss_and_gradients(model)

    for name in ("flash", "math"):
        use_backend(model, name)
        other_loss, other_gradients = loss_and_gradients(model)

        torch.testing.assert_close(other_loss, loss)
        torch.testing.assert_close(other_gradients, gradients)


def test_a_backend_that_cannot_do_it_gives_way_to_plain_arithmetic():
    model = small_model(attn_drop_rate=0.5)
    use_backend(model, "flash")  # has no dropout on a CPU

    dropped, _ = loss_and_gradients(model)
    whole, _ = loss_and_gradients(model.eval())

    assert torch.isfinite(dropped)
    assert dropped != whole


def test_a_trial_times_what_works_and_says_why_the_rest_does_not():
    trials = try_backends(AttentionShape(2, 2, 17, 16), device="cpu", dtype=torch.bfloat16)
    found = {trial.name: trial for trial in trials}

    assert found["flash"].seconds < 10
    assert found["math"].seconds < 10
    assert found["flash"].difference < 0.05
    assert found["cudnn"].problem
    assert found["cudnn"].seconds == float("inf")


def test_a_backend_with_wrong_results_is_out_of_question(monkeypatch):
    right = attention._outcome

    def wrong(name, qkv, *, dropout):
        found = right(name, qkv, dropout=dropout)
        return [found[0] + (name == "flash"), *found[1:]]

    monkeypatch.setattr(attention, "_outcome", wrong)
    trials = try_backends(AttentionShape(1, 1, 5, 8), device="cpu", dtype=torch.float32)

    assert "differs" in trials[0].problem
    assert fastest(trials) == "math"


def test_the_first_one_is_taken_unless_another_is_faster_by_a_tenth():
    def trials(flash, cudnn):
        return [Trial("flash", flash, 0.0, ""), Trial("cudnn", cudnn, 0.0, "")]

    assert fastest(trials(1.0, 0.95)) == "flash"
    assert fastest(trials(1.0, 0.8)) == "cudnn"


def test_a_chosen_backend_is_that_of_every_block_and_none_is_torchs_own_choice():
    model = small_model()
    layers = [module for module in model.modules() if isinstance(module, Attention)]

    use_backend(model, "math")
    assert [layer.backend for layer in layers] == [SDPBackend.MATH] * 3
    use_backend(model, None)
    assert [layer.backend for layer in layers] == [None] * 3
