"""Weights made by timm, in its own files and folders."""

import hashlib

import pytest
import torch

timm = pytest.importorskip("timm")

from timm.models import save_for_hf

from vit21k.checkpoint.initialise import initialise_from
from vit21k.checkpoint.load import load_model
from vit21k.checkpoint.preprocessing import NOT_NEEDED
from vit21k.errors import CheckpointError
from vit21k.manifest.classes import ClassList
from vit21k.models.registry import get_model, model_args

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}


def perturbed(model):
    """Return *model* with every weight random, so that none is 0 or 1."""
    torch.manual_seed(5)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.randn_like(tensor) * 0.05)
    return model.eval()


def images(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def same(ours, theirs, size=32):
    """Compare in float64, where rounding is far below the smallest difference of a formula."""
    ours, theirs, x = ours.double(), theirs.double(), images(size).double()
    with torch.no_grad():
        features = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
        assert torch.allclose(ours(x), theirs(x), rtol=1e-9, atol=1e-9)
        assert torch.allclose(ours.features(x), features, rtol=1e-9, atol=1e-9)
    return True


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"global_pool": "avg"},
        {"global_pool": "avg", "class_token": False},
        {"global_pool": "avg", "fc_norm": False},
        {"act_layer": "gelu_tanh", "num_heads": 4, "mlp_ratio": 3.0},
        {"qkv_bias": False},
        {"init_values": 1e-5},
        {"reg_tokens": 4},
        {"no_embed_class": True},
        {"qk_norm": True},
        {"pre_norm": True},
    ],
)
def test_a_folder_that_timm_wrote_gives_timms_logits(tmp_path, overrides):
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=7, **{**TINY, **overrides})
    perturbed(theirs)
    config = {"label_names": [f"n{index:08}" for index in range(7)], "num_classes": 7}
    args = {**TINY, **overrides}
    save_for_hf(theirs, tmp_path, model_config=config, model_args=args, safe_serialization=True)

    model, card = load_model(tmp_path)

    assert same(model, theirs)
    assert card.classes.wnids[1] == "n00000001"
    assert card.warnings == ()
    assert card.eval_settings.mean == (0.5, 0.5, 0.5)


def test_a_published_size_at_224_gives_timms_logits_and_needs_no_guess(tmp_path):
    theirs = perturbed(timm.create_model("vit_tiny_patch16_224", num_classes=21))
    # The digest in its name confirms the name, as torch.hub's publishers write it.
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    digest = hashlib.sha256((tmp_path / "vit.pth").read_bytes()).hexdigest()
    path = (tmp_path / "vit.pth").rename(tmp_path / f"vit_tiny_patch16_224-{digest[:8]}.pth")

    model, card = load_model(path, preprocessing=NOT_NEEDED)

    assert same(model, theirs, size=224)
    assert card.warnings == ()
    assert card.name == "vit_tiny_patch16_224"
    assert card.args == model_args("vit_tiny_patch16_224", num_classes=21)


@pytest.mark.parametrize("nest", [None, "state_dict", "model"])
def test_a_file_of_torch_is_enough(tmp_path, nest):
    theirs = perturbed(timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY))
    state = theirs.state_dict()
    torch.save(state if nest is None else {nest: state, "epoch": 3}, tmp_path / "vit.pth")

    model, card = load_model(tmp_path / "vit.pth", model_args={"num_heads": 2})

    assert same(model, theirs)
    assert len(card.classes) == 0
    assert "act_layer gelu, norm_eps 1e-06, global_pool token" in card.warnings[0]


