"""Checkpoints as other programs save them give the logits of those programs."""

import json
import re
import zipfile
from pathlib import Path

import pytest
import torch

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

from weight_cases import (
    IMAGES,
    NAMED,
    OPENED,
    QUICK,
    clip,
    mmpretrain,
    outputs,
    save_hf,
    saved,
    vit,
)

from vit21k.checkpoint.load import load_model
from vit21k.checkpoint.preprocessing import NOT_NEEDED
from vit21k.convert.architecture import known_architecture
from vit21k.errors import CheckpointError, UsageError


@pytest.fixture(autouse=True)
def quiet():
    transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize("case", OPENED, ids=lambda case: case.name)
def test_logits_are_those_of_the_program_that_saved_it(tmp_path, case):
    path, wanted = case.build(tmp_path)

    model, card = load_model(
        path, model_args=case.args, weights=case.weights, preprocessing=NOT_NEEDED
    )

    with torch.no_grad():
        found = model(IMAGES)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert len(card.classes) == card.args["num_classes"]


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("CLIPForImageClassification", "CLIPConfig", "not normalised"),
        ("BeitModel", "BeitConfig", "`beit` of transformers; those that are read: vit, deit"),
        ("Siglip2VisionModel", "Siglip2VisionConfig", "`siglip2_vision_model` of transformers"),
        ("SwinModel", "SwinConfig", "`swin` of transformers"),
    ],
)
def test_another_architecture_is_refused_by_name(tmp_path, kind, config, message):
    save_hf(tmp_path, kind, config)

    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("rename", [clip, dict], ids=["clip", "timm"])
def test_which_gelu_a_clip_has_is_asked(tmp_path, rename):
    path, _ = saved(rename, num_classes=0, **QUICK)(tmp_path)

    with pytest.raises(UsageError, match="which activation") as caught:
        load_model(path, model_args=NAMED)

    assert "`--set model.act_layer=gelu|gelu_tanh|quick_gelu`" in caught.value.hint


def test_the_numbers_in_openais_files_say_heads_and_activation(tmp_path):
    shape = {"embed_dim": 128, "num_heads": 2, "num_classes": 0, **QUICK}
    model = vit(**shape)
    sizes = {
        name: torch.tensor(32) for name in ("input_resolution", "context_length", "vocab_size")
    }
    torch.save({**clip(model.state_dict()), **sizes}, tmp_path / "w.pth")

    found, card = load_model(tmp_path / "w.pth")

    assert (card.args["num_heads"], card.args["act_layer"]) == (2, "quick_gelu")
    with torch.no_grad():
        assert torch.allclose(found(IMAGES), outputs(model), rtol=1e-4, atol=1e-5)


def test_the_projection_of_a_clip_is_no_classifier(tmp_path):
    path, _ = saved(clip, num_classes=0, **QUICK)(tmp_path)

    _, card = load_model(path, model_args={**NAMED, "act_layer": "gelu"})

    assert card.args["num_classes"] == 0
    skipped = next(warning for warning in card.warnings if "skipped" in warning)
    assert all(name in skipped for name in ("text_projection", "logit_scale", "proj"))


def test_a_number_of_positions_with_two_meanings_is_refused(tmp_path):
    # 9 positions: of 3 x 3 patches, or of 2 x 2 and five tokens.
    torch.save(vit(img_size=24, reg_tokens=4, no_embed_class=True).state_dict(), tmp_path / "w")

    with pytest.raises(CheckpointError, match="may or may not") as caught:
        load_model(tmp_path / "w", model_args=NAMED)

    assert "no_embed_class" in caught.value.hint
    config = {"architecture": "vit_tiny_patch16_224", "model_args": {"no_embed_class": True,
              "embed_dim": 48, "num_heads": 3}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "w").rename(tmp_path / "pytorch_model.bin")
    assert load_model(tmp_path)[1].args["img_size"] == 24


def test_mmengine_stores_the_average_as_the_state_dict(tmp_path):
    average, raw = vit(), vit()
    with torch.no_grad():
        raw.pos_embed.add_(1)
    state = mmpretrain(average.state_dict())
    other = mmpretrain(raw.state_dict())["state_dict"]
    state |= {
        "meta": {"mmengine_version": "0.10.7"},
        "ema_state_dict": {f"module.{name}": tensor for name, tensor in other.items()},
    }
    torch.save(state, tmp_path / "w.pth")

    for which, wanted in (("ema", average), ("raw", raw)):
        model, _ = load_model(tmp_path / "w.pth", model_args=NAMED, weights=which)
        with torch.no_grad():
            assert torch.allclose(model(IMAGES), outputs(wanted), atol=1e-5)


def test_two_models_in_one_file_are_refused(tmp_path):
    state = vit().state_dict()
    both = {
        f"{part}.{name}": tensor for part in ("left", "right") for name, tensor in state.items()
    }
    torch.save(both, tmp_path / "w.pth")

    with pytest.raises(CheckpointError, match=r"2 models in it, under `left\.` and `right\.`"):
        load_model(tmp_path / "w.pth", model_args=NAMED)


def test_names_of_timms_models_decide_heads_activation_and_epsilon():
    names = timm.list_models(module="vision_transformer") + timm.list_models(module="deit")
    # All of them were compared once; every third keeps the test short.
    names = sorted({re.sub(r"_\d+$", "", name): name for name in names}.values())[::3]
    compared = 0
    for name in names:
        known = known_architecture({"architecture": name}, {})[0]
        if "num_heads" not in known:
            continue
        with torch.device("meta"):
            model = timm.create_model(name, depth=1, num_classes=0)
        block = model.blocks[0]
        form = {"none": "gelu", "tanh": "gelu_tanh"}
        activation = form.get(getattr(block.mlp.act, "approximate", ""), "quick_gelu")
        if type(block.mlp.act).__name__ == "GELUTanh":
            activation = "gelu_tanh"
        if type(block.mlp).__name__ == "GluMlp":
            activation = "gelu"  # a SwiGLU has its own
        found = (block.attn.num_heads, activation, block.norm1.eps)
        assert found == (known["num_heads"], known["act_layer"], known["norm_eps"]), name
        compared += 1
    assert compared > 25


def test_the_page_has_a_row_for_every_case():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()

    rows = [f"| {case.name} | {case.format} |" for case in OPENED]
    assert [row for row in rows if row not in page] == [], "run tools/docs/opened_page.py"
    assert page.count("| equal |") >= len(rows)


def test_a_torchscript_program_is_refused_with_a_way_to_its_weights(tmp_path):
    # The members that `torch.jit.save` writes, in which OpenAI publishes CLIP.
    with zipfile.ZipFile(tmp_path / "ViT-B-32.pt", "w") as archive:
        archive.writestr("clip/data.pkl", b"\x80\x02}.")
        archive.writestr("clip/constants.pkl", b"\x80\x02).")
        archive.writestr("clip/code/model.py", b"pass", zipfile.ZIP_DEFLATED)

    with pytest.raises(CheckpointError, match="TorchScript program") as caught:
        load_model(tmp_path / "ViT-B-32.pt")

    assert "torch.jit.load('ViT-B-32.pt').state_dict()" in caught.value.hint
