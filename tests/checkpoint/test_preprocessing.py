"""How images are prepared for foreign weights; the libraries that wrote them are the oracle."""

import hashlib
import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from vit21k.checkpoint import preprocessing as reading
from vit21k.checkpoint.load import load_model
from vit21k.checkpoint.model_folder import EvalSettings
from vit21k.checkpoint.preprocessing import Preprocessing, find_preprocessing
from vit21k.data.transforms import normalise
from vit21k.errors import CheckpointError, UsageError
from vit21k.inference.predict import eval_transform
from vit21k.models.registry import get_model

HALVES = [0.5, 0.5, 0.5]
RNG = np.random.default_rng(7)
# Margins of every remainder by four, in either direction.
SIZES = [(40, 40), (40, 57), (61, 40), (43, 90), (97, 41), (33, 34), (35, 32), (64, 51), (29, 38)]
IMAGES = [Image.fromarray(RNG.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


def found(tmp_path, *, format_="timm", size=32, config=None, wanted=reading.AS_FILES_SAY):
    return find_preprocessing(
        format_, {"img_size": size}, config or {}, tmp_path / "model.safetensors", wanted
    )


def prepared(settings):
    """Return the images as we prepare them."""
    pixels = np.stack([eval_transform(settings)(image) for image in IMAGES])
    return normalise(torch.from_numpy(pixels), settings.mean, settings.std)


def same(ours, theirs):
    """Whether two batches hold the same pixels: a value of one is 1/255 / std, about 0.01."""
    return torch.allclose(ours, torch.stack(list(theirs)).float(), rtol=0, atol=1e-4)


# timm


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"crop_pct": 0.95, "interpolation": "bilinear"},
        {"crop_pct": 1.0, "crop_mode": "squash", "mean": HALVES, "std": [0.25, 0.5, 0.4]},
        {"crop_pct": 0.8, "crop_mode": "squash"},
        {"crop_pct": 0.9, "test_input_size": [3, 48, 48], "test_crop_pct": 1.0},
        {"input_size": [3, 24, 24], "test_input_size": [3, 32, 32], "test_crop_pct": 0.97},
        {"crop_mode": None, "crop_pct": None, "mean": None, "test_crop_pct": None},
    ],
)
@pytest.mark.parametrize("age", ["new", "old"])
def test_timms_configuration_gives_timms_pixels(tmp_path, fields, age):
    data = pytest.importorskip("timm.data")
    fields = {"input_size": [3, 32, 32], **fields}
    config = {"architecture": "vit", **({"pretrained_cfg": fields} if age == "new" else fields)}

    settings, warning = found(tmp_path, config=config)

    at_test_size = fields["input_size"][-1] != settings.img_size
    resolved = data.resolve_data_config(pretrained_cfg=fields, use_test_size=at_test_size)
    transform = data.create_transform(**resolved)
    assert resolved["input_size"][-1] == 32
    assert same(prepared(settings), map(transform, IMAGES))
    assert warning is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_mode", "border"),
        ("interpolation", "lanczos"),
        ("crop_pct", 1.5),
        ("crop_pct", "0.9"),
        ("input_size", [3, 32, 48]),
        ("mean", [0.5, 0.5]),
        ("std", [0.5, 0.5, 0]),
        ("std", [0.5, 0.5, float("nan")]),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, field, value):
    config = {"pretrained_cfg": {"input_size": [3, 32, 32], field: value}}

    with pytest.raises(CheckpointError, match=f"`{field}`") as caught:
        found(tmp_path, config=config)

    assert "--mean" in caught.value.hint
    complete = Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), crop_pct=1.0, interpolation="bicubic")
    assert found(tmp_path, config=config, wanted=complete).settings.resize is None


