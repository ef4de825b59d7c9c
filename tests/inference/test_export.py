"""Every export, loaded by the library it is for."""

import importlib.util
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vit21k.checkpoint.load import load_model
from vit21k.checkpoint.model_folder import EvalSettings, model_config, write_model_folder
from vit21k.errors import UsageError
from vit21k.export.model import export_model
from vit21k.manifest.classes import ClassList
from vit21k.models.registry import get_model, model_args

NAME = "vit_tiny_patch16_224"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
CLASSES = ClassList(("n02012849", "n03126707", "zebra"), ("crane", "crane", None))
SETTINGS = EvalSettings(
    img_size=32,
    mode="center_crop",
    resize=36,
    interpolation="bicubic",
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
)
NPZ = Path(__file__).parents[1] / "fixtures" / "google_vit" / "ViT-tiny-google.npz"
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def make(tmp_path):
    """A function that writes a model with random weights, exports it, and returns both."""

    def make(to, *, name=NAME, loss_kind="sigmoid", settings=SETTINGS, **overrides):
        small = {**SMALL, **overrides} if name.startswith("vit") else overrides
        torch.manual_seed(1)
        model = get_model(name, num_classes=len(CLASSES), **small)
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(torch.randn_like(tensor) * 0.05)
        args = model_args(name, **small)
        (tmp_path / "run").mkdir()
        config = model_config(name, args, CLASSES, settings, loss_kind)
        write_model_folder(tmp_path / "run", model.state_dict(), config)
        report = export_model(tmp_path / "run", tmp_path / "out", to=to)
        return model.eval(), report

    return make


def logits(model):
    with torch.no_grad():
        return model.forward_head(model.forward_features(IMAGES))


@pytest.mark.parametrize(
    ("to", "overrides"),
    [
        ("timm", {}),
        ("safetensors", {"representation_size": 16, "norm_eps": 1e-5}),
        ("torchvision", {"representation_size": 16}),
        ("transformers", {"act_layer": "gelu_tanh", "norm_eps": 1e-12}),
        ("npz", {"act_layer": "gelu_tanh", "representation_size": 16}),
        ("npz", {"global_pool": "avg", "class_token": False, "fc_norm": False}),
        ("npz", {"act_layer": "gelu"}),
        ("timm", {"reg_tokens": 5, "no_embed_class": True, "qk_norm": True, "pre_norm": True}),
        ("timm", {"distilled": True}),
        ("safetensors", {"mlp_layer": "swiglu", "norm_layer": "rmsnorm"}),
        ("safetensors", {"global_pool": "token_avg"}),
        ("safetensors", {"rope": "axial", "rope_temperature": 50.0}),
        ("transformers", {"act_layer": "quick_gelu", "norm_eps": 1e-12}),
    ],
)
def test_what_is_exported_loads_again_as_it_was(make, tmp_path, to, overrides):
    model, report = make(to, **overrides)

    loaded, card = load_model(tmp_path / "out")

    assert torch.equal(logits(loaded), logits(model))
    assert (card.classes, card.eval_settings, card.loss_kind) == (CLASSES, SETTINGS, "sigmoid")
    assert card.args == model_args(NAME, **{**SMALL, **overrides, "num_classes": 3})
    assert "README.md" in report.files


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        (NAME, {}),
        (NAME, {"global_pool": "avg", "class_token": False}),
        ("vit_small_r26_s32_224", {"patch_size": 1, "img_size": 64, "stem_eps": "timm"}),
        ("pit_ti_224", {"img_size": 48}),
        ("pit_xs_distilled_224", {"img_size": 48, "depth": [1, 1, 1]}),
        (NAME, {"reg_tokens": 2, "no_embed_class": True, "qk_norm": True, "init_values": 0.1}),
        (NAME, {"global_pool": "map", "class_token": False, "norm_layer": "rmsnorm"}),
        (NAME, {"pre_norm": True, "act_layer": "quick_gelu"}),
        (NAME, {"distilled": True}),
    ],
)
def test_timm_loads_it_with_no_difference(make, tmp_path, name, overrides):
    timm = pytest.importorskip("timm")
    settings = SETTINGS
    size = overrides.get("img_size", 32)
    if size != 32:
        settings = EvalSettings(**{**vars(SETTINGS), "img_size": size, "resize": size})

    model, report = make("timm", name=name, settings=settings, **overrides)

    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        ours = model.forward_head(model.forward_features(images))
        difference = (theirs(images) - ours).abs().max()
    # A hybrid standardises its kernels by another formula, and MAP pooling projects one query for
    # the batch: equal, but for rounding.
    rounds = "_r26_" in name or overrides.get("global_pool") == "map"
    assert difference < 1e-5 if rounds else difference == 0
    assert theirs.pretrained_cfg["label_names"] == list(CLASSES.wnids)
    assert report.notes == ()


