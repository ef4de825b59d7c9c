import json

import pytest
import torch

transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from vit21k.checkpoint.initialise import initialise_from
from vit21k.checkpoint.load import load_model
from vit21k.convert.transformers import from_transformers, to_transformers
from vit21k.errors import CheckpointError
from vit21k.models.registry import get_model, model_args

V5 = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "vit.encoder.layer.": "vit.layers.",
}


def make(folder, kind="ViTForImageClassification", **overrides):
    tiny = {"image_size": 32, "patch_size": 8, "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 96}  # fmt: skip
    labels = {} if "id2label" in overrides else {"num_labels": 5}
    config = transformers.ViTConfig(**{**tiny, **labels, **overrides})
    torch.manual_seed(1)
    model = getattr(transformers, kind)(config)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(torch.randn_like(tensor) * 0.05)
    model.save_pretrained(folder)
    return model.eval()


def respelled(tensors, version):
    """Return *tensors* in the names of one version, whichever they are in now."""
    found = {}
    for before, tensor in tensors.items():
        name = before
        for four, five in V5.items():
            old, new = (five, four) if version == 4 else (four, five)
            name = name.replace(old, new)
        found[name] = tensor
    return found


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"hidden_act": "gelu_pytorch_tanh", "qkv_bias": False, "layer_norm_eps": 1e-3},
        {"id2label": {0: "cat", 1: "dog", 2: "cow"}, "problem_type": "multi_label_classification"},
    ],
)
def test_logits_are_those_of_transformers(tmp_path, version, overrides):
    theirs = make(tmp_path, **overrides)
    tensors = respelled(load_file(tmp_path / "model.safetensors"), version)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    images = torch.randn(2, 3, 32, 32)

    model, card = load_model(tmp_path)

    with torch.no_grad():
        wanted = theirs(images).logits
        assert torch.allclose(model(images), wanted, rtol=1e-5, atol=1e-5)
    assert card.args["num_heads"] == 4
    assert card.args["norm_eps"] == overrides.get("layer_norm_eps", 1e-12)
    if "id2label" in overrides:
        assert card.classes.names == ("cat", "dog", "cow")
        assert card.activation == "sigmoid"


def test_another_size_gives_what_transformers_gives(tmp_path):
    theirs = make(tmp_path)
    _, card = load_model(tmp_path)
    args = {**card.args, "img_size": 48}
    larger = get_model(card.name, **args).eval()
    images = torch.randn(2, 3, 48, 48)

    report = initialise_from(
        larger, tmp_path, args=model_args(card.name, **args), classes=card.classes
    )

    assert report.resized == ("pos_embed",)
    with torch.no_grad():
        wanted = theirs(images, interpolate_pos_encoding=True).logits
        assert torch.allclose(larger(images), wanted, rtol=1e-5, atol=1e-5)


def test_a_pooler_becomes_pre_logits(tmp_path):
    theirs = make(tmp_path, kind="ViTModel")
    images = torch.randn(2, 3, 32, 32)

    model, card = load_model(tmp_path)

    with torch.no_grad():
        wanted = theirs(images).pooler_output
        assert torch.allclose(model.features(images), wanted, rtol=1e-5, atol=1e-5)
    assert card.args["representation_size"] == 64
    assert card.args["num_classes"] == 0


def test_what_its_image_processor_does_is_read(tmp_path):
    make(tmp_path)
    settings = {"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.1, 0.2, 0.3],
                "image_std": [0.4, 0.5, 0.6], "do_normalize": True}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))

    _, card = load_model(tmp_path)

    assert card.eval_settings.interpolation == "bicubic"
    assert card.eval_settings.mode == "squash"
    assert card.eval_settings.std == (0.4, 0.5, 0.6)


@pytest.mark.parametrize("content", ["{", "[]", '{"image_mean": [0.5]}', '{"image_std": "half"}'])
def test_damaged_settings_are_no_crash(tmp_path, content):
    make(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(content)

    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "change", [{"hidden_act": "relu"}, {"model_type": "beit"}, {"pooler_act": "relu"}]
)
def test_another_activation_or_architecture_is_refused(tmp_path, change):
    make(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))

    with pytest.raises(CheckpointError):
        load_model(tmp_path)


def test_several_files_are_read_and_a_name_outside_the_folder_is_not(tmp_path):
    theirs = make(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[:10], "b.safetensors": names[10:]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, tmp_path / file)
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))

    model, _ = load_model(tmp_path)

    assert torch.equal(model.head.weight, theirs.classifier.weight)
    index["weight_map"][names[0]] = "../elsewhere.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load_model(tmp_path)


def test_out_and_in_again_changes_nothing(tmp_path):
    make(tmp_path)
    tensors = respelled(load_file(tmp_path / "model.safetensors"), 4)

    inner = {name.removeprefix("vit."): tensor for name, tensor in tensors.items()}
    again = to_transformers(from_transformers(inner, {}).tensors)

    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
