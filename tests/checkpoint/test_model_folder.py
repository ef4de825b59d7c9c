import json

import pytest
import torch

import vit21k
from vit21k.checkpoint.load import load_model
from vit21k.checkpoint.model_folder import (
    EvalSettings,
    model_config,
    read_model_card,
    read_tensors,
    write_model_folder,
)
from vit21k.checkpoint.store import save_checkpoint
from vit21k.errors import CheckpointError
from vit21k.manifest.classes import ClassList
from vit21k.models.init_weights import init_vit
from vit21k.models.registry import get_model, list_models, model_args

NAME = "vit_tiny_patch16_224"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
CLASSES = ClassList(("n00000001", "n00000002", "zebra"), ("cat, tabby", None, "zèbre"))
SETTINGS = EvalSettings(
    img_size=32,
    mode="center_crop",
    resize=36,
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.5, 0.5),
)


def make(folder, name=NAME, settings=SETTINGS, **overrides):
    """Write a model with random weights to *folder*; return it."""
    overrides = {**SMALL, **overrides}
    folder.mkdir(parents=True, exist_ok=True)
    model = get_model(name, num_classes=len(CLASSES), **overrides)
    generator = torch.Generator().manual_seed(1)
    init_vit(model, scheme="plsc", head_init="xavier", generator=generator)
    config = model_config(name, model_args(name, **overrides), CLASSES, settings, "sigmoid")
    write_model_folder(folder, model.state_dict(), config)
    return model.eval()


def images(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"patch_size": 4, "depth": 3},
        {"global_pool": "avg"},
        {"global_pool": "avg", "class_token": False},
        {"global_pool": "avg", "fc_norm": False},
        {"init_values": 1e-4},
        {"act_layer": "gelu_tanh", "qkv_bias": False, "mlp_ratio": 2.0},
        {"pos_drop_rate": 0.1, "proj_drop_rate": 0.1, "drop_path_rate": 0.1},
        {"img_size": 35},
    ],
)
def test_timm_loads_the_folder_and_gives_the_same_logits(tmp_path, overrides):
    timm = pytest.importorskip("timm")
    model = make(tmp_path, **overrides)
    size = overrides.get("img_size", 32)

    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()

    with torch.no_grad():
        wanted = theirs(images(size))
        assert torch.equal(model.forward_head(model.forward_features(images(size))), wanted)
        # `forward` skips what the head does not read; the sums are then rounded otherwise.
        x = images(size).double()
        assert torch.allclose(model.double()(x), theirs.double()(x), rtol=0, atol=1e-9)


def test_timm_learns_how_images_are_made_ready_and_what_the_classes_are(tmp_path):
    timm = pytest.importorskip("timm")
    make(tmp_path)

    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    data = timm.data.resolve_model_data_config(theirs)

    assert theirs.pretrained_cfg["label_names"] == list(CLASSES.wnids)
    assert theirs.pretrained_cfg["label_descriptions"]["zebra"] == "zèbre"
    assert data["input_size"] == (3, 32, 32)
    assert (data["interpolation"], data["crop_mode"]) == ("bilinear", "center")
    assert data["crop_pct"] == 32 / 36
    assert (tuple(data["mean"]), tuple(data["std"])) == (SETTINGS.mean, SETTINGS.std)


@pytest.mark.parametrize("name", list_models())
def test_timm_knows_every_architecture_under_the_name_that_is_written(name):
    timm = pytest.importorskip("timm")

    config = model_config(name, model_args(name), CLASSES, SETTINGS, "softmax")

    assert timm.is_model(config["architecture"])


