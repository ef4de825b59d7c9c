import gzip
import io
import re
import struct
import tracemalloc
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit21k.cli import console
from vit21k.data import decode
from vit21k.data.decode import decode_rgb, open_image
from vit21k.errors import ImageError

SIZE = (24, 16)
DATA = Path(__file__).parents[1] / "fixtures" / "images"


def original(mode="RGB"):
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
    content = encoded(original(mode), image_format, **options)

    image = decode_rgb(content)

    assert image.mode == "RGB"
    assert image.size == SIZE
    assert np.array_equal(pixels(image), pixels(pillow_rgb(content)))


def test_transparency_is_dropped_and_the_colour_below_it_kept():
    image = original("RGBA")
    image.putalpha(0)

    assert np.array_equal(pixels(decode_rgb(encoded(image, "PNG"))), pixels(original()))


def test_a_palette_with_a_table_of_transparency_needs_no_warning():
    image = original("P")
    content = encoded(image, "PNG", transparency=bytes(range(256)))

    decoded = decode_rgb(content)

    assert np.array_equal(pixels(decoded), pixels(image.convert("RGB")))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bits_keep_the_high_eight(image_format):
    values = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE[1], SIZE[0]) * 170
    content = encoded(Image.fromarray(values), image_format)

    decoded = pixels(decode_rgb(content))

    assert np.array_equal(decoded, np.repeat((values >> 8)[..., None], 3, axis=2))


def test_the_first_of_several_images_counts():
    first, second = original(), original().rotate(180)
    content = encoded(first, "TIFF", save_all=True, append_images=[second])

    assert np.array_equal(pixels(decode_rgb(content)), pixels(first))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_gzipped_image_is_the_image_in_it(image_format):
    content = encoded(original(), image_format)

    assert np.array_equal(
        pixels(decode_rgb(gzip.compress(content, mtime=0))), pixels(decode_rgb(content))
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(encoded(original()), mtime=0)[:-9], "truncated"),
        (gzip.compress(bytes(65 << 20), mtime=0), "too large"),
        (gzip.compress(b"text", mtime=0), "not an image"),
        (gzip.compress(gzip.compress(encoded(original()), mtime=0), mtime=0), "not an image"),
        (b"\x1f\x8b" + bytes(99), "cannot be decoded"),
    ],
    ids=["truncated", "a bomb", "text", "twice", "not gzip"],
)
def test_what_is_gzipped_and_no_image_is_refused(content, reason):
    with pytest.raises(ImageError, match=reason):
        decode_rgb(content)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_an_orientation_is_not_applied_in_any_format(image_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {}
    as_stored = pixels(decode_rgb(encoded(original(), image_format, **options)))

    image = decode_rgb(encoded(original(), image_format, exif=exif, **options))

    assert image.size == SIZE
    assert np.array_equal(pixels(image), as_stored)


def test_the_orientation_of_a_tiff_of_others_is_not_applied():
    """Written by tifffile: 30 x 20 pixels, orientation 6."""
    assert decode_rgb((DATA / "tiff_orientation_6.tif").read_bytes()).size == (30, 20)


def test_twelve_bits_keep_the_high_eight():
    """A file of Pillow's test suite, 64 x 64 pixels; two samples are in three bytes."""
    content = (DATA / "tiff_12bit.tif").read_bytes()
    packed = np.frombuffer(content, np.uint8, 64 * 64 * 3 // 2, offset=8).reshape(-1, 3)
    packed = packed.astype(np.int32)
    first, second = packed[:, 0] << 4 | packed[:, 1] >> 4, (packed[:, 1] & 15) << 8 | packed[:, 2]
    values = np.stack([first, second], axis=1).reshape(64, 64)

    decoded = pixels(decode_rgb(content))

    assert values.max() > 15
    assert np.array_equal(decoded[..., 0], values >> 4)


def test_twelve_bits_are_not_black():
    entries = [
        (256, 3, 1, 2),
        (257, 3, 1, 2),
        (258, 3, 1, 12),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 3, 1, 2),
        (279, 4, 1, 6),
    ]
    ifd = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    white = b"\xff" * 6
    content = struct.pack("<2sHI", b"II", 42, 14) + white + struct.pack("<H", len(entries)) + ifd
    assert (pixels(decode_rgb(content + bytes(4))) == 255).all()


def test_sixteen_bits_whose_white_is_zero_are_inverted():
    values = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE[1], SIZE[0]) * 170
    content = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0})

    decoded = pixels(decode_rgb(content))

    assert np.array_equal(decoded[..., 0], 255 - (values >> 8))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_whose_range_is_not_known_are_refused(kind):
    content = encoded(Image.fromarray(np.zeros((4, 4), dtype=kind)), "TIFF")

    with pytest.raises(ImageError, match="no known range") as refusal:
        decode_rgb(content)

    assert refusal.value.kind == "unsupported_pixels"


