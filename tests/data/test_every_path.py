"""Every way to the pixels of a file accepts the same files, and gives the same pixels."""

import struct
from functools import cache
from pathlib import Path

import jpeg_kinds
import malformed_images
import numpy as np
import pytest
from conftest import needs_extension

from vit21k.data.decode import decode_rgb
from vit21k.data.loader import EvalLoader
from vit21k.data.transforms import (
    Crop,
    EvalTransform,
    ResizedImages,
    compiled_crops,
    fill_fast,
    resample,
)
from vit21k.errors import ImageError
from vit21k.inference.files import Files
from vit21k.near.fingerprint import fingerprint, pixel_digest
from vit21k.pack.levels import Lossless, Raw, Resized
from vit21k.prep.decode_worker import verdict_on

DATA = Path(__file__).parents[1] / "fixtures" / "images"
SIDE = 8
TRANSFORM = EvalTransform(SIDE)


def of_size(content, width, height):
    """Return a baseline JPEG whose header says that it is of this size."""
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


FILES = {
    **{path.name: path.read_bytes() for path in sorted(DATA.iterdir())},
    **{name: content for name, (content, _) in malformed_images.named().items()},
    **{name: jpeg_kinds.jpeg(**how) for name, how in jpeg_kinds.PLAIN.items()},
    **{name: jpeg_kinds.jpeg(**how) for name, how in jpeg_kinds.NOT_PLAIN.items()},
    **jpeg_kinds.UNUSUAL,
    **{
        f"JPEG of {width} x {height}": jpeg_kinds.jpeg((width, height), mode="L")
        for width, height in ((65_500, 2), (2, 65_500))
    },
    **{
        f"JPEG that says {width} x {height}": of_size(jpeg_kinds.jpeg(), width, height)
        for width, height in ((65_501, 8), (8, 65_501), (65_535, 1), (1, 65_535), (0, 9))
    },
    "tiles that say 65,535 x 8": of_size(jpeg_kinds.jpeg(restart_marker_blocks=1), 65_535, 8),
    "PPM of 20,000,000 x 1": b"P6\n20000000 1\n255\n",
    "PPM": b"P6\n2 1\n255\nabcdef",
}


@cache
def expected(name):
    """Return the image by the policy; None if it is refused."""
    try:
        return decode_rgb(FILES[name])
    except ImageError:
        return None


def outcome(function):
    """Return what a function returns, or None if it raised an ImageError and nothing else."""
    try:
        return function()
    except ImageError:
        return None


@needs_extension
@pytest.mark.parametrize("name", FILES)
def test_a_crop_at_the_top_is_refused_where_the_image_is(name):
    """Decoding fewer rows must not make a file acceptable that is not."""
    decoder = compiled_crops()
    images_BCHW = np.zeros((1, 3, SIDE, SIDE), dtype=np.uint8)

    filled = fill_fast(
        decoder,
        {0: FILES[name]},
        images_BCHW,
        lambda _place, size: Crop((0, 0, size[0], 1)),
        "bilinear",
        "torch",
    )

    if filled:
        top = np.array(expected(name))[:1]
        assert np.array_equal(images_BCHW[0], resample(top, (SIDE, SIDE), "bilinear").numpy())


@needs_extension
def test_the_compiled_decoder_accepts_nothing_that_the_policy_refuses():
    decoder = compiled_crops()
    contents = dict(enumerate(FILES.values()))
    images = np.zeros((len(contents), 3, SIDE, SIDE), dtype=np.uint8)

    filled = ResizedImages(TRANSFORM, decoder).fill(contents, images)

    assert filled
    for place, name in enumerate(FILES):
        if place in filled:
            assert expected(name) is not None, name
            assert np.array_equal(images[place], TRANSFORM(expected(name))), name


def test_the_loader_skips_what_the_policy_refuses_and_gives_its_pixels():
    names = list(FILES)
    files = Files(names, dict(enumerate(FILES.values())))
    with EvalLoader(
        files, TRANSFORM, device_batch_size=8, num_workers=0, on_bad_image="skip"
    ) as loader:
        found = {
            names[row]: image_CHW.numpy()
            for batch in loader
            for row, image_CHW in zip(batch.rows_B.tolist(), batch.images_BCHW, strict=True)
        }

    assert set(found) == {name for name in names if expected(name) is not None}
    assert set(loader.skipped) == set(names) - set(found)
    for name, image_CHW in found.items():
        assert np.array_equal(image_CHW, TRANSFORM(expected(name))), name


@pytest.mark.parametrize("name", FILES)
def test_verify_accepts_what_the_policy_does(name):
    assert (verdict_on(FILES[name]) is None) == (expected(name) is not None)


@pytest.mark.parametrize("name", FILES)
def test_a_fingerprint_is_of_the_pixels_of_the_policy(name):
    found = outcome(lambda: fingerprint(FILES[name]))

    assert (found is None) == (expected(name) is None)
    assert found is None or found.pixel_digest == pixel_digest(expected(name))


def pack_level(level, request):
    if level == "raw":
        return Raw(4)
    request.getfixturevalue("native_extension")
    return Lossless() if level == "lossless" else Resized(4, 90)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("level", ["lossless", "short side", "raw"])
def test_a_pack_keeps_what_the_policy_accepts(level, name, request):
    packed = outcome(lambda: pack_level(level, request)(FILES[name]))

    assert (packed is None) == (expected(name) is None)
    if packed and level == "lossless":
        assert np.array_equal(decode_rgb(packed.content), expected(name))
    if packed:
        assert decode_rgb(packed.content).size == packed.size
