"""Checkpoints as training programs write them: what they are is proven, said, or asked for."""

import argparse
import hashlib
import json
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_run import SMALL, save_run
from typer.testing import CliRunner

from vit21k.checkpoint.initialise import initialise_from
from vit21k.checkpoint.load import load_model, open_weights
from vit21k.checkpoint.model_folder import check_head
from vit21k.cli.app import app
from vit21k.errors import CheckpointError, UsageError
from vit21k.export.model import export_model
from vit21k.models.registry import get_model, model_args

NAME = "vit_tiny_patch16_224"
SHAPE = {"img_size": 32, "patch_size": 16, "depth": 1, "num_heads": 3, "num_classes": 5}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def perturbed(model, seed=5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.08)
    return model.eval()


def vit(seed=5, **overrides):
    return perturbed(get_model(NAME, **{**SHAPE, **overrides}), seed)


def state_of(model, prefix=""):
    return {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}


def same(found, wanted):
    with torch.no_grad():
        return torch.allclose(found(IMAGES), wanted(IMAGES), rtol=1e-5, atol=1e-5)


def test_heads_are_never_guessed_from_the_width(tmp_path):
    # 192 wide with 12 heads: the published model of this width has 3.
    theirs = vit(num_heads=12)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")

    with pytest.raises(UsageError, match="how many attention heads") as caught:
        load_model(tmp_path / "vit.pth")
    model, card = load_model(tmp_path / "vit.pth", model_args={"num_heads": 12})

    assert "`--set model.num_heads=N`" in caught.value.hint
    assert not any(character.isdigit() for character in caught.value.hint.replace("vit21k", ""))
    assert card.args["num_heads"] == 12
    assert same(model, theirs)


def test_what_else_no_tensor_shows_is_said(tmp_path):
    theirs = vit(act_layer="gelu_tanh", norm_eps=1e-3)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    hidden = {"num_heads": 3, "act_layer": "gelu_tanh", "norm_eps": 1e-3, "global_pool": "token"}

    _, assumed = load_model(tmp_path / "vit.pth", model_args={"num_heads": 3})
    model, settled = load_model(tmp_path / "vit.pth", model_args=hidden)

    values = "act_layer gelu, norm_eps 1e-06, global_pool token"
    assert any(values in warning for warning in assumed.warnings)
    assert not any("assumed, as" in warning for warning in settled.warnings)
    assert same(model, theirs)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"embed_dim": 384}, "contradicts the weights, which say 192"),
        ({"drop_path_rate": 0.1}, "does not apply to these weights"),
    ],
)
def test_what_tensors_show_cannot_be_set(tmp_path, given, words):
    torch.save(vit().state_dict(), tmp_path / "vit.pth")

    with pytest.raises(UsageError, match=words):
        load_model(tmp_path / "vit.pth", model_args={"num_heads": 3, **given})


@pytest.mark.parametrize(
    ("name", "width", "heads", "activation"),
    [
        ("vit_base_patch16_224", 768, 12, "gelu"),
        ("vit_base_patch16_gap_224", 768, 16, "gelu"),
        ("vit_base_patch32_siglip_gap_256", 768, 12, "gelu_tanh"),
        ("deit_tiny_patch16_224.fb_in1k", 192, 3, "gelu"),
    ],
)
def test_a_named_architecture_says_what_tensors_do_not(tmp_path, name, width, heads, activation):
    save_file(vit(embed_dim=width, num_heads=heads).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))

    opened = open_weights(tmp_path)

    assert opened.card.args["num_heads"] == heads
    assert opened.card.args["act_layer"] == activation
    with pytest.raises(UsageError, match="contradicts the weights"):
        load_model(tmp_path, model_args={"num_heads": 6})


@pytest.mark.parametrize("name", ["vit_base_patch16_rpn_224", "vit_base_patch16_radio_v3"])
def test_an_architecture_that_is_not_ours_is_refused_by_name(tmp_path, name):
    # Its tensors are called like ours: the name alone says that they mean something else.
    save_file(vit(embed_dim=768, num_heads=12).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name}))

    with pytest.raises(UsageError, match=name):
        load_model(tmp_path, model_args={"num_heads": 12})