def test_an_old_timm_folder_has_its_classes_and_preprocessing(tmp_path):
    small = {"img_size": 64, "embed_dim": 192, "depth": 1, "num_heads": 3}
    torch.save(get_model("vit_tiny_patch16_224", num_classes=3, **small).state_dict(),
               tmp_path / "pytorch_model.bin")  # fmt: skip
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "num_features": 192,
              "input_size": [3, 64, 64], "pool_size": None, "crop_pct": 0.95,
              "interpolation": "bilinear", "mean": [0.485, 0.456, 0.406],
              "std": [0.229, 0.224, 0.225], "first_conv": "patch_embed.proj",
              "classifier": "head", "labels": ["cat", "dog", "cow"]}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))

    _, card = load_model(tmp_path)

    assert card.eval_settings == EvalSettings(
        img_size=64, mode="center_crop", resize=67, interpolation="bilinear",
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    assert card.classes.names == ("cat", "dog", "cow")
    assert card.warnings == ()


@pytest.mark.parametrize("size", [224, 256, 384, 448, 512])
def test_timm_computes_every_size_before_the_crop_again(size):
    for resize in range(size, 2 * size):
        settings = EvalSettings(
            img_size=size, mode="center_crop", resize=resize, interpolation="bicubic",
            mean=(0, 0, 0), std=(1, 1, 1),
        )  # fmt: skip
        assert math.floor(size / settings.crop_pct) == resize


# transformers

# Its first versions 5 know `use_fast`, the later ones `backend`.
NAMES_BACKENDS = (
    importlib.util.find_spec("transformers") is not None
    and importlib.util.find_spec("transformers.image_processing_backends") is not None
)
WITH_PILLOW = {"backend": "pil"} if NAMES_BACKENDS else {"use_fast": False}


def of_transformers(folder, fields, model_type="vit"):
    transformers = pytest.importorskip("transformers")
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    processor = transformers.AutoImageProcessor.from_pretrained(folder, **WITH_PILLOW)
    return [processor(image, return_tensors="pt")["pixel_values"][0] for image in IMAGES]


@pytest.mark.parametrize(
    "fields",
    [
        {"size": {"height": 32, "width": 32}},
        {"image_processor_type": "ViTImageProcessor", "size": 32, "resample": 3},
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 32, "do_resize": True,
         "do_normalize": True, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]},
        {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 32, "width": 32},
         "do_normalize": False, "do_rescale": True, "rescale_factor": 1 / 255},
        {"image_processor_type": "ViTImageProcessor", "size": [32, 32], "rescale_factor": 1 / 127.5,
         "image_mean": 1.0, "image_std": 0.5, "_processor_class": None, "crop_size": None},
        {"image_processor_type": "ViTImageProcessor", "size": 32, "do_rescale": False,
         "image_mean": [120, 110, 100], "image_std": [60, 60, 50]},
        pytest.param(
            {"image_processor_type": "ViTImageProcessor", "size": 41, "do_center_crop": True,
             "crop_size": 32},
            marks=pytest.mark.skipif(not NAMES_BACKENDS, reason="did not crop then"),
        ),
        {"feature_extractor_type": "DeiTFeatureExtractor", "size": 37, "crop_size": 32},
        {"image_processor_type": "DeiTImageProcessor", "size": {"height": 35, "width": 35},
         "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        {"image_processor_type": "BeitImageProcessor", "size": 32,
         "do_reduce_labels": False, "do_center_crop": False},
        {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32},
         "do_convert_rgb": None},
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 36, "crop_size": 32},
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 37},
         "crop_size": {"height": 32, "width": 32}, "resample": 2, "do_convert_rgb": True},
        {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 33},
         "crop_size": {"height": 32, "width": 32}},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32},
         "crop_pct": 0.875},
        {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 32, "crop_pct": 0.91},
    ],
)  # fmt: skip
def test_an_image_processors_configuration_gives_its_pixels(tmp_path, fields):
    theirs = of_transformers(tmp_path, fields)

    settings, warning = found(tmp_path, format_="transformers", config={"model_type": "vit"})

    assert same(prepared(settings), theirs)
    assert warning is None


def test_a_large_convnext_configuration_squashes(tmp_path):
    fields = {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))

    settings, _ = found(tmp_path, format_="transformers", size=384)

    assert (settings.mode, settings.resize) == ("squash", None)


