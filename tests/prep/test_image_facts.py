"""`prep.image_facts`: against Pillow on real encoders' files, and on a thousand broken ones."""

import gzip
import io
import itertools
import os
import random
import struct
from functools import cache
from pathlib import Path

import pytest
import xxhash
from PIL import Image, ImageDraw

from vit21k.data.decode import decode_rgb
from vit21k.errors import ImageError
from vit21k.prep import file_digest
from vit21k.prep.file_digest import ImageFacts, image_facts

DATA = Path(__file__).parents[1] / "fixtures" / "images"
NUM_MALFORMED = 1_000
_MODES = {"L": 1, "RGB": 3, "CMYK": 4}


def _facts(content: bytes) -> ImageFacts:
    return image_facts(content, memoryview(content))


@cache
def _image(mode: str = "RGB") -> Image.Image:
    image = Image.new(mode, (57, 43))
    ImageDraw.Draw(image).ellipse((5, 5, 40, 30), fill=123)
    return image


def _encoded(kind: str = "JPEG", mode: str = "RGB", **options: object) -> bytes:
    file = io.BytesIO()
    _image(mode).save(file, kind, **options)
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
        ("WEBP", "RGB", ("webp", 57, 43, None, True)),
        ("WEBP", "RGBA", ("webp", 57, 43, None, True)),
        ("TIFF", "RGB", ("tiff", 57, 43, 3, None)),
        ("TIFF", "P", ("tiff", 57, 43, 3, None)),
        ("PPM", "RGB", ("ppm", 57, 43, 3, None)),
        ("PPM", "L", ("ppm", 57, 43, 1, None)),
    ],
)
def test_other_formats_are_detected_by_their_bytes(
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
    "multi-image": _segment(0xE2, b"MPF\0" + bytes(80)),
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
        _segment(0xDB, bytes(65)),
    ],
    ids=["colour profile", "quantisation"],
)
def test_what_changes_pixels_changes_the_content_digest(segment: bytes) -> None:
    content = _encoded()

    assert _facts(_with(content, segment)).content_digest != _facts(content).content_digest


def _without_jfif(content: bytes) -> bytes:
    assert content[2:4] == b"\xff\xe0"
    return content[:2] + content[4 + int.from_bytes(content[4:6], "big") :]


def _adobe(transform: int) -> bytes:
    return _segment(0xEE, b"Adobe\0d\0\0\0\0" + bytes([transform]))


def _named(identifiers: bytes, content: bytes) -> bytes:
    """Return a JPEG of three components with other identifiers."""
    changed = bytearray(content)
    frame, scan = content.index(b"\xff\xc0"), content.index(b"\xff\xda")
    for n, identifier in enumerate(identifiers):
        changed[frame + 10 + 3 * n] = changed[scan + 5 + 2 * n] = identifier
    return bytes(changed)


def _colour_variants() -> dict[str, bytes]:
    """Return one JPEG with every kind of segment that decides how its colours are stored."""
    content, cmyk = _encoded(), _encoded(mode="CMYK")
    bare = _without_jfif(content)
    cmyk_bare = cmyk[:2] + cmyk[cmyk.index(b"\xff\xdb") :]
    return {
        "JFIF": content,
        "JFIF, another resolution": content.replace(
            b"\0\x01\0\x01\0\0\xff", b"\0\x02\0\x02\0\0\xff", 1
        ),
        "nothing": bare,
        "Adobe, YCbCr": _with(bare, _adobe(1)),
        "Adobe, RGB": _with(bare, _adobe(0)),
        "JFIF and Adobe, RGB": _with(content, _adobe(0)),
        "Adobe, RGB, then YCbCr": _with(bare, _adobe(0), _adobe(1)),
        "Adobe, too short": _with(bare, _segment(0xEE, b"Adobe\0d\0\0\0\0")),
        "JFIF, too short": _with(bare, _segment(0xE0, b"JFIF\0\x01\x01"), _adobe(0)),
        "named RGB": _named(b"RGB", bare),
        "JFIF, named RGB": _named(b"RGB", content),
        "Adobe, YCbCr, named RGB": _with(_named(b"RGB", bare), _adobe(1)),
        "CMYK": cmyk,
        "CMYK without Adobe": cmyk_bare,
        "YCCK": _with(cmyk_bare, _adobe(2)),
        "JFIF and YCCK": _with(cmyk_bare, content[2:20], _adobe(2)),
        "unknown transform": _with(cmyk_bare, _adobe(7)),
    }


def test_one_content_digest_means_the_same_pixels() -> None:
    """The colours of a JPEG depend on JFIF's and Adobe's segments: libjpeg is the oracle."""
    variants = _colour_variants()
    digests = {name: _facts(content).content_digest for name, content in variants.items()}
    pixels = {name: decode_rgb(content).tobytes() for name, content in variants.items()}

    for one, other in itertools.combinations(variants, 2):
        if digests[one] == digests[other]:
            assert pixels[one] == pixels[other], (one, other)
    assert digests["nothing"] != digests["Adobe, RGB"]
    assert digests["CMYK"] != digests["YCCK"]
    same = ["JFIF, another resolution", "nothing", "Adobe, YCbCr", "JFIF and Adobe, RGB"]
    assert {digests[name] for name in same} == {digests["JFIF"]}