def test_tensors_of_another_architecture_than_the_named_one_are_refused(tmp_path):
    save_file(vit().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_base_patch16_224"}))

    with pytest.raises(CheckpointError, match="192 wide, not 768"):
        load_model(tmp_path)


@pytest.mark.parametrize("model_args_", [{"scale_attn_norm": True}, {"act_layer": "silu"}])
def test_an_option_that_is_not_ours_is_refused_by_name(tmp_path, model_args_):
    save_file(vit().state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": NAME, "model_args": model_args_}
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match=next(iter(model_args_))):
        load_model(tmp_path)


def test_a_published_name_counts_if_the_digest_in_it_is_right(tmp_path):
    torch.save(vit().state_dict(), tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()[:8]
    right = (tmp_path / "w.pth").rename(tmp_path / f"deit_tiny_patch16_224-{digest}.pth")

    card = load_model(right)[1]
    assert card.args["num_heads"] == 3
    assert card.eval_settings.mean == (0.485, 0.456, 0.406)  # of DeiT's authors
    wrong = right.rename(tmp_path / "deit_tiny_patch16_224-00000000.pth")
    with pytest.raises(UsageError, match="attention heads"):
        load_model(wrong)


def test_the_recipe_says_the_heads_of_init(tmp_path):
    theirs = vit(num_heads=12)
    torch.save(theirs.state_dict(), tmp_path / "vit.pth")
    args = model_args(NAME, **{**SHAPE, "num_heads": 12})
    model = get_model(NAME, **{**SHAPE, "num_heads": 12})
    classes = open_weights(tmp_path / "vit.pth", choice=_heads(12)).card.classes

    initialise_from(model, tmp_path / "vit.pth", args=args, classes=classes)

    assert same(model.eval(), theirs)


def _heads(number):
    from vit21k.checkpoint.foreign import WeightsChoice  # noqa: PLC0415

    return WeightsChoice(args={"num_heads": number})


def test_timms_train_py_writes_what_is_read_and_its_arguments_say_the_heads(tmp_path):
    timm = pytest.importorskip("timm")
    from timm.utils import CheckpointSaver  # noqa: PLC0415

    theirs = perturbed(timm.create_model(NAME, num_classes=5, img_size=32, depth=1))
    average = timm.utils.ModelEmaV3(theirs, decay=0.5)
    perturbed(average.module, seed=7)
    saver = CheckpointSaver(
        theirs,
        torch.optim.AdamW(theirs.parameters()),
        args=argparse.Namespace(model=NAME, lr=1e-3, data_dir="/data", opt_betas=None),
        model_ema=average,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(0, metric=np.float64(50.0))
    path = next(tmp_path.glob("checkpoint-0*"))

    with pytest.raises(UsageError) as caught:
        load_model(path)

    assert "`--weights raw` or `--weights ema`" in caught.value.hint
    raw, card = load_model(path, weights="raw")
    assert same(raw, theirs)
    assert not any("assumed, as" in warning for warning in card.warnings)
    ema, card = load_model(path, weights="ema")
    assert same(ema, average.module)
    assert "the weights are averaged ones (EMA)" in card.warnings


NESTS = [
    ("state_dict", "state_dict_ema"),
    ("model", "model_ema"),
    ("model_state_dict", "model_ema_state_dict"),
]


@pytest.mark.parametrize(("raw", "ema"), NESTS)
@pytest.mark.parametrize("container", ["torch", "paddle"])
def test_an_average_is_chosen_not_ignored(tmp_path, raw, ema, container):
    first, second = vit(), vit(seed=6)
    args = argparse.Namespace(model=NAME)
    content = {raw: state_of(first), ema: state_of(second, "module."), "args": args}
    path = save(tmp_path / "both", content, container)

    with pytest.raises(UsageError, match="raw weights and their average"):
        load_model(path)

    assert same(load_model(path, weights="raw")[0], first)
    assert same(load_model(path, weights="ema")[0], second)
    alone = save(tmp_path / "alone", {ema: state_of(second), "args": args}, container)
    assert same(load_model(alone)[0], second)
    with pytest.raises(UsageError, match="no raw weights"):
        load_model(alone, weights="raw")


def save(path, content, container):
    """Write tables of tensors as torch or as paddle does, whose matrices are [in, out]."""
    if container == "torch":
        torch.save(content, path)
        return path

    def transposed(value):
        if isinstance(value, torch.Tensor):
            return np.ascontiguousarray(value.T if value.ndim == 2 else value)
        return (
            {key: transposed(inner) for key, inner in value.items()}
            if isinstance(value, dict)
            else value
        )

    path.write_bytes(pickle.dumps(transposed(content), protocol=4))
    return path


PREFIXES = ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model.",
            "model._orig_mod."]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("container", ["torch", "paddle", "safetensors", "npz"])
def test_prefixes_of_wrappers_are_taken_off_in_every_container(tmp_path, prefix, container):
    theirs = vit()
    state = state_of(theirs, prefix)
    path = tmp_path / "weights"
    if container == "safetensors":
        save_file(state, path)
    elif container == "npz":
        with path.open("wb") as file:
            np.savez(file, **{name: tensor.numpy() for name, tensor in state.items()})
    else:
        save(path, state, container)

    assert same(load_model(path, model_args={"num_heads": 3})[0], theirs)


def test_an_average_by_prefix_is_chosen_too(tmp_path):
    first, second = vit(), vit(seed=6)
    save_file(
        {**state_of(first, "model."), **state_of(second, "model_ema.module.")}, tmp_path / "w"
    )

    with pytest.raises(UsageError, match="raw weights and their average"):
        load_model(tmp_path / "w", model_args={"num_heads": 3})

    assert same(load_model(tmp_path / "w", weights="ema", model_args={"num_heads": 3})[0], second)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    save_file({**state_of(vit()), **state_of(vit(seed=6), "module.")}, tmp_path / "w")

    with pytest.raises(CheckpointError, match="without the prefixes"):
        load_model(tmp_path / "w", model_args={"num_heads": 3})


def test_tensors_that_a_trained_model_does_without_are_dropped_and_named(tmp_path):
    theirs = vit(num_classes=0)
    spare = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 192),
             "decoder_blocks.0.norm1.weight": torch.zeros(8)}  # fmt: skip
    torch.save({"model": {**state_of(theirs), **spare}}, tmp_path / "mae.pth")

    model, card = load_model(tmp_path / "mae.pth", model_args={"num_heads": 3})

    assert same(model, theirs)
    skipped = next(warning for warning in card.warnings if "skipped" in warning)
    assert all(name in skipped for name in spare)
    with pytest.raises(UsageError, match="have no head") as caught:
        check_head(card)
    assert "vit21k features" in caught.value.hint


