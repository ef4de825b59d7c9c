"""Bytes of a file -> what they say of the picture: format, size, whole or not, content digest.

Input: all bytes of a file, in memory; they may be anything.
Output: facts, read from the header without decoding.  Nothing raises on malformed input: what
cannot be read is None.

The *content digest* of a JPEG is that of its bytes without what changes no pixel: comments and
application segments (EXIF, XMP, thumbnails; the colour profile and Adobe's colour transform stay),
and what follows the end of the image.  Copies that differ in nothing else have the same one.

Performance: 2 to 3 us a file.  Segments are stepped over with plain indexing, only the header is
looked at, and the digest is made in one call where the metadata stand in front, as they mostly do.
"""

import re
import zlib
from typing import NamedTuple

import xxhash

MAX_UNPACKED_BYTES = 64 << 20
"""Of gzip'd pictures; what unpacks to more is taken for no picture."""

UNKNOWN = "unknown"
NOT_IMAGES = frozenset({"html", "pdf", "zip", "gzip of no image"})
"""Formats of files that are certainly not images, whatever their names say."""


Buffer = bytearray | bytes | memoryview


class PictureFacts(NamedTuple):
    """What the bytes of a file say.  None: they do not.

    Attributes:
        content_digest: xxh3_128 of a JPEG without its metadata.
        format: "jpeg", "png", "gif", "webp", "bmp", "tiff", "gzip" (with a picture in it),
            "unknown", or one of `NOT_IMAGES`.
        width: Pixels.
        height: Pixels.
        components: Colour components: 1 gray, 3 colour, 4 CMYK or with alpha.
        has_end: Whether the mark that ends an image of this format was seen.
    """

    content_digest: bytes | None
    format: str
    width: int | None = None
    height: int | None = None
    components: int | None = None
    has_end: bool | None = None


_PLAIN, _METADATA, _FRAME, _SCAN, _PROFILE, _ADOBE, _NO_LENGTH, _FILL = range(8)


def _kinds_of_markers() -> bytes:
    """Return what to do with a segment, by the second byte of its marker (ITU T.81, table B.1)."""
    kinds = bytearray(256)
    for marker in (*range(0xE0, 0xF0), 0xFE):
        kinds[marker] = _METADATA
    for marker in range(0xC0, 0xD0):
        if marker not in (0xC4, 0xC8, 0xCC):  # Huffman tables, reserved, arithmetic conditioning
            kinds[marker] = _FRAME
    for marker in (0x00, 0x01, *range(0xD0, 0xDA)):
        kinds[marker] = _NO_LENGTH
    kinds[0xDA] = _SCAN
    kinds[0xE2] = _PROFILE
    kinds[0xEE] = _ADOBE
    kinds[0xFF] = _FILL
    return bytes(kinds)


_KINDS = _kinds_of_markers()
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_MARKUP = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|script|title)", re.I)


def picture_facts(buffer: Buffer, view: memoryview) -> PictureFacts:
    """Return what the first ``len(view)`` bytes of *buffer* say.

    Args:
        buffer: The bytes; indexed, which is twice as fast as with a view.
        view: The same bytes, without what may follow them in *buffer*; digested.
    """
    if len(view) > 3 and buffer[0] == 0xFF and buffer[1] == 0xD8 and buffer[2] == 0xFF:
        return _jpeg_facts(buffer, view)
    return _other_facts(bytes(view[:64]), view)


def _jpeg_facts(buffer: Buffer, view: memoryview) -> PictureFacts:  # noqa: C901 (one loop: speed)
    kinds = _KINDS
    size = len(view)
    place = start = 2
    before: list[memoryview] = []  # what is kept, before `start`
    frame: tuple[int | None, int | None, int | None] = None, None, None
    while place + 4 <= size and buffer[place] == 0xFF:
        kind = kinds[buffer[place + 1]]
        if not kind:  # plain
            place += 2 + (buffer[place + 2] << 8) + buffer[place + 3]
            continue
        if kind == _NO_LENGTH:
            place += 2
            continue
        if kind == _SCAN:
            is_last = buffer[size - 1] == 0xD9 and buffer[size - 2] == 0xFF  # nearly always
            stop = size if is_last else _end_of_jpeg(buffer, place, size)
            digest = _digest_of(before, view[start : stop or size])
            # The quickest way to make a named tuple.
            return tuple.__new__(PictureFacts, (digest, "jpeg", *frame, stop > 0))
        after = place + 1
        if kind != _FILL:
            after += 1 + (buffer[place + 2] << 8) + buffer[place + 3]
        if kind == _FRAME:
            frame = _frame(buffer, place, size)
        elif _is_dropped(kind, buffer, place):
            if place > start:
                before.append(view[start:place])
            start = after
        place = after
    return PictureFacts(None, "jpeg", *frame, has_end=False)


