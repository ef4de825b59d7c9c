"""Oracle: torchvision's transforms on the same PIL image."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vit21k.data.rng import uniform_values
from vit21k.data.transforms import EvalTransform, TrainTransform, crop_box
from vit21k.errors import ImageError, UsageError

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
INTERPOLATIONS = ["bicubic", "bilinear"]


def original(width, height):
    """A smooth image with some noise, as an image is."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 9 + c) + np.cos(y / 7 - c) for c in range(3)]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    pixels = 128 + 50 * np.stack(waves, axis=2) + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draws_of(position, num_uniforms=TrainTransform.num_uniforms):
    return uniform_values(0, np.array([position]), num_uniforms)[0]


def chw(image):
    return np.asarray(image).transpose(2, 0, 1)


class Numbers:
    """Feeds given uniform numbers to torchvision in the order in which it asks for them."""

    def __init__(self, uniforms):
        self.tries = iter(uniforms[3:])
        self.places = iter(uniforms[1:3])

    def uniform_(self, low, high):
        self.value = float(low) + next(self.tries) * (float(high) - float(low))
        return self

    def item(self):
        return self.value

    __float__ = item


@given(
    width=st.integers(1, 900),
    height=st.integers(1, 900),
    position=st.integers(0, 10**6),
    scale=st.sampled_from([SCALE, (0.05, 1.0), (0.9, 1.0)]),
)
@settings(max_examples=200)
def test_the_crop_is_torchvisions_for_the_same_numbers(width, height, position, scale):
    transforms = pytest.importorskip("torchvision.transforms.transforms")
    torch = pytest.importorskip("torch")
    uniforms = draws_of(position).tolist()
    numbers = Numbers(uniforms)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", lambda _: numbers)
        patch.setattr(
            torch,
            "randint",
            lambda low, high, size: torch.tensor(int(next(numbers.places) * high)),
        )
        patch.setattr(torch, "exp", lambda value: torch.tensor(math.exp(value), dtype=float))
        patch.setattr(torch, "log", lambda value: [math.log(part) for part in RATIO])
        top, left, h, w = transforms.RandomResizedCrop.get_params(
            Image.new("RGB", (width, height)), list(scale), list(RATIO)
        )

    box = crop_box((width, height), uniforms, scale=scale, ratio=RATIO)
    assert box == (left, top, left + w, top + h)


@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    uniforms=st.lists(st.floats(0, 1, exclude_max=True), min_size=23, max_size=23),
)
@settings(max_examples=200)
def test_a_crop_is_within_the_image(width, height, uniforms):
    left, top, right, bottom = crop_box((width, height), uniforms, scale=SCALE, ratio=RATIO)

    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_crops_have_uniform_areas_and_reach_every_corner():
    boxes = np.array(
        [
            crop_box((1000, 1000), uniforms.tolist(), scale=(0.2, 0.6), ratio=RATIO)
            for uniforms in uniform_values(1, np.arange(4000), 23)
        ]
    )
    left, top, right, bottom = boxes.T
    areas = (right - left) * (bottom - top) / 1e6
    ratios = np.log((right - left) / (bottom - top))

    assert areas.mean() == pytest.approx(0.4, abs=0.01)
    assert areas.std() == pytest.approx(0.4 / math.sqrt(12), abs=0.01)
    assert ratios.mean() == pytest.approx(0.0, abs=0.01)
    for low, high in ((left, right), (top, bottom)):
        assert low.min() < 5
        assert high.max() > 995
        assert (low + high).mean() / 2 == pytest.approx(500, abs=6)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("img_size", [32, 224, 600])