def test_paddlevits_present_names_are_read(tmp_path):
    theirs = vit()
    names = {"patch_embed.proj.": "patch_embedding.patch_embedding.", "pos_embed":
             "position_embedding", "blocks.": "encoder.layers.", "norm1": "attn_norm",
             "norm2": "mlp_norm", "attn.proj": "attn.out", "head.": "classifier."}  # fmt: skip
    state = {}
    for name, tensor in theirs.state_dict().items():
        for ours, present in names.items():
            name = name.replace(ours, present)  # noqa: PLW2901 (one name, step by step)
        state[f"encoder.encoder_{name}" if name.startswith("norm.") else name] = tensor

    path = save(tmp_path / "vit.pdparams", {"model": state}, "paddle")

    assert same(load_model(path, model_args={"num_heads": 3})[0], theirs)


def sparse(state):
    return {**state, "head.weight": state["head.weight"].to_sparse()}


def quantised(state):
    return {
        **state,
        "head.weight": torch.quantize_per_tensor(state["head.weight"], 0.1, 0, torch.qint8),
    }


def meta(state):
    return {**state, "head.weight": state["head.weight"].to("meta")}


def whole_numbers(state):
    return {**state, "head.weight": state["head.weight"].to(torch.int8)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("change", "words"),
    [(sparse, "sparse"), (quantised, "quantised"), (meta, "meta"), (whole_numbers, "int8")],
)
def test_tensors_without_plain_values_are_named(tmp_path, change, words):
    torch.save(change(state_of(vit())), tmp_path / "w.pth")

    with pytest.raises(CheckpointError, match=f"head.weight.*{words}"):
        load_model(tmp_path / "w.pth", model_args={"num_heads": 3})


def test_a_whole_pickled_model_is_refused_in_our_own_words(tmp_path):
    torch.save({"model": SimpleNamespace(a=1), "net": torch.nn.Linear(2, 2)}, tmp_path / "w.pth")

    with pytest.raises(CheckpointError, match=r"asks for `torch\.nn") as caught:
        load_model(tmp_path / "w.pth")

    assert "\x1b" not in caught.value.message
    assert "weights_only" not in caught.value.message


def test_models_of_other_colours_are_refused(tmp_path):
    torch.save(vit(in_chans=1).state_dict(), tmp_path / "w.pth")

    with pytest.raises(CheckpointError, match="images of 1 channels"):
        load_model(tmp_path / "w.pth", model_args={"num_heads": 3})


def test_beits_names_are_refused_by_the_first_unknown_one(tmp_path):
    state = state_of(vit())
    del state["pos_embed"]
    torch.save({**state, "blocks.0.attn.q_bias": torch.zeros(192)}, tmp_path / "w.pth")

    with pytest.raises(CheckpointError, match="q_bias"):
        load_model(tmp_path / "w.pth", model_args={"num_heads": 3})


