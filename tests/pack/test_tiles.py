"""A JPEG with restart markers: the same pixels as the file that it was made of."""

import io
import random

import numpy as np
import pytest
from conftest import needs_extension
from hypothesis import given, settings
from hypothesis import strategies as st
from photolike import encoded, photolike
from PIL import Image

from vit21k.pack.tiles import (
    NotTileableError,
    parse_jpeg,
    tile_jpeg,
    tile_width,
)

SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0", "4:1:1")


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def tiled(content: bytes, **options) -> bytes:
    return tile_jpeg(content, **options)


def variants() -> dict[str, bytes]:
    """JPEGs of all the kinds that are tiled."""
    image = photolike(3, (203, 117))
    files = {
        f"{subsampling} q{quality}": encoded(image, quality=quality, subsampling=subsampling)
        for subsampling in SUBSAMPLINGS
        for quality in (5, 90)
    }
    return files | {
        "grey": encoded(image.convert("L")),
        "CMYK": encoded(image.convert("CMYK")),
        "RGB": encoded(image, keep_rgb=True),
        "its own tables": encoded(image, optimize=True),
        "restart markers": encoded(image, restart_marker_blocks=5),
        "one pixel": encoded(Image.new("RGB", (1, 1), (200, 100, 50))),
        "one colour": encoded(Image.new("RGB", (90, 60), (9, 99, 199))),
        "noise": encoded(Image.effect_noise((70, 50), 150), quality=100),
        "a strip": encoded(photolike(2, (900, 9))),
    }


VARIANTS = variants()


@needs_extension
@pytest.mark.parametrize("name", VARIANTS)
def test_the_tiled_file_has_the_same_pixels(name):
    content = VARIANTS[name]

    again = tiled(content)

    assert np.array_equal(pixels(again), pixels(content))
    assert parse_jpeg(again).restart_interval


@needs_extension
def test_tiling_twice_changes_nothing():
    once = tiled(VARIANTS["4:2:0 q90"])

    assert tiled(once) == once


@needs_extension
def test_metadata_are_dropped_unless_they_are_kept_and_colours_do_not_depend_on_it():
    exif = Image.Exif()
    exif[0x010E] = "a description"
    content = encoded(photolike(4), exif=exif, comment=b"a comment", icc_profile=b"i" * 500)

    bare, full = tiled(content), tiled(content, keep_metadata=True)

    assert b"a comment" not in bare
    assert b"a description" not in bare
    assert all(text in full for text in (b"a comment", b"a description", b"i" * 500))
    assert np.array_equal(pixels(bare), pixels(full))


@needs_extension
def test_what_follows_the_end_is_skipped():
    content = VARIANTS["4:2:0 q90"]

    assert tiled(content + b"trailer") == tiled(content)


@needs_extension
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (encoded(photolike(1), progressive=True), "progressive"),
        (encoded(photolike(1), "PNG"), "not a JPEG"),
        (b"", "not a JPEG"),
        (VARIANTS["grey"][:300], "damaged"),
        (VARIANTS["4:2:0 q90"][:-900] + b"\xff\xd9", "damaged data"),
        (VARIANTS["4:2:0 q90"][:-900], "damaged data"),
    ],
)
def test_what_cannot_be_tiled_is_reported_with_the_reason(content, why):
    with pytest.raises(NotTileableError, match=why):
        tiled(content)


def test_the_size_of_a_jpeg_is_that_of_its_frame():
    frame = parse_jpeg(VARIANTS["4:2:0 q90"]).frame
    assert (frame.width, frame.height) == (203, 117)


@needs_extension
@settings(max_examples=150)
@given(seed=st.integers(0, 2**32), name=st.sampled_from(["4:2:0 q90", "grey", "restart markers"]))
def test_damaged_files_are_refused_or_keep_their_pixels(seed, name):
    chance = random.Random(seed)
    content = bytearray(VARIANTS[name][: 4000 + seed % 2000])
    for _ in range(chance.randint(1, 4)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    content += b"\xff\xd9"

    try:
        found = tiled(bytes(content))
    except NotTileableError:
        return
    assert np.array_equal(pixels(found), pixels(bytes(content)))


@pytest.mark.parametrize(
    ("mcus", "expected"), [(1, 1), (2, 2), (31, 31), (32, 8), (24, 8), (63, 9)]
)
def test_the_width_of_a_tile_divides_the_row(mcus, expected):
    assert tile_width(mcus) == expected