def test_a_processor_file_of_version_5_is_read(tmp_path):
    fields = {"image_processor_type": "ViTImageProcessor", "size": 32, "image_mean": HALVES,
              "image_std": [0.25, 0.25, 0.25]}  # fmt: skip
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": fields}))

    settings, warning = found(tmp_path, format_="transformers")

    assert (settings.std, warning) == ((0.25, 0.25, 0.25), None)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"image_processor_type": "LevitImageProcessor"}, "image_processor_type"),
        ({"size": 32, "do_resize": False}, "do_resize"),
        ({"size": 32, "resample": 1}, "resample"),
        ({"size": 32, "do_pad": True}, "do_pad"),
        ({"size": 32, "do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"size": {"height": 32, "width": 48}}, "size"),
        ({"size": {"shortest_edge": 32}}, "size"),
        ({"size": {"shortest_edge": 32, "longest_edge": 48}, "do_center_crop": True}, "size"),
        ({"size": 40, "do_center_crop": True, "crop_size": [32, 48]}, "crop_size"),
        ({"size": 32, "image_mean": [0.5]}, "image_mean"),
        ({"size": 32, "image_std": [0.5, 0.5, "half"]}, "image_std"),
        ({"size": 32, "rescale_factor": 0}, "rescale_factor"),
        ({"size": 48}, "48 pixels, the model takes 32"),
    ],
)
def test_a_processor_that_is_not_implemented_is_refused_by_name(tmp_path, fields, named):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))

    with pytest.raises(CheckpointError, match=named):
        found(tmp_path, format_="transformers")


# torchvision


@pytest.mark.parametrize("name", sorted(reading._TORCHVISION))
def test_torchvisions_published_weights_have_torchvisions_transforms(name):
    models = pytest.importorskip("torchvision.models")
    published = reading._TORCHVISION[name]
    weights = {
        weight.url.rpartition("/")[2]: weight
        for model in ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14")
        for weight in models.get_model_weights(model)
    }

    transforms = weights[f"{name}-{published.checksum}.pth"].transforms()

    assert transforms.resize_size == [published.resize]
    assert transforms.interpolation.value == published.interpolation
    assert tuple(transforms.mean) == reading._IMAGENET_MEAN
    assert tuple(transforms.std) == reading._IMAGENET_STD


def test_a_published_file_is_known_by_its_content(tmp_path, monkeypatch):
    checksum = hashlib.sha256(b"weights").hexdigest()[:8]
    published = reading._Published(checksum, 40, "bicubic")
    monkeypatch.setitem(reading._TORCHVISION, "vit_b_16_swag", published)
    args = {"img_size": 32}
    for content, is_it in ((b"weights", True), (b"others", False)):
        file = tmp_path / f"vit_b_16_swag-{checksum}.pth"
        file.write_bytes(content)

        settings, warning = find_preprocessing("torchvision", args, {}, file, reading.AS_FILES_SAY)

        assert (settings.resize == 40) is is_it
        assert (warning is None) is is_it


# Where nothing says it


@pytest.mark.parametrize(
    ("format_", "options"),
    [
        ("timm", "--mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --crop-pct 0.9 --interpolation bicubic"),
        ("google", "--mean 0.5 0.5 0.5 --std 0.5 0.5 0.5 --crop-mode squash --interpolation bilin"),
        ("torchvision", "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 --crop-pct 0.875 --inte"),
    ],
)
def test_what_is_assumed_is_said_in_one_line(tmp_path, format_, options):
    settings, warning = found(tmp_path, format_=format_, size=224)

    assert options in warning
    assert "\n" not in warning
    words = options.split()
    if "--crop-pct" in words:
        fraction = float(words[words.index("--crop-pct") + 1])
        assert math.floor(224 / fraction) == settings.resize


def test_only_what_the_caller_left_open_is_assumed(tmp_path):
    wanted = Preprocessing(mean=(0.1, 0.2, 0.3), crop_pct=0.875)

    settings, warning = found(tmp_path, size=224, wanted=wanted)

    assert (settings.mean, settings.resize) == ((0.1, 0.2, 0.3), 256)
    assert "assumed: --std 0.5 0.5 0.5 --interpolation bicubic (" in warning


def test_the_caller_has_the_last_word(tmp_path):
    config = {"pretrained_cfg": {"crop_pct": 0.9, "mean": HALVES, "interpolation": "bicubic"}}
    wanted = Preprocessing(mean=(0.1, 0.2, 0.3), crop_mode="squash", interpolation="bilinear")

    settings, warning = found(tmp_path, config=config, wanted=wanted)

    assert settings.mean == (0.1, 0.2, 0.3)
    assert (settings.mode, settings.resize, settings.interpolation) == ("squash", None, "bilinear")
    assert settings.std == (0.229, 0.224, 0.225)
    assert warning is None


def test_a_crop_of_an_unknown_part_is_refused(tmp_path):
    with pytest.raises(UsageError, match="how large the image is"):
        found(tmp_path, format_="google", wanted=Preprocessing(crop_mode="center"))
