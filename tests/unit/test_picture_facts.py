"""`prep.picture_facts`: against Pillow on real encoders' files, and on a thousand broken ones."""

import gzip
import io
import random
from functools import cache

import pytest
import xxhash
from PIL import Image, ImageDraw

from vit21k.hashing.picture_facts import PictureFacts, picture_facts

NUM_MALFORMED = 1_000
_MODES = {"L": 1, "RGB": 3, "CMYK": 4}


def _facts(content: bytes) -> PictureFacts:
    return picture_facts(content, memoryview(content))


@cache
def _picture(mode: str = "RGB") -> Image.Image:
    picture = Image.new(mode, (57, 43))
    ImageDraw.Draw(picture).ellipse((5, 5, 40, 30), fill=123)
    return picture


def _encoded(kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    _picture(mode).save(file, kind, **options)
    return file.getvalue()


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (2 + len(body)).to_bytes(2, "big") + body


def _with(content: bytes, *segments: bytes) -> bytes:
    """Return a JPEG with *segments* after its start marker."""
    return content[:2] + b"".join(segments) + content[2:]


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}], ids=str)
def test_size_and_components_of_a_jpeg_are_pillows(mode: str, options: dict[str, bool]) -> None:
    facts = _facts(_encoded(mode=mode, **options))

    assert facts[1:] == ("jpeg", 57, 43, _MODES[mode], True)


@pytest.mark.parametrize(
    ("kind", "mode", "expected"),
    [
        ("PNG", "RGB", ("png", 57, 43, 3, True)),
        ("PNG", "L", ("png", 57, 43, 1, True)),
        ("PNG", "RGBA", ("png", 57, 43, 4, True)),
        ("PNG", "P", ("png", 57, 43, 3, True)),
        ("GIF", "P", ("gif", 57, 43, 3, True)),
        ("BMP", "RGB", ("bmp", 57, 43, None, None)),
        ("WEBP", "RGB", ("webp", 57, 43, None, None)),
        ("WEBP", "RGBA", ("webp", 57, 43, None, None)),
        ("TIFF", "RGB", ("tiff", None, None, None, None)),
    ],
)
def test_other_formats_are_told_by_their_bytes(
    kind: str, mode: str, expected: tuple[object, ...]
) -> None:
    assert _facts(_encoded(kind, mode)) == (None, *expected)


def test_a_lossless_webp_has_a_size() -> None:
    assert _facts(_encoded("WEBP", lossless=True))[1:4] == ("webp", 57, 43)


METADATA = {
    "comment": _segment(0xFE, b"made by a camera"),
    "EXIF": _segment(0xE1, b"Exif\0\0" + bytes(300)),
    "photoshop": _segment(0xED, b"Photoshop 3.0\0"),
    "second APP0": _segment(0xE0, b"JFXX\0\x10"),
    "multi-picture": _segment(0xE2, b"MPF\0" + bytes(80)),
    "fill bytes": b"\xff\xff" + _segment(0xFE, b""),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_does_not_change_the_content_digest(name: str) -> None:
    content = _encoded()

    with_metadata = _with(content, METADATA[name])
    kept_first = content[:2] + _segment(0xE2, b"ICC_PROFILE\0\x01\x01") + content[2:]
    after_a_kept_one = kept_first[:20] + METADATA[name] + kept_first[20:]

    assert with_metadata != content
    assert _facts(with_metadata) == _facts(content)
    assert _facts(after_a_kept_one).content_digest == _facts(kept_first).content_digest


def test_the_content_digest_is_that_of_what_is_kept() -> None:
    content = _encoded()
    start = 2 + 2 + int.from_bytes(content[4:6], "big")  # after JFIF's APP0

    assert content[2:4] == b"\xff\xe0"
    assert _facts(content).content_digest == xxhash.xxh3_128_digest(content[start:])


@pytest.mark.parametrize(
    "segment",
    [
        _segment(0xE2, b"ICC_PROFILE\0\x01\x01profile"),
        _segment(0xEE, b"Adobe\0d\0\0\0\0\0\x01"),
        _segment(0xDB, bytes(65)),
    ],
    ids=["colour profile", "Adobe's transform", "quantisation"],
)
def test_what_changes_pixels_changes_the_content_digest(segment: bytes) -> None:
    content = _encoded()

    assert _facts(_with(content, segment)).content_digest != _facts(content).content_digest


@pytest.mark.parametrize("junk", [b"\0", b"\0" * 4096, b"\r\n", b"<html>", b"\xff\xd9\0"])
@pytest.mark.parametrize("progressive", [True, False])
def test_what_follows_the_end_does_not_count(junk: bytes, progressive: bool) -> None:
    content = _encoded(progressive=progressive)

    assert _facts(content + junk) == _facts(content)


def test_an_end_marker_within_a_table_between_scans_is_not_the_end() -> None:
    content = _encoded(progressive=True)
    second_scan = content.rindex(b"\xff\xda")
    table = _segment(0xC4, b"\xff\xd9" + bytes(20))
    odd = content[:second_scan] + table + content[second_scan:]

    assert _facts(odd + b"junk") == _facts(odd)
    assert _facts(odd).has_end


def test_a_truncated_jpeg_has_no_end() -> None:
    content = _encoded()

    facts = _facts(content[: len(content) * 2 // 3])

    assert (facts.width, facts.height, facts.has_end) == (57, 43, False)
    assert facts.content_digest != _facts(content).content_digest


def test_a_gzipped_picture_has_the_facts_of_the_picture() -> None:
    content = _encoded()

    assert _facts(gzip.compress(content, mtime=0)) == _facts(content)._replace(format="gzip")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"<!DOCTYPE html><html>404 Not Found</html>", "html"),
        (b"\xef\xbb\xbf\n  <HTML>", "html"),
        (b"<?xml version='1.0'?><Error/>", "html"),
        (b"PK\x03\x04.......", "zip"),
        (b"%PDF-1.4", "pdf"),
        (gzip.compress(b"no image", mtime=0), "gzip of no image"),
        (gzip.compress(gzip.compress(b"no image", mtime=0), mtime=0), "gzip of no image"),
        (gzip.compress(b"no image" * 100, mtime=0)[:30], "gzip of no image"),
        (b"tench", "unknown"),
        (bytes(5000), "unknown"),
    ],
)
def test_what_is_no_image_is_told(content: bytes, name: str) -> None:
    assert _facts(content) == PictureFacts(None, name)


