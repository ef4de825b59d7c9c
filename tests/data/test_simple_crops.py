"""DeiT III's simple crops (`data.crop: simple`): torchvision's pixels, by either decoder."""

from collections.abc import Sequence

import numpy as np
import pytest
from conftest import needs_extension
from jpeg_kinds import PLAIN, SIZES, compiled, jpeg
from numpy.typing import NDArray
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from vit21k.data.decode import decode_rgb
from vit21k.data.rng import uniform_values
from vit21k.data.transforms import RandomCrops, SimpleCropTransform
from vit21k.errors import ImageError

SIDE, PADDING = 24, 4
TRANSFORM = SimpleCropTransform(SIDE)
UNIFORMS = uniform_values(3, np.arange(60), TRANSFORM.num_uniforms)


def torchvision_crop(content: bytes, uniforms: Sequence[float]) -> NDArray[np.uint8]:
    """Resize, RandomCrop(padding=4, padding_mode="reflect"), flip, with the given random values."""
    resized = tv.resize(decode_rgb(content), [SIDE], InterpolationMode.BICUBIC)
    padded = tv.pad(resized, [PADDING], padding_mode="reflect")
    is_flipped, top, left = uniforms
    begin = [
        int(uniform * (length - SIDE + 1))
        for uniform, length in ((top, padded.height), (left, padded.width))
    ]
    crop = tv.crop(padded, *begin, SIDE, SIDE)
    return np.asarray(tv.hflip(crop) if is_flipped < 0.5 else crop).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [*SIZES, (24, 24), (60, 31), (31, 60), (9, 70)])
def test_pixels_are_torchvisions(size):
    content = jpeg(size)
    for uniforms in UNIFORMS[:20]:
        made = TRANSFORM(decode_rgb(content), uniforms)
        np.testing.assert_array_equal(made, torchvision_crop(content, uniforms))


@needs_extension
def test_the_compiled_decoder_makes_the_same_pixels():
    contents = [
        jpeg(size, **PLAIN[kind])
        for kind in list(PLAIN)[:4]
        for size in ((24, 24), (60, 31), (31, 60), (70, 19), (40, 300))
    ]
    images_BCHW = np.zeros((len(contents), 3, SIDE, SIDE), dtype=np.uint8)
    crops = RandomCrops(TRANSFORM, UNIFORMS, decoder=compiled())

    filled = crops.fill(dict(enumerate(contents)), images_BCHW)

    assert filled == set(range(len(contents)))
    for place, content in enumerate(contents):
        np.testing.assert_array_equal(
            images_BCHW[place], torchvision_crop(content, UNIFORMS[place])
        )


def test_every_start_occurs():
    crops = [
        TRANSFORM.crop((24, 30), row.tolist()) for row in uniform_values(0, np.arange(2000), 3)
    ]
    columns = {crop.window[0] + abs(crop.shift[0]) for crop in crops}
    rows = {crop.window[1] + crop.shift[1] for crop in crops}

    assert columns == set(range(PADDING + 1))
    assert rows == set(range(-PADDING, 30 - SIDE + PADDING + 1))


def test_an_extreme_aspect_ratio_is_a_bad_image():
    crops = RandomCrops(SimpleCropTransform(4000), UNIFORMS)
    with pytest.raises(ImageError, match="aspect ratio"):
        crops(decode_rgb(jpeg((60_000, 1))), 0, np.zeros((3, 4000, 4000), dtype=np.uint8))
