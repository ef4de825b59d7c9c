"""`tools/bench/tile_cuts.py`: the pixels of a cut are those of the complete image."""

import io
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from photolike import encoded, photolike
from PIL import Image
from tile_cuts import parse_tile_jpeg

from vit21k.data.transforms import crop_box

IMAGE = photolike(3, (203, 117))
VARIANTS = {
    **{
        subsampling: encoded(IMAGE, quality=90, subsampling=subsampling, restart_marker_blocks=1)
        for subsampling in ("4:4:4", "4:2:2", "4:2:0", "4:1:1")
    },
    "grey": encoded(IMAGE.convert("L"), restart_marker_blocks=2),
    "RGB": encoded(IMAGE, keep_rgb=True, restart_marker_blocks=1),
    "rows": encoded(IMAGE, restart_marker_rows=1),
    "a strip": encoded(photolike(2, (900, 9)), restart_marker_blocks=1),
}


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_crop_of_the_tiles_has_the_pixels_of_the_whole(name):
    content = VARIANTS[name]
    whole, tiles = pixels(content), parse_tile_jpeg(content)
    draws = np.random.default_rng(0).random((25, 24))

    for numbers in draws.tolist():
        left, top, right, bottom = crop_box(tiles.size, numbers, scale=(0.01, 1), ratio=(0.5, 2))
        if (cut := tiles.cut((left, top, right, bottom))) is None:
            continue
        part = pixels(cut.content)[top - cut.top : bottom - cut.top]
        part = part[:, left - cut.left : right - cut.left]
        assert np.array_equal(part, whole[top:bottom, left:right])


@pytest.mark.parametrize("width", range(65, 71))
def test_the_last_columns_have_the_pixels_of_the_whole_however_few_they_are(width):
    content = encoded(photolike(6, (width, 40)), restart_marker_blocks=1, subsampling=2)

    cut = parse_tile_jpeg(content).cut((width - 1, 1, width, 38))

    part = pixels(cut.content)[1 - cut.top : 38 - cut.top, width - 1 - cut.left]
    assert np.array_equal(part, pixels(content)[1:38, width - 1])


def test_a_small_crop_needs_a_small_part_of_the_file():
    content = encoded(photolike(5, (640, 480)), quality=90, restart_marker_blocks=5)

    cut = parse_tile_jpeg(content).cut((300, 200, 340, 240))

    assert len(cut.content) < len(content) / 8


def test_what_has_no_tiles_is_not_cut():
    assert parse_tile_jpeg(encoded(IMAGE)) is None
    assert parse_tile_jpeg(b"") is None


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32))
def test_damaged_tile_jpegs_are_cut_or_left_whole_but_raise_nothing(seed):
    chance = random.Random(seed)
    content = bytearray(VARIANTS["4:2:0"])
    for _ in range(chance.randint(1, 4)):
        content[chance.randrange(len(content))] = chance.randrange(256)

    tiles = parse_tile_jpeg(bytes(content))

    assert tiles is None or tiles.cut((10, 10, 60, 60)) is None or tiles.size
