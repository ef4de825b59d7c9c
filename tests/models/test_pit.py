"""PiT against timm, in the three layouts its weights are published in, and at other sizes."""

import pickle
import re

import pytest
import torch

from vit21k.checkpoint.initialise import initialise_from
from vit21k.checkpoint.load import load_model
from vit21k.models.cost import macs_per_image, num_params
from vit21k.models.init_weights import init_vit
from vit21k.models.pos_embed import resize_pos_map
from vit21k.models.registry import get_model, model_args
from vit21k.optim.optimizers import build_optimizers
from vit21k.recipe.schema import OptimSection

# naver-ai/pit: parameters counted there; GFLOPs of its README, which counts adding up as well.
GOLDEN = [
    ("pit_ti_224", 4_847_272, 0.71),
    ("pit_xs_224", 10_618_888, 1.4),
    ("pit_s_224", 23_461_912, 2.9),
    ("pit_b_224", 73_764_840, 12.5),
    ("pit_ti_distilled_224", 5_104_336, None),
    ("pit_xs_distilled_224", 11_003_984, None),
    ("pit_s_distilled_224", 24_039_056, None),
    ("pit_b_distilled_224", 74_790_096, None),
]
SMALL = {"img_size": 64, "depth": [1, 2, 1]}


@pytest.mark.parametrize(("name", "params", "gigaflops"), GOLDEN)
def test_parameters_are_the_published_ones_and_flops_within_two_percent(name, params, gigaflops):
    args = model_args(name)
    with torch.device("meta"):
        model = get_model(name)

    assert sum(parameter.numel() for parameter in model.parameters()) == params
    assert num_params(args) == params
    if gigaflops:
        assert macs_per_image(args) / 1e9 == pytest.approx(gigaflops, rel=0.02)


@pytest.mark.parametrize("img_size", [48, 64, 225])
def test_macs_are_those_of_the_products_that_are_computed(img_size):
    from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: PLC0415
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    overrides = {**SMALL, "img_size": img_size}
    model = get_model("pit_ti_distilled_224", **overrides).eval().requires_grad_(False)

    # The counter sees matrix products, but not all of the fused attentions of torch.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, img_size, img_size))

    wanted = macs_per_image(model_args("pit_ti_distilled_224", **overrides))
    assert counter.get_total_flops() == 2 * wanted


def perturbed(model):
    torch.manual_seed(3)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.randn_like(tensor) * 0.05)
    return model.eval()


def published(state, layout):
    """Return *state*, in today's timm's names, as an older program spells it."""
    if layout == "timm":
        return state
    spelling = {"naver": "pools.{}.", "old timm": "transformers.{}.pool."}[layout]
    return {
        re.sub(r"transformers\.(\d+)\.pool\.", lambda m: spelling.format(int(m[1]) - 1), k): v
        for k, v in state.items()
    }


@pytest.mark.parametrize("layout", ["timm", "naver", "old timm"])
@pytest.mark.parametrize("name", ["pit_ti_224", "pit_s_distilled_224"])
def test_every_layout_gives_timms_logits_and_features(tmp_path, name, layout):
    timm = pytest.importorskip("timm")
    theirs = perturbed(timm.create_model(name, num_classes=7, **SMALL))
    torch.save(published(theirs.state_dict(), layout), tmp_path / "pit.pth")
    images = torch.randn(2, 3, 64, 64)

    model, card = load_model(tmp_path / "pit.pth", model_args={"heads": model_args(name)["heads"]})

    with torch.no_grad():
        assert torch.allclose(model(images), theirs(images), rtol=1e-5, atol=1e-5)
        features = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        assert torch.allclose(model.features(images), features, rtol=1e-5, atol=1e-5)
    assert card.name == name
    assert [warning[:30] for warning in card.warnings] == ["nothing says how images are pr"]
    assert card.eval_settings.mean == (0.485, 0.456, 0.406)


def test_paddle_pits_weights_are_read(tmp_path):
    theirs = perturbed(get_model("pit_ti_distilled_224", num_classes=7, **SMALL))
    arrays = {
        name: (tensor.T if tensor.ndim == 2 else tensor).numpy().copy()
        for name, tensor in published(theirs.state_dict(), "naver").items()
    }
    (tmp_path / "Best_PiT.pdparams").write_bytes(pickle.dumps(arrays, protocol=4))

    model, _ = load_model(tmp_path / "Best_PiT.pdparams", model_args={"heads": [2, 4, 8]})

    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images), theirs(images))