def _frame(buffer: Buffer, place: int, size: int) -> tuple[int | None, int | None, int | None]:
    """Return width, height and number of components from the frame header at *place*."""
    if place + 10 > size:
        return None, None, None
    width = buffer[place + 7] << 8 | buffer[place + 8]
    height = buffer[place + 5] << 8 | buffer[place + 6]
    return width or None, height or None, buffer[place + 9] or None


def _is_dropped(kind: int, buffer: Buffer, place: int) -> bool:
    if kind == _PROFILE:
        return buffer[place + 4 : place + 16] != b"ICC_PROFILE\0"
    return kind != _ADOBE or buffer[place + 4 : place + 9] != b"Adobe"


def _end_of_jpeg(buffer: Buffer, place: int, size: int) -> int:
    """Return where the image ends whose first scan begins at *place*; 0 if it does not end."""
    while found := _NEXT_MARKER.search(buffer, place, size):
        place = found.start()
        marker = buffer[place + 1]
        if marker == 0xD9:
            return place + 2
        if place + 4 > size:
            break
        has_length = _KINDS[marker] < _NO_LENGTH
        place += 2 + ((buffer[place + 2] << 8) + buffer[place + 3] if has_length else 0)
    return 0


def _digest_of(before: list[memoryview], last: memoryview) -> bytes:
    if not before:
        return xxhash.xxh3_128_digest(last)
    hasher = xxhash.xxh3_128()
    for piece in before:
        hasher.update(piece)
    hasher.update(last)
    return hasher.digest()


def _other_facts(head: bytes, view: memoryview) -> PictureFacts:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_facts(head, view)
    if head.startswith((b"GIF87a", b"GIF89a")):
        return PictureFacts(None, "gif", *_pair(head, 6, "little"), 3, bytes(view[-1:]) == b";")
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return PictureFacts(None, "webp", *_webp_size(head))
    if head.startswith(b"BM") and len(head) > 26:
        return PictureFacts(None, "bmp", *_bmp_size(head))
    if head.startswith(b"\x1f\x8b"):
        return _gzip_facts(view)
    return PictureFacts(None, _plain_format(head))


def _plain_format(head: bytes) -> str:
    if head.startswith((b"II*\0", b"MM\0*")):
        return "tiff"
    if head.startswith(b"%PDF-"):
        return "pdf"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    return "html" if _MARKUP.match(head) else UNKNOWN


_COMPONENTS_OF_PNG = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; 3 is a palette of RGB


def _png_facts(head: bytes, view: memoryview) -> PictureFacts:
    if len(head) < 26 or head[12:16] != b"IHDR":
        return PictureFacts(None, "png", has_end=False)
    width, height = (int.from_bytes(head[k : k + 4], "big") & 0x7FFFFFFF or None for k in (16, 20))
    has_end = b"IEND" in bytes(view[-64:])
    return PictureFacts(None, "png", width, height, _COMPONENTS_OF_PNG.get(head[25]), has_end)


def _webp_size(head: bytes) -> tuple[int | None, int | None]:
    chunk = head[12:16]
    if chunk == b"VP8X" and len(head) >= 30:
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if chunk == b"VP8L" and len(head) >= 25:
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 " and len(head) >= 30:
        width, height = _pair(head, 26, "little")
        return (width or 0) & 0x3FFF or None, (height or 0) & 0x3FFF or None
    return None, None


def _bmp_size(head: bytes) -> tuple[int | None, int | None]:
    if int.from_bytes(head[14:18], "little") < 40:  # OS/2
        return _pair(head, 18, "little")
    width, height = (int.from_bytes(head[k : k + 4], "little", signed=True) for k in (18, 22))
    return abs(width) & 0x7FFFFFFF or None, abs(height) & 0x7FFFFFFF or None


def _pair(head: bytes, place: int, order: str) -> tuple[int | None, int | None]:
    """Return two numbers of 16 bits; None for 0 or where there are none."""
    if len(head) < place + 4:
        return None, None
    first, second = head[place : place + 2], head[place + 2 : place + 4]
    if order == "little":
        first, second = first[::-1], second[::-1]
    return int.from_bytes(first, "big") or None, int.from_bytes(second, "big") or None


def _gzip_facts(view: memoryview) -> PictureFacts:
    """Return the facts of the picture in gzip'd bytes; ImageNet-21K has 26 of those."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        content = unpacker.decompress(view, MAX_UNPACKED_BYTES)
    except zlib.error:
        content = b""
    if content.startswith(b"\x1f\x8b") or not unpacker.eof:
        return PictureFacts(None, "gzip of no image")
    facts = picture_facts(content, memoryview(content))
    is_image = facts.format not in NOT_IMAGES and facts.format != UNKNOWN
    return facts._replace(format="gzip" if is_image else "gzip of no image")