def test_torchvision_loads_it_with_no_difference(make, tmp_path):
    vision_transformer = pytest.importorskip("torchvision.models.vision_transformer")
    model, _ = make("torchvision", representation_size=16)

    theirs = vision_transformer.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=128,
        num_classes=3, representation_size=16,
    )  # fmt: skip
    theirs.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))

    with torch.no_grad():
        # Its attention adds up in another order.
        assert torch.allclose(theirs.eval()(IMAGES), logits(model), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["center_crop", "squash"])
def test_transformers_loads_it_with_classes_and_preparation(make, tmp_path, mode):
    transformers = pytest.importorskip("transformers")
    settings = EvalSettings(**{**vars(SETTINGS), "mode": mode})
    model, _ = make("transformers", act_layer="gelu_tanh", norm_eps=1e-3, settings=settings)

    theirs, told = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )

    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    with torch.no_grad():
        found = theirs.eval()(IMAGES).logits
    assert torch.allclose(found, logits(model), rtol=1e-6, atol=1e-6)
    labels = ["crane (n02012849)", "crane (n03126707)", "zebra"]
    assert [theirs.config.id2label[index] for index in range(3)] == labels
    assert theirs.config.problem_type == "multi_label_classification"


def prepared(settings, images):
    """Return our results for *images*."""
    from vit21k.inference.evaluate import normalise  # noqa: PLC0415
    from vit21k.inference.predict import eval_transform  # noqa: PLC0415

    pixels = np.stack([eval_transform(settings)(image) for image in images])
    return normalise(torch.from_numpy(pixels), settings.mean, settings.std)


def odd_images():
    """Return images whose margins have every remainder by four once they are resized."""
    image_module = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    return [
        image_module.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        for height, width in ((36, 36), (36, 41), (43, 36), (36, 45), (47, 36), (50, 36), (99, 61))
        for shape in ((height, width, 3), (width, height, 3))
    ]


SAME_PIXEL = 1e-4  # another one differs by 1/255 / std, about 0.01


@pytest.mark.parametrize("pillow", [False, True])
@pytest.mark.parametrize(
    ("mode", "resize", "margin"),
    [
        ("center_crop", 36, "round"),
        ("center_crop", 37, "round"),
        ("center_crop", None, "round"),
        ("squash", 35, "round"),
        ("center_crop", 37, "floor"),
        ("squash", 35, "floor"),
        ("squash", 38, "round"),
        ("squash", None, "round"),
    ],
)
def test_transformers_prepares_an_image_as_we_do(make, tmp_path, mode, resize, margin, pillow):
    transformers = pytest.importorskip("transformers")
    changed = {"mode": mode, "resize": resize, "margin": margin}
    settings = EvalSettings(**{**vars(SETTINGS), **changed})
    _, report = make("transformers", settings=settings)

    # Its first versions 5 know `use_fast`, the later ones `backend`.
    named = importlib.util.find_spec("transformers.image_processing_backends")
    how = {"backend": "pil"} if named else {"use_fast": False}

    processor = transformers.AutoImageProcessor.from_pretrained(
        tmp_path / "out", **(how if pillow else {})
    )

    images = odd_images()
    theirs = torch.stack([processor(i, return_tensors="pt")["pixel_values"][0] for i in images])
    ours = prepared(settings, images)
    through_timm = type(processor).__name__ == "TimmWrapperImageProcessor"
    assert ("through timm" if through_timm else "pil") in report.notes[0]
    if through_timm or pillow:
        assert torch.allclose(theirs, ours, rtol=0, atol=SAME_PIXEL)
    else:  # torch resizes: values are rounded elsewhere, but a crop is where ours is
        assert (theirs - ours).abs().mean() < 1 / 255 / min(settings.std)
    assert load_model(tmp_path / "out")[1].eval_settings == settings


@pytest.mark.parametrize(
    ("mode", "resize"), [("center_crop", 472), ("squash", 450), ("center_crop", 411)]
)
def test_timm_prepares_an_image_as_we_do(make, tmp_path, mode, resize):
    timm = pytest.importorskip("timm")
    changed = {"mode": mode, "resize": resize, "img_size": 384}
    settings = EvalSettings(**{**vars(SETTINGS), **changed})
    make("timm", settings=settings, img_size=384, patch_size=128)

    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))

    images = odd_images()[::5]
    found = torch.stack([transform(image) for image in images])
    assert torch.allclose(found, prepared(settings, images), rtol=0, atol=SAME_PIXEL)


def test_a_crop_that_timm_cannot_make_is_said(make, tmp_path):
    settings = EvalSettings(**{**vars(SETTINGS), "margin": "floor"})

    _, report = make("timm", settings=settings)

    assert "one pixel off" in report.notes[0]
    assert report.notes[0] in (tmp_path / "out" / "README.md").read_text()


