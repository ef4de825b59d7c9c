"""Oracle of evaluation transforms: bit-identical to Pillow's decoding and resizing."""

import random
from itertools import product

import numpy as np
import pytest
from conftest import needs_extension
from jpeg_kinds import (
    PLAIN,
    SIZES,
    VARIANTS,
    Files,
    compiled,
    image,
    jpeg,
    mixed_files,
    mutated,
)
from PIL import Image

from vit21k.data import loader as loader_module
from vit21k.data import transforms
from vit21k.data.decode import decode_rgb
from vit21k.data.loader import EvalLoader
from vit21k.data.transforms import Crop, EvalTransform, ResizedImages
from vit21k.errors import ImageError
from vit21k.pack.levels import to_ppm

TRANSFORMS = {
    "as usual": EvalTransform(224, 256),
    "all of the shorter side": EvalTransform(40, interpolation="bilinear"),
    "large": EvalTransform(100, 120, interpolation="bilinear"),
    "a pixel": EvalTransform(1),
    "seven pixels": EvalTransform(7, 9, interpolation="bilinear"),
    "odd margins": EvalTransform(32, 37),
    "odd margins, rounded down": EvalTransform(32, 37, margin="floor"),
    "squashed": EvalTransform(24, mode="squash"),
    "squashed, then the middle": EvalTransform(24, 29, mode="squash", margin="floor"),
    "squashed, larger": EvalTransform(90, mode="squash", interpolation="bilinear"),
}
MORE_SIZES = (*SIZES, (40, 40), (100, 75), (60, 95), (13, 9), (300, 9), (9, 300), (40, 170))


def filled_and_expected(transform, contents, variant=None):
    """Return the results of the compiled code, by index, and those of Pillow."""
    images = ResizedImages(transform, compiled(variant))
    images_BCHW, expected_BCHW = np.zeros(
        (2, len(contents), 3, transform.img_size, transform.img_size), dtype=np.uint8
    )
    places = images.fill(dict(enumerate(contents)), images_BCHW)
    for place in places:
        images(decode_rgb(contents[place]), place, expected_BCHW[place])
    assert not np.delete(images_BCHW, list(places), axis=0).any()
    return places, images_BCHW, expected_BCHW


@needs_extension
@pytest.mark.parametrize("kind", TRANSFORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_baseline_jpeg_is_resized_as_pillow_does(kind, variant):
    contents = [jpeg(size, **how) for size, how in product(MORE_SIZES, PLAIN.values())]
    contents += [to_ppm(image(size)) for size in MORE_SIZES]
    places, found_BCHW, expected_BCHW = filled_and_expected(TRANSFORMS[kind], contents, variant)
    assert len(places) == len(contents)
    np.testing.assert_array_equal(found_BCHW[list(places)], expected_BCHW[list(places)])


@needs_extension
def test_a_photo_is_resized_as_pillow_does():
    contents = [jpeg((500, 375)), jpeg((333, 500), subsampling=0), jpeg((640, 640), mode="L")]
    for transform in (EvalTransform(224, 256), EvalTransform(384, interpolation="bilinear")):
        places, found_BCHW, expected_BCHW = filled_and_expected(transform, contents)
        assert places == {0, 1, 2}
        np.testing.assert_array_equal(found_BCHW, expected_BCHW)


@needs_extension
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_columns_go_first_where_pillow_takes_them_first(interpolation):
    contents = [jpeg((width, height)) for width in (20, 31, 64) for height in (20, 40, 61, 90, 128)]
    for side in (8, 20, 31, 50):
        transform = EvalTransform(side, mode="squash", interpolation=interpolation)
        places, found_BCHW, expected_BCHW = filled_and_expected(transform, contents)
        assert len(places) == len(contents)
        np.testing.assert_array_equal(found_BCHW, expected_BCHW)


@needs_extension
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_takes_columns_first_can_be_flipped(variant):
    box, images_BCHW = (2, 1, 30, 87), np.zeros((2, 3, 13, 13), dtype=np.uint8)
    crops = [Crop(box, is_flipped, takes_columns_first=True) for is_flipped in (False, True)]
    files = [jpeg((31, 90))] * 2
    assert compiled(variant).crop(files, crops, images_BCHW, [0, 1], "bicubic", "pillow")
    assert images_BCHW[0].any()
    np.testing.assert_array_equal(images_BCHW[0], images_BCHW[1, :, :, ::-1])


@needs_extension
def test_an_older_pillow_takes_rows_first(monkeypatch):
    monkeypatch.setattr(transforms, "_pillow_orders_passes", lambda: False)
    transform = EvalTransform(8, mode="squash")
    _, found_BCHW, _ = filled_and_expected(transform, [jpeg((20, 128))])
    whole = decode_rgb(jpeg((20, 128)))
    how = Image.Resampling.BICUBIC
    expected_HWC = np.asarray(whole.resize((8, 128), how).resize((8, 8), how))
    np.testing.assert_array_equal(found_BCHW[0], expected_HWC.transpose(2, 0, 1))


def test_without_the_compiled_code_nothing_is_filled():
    images_BCHW = np.zeros((1, 3, 8, 8), dtype=np.uint8)
    assert ResizedImages(EvalTransform(8)).fill({0: jpeg()}, images_BCHW) == set()


@needs_extension
def test_no_damage_makes_another_image_or_another_verdict():
    draw, num_filled = random.Random(2), 0
    kinds = [jpeg(draw.choice(MORE_SIZES), **options) for options in PLAIN.values()]
    for _ in range(60):
        contents = [mutated(draw, draw.choice(kinds)) for _ in range(40)]
        contents = [
            content
            for content, facts in zip(contents, compiled().measure(contents), strict=True)
            if facts and facts.width * facts.height < 100_000
        ]
        transform = draw.choice([EvalTransform(8, 12), EvalTransform(16, mode="squash")])
        places, found_BCHW, expected_BCHW = filled_and_expected(transform, contents)
        np.testing.assert_array_equal(found_BCHW[list(places)], expected_BCHW[list(places)])
        num_filled += len(places)
    assert num_filled > 300


def batches(files, num_workers):
    loader = EvalLoader(
        files,
        EvalTransform(20, 24),
        device_batch_size=16,
        num_workers=num_workers,
        on_bad_image="skip",
    )
    with loader:
        return [[part.tolist() for part in batch[:5]] for batch in loader], dict(loader.skipped)


@needs_extension
def test_evaluation_is_the_same_without_a_compiler(monkeypatch):
    files = mixed_files()
    with_compiler = [batches(files, num_workers) for num_workers in (0, 2)]
    monkeypatch.setattr(loader_module, "compiled_crops", lambda: None)
    assert with_compiler == [batches(files, num_workers=0)] * 2
    assert len(with_compiler[0][1]) == 3


def test_a_strip_is_refused_as_ever():
    files = Files([jpeg((1, 30_000))])
    with (
        EvalLoader(files, EvalTransform(224), device_batch_size=1, num_workers=0) as loader,
        pytest.raises(ImageError, match="too extreme"),
    ):
        list(loader)
