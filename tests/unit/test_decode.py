import gzip
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vit21k.data.decode import decode_rgb
from vit21k.errors import ImageError

SIZE = (24, 16)


def picture(mode="RGB"):
    x = np.linspace(0, 255, SIZE[0])[None, :].repeat(SIZE[1], axis=0)
    rgb = np.stack([x, 255 - x, np.full_like(x, 90)], axis=2).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def encoded(image, image_format="JPEG", **options):
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def pixels(image):
    return np.asarray(image)


def pillow_rgb(content):
    """What torchvision's `pil_loader` returns."""
    return Image.open(io.BytesIO(content)).convert("RGB")


@pytest.mark.parametrize(
    ("mode", "image_format", "options"),
    [
        ("RGB", "JPEG", {}),
        ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
        ("L", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("LA", "PNG", {}),
        ("P", "PNG", {}),
        ("1", "PNG", {}),
        ("RGB", "BMP", {}),
        ("P", "GIF", {}),
        ("RGB", "WEBP", {"lossless": True}),
        ("CMYK", "TIFF", {}),
    ],
)
def test_pixels_are_those_of_torchvisions_loader(mode, image_format, options):
    content = encoded(picture(mode), image_format, **options)

    image = decode_rgb(content)

    assert image.mode == "RGB"
    assert image.size == SIZE
    assert np.array_equal(pixels(image), pixels(pillow_rgb(content)))


def test_transparency_is_dropped_and_the_colour_below_it_kept():
    image = picture("RGBA")
    image.putalpha(0)

    assert np.array_equal(pixels(decode_rgb(encoded(image, "PNG"))), pixels(picture()))


def test_a_palette_with_a_table_of_transparency_needs_no_warning():
    image = picture("P")
    content = encoded(image, "PNG", transparency=bytes(range(256)))

    decoded = decode_rgb(content)

    assert np.array_equal(pixels(decoded), pixels(image.convert("RGB")))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_high_eight(image_format):
    values = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE[1], SIZE[0]) * 170
    content = encoded(Image.fromarray(values), image_format)

    decoded = pixels(decode_rgb(content))

    assert np.array_equal(decoded, np.repeat((values >> 8)[..., None], 3, axis=2))


def test_the_first_of_several_pictures_counts():
    first, second = picture(), picture().rotate(180)
    content = encoded(first, "TIFF", save_all=True, append_images=[second])

    assert np.array_equal(pixels(decode_rgb(content)), pixels(first))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_gzipped_picture_is_the_picture_in_it(image_format):
    content = encoded(picture(), image_format)

    assert np.array_equal(
        pixels(decode_rgb(gzip.compress(content, mtime=0))), pixels(decode_rgb(content))
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(encoded(picture()), mtime=0)[:-9], "truncated"),
        (gzip.compress(bytes(65 << 20), mtime=0), "too large"),
        (gzip.compress(b"text", mtime=0), "not an image"),
        (gzip.compress(gzip.compress(encoded(picture()), mtime=0), mtime=0), "not an image"),
        (b"\x1f\x8b" + bytes(99), "cannot be decoded"),
    ],
    ids=["truncated", "a bomb", "text", "twice", "not gzip"],
)
def test_what_is_gzipped_and_no_picture_is_refused(content, reason):
    with pytest.raises(ImageError, match=reason):
        decode_rgb(content)


def test_an_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    content = encoded(picture(), exif=exif)

    assert decode_rgb(content).size == SIZE


def test_a_broken_exif_segment_does_no_harm():
    """Pillow parses EXIF when it opens a JPEG without a resolution, and warns of what it finds."""
    segment = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\xff" * 30
    app1 = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    plain = encoded(picture())
    without_jfif = plain[:2] + plain[2 + 2 + struct.unpack(">H", plain[4:6])[0] :]
    content = without_jfif[:2] + app1 + without_jfif[2:]

    assert np.array_equal(pixels(decode_rgb(content)), pixels(decode_rgb(plain)))


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP"])
def test_truncated_files_are_refused(image_format, fraction):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = encoded(noise, image_format)

    with pytest.raises(ImageError):
        decode_rgb(content[: int(len(content) * fraction)])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"\xff", "not an image"),
        (b"\xff\xd8\xff", "cannot be decoded"),
        (b"<html>404</html>", "not an image"),
        (b"\0" * 1000, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_what_is_no_image_is_refused(content, reason):
    with pytest.raises(ImageError, match=reason):
        decode_rgb(content)


def test_floating_point_pixels_are_refused():
    content = encoded(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF")

    with pytest.raises(ImageError, match="floating-point"):
        decode_rgb(content)


def test_more_pixels_than_allowed_are_refused_before_they_are_decoded():
    with pytest.raises(ImageError, match="24 x 16 pixels are more than 383"):
        decode_rgb(encoded(picture()), max_pixels=383)

    assert decode_rgb(encoded(picture()), max_pixels=384).size == SIZE


@pytest.mark.parametrize("side", [10_000, 60_000])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_decompression_bomb_is_refused(side, image_format):
    content = bytearray(encoded(picture(), image_format))
    if image_format == "PNG":
        content[16:24] = struct.pack(">II", side, side)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    else:
        start_of_frame = content.index(b"\xff\xc0")
        content[start_of_frame + 5 : start_of_frame + 9] = struct.pack(">HH", side, side)

    with pytest.raises(ImageError, match=r"pixels|decompression bomb"):
        decode_rgb(bytes(content))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on damaged TIFF tags
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"])
def test_flipped_bytes_give_a_picture_or_an_image_error(image_format):
    content = encoded(picture(), image_format)
    random = np.random.default_rng(1)

    for _ in range(150):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), 3):
            damaged[place] = random.integers(0, 256)
        try:
            image = decode_rgb(bytes(damaged), max_pixels=1_000_000)
        except ImageError:
            continue
        assert image.mode == "RGB"
