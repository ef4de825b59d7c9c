"""Google's npz, against weights, inputs and outputs made by Google's own code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vit21k.checkpoint.initialise import initialise_from
from vit21k.checkpoint.load import load_model
from vit21k.convert.google import from_google, to_google
from vit21k.errors import CheckpointError
from vit21k.manifest.classes import ClassList
from vit21k.models.registry import get_model, model_args

DATA = Path(__file__).parents[1] / "fixtures" / "google_vit"
NPZ = DATA / "ViT-tiny-google.npz"
TO_LINEN = {
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
    "LayerNorm_2": "LayerNorm_1",
    "MlpBlock_3": "MlpBlock_0",
}


def theirs(what):
    return torch.from_numpy(np.load(DATA / f"ViT-tiny-google.{what}.npy"))


def images(name="images_u8_nhwc"):
    return (theirs(name).permute(0, 3, 1, 2).float() - 127.5) / 127.5


def arrays():
    with np.load(NPZ) as archive:
        return {name: archive[name] for name in archive.files}


def save(path, content):
    np.savez(path, **content)
    return path


def linen_name(name):
    for published, linen in TO_LINEN.items():
        name = name.replace(published, linen)
    return name


@pytest.mark.parametrize("spelling", ["published", "linen", "optimizer"])
def test_logits_and_features_are_googles(tmp_path, spelling):
    content = arrays()
    if spelling == "linen":
        content = {linen_name(name): array for name, array in content.items()}
    if spelling == "optimizer":
        content = {f"opt/target/{name}": array for name, array in content.items()}
        content["opt/state/step"] = np.zeros(1)

    model, card = load_model(save(tmp_path / "weights.npz", content))

    with torch.no_grad():
        model.double()  # all of the difference is theirs, of float32, on every processor
        assert torch.allclose(model(images().double()), theirs("logits").double(), atol=1e-6)
        features = model.features(images().double())
        assert torch.allclose(features, theirs("features").double(), rtol=1e-6, atol=5e-6)
    assert card.args["act_layer"] == "gelu_tanh"
    assert (card.args["num_heads"], card.args["depth"], card.args["img_size"]) == (4, 3, 64)
    assert card.eval_settings.mode == "squash"


def test_the_exact_gelu_would_not_do():
    model, card = load_model(NPZ)
    exact = get_model(card.name, **{**card.args, "act_layer": "gelu"}).eval()
    exact.load_state_dict(model.state_dict())

    with torch.no_grad():
        assert (exact(images()) - theirs("logits")).abs().max() > 1e-5


def test_another_image_size_gives_what_googles_code_gives():
    _, card = load_model(NPZ)
    args = {**card.args, "img_size": 96}
    larger = get_model(card.name, **args).eval()

    report = initialise_from(
        larger,
        NPZ,
        args=model_args(card.name, **args),
        classes=card.classes,
        pos_embed_mode="bilinear_align_corners",
    )

    assert report.format == "google"
    assert report.resized == ("pos_embed",)
    assert torch.allclose(larger.pos_embed, theirs("posemb_96px"), rtol=0, atol=1e-6)
    with torch.no_grad():
        features = larger.double().features(images("images96_u8_nhwc").double())
    assert torch.allclose(features, theirs("features96").double(), rtol=1e-6, atol=5e-6)


def test_bfloat16_that_numpy_knows_only_as_raw_bytes_is_read(tmp_path):
    content = arrays()
    kernel = torch.from_numpy(content["head/kernel"]).bfloat16()
    content["head/kernel"] = kernel.view(torch.uint16).numpy().view("V2")

    model, _ = load_model(save(tmp_path / "weights.npz", content))

    assert torch.equal(model.head.weight, kernel.float().T)


def test_pre_logits_and_their_tanh_are_read(tmp_path):
    content = arrays()
    rng = np.random.default_rng(0)
    content["pre_logits/kernel"] = rng.normal(size=(64, 48)).astype(np.float32)
    content["pre_logits/bias"] = rng.normal(size=48).astype(np.float32)
    content["head/kernel"] = content["head/kernel"][:48]

    model, card = load_model(save(tmp_path / "weights.npz", content))

    kernel, bias = content["pre_logits/kernel"], content["pre_logits/bias"]
    with torch.no_grad():
        before = theirs("features").double()
        wanted = torch.tanh(before @ torch.from_numpy(kernel).double() + torch.from_numpy(bias))
        assert torch.allclose(model.double().features(images().double()), wanted, atol=1e-4)
    assert card.args["representation_size"] == 48


def test_mean_pooling_comes_after_the_norm_and_without_a_class_token(tmp_path):
    content = arrays()
    del content["cls"]
    name = "Transformer/posembed_input/pos_embedding"
    content[name] = content[name][:, 1:]

    model, card = load_model(save(tmp_path / "weights.npz", content))

    with torch.no_grad():
        tokens = model.forward_features(images())
        wanted = model.head(tokens.mean(dim=1))
        assert torch.allclose(model(images()), wanted)
    assert (card.args["global_pool"], card.args["fc_norm"]) == ("avg", False)
    assert tokens.shape[1] == 16


def test_what_is_written_has_googles_names_and_bytes():
    content = {name: torch.from_numpy(array) for name, array in arrays().items()}

    written = to_google(from_google(content).tensors, num_heads=4)

    assert written.keys() == content.keys()
    for name, array in content.items():
        assert torch.equal(written[name], array), name


def test_arrays_of_objects_are_refused(tmp_path):
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    content = {**arrays(), "embedding/bias": np.array([Payload()], dtype=object)}

    with pytest.raises(CheckpointError, match=r"weights\.npz"):
        load_model(save(tmp_path / "weights.npz", content))
    assert not canary.exists()


def test_a_head_of_zeros_is_said(tmp_path):
    content = arrays()
    content["head/kernel"] = np.zeros_like(content["head/kernel"])

    _, card = load_model(save(tmp_path / "weights.npz", content))

    assert any("all zeros" in warning for warning in card.warnings)


def test_an_unknown_array_is_named(tmp_path):
    content = {**arrays(), "Transformer/encoderblock_0/Adapter/kernel": np.zeros(1)}

    with pytest.raises(CheckpointError, match="Adapter"):
        load_model(save(tmp_path / "weights.npz", content))


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(NPZ.read_bytes()[:-5000])

    with pytest.raises(CheckpointError, match="damaged"):
        load_model(path)


def test_init_takes_it_for_another_class_list():
    _, card = load_model(NPZ)
    args = {**card.args, "num_classes": 2}
    model = get_model(card.name, **args)

    report = initialise_from(
        model, NPZ, args=model_args(card.name, **args), classes=ClassList(("a", "b"))
    )

    assert report.dropped == report.initialised == ("head.bias", "head.weight")
    assert "(google)" in report.in_words()