@pytest.mark.parametrize(
    "where", [[], "x", {}, {"a": 1}, {"a": None}, {"a": "../b"}, {"a": ""}, None]
)
def test_an_index_of_other_content_is_named(tmp_path, where):
    text = json.dumps({"weight_map": where})
    (tmp_path / "model.safetensors.index.json").write_text(text)

    with pytest.raises(CheckpointError, match=r"index\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_that_is_nested_without_end_is_named(tmp_path, name):
    save_file(state_of(vit()), tmp_path / "model.safetensors")
    (tmp_path / name).write_text("[" * 100_000)
    path = tmp_path if name == "config.json" else tmp_path / name

    with pytest.raises(CheckpointError, match="nested too deeply"):
        load_model(path)


@pytest.mark.parametrize("to", ["transformers", "torchvision"])
def test_no_library_is_given_a_head_of_random_values(tmp_path, to):
    torch.save(vit(num_classes=0).state_dict(), tmp_path / "w.pth")

    with pytest.raises(UsageError, match="no head"):
        export_model(tmp_path / "w.pth", tmp_path / "out", to=to, choice=_heads(3))


@pytest.mark.parametrize("command", ["predict", "explain", "eval", "serve"])
def test_commands_that_name_classes_refuse_weights_without_a_head(tmp_path, monkeypatch, command):
    torch.save(vit(num_classes=0).state_dict(), tmp_path / "w.pth")
    image = tmp_path / "a.png"
    Image.new("RGB", (40, 40)).save(image)
    # What eval measures on is opened before the model; it does not matter here.
    monkeypatch.setattr("vit21k.cli.evaluate._open_images", lambda *_: None)
    rest = {"predict": [str(image)], "explain": [str(image)], "serve": ["--port", "0"]}
    if command == "serve":
        pytest.importorskip("uvicorn")
    arguments = [command, str(tmp_path / "w.pth"), *rest.get(command, [])]

    result = CliRunner().invoke(app, [*arguments, "--set", "model.num_heads=3"])

    assert isinstance(result.exception, UsageError), result.exception
    assert "have no head" in result.exception.message


@pytest.mark.parametrize("command", ["predict", "explain", "features", "export", "serve"])
def test_options_settle_what_weights_do_not_say(tmp_path, monkeypatch, command):
    theirs = vit(num_heads=12)
    both = {"model": state_of(vit()), "model_ema": state_of(theirs)}
    torch.save(both, tmp_path / "w.pth")
    image = tmp_path / "a.png"
    Image.new("RGB", (40, 40)).save(image)
    monkeypatch.chdir(tmp_path)
    if command == "serve":
        pytest.importorskip("uvicorn")
        monkeypatch.setattr(
            "vit21k.serving.server.serve", lambda _app, _limits, listening, **_: listening.close()
        )
    rest = {"serve": ["--port", "0"], "export": ["--to", "safetensors", "--out", "folder"],
            "features": [str(image), "--out", "f.parquet"]}  # fmt: skip
    arguments = [command, "w.pth", *rest.get(command, [str(image)])]
    heads = ["--set", "model.num_heads=12"]

    unsaid = CliRunner().invoke(app, [*arguments, *heads])
    heads_unsaid = CliRunner().invoke(app, [*arguments, "--weights", "ema"])
    said = CliRunner().invoke(app, [*arguments, *heads, "--weights", "ema"])

    assert "--weights ema" in unsaid.exception.hint
    assert "model.num_heads=" in heads_unsaid.exception.hint
    assert said.exit_code == 0, said.exception
    if command == "export":
        assert same(load_model("folder")[0], theirs)  # a folder says it for good


@pytest.mark.parametrize(
    "text", ["model.num_heads=x", "model.num_heads=5", "num_heads=3", "model=3"]
)
def test_a_setting_that_cannot_be_is_a_usage_error(tmp_path, text):
    torch.save(vit().state_dict(), tmp_path / "w.pth")

    result = CliRunner().invoke(app, ["predict", str(tmp_path / "w.pth"), "a.png", "--set", text])

    assert isinstance(result.exception, UsageError), result.exception


def test_the_average_of_our_own_runs_is_chosen_by_the_same_option(tmp_path):
    average = state_of(get_model(NAME, num_classes=3, **SMALL))
    run = save_run(tmp_path / "run", ema=average)
    alone = save_run(tmp_path / "alone")

    unsaid = load_model(run)[1]
    ema, card = load_model(run, weights="ema")

    assert any("--weights ema" in warning for warning in unsaid.warnings)
    assert card.warnings == load_model(run, weights="raw")[1].warnings == ()
    assert torch.equal(ema.head.weight, average["head.weight"])
    with pytest.raises(UsageError, match="no averaged weights"):
        load_model(alone, weights="ema")
    with pytest.raises(UsageError, match="contradicts"):
        load_model(alone, model_args={"num_heads": 7})


def test_a_config_of_another_model_next_to_weights_is_refused(tmp_path):
    torch.save({"model": state_of(vit()), "arch": "deit_tiny_patch16_224"}, tmp_path / "w.pth")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_base_patch16_224"}))

    with pytest.raises(CheckpointError, match="was saved as `deit_tiny_patch16_224`"):
        load_model(tmp_path / "w.pth")