def test_timm_cannot_resize_the_map_of_positions_and_we_can(tmp_path):
    theirs = perturbed(get_model("pit_ti_224", num_classes=7, **SMALL))
    torch.save(theirs.state_dict(), tmp_path / "pit.pth")
    _, card = load_model(tmp_path / "pit.pth", model_args={"heads": [2, 4, 8]})
    args = {**card.args, "img_size": 96}
    larger = get_model(card.name, **args).eval()

    report = initialise_from(
        larger, tmp_path / "pit.pth", args=model_args(card.name, **args), classes=card.classes
    )

    assert report.resized == ("pos_embed",)
    assert larger.pos_embed.shape == (1, 64, 11, 11)
    assert torch.equal(larger.pos_embed, resize_pos_map(theirs.pos_embed.detach(), (11, 11)))
    with torch.no_grad():
        assert larger(torch.randn(1, 3, 96, 96)).isfinite().all()


def test_a_linear_map_of_positions_stays_linear():
    rows = torch.arange(7.0).view(1, 1, 7, 1).expand(1, 2, 7, 7)

    resized = resize_pos_map(rows, (13, 13), mode="bilinear_align_corners")

    assert torch.allclose(resized[0, 1, :, 4], torch.linspace(0, 6, 13), atol=1e-6)
    assert resize_pos_map(rows, (7, 7)) is rows


def test_both_heads_of_a_distilled_model_learn():
    model = get_model("pit_ti_distilled_224", num_classes=3, **SMALL)

    model(torch.randn(2, 3, 64, 64)).square().sum().backward()

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_first_weights_are_the_authors_and_a_function_of_the_generator():
    models = [get_model("pit_ti_distilled_224", num_classes=3, **SMALL) for _ in range(2)]
    for model in models:
        init_vit(model, head_bias_init=-10.0, generator=torch.Generator().manual_seed(0))

    for first, second in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(first, second)
    assert models[0].pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(models[0].head_dist.bias, torch.full((3,), -10.0))
    fc1 = models[0].transformers[1].blocks[0].mlp.fc1.weight
    assert fc1.abs().max().item() <= 128**-0.5
    assert fc1.std().item() == pytest.approx((1 / 3 / 128) ** 0.5, rel=0.05)


@pytest.mark.parametrize("kind", ["adamw", "sgd", "muon"])
def test_every_optimizer_updates_every_parameter(kind):
    model = get_model("pit_ti_224", num_classes=3, **SMALL)
    optimizers = build_optimizers(model, OptimSection(kind=kind, lr=0.1))

    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    params = [param for group in groups for param in group["params"]]

    assert len(params) == len({id(param) for param in params}) == len(list(model.parameters()))
    if kind == "muon":
        assert len(groups[0]["params"]) == 4 * sum(SMALL["depth"])


def test_published_size_at_224_gives_timms_logits(tmp_path):
    timm = pytest.importorskip("timm")
    theirs = perturbed(timm.create_model("pit_ti_224", num_classes=1000))
    torch.save(theirs.state_dict(), tmp_path / "pit_ti_730.pth")
    images = torch.randn(1, 3, 224, 224)

    model, card = load_model(tmp_path / "pit_ti_730.pth", model_args={"heads": [2, 4, 8]})

    with torch.no_grad():
        assert torch.allclose(model(images), theirs(images), rtol=1e-5, atol=1e-5)
    assert (card.eval_settings.img_size, card.eval_settings.resize) == (224, 248)


def test_dropout_and_stochastic_depth_are_off_in_eval_mode():
    drops = {"pos_drop_rate": 0.5, "proj_drop_rate": 0.5, "drop_path_rate": 0.5}
    model = get_model("pit_ti_224", num_classes=3, **SMALL, **drops)
    images = torch.randn(2, 3, 64, 64)

    assert torch.equal(model.eval()(images), model(images))
    assert not torch.equal(model.train()(images), model(images))
    rates = [block.drop_path.drop_rate for stage in model.transformers for block in stage.blocks]
    assert rates == pytest.approx([0, 1 / 6, 1 / 3, 0.5])


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="64 pixels"):
        get_model("pit_ti_224", **SMALL)(torch.zeros(1, 3, 65, 65))