def test_what_unpacks_to_too_much_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit21k.hashing.picture_facts.MAX_UNPACKED_BYTES", 1000)

    assert _facts(gzip.compress(_encoded() + bytes(2000), mtime=0)).format == "gzip of no image"


def _malformed(random_: random.Random) -> bytes:
    """Return a real image with bytes flipped, cut out, put in, doubled or cut off."""
    kind, mode = random_.choice(
        [
            *(("JPEG", mode) for mode in _MODES),
            ("PNG", "P"),
            ("GIF", "P"),
            ("WEBP", "RGBA"),
            ("BMP", "RGB"),
            ("TIFF", "RGB"),
        ]
    )
    content = bytearray(_encoded(kind, mode))
    if random_.random() < 0.2:
        content = bytearray(gzip.compress(bytes(content), mtime=0))
    for _ in range(random_.randint(1, 8)):
        place = random_.choice(
            [random_.randrange(min(40, len(content) or 1)), random_.randrange(len(content) or 1)]
        )
        change = random_.randrange(5)
        if change == 0:
            content[place : place + 1] = bytes([random_.choice([0, 1, 0xC0, 0xD9, 0xDA, 0xFF])])
        elif change == 1:
            del content[place : place + random_.randrange(1, 9)]
        elif change == 2:
            content[place:place] = random_.randbytes(random_.randrange(1, 9))
        elif change == 3:
            content[place:place] = content[place : place + 200]
        else:
            del content[max(place, 1) :]
    return bytes(content)


def test_a_thousand_malformed_images_have_facts_within_bounds() -> None:
    random_ = random.Random(0)
    formats = set()

    for number in range(NUM_MALFORMED):
        content = _malformed(random_)
        facts = _facts(content)
        formats.add(facts.format)
        in_a_larger_buffer = bytearray(content + random_.randbytes(64))
        view = memoryview(in_a_larger_buffer)[: len(content)]

        assert picture_facts(in_a_larger_buffer, view) == facts, number
        assert all(value is None or 0 < value < 1 << 31 for value in facts[2:5])
        assert facts.has_end in (None, True, False)

    assert {"jpeg", "png", "gif", "webp", "bmp", "tiff", "gzip", "unknown"} <= formats


@pytest.mark.parametrize("size", range(40))
def test_the_beginning_of_a_file_has_facts(size: int) -> None:
    for kind, mode in (("JPEG", "RGB"), ("PNG", "P"), ("GIF", "P"), ("WEBP", "RGBA"), ("BMP", "L")):
        assert _facts(_encoded(kind, mode)[:size]).has_end in (None, False)
