"""Google's hybrids: the formulas of its ResNet, in NumPy, and published sizes."""

import numpy as np
import pytest
import torch

from vit21k.convert.google import from_google, to_google
from vit21k.models.cost import macs_per_image, num_params, resnet_sides
from vit21k.models.init_weights import init_vit
from vit21k.models.registry import get_model, model_args
from vit21k.models.resnet_stem import ResNetStem, StdConv2d

# vit_jax/models_test.py, MODEL_SIZES.
GOLDEN = [
    ("vit_small_r26_s32_224", 36_431_912),
    ("vit_base_r26_s32_224", 101_383_976),
    ("vit_base_r50_s16_224", 98_659_112),
    ("vit_large_r50_s32_224", 328_994_856),
]
NARROW = {"embed_dim": 32, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(("name", "expected"), GOLDEN)
def test_parameter_counts_are_googles(name, expected):
    with torch.device("meta"):
        model = get_model(name)

    assert sum(parameter.numel() for parameter in model.parameters()) == expected
    assert num_params(model_args(name)) == expected


def google_conv(x_HWC, kernel_HWIO, stride):
    """Convolve as flax does: standardised kernel, SAME padding."""
    w = kernel_HWIO - kernel_HWIO.mean(axis=(0, 1, 2))
    w = w / (w.std(axis=(0, 1, 2)) + 1e-5)
    size, height, width = len(w), *x_HWC.shape[:2]
    out = [-(-height // stride), -(-width // stride)]
    pads = [max((n - 1) * stride + size - s, 0) for n, s in zip(out, (height, width), strict=True)]
    before = [(pad // 2, pad - pad // 2) for pad in pads]
    padded = np.pad(x_HWC, [*before, (0, 0)])
    y = np.empty((*out, w.shape[3]))
    for row in range(out[0]):
        for column in range(out[1]):
            patch = padded[row * stride : row * stride + size, column * stride :][:, :size]
            y[row, column] = np.einsum("hwi,hwio->o", patch, w)
    return y


@pytest.mark.parametrize(("size", "stride", "side"), [(3, 1, 6), (3, 2, 6), (7, 2, 9), (1, 2, 5)])
def test_a_convolution_is_googles(size, stride, side):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(side, side + 1, 4))
    kernel = rng.normal(size=(size, size, 4, 5)) * 0.1 + 0.3
    conv = StdConv2d(4, 5, size, stride=stride, eps="google").double()
    conv.weight.data = torch.from_numpy(kernel).permute(3, 2, 0, 1)

    with torch.no_grad():
        y = conv(torch.from_numpy(x).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()

    assert np.allclose(y, google_conv(x, kernel, stride), rtol=0, atol=1e-10)


@pytest.mark.parametrize("img_size", [64, 96, 100])
@pytest.mark.parametrize("layers", [[1], [1, 1, 2]])
def test_maps_are_as_large_as_the_arithmetic_says(img_size, layers):
    with torch.device("meta"):
        features = ResNetStem(layers, 3, "google")(torch.zeros(1, 3, img_size, img_size))

    side = resnet_sides(img_size, layers)[-1]
    assert features.shape == (1, 256 * 2 ** (len(layers) - 1), side, side)


@pytest.mark.parametrize("img_size", [64, 96])
def test_macs_are_those_of_the_products_that_are_computed(img_size):
    from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: PLC0415
    from torch.utils.flop_counter import FlopCounterMode  # noqa: PLC0415

    overrides = {**NARROW, "img_size": img_size, "global_pool": "avg"}
    model = get_model("vit_small_r26_s32_224", **overrides).eval()

    # The counter sees matrix products, but not all of the fused attentions of torch.
    counting = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counting as counter, torch.no_grad():
        model(torch.zeros(1, 3, img_size, img_size))

    wanted = macs_per_image(model_args("vit_small_r26_s32_224", **overrides))
    assert counter.get_total_flops() == 2 * wanted


def test_a_group_norm_adds_what_googles_adds():
    stem = ResNetStem([1], 3, "google")

    assert stem.stem.norm.eps == 1e-6
    assert stem.stem.norm.num_groups == 32


def test_names_and_layouts_of_googles_file_go_both_ways():
    model = get_model("vit_small_r26_s32_224", num_classes=3, img_size=64, **NARROW)
    state = model.state_dict()

    arrays = to_google(state, num_heads=2)
    again = from_google(arrays)

    assert arrays["conv_root/kernel"].shape == (7, 7, 3, 64)
    assert arrays["block2/unit1/conv_proj/kernel"].shape == (1, 1, 256, 512)
    assert arrays["block1/unit2/gn3/scale"].shape == (256,)
    assert arrays["gn_root/bias"].shape == (64,)
    assert again.tensors.keys() == state.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in state.items())
    assert again.known["stem_eps"] == "google"


def test_group_norms_with_dimensions_of_one_are_read():
    model = get_model("vit_small_r26_s32_224", num_classes=3, img_size=64, **NARROW)
    arrays = to_google(model.state_dict(), num_heads=2)
    old = {k: v.view(1, 1, 1, -1) if "gn" in k else v for k, v in arrays.items()}

    assert from_google(old).tensors["patch_embed.backbone.stem.norm.weight"].shape == (64,)


def test_first_weights_of_the_resnet_are_flaxs():
    model = get_model("vit_small_r26_s32_224", img_size=64, **NARROW)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)

    init_vit(model, scheme="google", generator=torch.Generator().manual_seed(0))

    kernel = model.patch_embed.backbone.stages[2].blocks[1].conv2.weight
    assert kernel.std().item() == pytest.approx((9 * 256) ** -0.5, rel=0.02)
    norm = model.patch_embed.backbone.stages[2].blocks[1].norm3
    assert torch.equal(norm.weight, torch.ones(1024))
    assert all(parameter.isfinite().all() for parameter in model.parameters())