def test_a_broken_exif_segment_does_no_harm():
    """Pillow parses EXIF when it opens a JPEG without a resolution, and warns of what it finds."""
    segment = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\xff" * 30
    app1 = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
    plain = encoded(original())
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
        decode_rgb(encoded(original()), max_pixels=383)

    assert decode_rgb(encoded(original()), max_pixels=384).size == SIZE


@pytest.mark.parametrize("side", [10_000, 60_000])
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_a_decompression_bomb_is_refused(side, image_format):
    content = bytearray(encoded(original(), image_format))
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
def test_flipped_bytes_give_an_image_or_an_image_error(image_format):
    content = encoded(original(), image_format)
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


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("png_80Mx1_rgba.png", "too_many_pixels"),
        ("bmp_80Mx1_32.bmp", "too_many_pixels"),
        ("bmp_rle_89Mx1.bmp", "too_many_pixels"),
        ("wide_65535x8.jpg", "too_many_pixels"),
    ],
)
def test_files_that_no_decoder_takes_are_refused_by_their_header(name, kind):
    with pytest.raises(ImageError) as refusal:
        open_image((DATA / name).read_bytes())

    assert refusal.value.kind == kind


def progressive(size, num_scans):
    """Return a progressive JPEG that says it is of this *size*, with its first scan repeated."""
    content = encoded(original(), progressive=True)
    frame = content.index(b"\xff\xc2") + 5
    content = content[:frame] + struct.pack(">HH", size[1], size[0]) + content[frame + 4 :]
    first = content.index(b"\xff\xda")
    second = content.index(b"\xff\xda", first + 2)
    second = (
        content.index(b"\xff\xc4", first, second)
        if b"\xff\xc4" in content[first:second]
        else second
    )
    scan = content[first:second]
    return content[:second] + (num_scans - 1) * scan + b"\xff\xd9"


@pytest.mark.parametrize(
    ("size", "num_scans", "kind"),
    [
        ((9_400, 9_400), 1_000, "too_slow_to_decode"),
        ((9_400, 9_400), 12, None),  # as many as encoders write
        ((500, 375), 1_000, None),
        ((500, 375), 500_000, "too_slow_to_decode"),
    ],
)
def test_the_scans_of_a_progressive_jpeg_have_a_budget_by_its_size(size, num_scans, kind):
    content = progressive(size, num_scans)

    if kind:
        with pytest.raises(ImageError) as refusal:
            open_image(content)
        assert refusal.value.kind == kind
    else:
        assert open_image(content).size == size


def bmp_of_runs(width, height):
    """Return a BMP with compressed rows of *width*, and hardly any data."""
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 4, 0, 0, 256, 0)
    offset = 14 + len(info) + 1024
    return (
        struct.pack("<2sIHHI", b"BM", offset + 4, 0, 0, offset) + info + bytes(1024) + b"\0\0\0\1"
    )


def webp_of_size(width, height):
    """Return a lossless WebP of one pixel whose headers say that it is larger."""
    exif = Image.Exif()
    exif[0x0112] = 1
    content = bytearray(encoded(Image.new("RGB", (1, 1)), "WEBP", lossless=True, exif=exif))
    assert content[12:16] == b"VP8X"
    content[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    at = content.index(b"VP8L") + 9
    content[at : at + 4] = ((width - 1) | (height - 1) << 14).to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (bmp_of_runs(9_400, 9_400), "too_slow_to_decode"),
        (b"P5\n9000 9000\n77\n" + bytes(100), "too_slow_to_decode"),
        (b"P3\n9000 9000\n255\n" + b"1 " * 100, "too_slow_to_decode"),
    ],
    ids=["BMP in runs", "PGM of 77 greys", "plain PPM"],
)
def test_what_is_slow_to_decode_is_refused_by_its_header(content, kind):
    with pytest.raises(ImageError) as refusal:
        open_image(content)

    assert refusal.value.kind == kind


