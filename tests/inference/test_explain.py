import io

import numpy as np
import pytest
import torch
from PIL import Image

from vit21k.errors import UsageError
from vit21k.inference.explain import (
    attention_maps,
    attention_rollout,
    coloured,
    draw_explanation,
    position_similarity,
)
from vit21k.models.registry import get_model

SMALL = {"img_size": 24, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}


def model_of(**args):
    torch.manual_seed(0)
    model = get_model("vit_tiny_patch16_224", num_classes=4, **{**SMALL, **args}).eval()
    for block in model.blocks:
        block.attn.qkv.weight.data.mul_(20)  # attention that is far from even
    return model


def images(num_images=2):
    return torch.randn(num_images, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def test_attention_maps_are_timms():
    timm = pytest.importorskip("timm")
    model = model_of().double()  # the scores are large: an exponential multiplies rounding
    peer = timm.create_model("vit_tiny_patch16_224", num_classes=4, **SMALL).eval().double()
    peer.load_state_dict(model.state_dict())
    seen = []
    for block in peer.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _m, _i, out: seen.append(out))

    found = attention_maps(model, images().double())
    with torch.no_grad():
        peer.forward_features(images().double())

    assert len(found) == len(seen) == 3
    for ours, theirs in zip(found, seen, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_rollout_is_the_product_of_the_papers_matrices(pool):
    model = model_of(global_pool=pool)

    found = attention_rollout(model, images())

    product = np.eye(10)
    for attention in attention_maps(model, images()[1:]):
        mixed = 0.5 * attention[0].mean(0).numpy() + 0.5 * np.eye(10)
        product = mixed / mixed.sum(1, keepdims=True) @ product
    read = product[0] if pool == "token" else product[1:].mean(0)
    assert found.shape == (2, 3, 3)
    assert np.allclose(found[1].flatten(), read[1:], atol=1e-6)
    assert read.sum() == pytest.approx(1)


def test_no_hook_stays_on_the_model():
    model = model_of()

    attention_rollout(model, images())

    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_position_resembles_itself_most():
    found = position_similarity(model_of())

    assert found.shape == (9, 3, 3)
    assert torch.allclose(found.flatten(1).diagonal(), torch.ones(9))
    assert torch.allclose(found.flatten(1), found.flatten(1).T)


def test_another_kind_of_model_is_refused():
    with pytest.raises(UsageError, match="not for Linear"):
        attention_rollout(torch.nn.Linear(2, 2), images())


def test_colours_run_from_dark_to_bright():
    colours = coloured(np.array([[0.0, 0.5, 1.0, 2.0]]))

    assert colours.tolist() == [[[68, 1, 84], [33, 144, 141], [253, 231, 37], [253, 231, 37]]]


def test_the_image_shows_the_image_and_is_brightest_where_attention_is():
    image = np.full((3, 24, 24), 100, dtype=np.uint8)
    rollout = np.zeros((3, 3))
    rollout[0, 2] = 1.0  # top right
    similarity = np.eye(9).reshape(9, 3, 3)

    png = draw_explanation(image, rollout, similarity, "a title " * 50)

    page = np.asarray(Image.open(io.BytesIO(png)))
    left, middle, right = (page[28:412, 16 + n * 400 :][:, :384].astype(int) for n in range(3))
    assert (left == 100).all()
    assert middle[20, 363].tolist() == [192, 179, 62]  # 0.4 grey, 0.6 yellow
    assert middle[363, 20].tolist() == [81, 41, 90]
    yellow = (right == [253, 231, 37]).all(axis=2)
    assert yellow.any(axis=0).any()
    rows, columns = np.nonzero(yellow)
    assert np.corrcoef(rows, columns)[0, 1] == pytest.approx(0, abs=0.2)  # one spot in each tile


@pytest.mark.parametrize("title", ["two\nlines", "übergroß 猫 \x1b[31m", "\r\n\x85\u2028"])
def test_any_file_name_is_a_title(title):
    image = np.zeros((3, 24, 24), dtype=np.uint8)

    assert draw_explanation(image, np.ones((3, 3)), np.ones((9, 3, 3)), title)


def test_even_attention_is_drawn():
    image = np.zeros((3, 24, 24), dtype=np.uint8)

    assert draw_explanation(image, np.ones((3, 3)), np.ones((9, 3, 3)), "").startswith(b"\x89PNG")