def test_another_size_gives_what_timm_gives(tmp_path):
    theirs = perturbed(timm.create_model("vit_tiny_patch16_224", num_classes=3, **TINY))
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    _, card = load_model(tmp_path / "vit.pth", model_args={"num_heads": 2})
    args = {**card.args, "img_size": 48}
    larger = get_model(card.name, **args).eval()

    initialise_from(
        larger,
        tmp_path / "vit.pth",
        args=model_args(card.name, **args),
        classes=card.classes,
    )
    # PLSC resizes without antialiasing; timm can, and by default uses another cubic.
    resized = timm.layers.resample_abs_pos_embed(
        theirs.pos_embed, [6, 6], num_prefix_tokens=1, antialias=False
    )
    theirs.set_input_size((48, 48))
    theirs.pos_embed = torch.nn.Parameter(resized)

    assert same(larger, theirs, size=48)


@pytest.mark.parametrize("name", ["vit_small_r26_s32_224", "vit_base_r50_s16_224"])
def test_hybrids_give_timms_logits(tmp_path, name):
    narrow = {"embed_dim": 64, "depth": 1, "num_heads": 1, "img_size": 96}
    theirs = perturbed(timm.create_model(name, num_classes=5, **narrow))
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")

    model, card = load_model(tmp_path / "vit.pth", model_args={"num_heads": 1})

    assert card.name == name
    assert card.args["img_size"] == 96
    assert same(model, theirs, size=96)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", {"scale_attn_norm": True}),
        ("vit_tiny_patch16_224", {"final_norm": False}),
        ("vit_base_patch16_xp_224", {}),
    ],
)
def test_what_our_models_do_not_have_is_refused(tmp_path, name, args):
    theirs = timm.create_model(name, num_classes=3, **TINY, **args)
    save_for_hf(theirs, tmp_path, model_args={**TINY, **args}, safe_serialization=True)
    with pytest.raises(CheckpointError):
        load_model(tmp_path)

    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError):
        load_model(tmp_path, model_args={"num_heads": 2})


def test_a_resnet_is_refused_with_the_names_it_has(tmp_path):
    theirs = timm.create_model("resnet10t", num_classes=3)
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")

    with pytest.raises(CheckpointError, match=r"bn1\.bias") as caught:
        load_model(tmp_path / "resnet.pth")

    assert "--formats" in caught.value.hint


def test_a_head_of_a_thousand_is_treated_as_imagenet_with_a_warning(tmp_path):
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=1000, **TINY)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")

    _, card = load_model(tmp_path / "vit.pth", model_args={"num_heads": 2})

    assert card.classes.wnids[0] == "n01440764"
    assert "`in1k`" in card.warnings[-2]


def test_classes_that_are_not_as_many_as_outputs_are_refused(tmp_path):
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3, **TINY)
    config = {"label_names": ["a", "b"]}
    save_for_hf(theirs, tmp_path, model_config=config, model_args=TINY, safe_serialization=True)

    with pytest.raises(CheckpointError, match="2 class names for a head of 3"):
        load_model(tmp_path)


def test_the_classes_of_a_named_list_map_a_head(tmp_path):
    from vit21k.checkpoint.initialise import InitSource  # noqa: PLC0415

    theirs = perturbed(timm.create_model("vit_tiny_patch16_224", num_classes=3, **TINY))
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    source = ClassList(("x", "y", "z"))
    _, card = load_model(tmp_path / "vit.pth", model_args={"num_heads": 2})
    args = {**card.args, "num_classes": 4}
    model = get_model(card.name, **args)
    before = model.head.weight.clone()

    report = initialise_from(
        model,
        InitSource(path=tmp_path / "vit.pth", head="from-wnids", classes=source),
        args=model_args(card.name, **args),
        classes=ClassList(("z", "new", "x", "also new")),
    )

    assert torch.equal(model.head.weight[0], theirs.head.weight[2])
    assert torch.equal(model.head.weight[2], theirs.head.weight[0])
    assert torch.equal(model.head.weight[1], before[1])
    assert torch.equal(model.head.bias[0], theirs.head.bias[2])
    assert report.num_rows == (2, 4)
    assert "2 of 4 classes keep their row" in report.in_words()