def test_a_gif_of_endless_comments_is_refused_while_its_header_is_read():
    """Pillow up to 12 takes time by the square of their length."""
    content = encoded(original("P"), "GIF")
    comment = b"\x21\xfe" + (b"\xff" + bytes(255)) * (3 << 12) + b"\0"
    at = 13 + (3 << (content[10] & 7) + 1)  # after the palette

    with pytest.raises(ImageError) as refusal:
        open_image(content[:at] + comment + content[at:])

    assert refusal.value.kind == "too_slow_to_decode"
    assert open_image(content[:at] + b"\x21\xfe\x01a\0" + content[at:]).size == SIZE


def test_a_webp_whose_canvas_takes_more_than_the_memory_budget_is_refused():
    with pytest.raises(ImageError, match="1,944 MB") as refusal:
        open_image(webp_of_size(9_400, 9_400))

    assert refusal.value.kind == "too_much_memory"
    assert open_image(webp_of_size(7_000, 6_900)).size == (7_000, 6_900)


def tiff_of_tags(num_tags, num_bytes):
    """Return a TIFF whose tags all point to the same *num_bytes*."""
    entries = [
        struct.pack("<HHII", 256, 3, 1, 8),
        struct.pack("<HHII", 257, 3, 1, 8),
        *(struct.pack("<HHII", 40_000 + n, 1, num_bytes, 8) for n in range(num_tags)),
    ]
    head = struct.pack("<2sHI", b"II", 42, 8 + num_bytes)
    return head + bytes(num_bytes) + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


@pytest.mark.filterwarnings("ignore:Tag data larger than file")
def test_tags_that_share_their_data_do_not_fill_the_memory():
    content = tiff_of_tags(500, 1 << 16)  # 32 MiB, from 70 KB
    tracemalloc.start()
    try:
        with pytest.raises(ImageError):
            open_image(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 16 << 20


@pytest.mark.parametrize(
    "error",
    [
        MemoryError,
        ValueError,
        SyntaxError,
        OverflowError,
        RecursionError,
        zlib.error,
        KeyError,
        AssertionError,
        NotImplementedError,
        StopIteration,
        BufferError,
        UserWarning,
    ],
)
@pytest.mark.parametrize("stage", ["open", "load"])
def test_any_exception_of_a_decoder_is_an_image_error(monkeypatch, stage, error):
    def fail(*_args):
        raise error("words")

    owner, name = (decode, "_opened") if stage == "open" else (decode._JpegImage, "load")
    monkeypatch.setattr(owner, name, fail)

    with pytest.raises(ImageError) as refusal:
        decode_rgb(encoded(original()))

    assert refusal.value.kind == ("too_much_memory" if error is MemoryError else "damaged_image")


def test_an_interrupt_is_no_property_of_an_image(monkeypatch):
    def stop(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(decode._JpegImage, "load", stop)

    with pytest.raises(KeyboardInterrupt):
        decode_rgb(encoded(original()))


def broken_tiff():
    """Return a compressed TIFF whose data libtiff complains of."""
    content = encoded(original(), "TIFF", compression="tiff_adobe_deflate")
    (start,), (num_bytes,) = (Image.open(io.BytesIO(content)).tag_v2[tag] for tag in (273, 279))
    return content[:start] + bytes(num_bytes) + content[start + num_bytes :]


def test_what_libtiff_says_is_counted_and_not_printed(capfd):
    decode.MESSAGES.clear()

    with suppress(ImageError):
        decode_rgb(broken_tiff())

    assert capfd.readouterr().err == ""
    assert decode.MESSAGES.total() > 0


def test_what_pillow_says_is_counted_and_reported_once(capfd):
    decode.MESSAGES.clear()
    tags = [(256, 3, 1, 8), (257, 3, 1, 8), *((700 + n, 1, 9_999, 0) for n in range(3))]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    content = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)

    with console.decoder_messages_counted():
        for _ in range(4):
            with suppress(ImageError):
                decode_rgb(content)
        assert capfd.readouterr().err == ""

    said = r"image decoder: (\d+) messages on unusual files: \1 x `.+`\n"
    assert re.fullmatch(said, capfd.readouterr().err)


def test_other_warnings_are_shown_while_those_of_the_decoder_are_counted(recwarn):
    with console.decoder_messages_counted():
        warnings.warn("of something else", stacklevel=1)

    assert [str(one.message) for one in recwarn] == ["of something else"]
