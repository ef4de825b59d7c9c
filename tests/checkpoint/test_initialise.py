import pytest
import torch

from vit21k.checkpoint.initialise import initialise_from
from vit21k.checkpoint.model_folder import (
    EvalSettings,
    model_config,
    read_tensors,
    write_model_folder,
    write_tensors,
)
from vit21k.errors import CheckpointError
from vit21k.manifest.classes import ClassList
from vit21k.models.pos_embed import resize_pos_embed
from vit21k.models.registry import get_model, model_args

NAME = "vit_tiny_patch16_224"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
OLD = ClassList(("a", "b", "c"))
NEW = ClassList(("x", "y", "z"))


def write(folder, classes=OLD, **overrides):
    overrides = {**SMALL, **overrides}
    torch.manual_seed(3)
    model = get_model(NAME, num_classes=len(classes), **overrides)
    settings = EvalSettings(
        img_size=32,
        mode="squash",
        resize=None,
        interpolation="bicubic",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    args = model_args(NAME, **overrides)
    write_model_folder(
        folder, model.state_dict(), model_config(NAME, args, classes, settings, "sigmoid")
    )
    return model


def initialise(folder, classes=NEW, mode="bicubic", **overrides):
    overrides = {**SMALL, **overrides}
    torch.manual_seed(4)
    model = get_model(NAME, num_classes=len(classes), **overrides)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    args = model_args(NAME, **overrides)
    report = initialise_from(model, folder, args=args, classes=classes, pos_embed_mode=mode)
    return model, before, report


def test_another_class_list_gets_a_new_head_even_if_it_is_as_long(tmp_path):
    source = write(tmp_path)

    model, before, report = initialise(tmp_path)

    assert torch.equal(model.head.weight, before["head.weight"])
    assert torch.equal(model.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    assert report.dropped == report.initialised == ("head.bias", "head.weight")
    assert report.resized == ()
    assert len(report.loaded) == len(before) - 2


def test_the_same_class_list_keeps_the_head(tmp_path):
    source = write(tmp_path)

    model, before, report = initialise(tmp_path, classes=OLD)

    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name
    assert set(report.loaded) == set(before)
    assert report.in_words() == f"{len(before)} tensors loaded from `{tmp_path}`"


def test_the_model_keeps_its_own_memory(tmp_path):
    write(tmp_path)
    model, _, _ = initialise(tmp_path, classes=OLD)
    before = (tmp_path / "model.safetensors").read_bytes()

    with torch.no_grad():
        for param in model.parameters():
            param.zero_()

    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_pre_logits_are_dropped_with_the_head_that_read_them(tmp_path):
    write(tmp_path, representation_size=16)

    model, _, report = initialise(tmp_path, classes=OLD)

    assert model.head.in_features == 32
    assert report.dropped == (
        "head.bias",
        "head.weight",
        "pre_logits.fc.bias",
        "pre_logits.fc.weight",
    )
    assert report.initialised == ("head.bias", "head.weight")


def test_pre_logits_are_kept_where_both_have_them(tmp_path):
    source = write(tmp_path, representation_size=16)

    model, _, report = initialise(tmp_path, representation_size=16)

    assert torch.equal(model.pre_logits.fc.weight, source.pre_logits.fc.weight)
    assert report.dropped == ("head.bias", "head.weight")


@pytest.mark.parametrize(("pool", "norm"), [("token", False), ("avg", True)])
def test_what_a_default_stands_for_is_no_difference(tmp_path, pool, norm):
    write(tmp_path, global_pool=pool, fc_norm=norm)

    _, _, report = initialise(tmp_path, classes=OLD, global_pool=pool)

    assert report.initialised == ()


@pytest.mark.parametrize("mode", ["bicubic", "bilinear_align_corners"])
def test_positions_are_resized_to_the_new_grid(tmp_path, mode):
    source = write(tmp_path)

    model, _, report = initialise(tmp_path, img_size=48, mode=mode)

    wanted = resize_pos_embed(source.pos_embed.detach(), (6, 6), mode=mode)
    assert torch.equal(model.pos_embed, wanted)
    assert report.resized == ("pos_embed",)
    assert "resized: pos_embed" in report.in_words()


def test_positions_without_a_class_token_are_resized(tmp_path):
    overrides = {"global_pool": "avg", "class_token": False}
    write(tmp_path, **overrides)

    model, _, _ = initialise(tmp_path, img_size=64, **overrides)

    assert model.pos_embed.shape == (1, 64, 32)


@pytest.mark.parametrize(
    "overrides",
    [
        {"depth": 3},
        {"embed_dim": 64},
        {"num_heads": 4},
        {"patch_size": 16},
        {"act_layer": "gelu_tanh"},
        {"global_pool": "avg"},
        {"qkv_bias": False},
    ],
)
def test_another_architecture_is_refused_with_both_values(tmp_path, overrides):
    write(tmp_path)
    (name, value), *_ = overrides.items()

    with pytest.raises(CheckpointError, match=f"the recipe asks for {name} {value}") as caught:
        initialise(tmp_path, **overrides)

    assert "`model` section" in caught.value.hint
    assert f"--set model.{name}=" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("blocks.0.norm1.weight"), "1 tensors are missing"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "1 are unknown, `extra` first"),
        (lambda tensors: tensors.update({"norm.weight": torch.zeros(5)}), "has shape"),
        (lambda tensors: tensors.update({"pos_embed": torch.zeros(1, 8, 32)}), "square"),
    ],
)
def test_tensors_that_are_not_the_models_are_refused(tmp_path, change, message):
    write(tmp_path)
    tensors = read_tensors(tmp_path / "model.safetensors")
    change(tensors)
    write_tensors(tmp_path / "model.safetensors", tensors)

    with pytest.raises(CheckpointError, match=message):
        initialise(tmp_path)


def test_pre_logits_of_another_width_are_refused(tmp_path):
    write(tmp_path, representation_size=16)

    with pytest.raises(CheckpointError, match="pre_logits"):
        initialise(tmp_path, representation_size=24)


def test_weights_without_a_head_go_into_a_model_that_pools_otherwise(tmp_path):
    """As MAE's: the encoder alone, whose norm fine-tuning replaces by one after the pooling."""
    wide = {**SMALL, "embed_dim": 128}  # no array shows the heads; 64 values each are assumed
    encoder = get_model(NAME, num_classes=0, **wide)
    torch.save({"model": encoder.state_dict()}, tmp_path / "mae.pth")
    model = get_model(NAME, num_classes=len(NEW), global_pool="avg", **wide)
    args = model_args(NAME, num_classes=len(NEW), global_pool="avg", **wide)

    report = initialise_from(model, tmp_path / "mae.pth", args=args, classes=NEW)

    assert torch.equal(model.blocks[0].attn.qkv.weight, encoder.blocks[0].attn.qkv.weight)
    assert torch.equal(model.cls_token, encoder.cls_token)
    assert report.dropped == ("norm.bias", "norm.weight")
    assert set(report.initialised) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