def test_npz_has_the_names_and_shapes_of_googles_own_file(make, tmp_path):
    make("npz", act_layer="gelu_tanh")

    with np.load(tmp_path / "out" / "model.npz", allow_pickle=False) as archive:
        shapes = {name: archive[name].shape for name in archive.files}

    attention = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    assert shapes["embedding/kernel"] == (8, 8, 3, 32)
    assert shapes[f"{attention}/query/kernel"] == (32, 4, 8)
    assert shapes[f"{attention}/out/kernel"] == (4, 8, 32)
    assert shapes["Transformer/encoderblock_0/LayerNorm_2/scale"] == (32,)
    assert shapes["head/kernel"] == (32, 3)
    assert shapes["cls"] == (1, 1, 32)


def test_npz_is_read_by_timms_reader_for_googles_files(make, tmp_path):
    timm = pytest.importorskip("timm")
    model, _ = make("npz", act_layer="gelu_tanh")
    theirs = timm.create_model(NAME, num_classes=3, act_layer="gelu_tanh", **SMALL).eval()

    theirs.load_pretrained(str(tmp_path / "out" / "model.npz"))

    with torch.no_grad():
        assert torch.equal(theirs(IMAGES), logits(model))


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of torch 2.10
def test_torch_export_loads_without_vit21k_for_any_batch(make, tmp_path):
    model, _ = make("torch-export", representation_size=16)

    program = torch.export.load(tmp_path / "out" / "model.pt2").module()

    with torch.no_grad():
        for size in (1, 2, 3):
            found = program(IMAGES[:size])
            assert torch.allclose(found, model(IMAGES[:size]), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        (NAME, {"representation_size": 16}),
        ("pit_ti_distilled_224", {"img_size": 32, "depth": [1, 1, 1]}),
        ("vit_small_r26_s32_224", {"patch_size": 1, "img_size": 32, "resnet_layers": [1, 1]}),
    ],
)
def test_onnxruntime_gives_the_same_logits_for_any_batch(make, tmp_path, name, overrides):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")

    model, _ = make("onnx", name=name, **overrides)

    path = tmp_path / "out" / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx.checker.check_model(onnx.load(path))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in (1, 2, 3):
        (found,) = session.run(None, {"pixel_values": IMAGES[:size].numpy()})
        with torch.no_grad():
            wanted = model(IMAGES[:size])
        assert torch.allclose(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("to", "name", "overrides", "lacking"),
    [
        ("timm", NAME, {"representation_size": 16}, "pre-logits"),
        ("transformers", NAME, {"representation_size": 16}, "pre-logits"),
        ("transformers", NAME, {"global_pool": "avg"}, "mean pooling"),
        ("torchvision", NAME, {"global_pool": "avg"}, "mean pooling"),
        ("torchvision", NAME, {"qkv_bias": False}, "biases"),
        ("npz", NAME, {"global_pool": "avg"}, "class token"),
        ("npz", NAME, {"init_values": 1e-4}, "layer scale"),
        ("npz", "pit_ti_224", {"img_size": 32}, "PiT"),
        ("npz", NAME, {"act_layer": "quick_gelu"}, "quick GELU"),
        ("torchvision", NAME, {"reg_tokens": 2}, "register tokens"),
        ("transformers", NAME, {"no_embed_class": True}, "position embedding of the patches"),
        ("transformers", NAME, {"qk_norm": True}, "norm of queries"),
        ("timm", NAME, {"rope": "axial"}, "rotary positions"),
        ("timm", NAME, {"mlp_layer": "swiglu"}, "SwiGLU"),
        ("timm", NAME, {"global_pool": "token_avg"}, "class token and the mean"),
        ("transformers", "vit_small_r26_s32_224", {"patch_size": 1}, "ResNet"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(make, tmp_path, to, name, overrides, lacking):
    with pytest.raises(UsageError, match=lacking) as caught:
        make(to, name=name, **overrides)

    assert "--to onnx" in caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("to", "overrides", "note"),
    [
        ("npz", {}, "tanh form of GELU"),
        ("torchvision", {"act_layer": "gelu_tanh"}, "exact form of GELU"),
        ("timm", {"norm_eps": 1e-12}, "1e-12"),
    ],
)
def test_what_a_library_computes_otherwise_is_said(make, tmp_path, to, overrides, note):
    _, report = make(to, **overrides)

    assert note in report.notes[0]
    assert note in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_that_is_there_is_left_alone(make, tmp_path):
    (tmp_path / "out").mkdir()

    with pytest.raises(UsageError, match="already exists"):
        make("timm")


def test_googles_weights_reach_transformers(tmp_path):
    model, card = load_model(NPZ)

    export_model(NPZ, tmp_path / "out", to="transformers")

    again, again_card = load_model(tmp_path / "out")
    state = again.state_dict()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert again_card.args == card.args
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["hidden_act"] == "gelu_pytorch_tanh"
