"""Oracle of the compiled crops: `open_picture` and torch's resampling, to the bit."""

import io
import random
from itertools import product

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("simplejpeg")

from PIL import Image  # noqa: E402 (after importorskip)

from vit21k.compiled import NoCompilerError  # noqa: E402
from vit21k.data import loader as loader_module  # noqa: E402
from vit21k.data import random_crops  # noqa: E402
from vit21k.data.augment import policy_named  # noqa: E402
from vit21k.data.decode import is_readable_jpeg  # noqa: E402
from vit21k.data.loader import TrainLoader  # noqa: E402
from vit21k.data.picture_file import open_picture  # noqa: E402
from vit21k.data.resample import resample  # noqa: E402
from vit21k.data.sampler import StepSampler  # noqa: E402
from vit21k.data.transforms import TrainTransform  # noqa: E402
from vit21k.errors import ImageError  # noqa: E402
from vit21k.jpeg import crops as crops_module  # noqa: E402
from vit21k.jpeg.crops import Crop, crop_decoder  # noqa: E402

SIZES = ((67, 53), (64, 48), (5, 9), (33, 17))
MODES = ("bilinear", "bicubic")


def compiled(*flags):
    try:
        return crop_decoder(*flags)
    except NoCompilerError as error:
        pytest.skip(str(error))


@pytest.fixture
def decoder():
    return compiled()


def jpeg(size=SIZES[0], mode="RGB", **options):
    """Colours that change from pixel to pixel, so that interpolated chroma shows."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 3 + c) + np.cos(y / 2 - 2 * c) for c in range(3)], axis=2)
    noise = np.random.default_rng(0).normal(0, 20, waves.shape)
    image = Image.fromarray((128 + 50 * waves + noise).clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    image.convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


PLAIN = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "grey": {"mode": "L"},
    "hardly compressed": {"quality": 100, "subsampling": 0},
    "hardly anything left": {"quality": 1},
    "tables of its own": {"optimize": True},
    "tiles": {"restart_marker_blocks": 1},
    "tiles of a row, 4:2:0": {"restart_marker_rows": 1, "subsampling": 2},
    "a comment and a profile": {"comment": b"words", "icc_profile": b"profile" * 99},
}
NOT_PLAIN = {
    "progressive": {"progressive": True},
    "RGB kept": {"keep_rgb": True},
    "CMYK": {"mode": "CMYK"},
}


def compiled_crop(decoder, content, crop, size, mode):
    """Return the crop as the compiled code makes it, or None if it refuses."""
    if not decoder.measure([content])[0]:
        return None
    images_BCHW = np.zeros((2, 3, size, size), dtype=np.uint8)
    (is_done,) = decoder.crop([content], [crop], images_BCHW, [1], mode)
    assert not images_BCHW[0].any()
    return images_BCHW[1] if is_done else None


def ordinary_crop(content, crop, size, mode):
    picture = open_picture(content)
    image_CHW = resample(picture.region(crop.box), (size, size), mode)
    return (image_CHW.flip(2) if crop.is_flipped else image_CHW).numpy()


def random_crop(draw, size):
    width, height = size
    left, top = draw.randrange(width), draw.randrange(height)
    box = (left, top, draw.randint(left + 1, width), draw.randint(top + 1, height))
    return Crop(draw.choice([box, (0, 0, width, height)]), draw.random() < 0.5)


@pytest.mark.parametrize("kind", PLAIN)
def test_every_crop_of_a_plain_jpeg_is_that_of_libjpeg_turbo_and_torch(decoder, kind):
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


def test_crops_of_every_scale_are_those_of_torch_on_any_processor():
    contents = [jpeg((500, 375)), jpeg((7, 301)), jpeg((90, 31))]
    draw = random.Random(1)
    for side, mode, content in product((1, 7, 8, 31, 224), MODES, contents):
        facts = compiled().measure([content])[0]
        for crop in [random_crop(draw, (facts.width, facts.height)) for _ in range(4)]:
            expected = ordinary_crop(content, crop, side, mode)
            for flags in ([], ["-DPORTABLE"]):
                found = compiled_crop(compiled(*flags), content, crop, side, mode)
                np.testing.assert_array_equal(found, expected)


def mutated(draw, content):
    content = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at, what = (
            draw.randrange(min(len(content) - 10, draw.choice([30, 700, 9999]))),
            draw.random(),
        )
        if what < 0.7:
            content[at] = draw.randrange(256)
        elif what < 0.8:
            del content[at : at + draw.randint(1, 9)]
        elif what < 0.95:
            content[at:at] = bytes(
                [255, draw.choice(b"\0\xff\xd9\xd0\xd3\xda\xc4\xdb\xfe\xe0\xed")]
            )
        else:
            content = content[: at + 20]
    return bytes(content)


def test_no_damage_makes_another_picture_or_another_verdict(decoder):
    draw, num_cropped = random.Random(0), 0
    contents = [jpeg(draw.choice(SIZES), **options) for options in PLAIN.values()]
    for _ in range(4000):
        content = mutated(draw, draw.choice(contents))
        facts = decoder.measure([content])[0]
        if not facts or facts.width * facts.height > 100_000:
            continue
        assert facts.has_odd_metadata or is_readable_jpeg(content)
        crop = random_crop(draw, (facts.width, facts.height))
        found = compiled_crop(decoder, content, crop, 16, "bilinear")
        if found is not None and is_readable_jpeg(content):
            num_cropped += 1
            np.testing.assert_array_equal(found, ordinary_crop(content, crop, 16, "bilinear"))
    assert num_cropped > 500


class Files:
    """Pictures in memory."""

    def __init__(self, contents):
        self._contents = contents

    def __len__(self):
        return len(self._contents)

    def path(self, row):
        return f"{row}"

    def read_bytes(self, row):
        if self._contents[row] is None:
            raise ImageError("the file is not there")
        return self._contents[row]

    def labels_of(self, rows_B):
        return np.arange(len(rows_B)), rows_B


def mixed_files():
    contents = [jpeg(size, **options) for size, options in product(SIZES, PLAIN.values())]
    contents += [jpeg(**options) for options in NOT_PLAIN.values()]
    return Files([*contents, None, b"no picture", contents[0][:300]])


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
        return [[part.tolist() for part in batch] for batch in made], dict(loader.skipped)


@pytest.mark.parametrize("on_bad_image", ["skip", "replace"])
def test_batches_are_the_same_without_a_compiler(decoder, on_bad_image, monkeypatch):
    files = mixed_files()
    compiled = [batches(files, on_bad_image, num_workers) for num_workers in (0, 2)]
    monkeypatch.setattr(loader_module, "compiled_crops", lambda: None)
    assert compiled == [batches(files, on_bad_image, num_workers=0)] * 2


def test_a_bad_picture_is_named_as_ever(decoder):
    with pytest.raises(ImageError, match="the file is not there"):
        batches(Files([None] * 40), "fail", num_workers=0)


def test_without_a_compiler_there_is_another_way(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "false")
    monkeypatch.setattr(random_crops, "crop_decoder", crops_module.crop_decoder.__wrapped__)
    assert random_crops.compiled_crops() is None
    files = Files([jpeg()] * 40)
    assert len(batches(files, "fail", num_workers=0)[0]) == 3