def test_a_train_image_is_the_crop_resized(interpolation, img_size):
    """Torchvision's on a PIL image: cut first, then resized, antialiased."""
    functional = pytest.importorskip("torchvision.transforms.functional")
    image = original(500, 375)
    transform = TrainTransform(img_size, interpolation=interpolation, hflip=0.0)
    mode = functional.InterpolationMode(interpolation)

    for position in range(10):
        uniforms = draws_of(position)
        left, top, right, bottom = crop_box(image.size, uniforms.tolist(), scale=SCALE, ratio=RATIO)
        expected = functional.resized_crop(
            image, top, left, bottom - top, right - left, [img_size, img_size], mode
        )
        difference = np.abs(transform(image, uniforms).astype(int) - chw(expected))
        assert difference.mean() <= 0.4
        assert np.mean(difference > 1) <= (0 if interpolation == "bilinear" else 0.001)


def test_a_crop_of_the_final_size_keeps_its_pixels():
    image = original(48, 48)
    transform = TrainTransform(48, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), hflip=0.0)

    assert np.array_equal(transform(image, draws_of(0)), chw(image))


def test_flips_come_with_their_probability_and_mirror_the_image():
    image = original(64, 64)
    plain = TrainTransform(32, hflip=0.0)
    flipped = TrainTransform(32, hflip=1.0)
    half = TrainTransform(32, hflip=0.5)

    num_flips = 0
    for position in range(300):
        uniforms = draws_of(position)
        mirrored = plain(image, uniforms)[:, :, ::-1]
        assert np.array_equal(flipped(image, uniforms), mirrored)
        num_flips += np.array_equal(half(image, uniforms), mirrored)

    assert num_flips == pytest.approx(150, abs=45)


def test_small_images_are_enlarged():
    transformed = TrainTransform(32)(original(8, 6), draws_of(0))

    assert transformed.shape == (3, 32, 32)
    assert transformed.dtype == np.uint8


def test_the_result_is_written_in_place():
    out = np.zeros((2, 3, 32, 32), dtype=np.uint8)
    image, uniforms = original(50, 40), draws_of(0)

    TrainTransform(32)(image, uniforms, out[0])
    EvalTransform(32)(image, out[1])

    assert np.array_equal(out[0], TrainTransform(32)(image, uniforms))
    assert np.array_equal(out[1], EvalTransform(32)(image))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 333), (257, 1001), (40, 31)])
@pytest.mark.parametrize(("img_size", "resize"), [(224, 256), (224, None), (32, 37), (225, 256)])
def test_the_middle_is_torchvisions_to_the_pixel(img_size, resize, size, interpolation):
    transforms = pytest.importorskip("torchvision.transforms")
    mode = transforms.InterpolationMode(interpolation)
    image = original(*size)

    ours = EvalTransform(img_size, resize, interpolation=interpolation)(image)

    theirs = transforms.Compose(
        [transforms.Resize(resize or img_size, mode), transforms.CenterCrop(img_size)]
    )
    assert np.array_equal(ours, chw(theirs(image)))


def test_squash_resizes_both_sides():
    image = original(90, 50)

    squashed = EvalTransform(32, mode="squash", interpolation="bilinear")(image)

    assert np.array_equal(squashed, chw(image.resize((32, 32), Image.Resampling.BILINEAR)))


def test_squash_crops_the_middle_of_a_larger_square():
    image = Image.fromarray(np.random.default_rng(3).integers(0, 255, (50, 40, 3), np.uint8))

    found = EvalTransform(32, 41, mode="squash", margin="floor")(image)

    resized = image.resize((41, 41), Image.Resampling.BICUBIC)
    assert np.array_equal(found, chw(resized.crop((4, 4, 36, 36))))


@pytest.mark.parametrize("mode", ["center_crop", "squash"])
def test_a_resize_that_cannot_be_is_refused(mode):
    with pytest.raises(UsageError, match="resized to"):
        EvalTransform(32, 16, mode=mode)


def test_a_strip_that_would_not_fit_into_memory_is_refused():
    with pytest.raises(ImageError, match="too extreme"):
        EvalTransform(224)(Image.new("RGB", (1, 30_000)))
