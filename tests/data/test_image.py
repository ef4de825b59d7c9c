"""Oracle of every fast path: `decode_rgb`, bit by bit, with simplejpeg and without it."""

import gzip
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vit21k.data import image as module
from vit21k.data.decode import decode_rgb
from vit21k.data.image import DecodedImage, LazyImage, cut_below, find_frame, lazy_image
from vit21k.errors import ImageError

SIZE = (67, 53)
SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2, "4:1:1": "4:1:1"}


@pytest.fixture(params=["simplejpeg", "pillow"], autouse=True)
def decoder(request, monkeypatch):
    """Both decoders: what is installed must not show."""
    if request.param == "simplejpeg":
        pytest.importorskip("simplejpeg")
    else:
        monkeypatch.setattr(module, "simplejpeg", None)
    return request.param


def photo(size=SIZE, mode="RGB"):
    """Colours that change from pixel to pixel, so that interpolated chroma shows."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 3 + c) + np.cos(y / 2 - 2 * c) for c in range(3)], axis=2)
    noise = np.random.default_rng(0).normal(0, 20, waves.shape)
    return Image.fromarray((128 + 50 * waves + noise).clip(0, 255).astype(np.uint8)).convert(mode)


def jpeg(mode="RGB", size=SIZE, **options):
    file = io.BytesIO()
    photo(size, mode).save(file, "JPEG", **options)
    return file.getvalue()


def encoded(image, image_format, **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def with_frame_bytes(content, old, new):
    """Replace bytes of the frame header (after its two bytes of marker)."""
    start = content.index(b"\xff\xc0")
    assert old in content[start : start + 20]
    return content[:start] + content[start : start + 20].replace(old, new) + content[start + 20 :]


def with_adobe_segment(content, transform):
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
    jfif_end = 4 + int.from_bytes(content[4:6], "big")
    return content[:2] + adobe + content[jfif_end:]


PLAIN = {
    **{f"baseline {name}": jpeg(subsampling=value) for name, value in SUBSAMPLINGS.items()},
    **{
        f"progressive {name}": jpeg(subsampling=value, progressive=True)
        for name, value in SUBSAMPLINGS.items()
    },
    "grey": jpeg("L"),
    "grey, progressive": jpeg("L", progressive=True),
    "grey, sampled 2 x 2": with_frame_bytes(jpeg("L"), b"\x01\x11", b"\x01\x22"),
    "restart markers": jpeg(restart_marker_blocks=2),
    "restart markers by row, 4:4:4": jpeg(restart_marker_rows=1, subsampling=0),
    "restart markers, progressive": jpeg(restart_marker_rows=1, progressive=True),
    "RGB kept as RGB": jpeg(keep_rgb=True),
    "Adobe, RGB": with_adobe_segment(jpeg(keep_rgb=True, subsampling=0), 0),
    "Adobe, YCC": with_adobe_segment(jpeg(), 1),
    "EXIF orientation": jpeg(
        exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    ),
    "comment and profile": jpeg(comment=b"\xff\xd9", icc_profile=b"\xff\xd9" * 99),
    "bytes after the end": jpeg() + b"\0" * 1000,
    "another image after the end": jpeg() + jpeg(size=(99, 99)),
    "fill bytes before a marker": jpeg().replace(b"\xff\xc0", b"\xff\xff\xff\xc0", 1),
    "optimised tables, quality 100": jpeg(quality=100, optimize=True),
    "one pixel": jpeg(size=(1, 1)),
}
OTHER = {
    "CMYK": jpeg("CMYK"),
    "PNG": encoded(photo(), "PNG"),
    "16 bits": encoded(
        Image.fromarray(np.arange(3551, dtype=np.uint16).reshape(53, 67) * 18), "PNG"
    ),
    "palette": encoded(photo(mode="P"), "GIF"),
    "WebP": encoded(photo(), "WEBP"),
    "gzip'd JPEG": gzip.compress(jpeg(), mtime=0),
    "gzip'd PNG": gzip.compress(encoded(photo(), "PNG"), mtime=0),
}


def pixels_of(content):
    return np.asarray(decode_rgb(content))


def boxes_of(width, height):
    """Boxes that touch each border, or none, and end in every phase of a block."""
    random = np.random.default_rng(width * height)
    yield 0, 0, width, height
    for bottom in range(1, height + 1):
        top, (left, right) = random.integers(0, bottom), np.sort(random.permutation(width + 1)[:2])
        yield int(left), int(top), int(right), bottom


@pytest.mark.parametrize("name", PLAIN)
def test_every_region_of_a_plain_jpeg_is_that_of_the_whole(name):
    content = PLAIN[name]
    whole = pixels_of(content)

    image = lazy_image(content)

    assert not isinstance(image, DecodedImage)
    assert image.size == (whole.shape[1], whole.shape[0])
    assert np.array_equal(image.image(), whole)
    for left, top, right, bottom in boxes_of(*image.size):
        region = image.region((left, top, right, bottom))
        assert np.array_equal(region, whole[top:bottom, left:right])


@pytest.mark.parametrize("name", OTHER)
def test_what_is_not_plain_goes_by_the_policy(name):
    content = OTHER[name]
    whole = pixels_of(content)

    image = lazy_image(content)

    assert isinstance(image, DecodedImage)
    assert np.array_equal(image.region((3, 5, 40, 50)), whole[5:50, 3:40])
    assert np.array_equal(image.image(), whole)


def test_a_cut_file_is_decoded_no_further_than_its_rows():
    content = jpeg(size=(64, 512))

    cut, height = cut_below(content, find_frame(content), 100)

    assert height == 102
    assert Image.open(io.BytesIO(cut)).size == (64, 102)
    assert len(cut) == len(content)
    assert cut_below(content, find_frame(content), 511) == (content, 512)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.95, 0.999])
def test_a_truncated_jpeg_is_refused_wherever_the_crop_ends(fraction, progressive):
    content = jpeg(size=(96, 96), progressive=progressive, exif=b"Exif\0\0\xff\xd9", subsampling=0)
    content = content[: int(len(content) * fraction)]

    with pytest.raises(ImageError):
        decode_rgb(content)
    with pytest.raises(ImageError):
        lazy_image(content).region((0, 0, 8, 8))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize(
    "tail", [b"\0" * 999, b"\xff", b"\xff\xd9", b"\xff\xd8\xff\xe0", jpeg(), jpeg()[300:]]
)
@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.95, 0.999])
def test_what_follows_a_truncated_jpeg_is_judged_by_the_policy(fraction, tail, progressive):
    content = jpeg(size=(96, 96), progressive=progressive, subsampling=0)
    content = content[: int(len(content) * fraction)] + tail

    whole = outcome(lambda: pixels_of(content))
    region = outcome(lambda: lazy_image(content).region((0, 0, 96, 9)))

    assert (region is None) == (whole is None)
    assert region is None or np.array_equal(region, whole[:9])


@pytest.mark.parametrize("content", [b"", b"\xff", b"\xff\xd8\xff", b"\xff\xd8\xff\xda\xff\xd9"])
def test_what_is_no_image_is_refused(content):
    with pytest.raises(ImageError):
        lazy_image(content)


@pytest.mark.parametrize(
    ("place", "value"),
    [(1, 0xC3), (1, 0xC9), (1, 0xCA), (4, 12), (9, 2), (9, 4)],
    ids=["lossless", "arithmetic", "arithmetic, progressive", "12 bits", "2 colours", "4 colours"],
)
def test_other_kinds_of_jpeg_go_by_the_policy(place, value):
    content = bytearray(jpeg())
    content[content.index(b"\xff\xc0") + place] = value
    content = bytes(content)

    whole = outcome(lambda: pixels_of(content))
    image = outcome(lambda: lazy_image(content))

    assert find_frame(content) is None
    assert (image is None) == (whole is None)
    assert image is None or np.array_equal(image.image(), whole)


def test_too_many_pixels_are_refused_before_they_are_decoded():
    content = bytearray(jpeg())
    place = find_frame(bytes(content)).height_at
    content[place : place + 4] = b"\xea\x60\xea\x60"

    with pytest.raises(ImageError, match=r"pixels|bomb"):
        lazy_image(bytes(content))


def outcome(function):
    """Return what a function returns, or that it raised; whatever is not an ImageError fails."""
    try:
        return function()
    except ImageError:
        return None


@given(
    name=st.sampled_from(sorted(PLAIN)),
    mutations=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=3),
    bottom=st.integers(1, SIZE[1]),
)
@settings(max_examples=200)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_bytes_are_taken_or_refused_as_by_the_policy(name, mutations, bottom):
    content = bytearray(PLAIN[name])
    for place, value in mutations:
        content[min(int(place * len(content)), len(content) - 1)] = value
    content = bytes(content)
    whole = outcome(lambda: pixels_of(content))

    image = outcome(lambda: lazy_image(content))
    if image is None or image.size[1] < bottom:
        assert whole is None or whole.shape[0] < bottom
        return
    region = outcome(lambda: image.region((0, 0, image.size[0], bottom)))

    assert (region is None) == (whole is None)
    assert region is None or np.array_equal(region, whole[:bottom])


def test_a_image_that_gives_regions_only_gives_the_whole_as_an_image():
    whole = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)

    class Raw(LazyImage):
        size = (3, 4)

        def region(self, box):
            left, top, right, bottom = box
            return whole[top:bottom, ::2][:, left:right]

    assert np.array_equal(Raw().image(), whole[:, ::2])