def test_timm_refuses_pre_logits_instead_of_dropping_them(tmp_path):
    timm = pytest.importorskip("timm")
    make(tmp_path, representation_size=32)

    with pytest.raises(RuntimeError, match="with_pre_logits"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


@pytest.mark.parametrize("overrides", [{}, {"representation_size": 16, "act_layer": "gelu_tanh"}])
def test_a_loaded_model_is_the_one_that_was_written(tmp_path, overrides):
    model = make(tmp_path, **overrides)

    loaded, card = load_model(tmp_path)

    with torch.no_grad():
        assert torch.equal(loaded(images()), model(images()))
    assert not loaded.training
    assert (card.name, card.classes, card.eval_settings) == (NAME, CLASSES, SETTINGS)
    assert card.activation == "sigmoid"


def test_a_loaded_model_can_be_trained_on(tmp_path):
    make(tmp_path)
    model, _ = load_model(tmp_path)

    model.train()(images()).sum().backward()

    assert all(param.grad is not None for param in model.parameters())


def test_a_model_is_found_from_its_run_its_checkpoint_its_folder_or_its_file(tmp_path):
    model = make(tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    for step in (1, 2):
        checkpoint = save_checkpoint(
            tmp_path / "run",
            step,
            model_state=model.state_dict(),
            model_config=config,
            optimizer_state={},
            state={},
            keep_last=2,
        )

    for path in ("run", checkpoint, "folder", "folder/model.safetensors"):
        loaded, card = load_model(tmp_path / path)
        assert torch.equal(loaded.head.weight, model.head.weight)
        assert card.path in (checkpoint, tmp_path / "folder")


def test_a_model_in_a_damaged_checkpoint_is_refused(tmp_path):
    model = make(tmp_path / "folder")
    path = save_checkpoint(
        tmp_path / "run",
        1,
        model_state=model.state_dict(),
        model_config=json.loads((tmp_path / "folder" / "config.json").read_text()),
        optimizer_state={},
        state={},
        keep_last=2,
    )
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)

    with pytest.raises(CheckpointError, match="damaged"):
        load_model(path)


def test_a_model_from_an_older_checkpoint_says_why(tmp_path):
    model = make(tmp_path / "folder")
    for step in (1, 2):
        newest = save_checkpoint(
            tmp_path / "run",
            step,
            model_state=model.state_dict(),
            model_config=json.loads((tmp_path / "folder" / "config.json").read_text()),
            optimizer_state={},
            state={},
            keep_last=2,
        )
    (newest / "config.json").unlink()

    _, card = load_model(tmp_path / "run")

    assert card.path.name == "step-00000001"
    assert card.warnings == (f"checkpoint `{newest}` is damaged: `config.json` is missing",)


def test_where_there_is_no_model_that_is_said(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)

    for path, message in [
        ("gone", "no run or model"),
        ("run", "no checkpoint yet"),
        ("", "no model"),
    ]:
        with pytest.raises(CheckpointError, match=message) as caught:
            load_model(tmp_path / path)
        assert caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.pop("label_names"),
        lambda config: config["label_names"].reverse(),
        lambda config: config["label_names"].append("zebra"),
        lambda config: config["vit21k"].update(version=3),
        lambda config: config["vit21k"].update(version="2"),
        lambda config: config["vit21k"]["args"].update(depth=3),
        lambda config: config["vit21k"]["args"].update(embed_dim=16),
        lambda config: config["vit21k"]["args"].update(num_heads=0),
        lambda config: config["vit21k"]["args"].update(wings=2),
        lambda config: config["vit21k"].update(args=[1]),
        lambda config: config["vit21k"]["eval"].pop("mean"),
        lambda config: config["vit21k"]["eval"].update(mode="border"),
        lambda config: config["vit21k"]["eval"].update(margin="up"),
        lambda config: config["vit21k"]["eval"].update(std=[0.5, 0.5, 0]),
        lambda config: config.update(vit21k=None),
    ],
)
def test_a_config_that_does_not_describe_the_weights_is_refused(tmp_path, change):
    make(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_config_that_is_not_json_is_refused(tmp_path, content):
    make(tmp_path)
    (tmp_path / "config.json").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_model_card(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 64])
def test_weights_that_are_not_safetensors_are_refused(tmp_path, content):
    make(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        read_tensors(tmp_path / "model.safetensors")


def test_the_package_gives_what_its_modules_give():
    assert "vit_large_patch16_224" in vit21k.list_models()
    assert vit21k.load_model is load_model
    assert vit21k.get_model is get_model
    assert callable(vit21k.predict)
    assert set(vit21k.__all__) <= set(dir(vit21k)) | set(vit21k._HOME)
