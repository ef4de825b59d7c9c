"""Oracle of the compiled crops: bit-identical to `decode_rgb` and torch's resampling."""

import random
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import needs_extension
from jpeg_kinds import (
    NOT_PLAIN,
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

from vit21k._native import NoExtensionError, variants
from vit21k.data import loader as loader_module
from vit21k.data import transforms
from vit21k.data.augment import policy_named
from vit21k.data.decode import decode_rgb, is_readable_jpeg
from vit21k.data.loader import TrainLoader
from vit21k.data.sampler import StepSampler
from vit21k.data.transforms import Crop, TrainTransform, resample
from vit21k.errors import ImageError
from vit21k.pack.levels import to_ppm

MODES = ("bilinear", "bicubic")


@pytest.fixture
def decoder(native_extension):
    return compiled()


def compiled_crop(decoder, content, crop, size, mode):
    """Return the crop as the compiled code makes it, or None if it refuses."""
    if not decoder.measure([content])[0]:
        return None
    images_BCHW = np.zeros((2, 3, size, size), dtype=np.uint8)
    (is_done,) = decoder.crop([content], [crop], images_BCHW, [1], mode)
    assert not images_BCHW[0].any()
    return images_BCHW[1] if is_done else None


def ordinary_crop(content, crop, size, mode):
    pixels_HWC = np.array(decode_rgb(content).crop(crop.box))
    image_CHW = resample(pixels_HWC, (size, size), mode)
    return (image_CHW.flip(2) if crop.is_flipped else image_CHW).numpy()


def random_crop(draw, size):
    width, height = size
    left, top = draw.randrange(width), draw.randrange(height)
    box = (left, top, draw.randint(left + 1, width), draw.randint(top + 1, height))
    return Crop(draw.choice([box, (0, 0, width, height)]), draw.random() < 0.5)


@pytest.mark.parametrize("kind", PLAIN)
def test_every_crop_of_a_baseline_jpeg_is_that_of_libjpeg_turbo_and_torch(decoder, kind):
    draw = random.Random(kind)
    for size, mode in product(SIZES, MODES):
        content = jpeg(size, **PLAIN[kind])
        for side in (1, 16, 40, 224):
            crop = random_crop(draw, size)
            found = compiled_crop(decoder, content, crop, side, mode)
            assert found is not None
            np.testing.assert_array_equal(found, ordinary_crop(content, crop, side, mode))


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_what_is_not_plain_is_refused(decoder, kind):
    assert decoder.measure([jpeg(**NOT_PLAIN[kind])]) == [None]


@needs_extension
@pytest.mark.parametrize("variant", VARIANTS)
def test_crops_of_raw_images_are_those_of_torch(variant):
    draw = random.Random(4)
    for size, mode in product((*SIZES, (1, 1), (2, 90)), MODES):
        content = to_ppm(image(size))
        for side in (1, 16, 40):
            crop = random_crop(draw, size)
            found = compiled_crop(compiled(variant), content, crop, side, mode)
            np.testing.assert_array_equal(found, ordinary_crop(content, crop, side, mode))


def test_only_raw_images_of_ours_are_taken(decoder):
    content = to_ppm(image((7, 3)))
    assert decoder.measure([content]) == [(7, 3, False)]
    others = [
        content[:-1],
        content + b"\0",
        content.replace(b"255", b"127"),
        content.replace(b"P6\n", b"P6 "),
        content.replace(b"7 3", b"0000007 3"),
        content.replace(b"7 3", b"7 0"),
        content.replace(b"7 3", b"70 30"),
        b"P6\n65536 1\n255\n" + bytes(3 * 65536),
        *(content[:length] for length in range(len(content))),
    ]
    assert decoder.measure(others) == [None] * len(others)


def test_what_is_no_jpeg_is_refused(decoder):
    assert decoder.measure([b"", b"\xff", b"\xff\xd8\xff", b"GIF89a" * 9]) == [None] * 4


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_truncated_jpeg_is_refused(decoder, share):
    content = jpeg()
    truncated = content[: int(len(content) * share)]
    assert compiled_crop(decoder, truncated, Crop((0, 0, 67, 53), False), 16, "bilinear") is None


def test_coefficients_that_leave_16_bits_are_refused(decoder):
    content = bytearray(jpeg(quality=100, subsampling=0))
    table = content.index(b"\xff\xdb") + 5
    content[table : table + 64] = bytes([255] * 64)
    crop = Crop((0, 0, *SIZES[0]), is_flipped=False)
    assert compiled_crop(decoder, bytes(content), crop, 16, "bilinear") is None


def test_a_photo_and_a_tall_strip_are_resized_as_torch_does(decoder):
    for size in ((500, 375), (9, 700)):
        content, crop = jpeg(size), Crop((0, 0, *size), is_flipped=True)
        found = compiled_crop(decoder, content, crop, 32, "bicubic")
        np.testing.assert_array_equal(found, ordinary_crop(content, crop, 32, "bicubic"))


@needs_extension
def test_crops_of_every_scale_are_those_of_torch_on_any_processor():
    contents = [jpeg((500, 375)), jpeg((7, 301)), jpeg((90, 31))]
    draw = random.Random(1)
    for side, mode, content in product((1, 7, 8, 31, 224), MODES, contents):
        facts = compiled().measure([content])[0]
        for crop in [random_crop(draw, (facts.width, facts.height)) for _ in range(4)]:
            expected = ordinary_crop(content, crop, side, mode)
            for variant in variants():
                found = compiled_crop(compiled(variant), content, crop, side, mode)
                np.testing.assert_array_equal(found, expected)


def test_no_damage_makes_another_image_or_another_verdict(decoder):
    draw, num_cropped = random.Random(0), 0
    contents = [jpeg(draw.choice(SIZES), **options) for options in PLAIN.values()]
    for _ in range(4000):
        content = mutated(draw, draw.choice(contents))
        facts = decoder.measure([content])[0]
        if not facts or facts.width * facts.height > 100_000:
            continue
        assert facts.has_unusual_metadata or is_readable_jpeg(content)
        crop = random_crop(draw, (facts.width, facts.height))
        found = compiled_crop(decoder, content, crop, 16, "bilinear")
        if found is not None and is_readable_jpeg(content):
            num_cropped += 1
            np.testing.assert_array_equal(found, ordinary_crop(content, crop, 16, "bilinear"))
    assert num_cropped > 500


def batches(files, on_bad_image, num_workers):
    policy = policy_named(
        "rand",
        num_ops=2,
        magnitude=9,
        magnitude_std=0.5,
        color_jitter=0.0,
        mean=(0.5, 0.5, 0.5),
        interpolation="bilinear",
    )
    loader = TrainLoader(
        files,
        StepSampler(len(files), global_batch_size=40, seed=5),
        TrainTransform(24),
        device_batch_size=40,
        num_workers=num_workers,
        seed=5,
        policy=policy,
        on_bad_image=on_bad_image,
    )
    with loader:
        made = [batch for step in range(3) for batch in loader.micro_batches(step)]
        return [[part.tolist() for part in batch[:5]] for batch in made], dict(loader.skipped)


@pytest.mark.parametrize("on_bad_image", ["skip", "replace"])
def test_batches_are_the_same_without_a_compiler(decoder, on_bad_image, monkeypatch):
    files = mixed_files()
    compiled = [batches(files, on_bad_image, num_workers) for num_workers in (0, 2)]
    monkeypatch.setattr(loader_module, "compiled_crops", lambda: None)
    assert compiled == [batches(files, on_bad_image, num_workers=0)] * 2


def test_a_bad_image_is_named_as_ever(decoder):
    with pytest.raises(ImageError, match="the file is not there"):
        batches(Files([None] * 40), "fail", num_workers=0)


def test_without_the_extension_there_is_another_way(monkeypatch):
    def missing():
        raise NoExtensionError("it was not built")

    monkeypatch.setattr(transforms, "crop_decoder", missing)
    assert transforms.compiled_crops() is None
    files = Files([jpeg()] * 40)
    assert len(batches(files, "fail", num_workers=0)[0]) == 3


@needs_extension
@pytest.mark.parametrize("variant", VARIANTS)
def test_pixels_do_not_depend_on_the_files_before(variant):
    """Tables are kept from file to file, and small files begin with slower ones."""
    own = [
        jpeg(size, optimize=True, quality=quality)
        for size, quality in zip(SIZES, (30, 75, 90, 95), strict=True)
    ]
    contents = [
        own[0],
        own[1],
        own[0],
        own[0],
        jpeg(),
        jpeg(SIZES[1]),
        own[2],
        own[2],
        own[3],
        jpeg(),
    ]
    expected = [ordinary_crop(content, Crop((0, 0, 5, 9)), 16, "bilinear") for content in contents]
    images_BCHW = np.zeros((len(contents), 3, 16, 16), dtype=np.uint8)
    crops = [Crop((0, 0, 5, 9))] * len(contents)
    done = compiled(variant).crop(contents, crops, images_BCHW, range(len(contents)), "bilinear")
    assert all(done)
    np.testing.assert_array_equal(images_BCHW, np.stack(expected))


FUZZ_INPUTS = Path(__file__).parents[1] / "fixtures" / "fuzz"
REFUSED = {
    *("411", "440", "adobe_ycc", "cmyk", "ff00_header", "fill_bytes", "height_at_end"),
    *("progressive", "progressive_grey", "rgb", "wide_quantisers"),
    *("alpha", "big", "colour", "lossy", "palette"),  # no JPEGs
}


@needs_extension
@pytest.mark.parametrize("path", sorted(FUZZ_INPUTS.iterdir()), ids=lambda path: path.stem)
def test_inputs_of_the_fuzz_targets_are_decoded_as_elsewhere_or_refused(path):
    content = path.read_bytes()
    facts = compiled().measure([content])[0]
    assert (facts is None) == (path.stem in REFUSED)
    for variant in variants() if facts else ():
        crop = Crop((0, 0, facts.width, facts.height))
        found = compiled_crop(compiled(variant), content, crop, 16, "bilinear")
        assert (found is None) == (path.stem == "truncated")
        if found is not None:
            np.testing.assert_array_equal(found, ordinary_crop(content, crop, 16, "bilinear"))