def test_an_image_that_follows_the_end_does_not_count() -> None:
    """As in files of several images; the file ends in an end marker, too."""
    content = _encoded()

    assert _facts(content + _encoded(mode="L")) == _facts(content)


@pytest.mark.parametrize(
    "between",
    [b"junk", b"\xff\0", b"\0\xff\xff\0", b"\xff\xfe\0\0", b"\xff\xfe\0\x01"],
    ids=["text", "FF 00", "zeros", "a comment of length 0", "a comment of length 1"],
)
def test_junk_between_segments_hides_nothing(between: bytes) -> None:
    whole = _encoded()
    content = whole[:20] + between + whole[20:]  # after JFIF's segment

    assert decode_rgb(content).size == (57, 43)
    assert _facts(content)[1:] == _facts(_encoded())[1:]
    assert _facts(content).content_digest is not None


def test_the_size_of_a_gif_is_that_of_its_first_frame_where_that_is_larger() -> None:
    content = (DATA / "gif_frame_beyond_screen.gif").read_bytes()

    assert _facts(content)[1:] == ("gif", 40, 40, 3, True)


def _tiff(order: str, *, is_big: bool, size: tuple[int, int], kind: int) -> bytes:
    """Return the header and the directory of a TIFF, the directory after some data."""
    letters, offset, count = ("<", ">")[order == "MM"], *("IH", "QQ")[is_big]
    value = {1: "B", 3: "H", 4: "I", 16: "Q"}[kind]
    entries = b""
    for tag, number in zip((256, 257, 277), (*size, 4), strict=True):
        head = struct.pack(f"{letters}HH{offset}", tag, kind, 1)
        entries += head + struct.pack(f"{letters}{value}", number).ljust(
            struct.calcsize(offset), b"\0"
        )
    start = struct.pack(f"{letters}HHH", 43, 8, 0) if is_big else struct.pack(f"{letters}H", 42)
    start = order.encode() + start
    at = len(start) + struct.calcsize(f"{letters}{offset}") + 100
    return (
        start
        + struct.pack(f"{letters}{offset}", at)
        + bytes(100)
        + struct.pack(f"{letters}{count}", 3)
        + entries
    )


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize(
    ("is_big", "kind"), [(False, 3), (False, 4), (True, 3), (True, 4), (True, 16)]
)
def test_a_tiff_of_any_layout_has_a_size(order: str, is_big: bool, kind: int) -> None:
    content = _tiff(order, is_big=is_big, size=(200, 90), kind=kind)

    assert _facts(content)[1:] == ("tiff", 200, 90, 4, None)


def test_a_large_tiff_has_a_size_though_its_directory_is_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_digest, "WHOLE_BYTES", 0)
    content = bytearray(_tiff("II", is_big=False, size=(200, 90), kind=4))
    directory = bytes(content[108:])
    content[4:8] = struct.pack("<I", 3 << 20)
    content = content.ljust(3 << 20, b"\0") + directory
    (tmp_path / "large.tif").write_bytes(content)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        found = file_digest.FileReader("xxh3_128", os.O_RDONLY).digest(b"large.tif", folder)
    finally:
        os.close(folder)

    assert found.facts[1:] == ("tiff", 200, 90, 4, None)


@pytest.mark.parametrize(
    "content", [b"P5 3 2 255\n", b"P6\n# a comment\n3\n# another\n2 255\n", b"P1\t3\r\n2\n"]
)
def test_a_netpbm_file_has_a_size(content: bytes) -> None:
    assert _facts(content)[1:4] == ("ppm", 3, 2)


def test_a_png_with_something_after_its_end_has_an_end() -> None:
    assert _facts(_encoded("PNG") + bytes(100)).has_end


def test_facts_agree_with_the_decoder_on_files_of_others() -> None:
    for path in sorted(DATA.iterdir()):
        content = path.read_bytes()
        try:
            size = decode_rgb(content).size
        except ImageError:
            continue
        facts = _facts(content)
        assert (facts.width, facts.height) == size, path.name
        assert facts.has_end is not False, path.name


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


def test_a_gzipped_image_has_the_facts_of_the_image() -> None:
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
def test_what_is_no_image_is_reported(content: bytes, name: str) -> None:
    assert _facts(content) == ImageFacts(None, name)


def test_what_unpacks_to_too_much_is_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit21k.prep.file_digest.MAX_UNPACKED_BYTES", 1000)

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

        assert image_facts(in_a_larger_buffer, view) == facts, number
        assert all(value is None or 0 < value < 1 << 31 for value in facts[2:5])
        assert facts.has_end in (None, True, False)

    assert {"jpeg", "png", "gif", "webp", "bmp", "tiff", "gzip", "unknown"} <= formats


@pytest.mark.parametrize("size", range(40))
def test_the_beginning_of_a_file_has_facts(size: int) -> None:
    for kind, mode in (("JPEG", "RGB"), ("PNG", "P"), ("GIF", "P"), ("WEBP", "RGBA"), ("BMP", "L")):
        assert _facts(_encoded(kind, mode)[:size]).has_end in (None, False)
