"""One file -> its digest and image facts, read once."""

import hashlib
import os
import re
import stat
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, Protocol

import numpy as np
import xxhash

from vit21k.manifest.problems import ProblemKind


class HashFunction(Protocol):
    """What `hashlib` and `xxhash` give."""

    def update(self, content: memoryview, /) -> None:
        """Take in more content."""

    def digest(self) -> bytes:
        """Return the digest of all content so far."""


class Algorithm(NamedTuple):
    """A digest of 16 bytes.

    Attributes:
        at_once: Digest of content that is all there.
        piecewise: Makes a hasher for content that comes in pieces.
    """

    at_once: Callable[[memoryview], bytes]
    piecewise: Callable[[], HashFunction]


def _md5() -> HashFunction:
    return hashlib.md5(usedforsecurity=False)


def _blake2b() -> HashFunction:
    return hashlib.blake2b(digest_size=16)


ALGORITHMS = {
    "xxh3_128": Algorithm(xxhash.xxh3_128_digest, xxhash.xxh3_128),
    "md5": Algorithm(lambda data: hashlib.md5(data, usedforsecurity=False).digest(), _md5),
    "blake2b_128": Algorithm(lambda data: hashlib.blake2b(data, digest_size=16).digest(), _blake2b),
}
"""By the name that is stored in the manifests.

At 14.2 million files the odds that any two different ones collide by chance are 3e-25 (128 bits).
xxh3_128 and md5 can be made to collide on purpose, blake2b_128 cannot.
"""


MAX_BYTES = 48 << 20
"""Of all of them together, in this process."""

_changed = threading.Condition()
_taken: list[int] = []


@contextmanager
def large_buffer(num_bytes: int) -> Iterator[bytearray]:
    """Yield a buffer for the time of the block; wait until the limit of memory permits it.

    Args:
        num_bytes: Not more than `MAX_BYTES`.
    """
    with _changed:
        _changed.wait_for(lambda: sum(_taken) + num_bytes <= MAX_BYTES)
        _taken.append(num_bytes)
    try:
        yield bytearray(num_bytes)
    finally:
        with _changed:
            _taken.remove(num_bytes)
            _changed.notify_all()


MAX_UNPACKED_BYTES = 64 << 20
"""Of gzip'd images; what unpacks to more is not treated as an image."""

UNKNOWN = "unknown"
NOT_IMAGES = frozenset({"html", "pdf", "zip", "gzip of no image"})
"""Formats of files that are certainly not images, whatever their names say."""


Buffer = bytearray | bytes | memoryview


class ImageFacts(NamedTuple):
    """What the bytes of a file say.  None: they do not.

    Attributes:
        content_digest: xxh3_128 of a JPEG without its metadata.
        format: "jpeg", "png", "gif", "webp", "bmp", "tiff", "ppm", "gzip" (with an image in it),
            "unknown", or one of `NOT_IMAGES`.
        width: Pixels.
        height: Pixels.
        components: Colour components: 1 gray, 3 colour, 4 CMYK or with alpha.
        has_end: Whether the mark that ends an image of this format was seen; None: BMP, TIFF and
            PPM have none.
    """

    content_digest: bytes | None
    format: str
    width: int | None = None
    height: int | None = None
    components: int | None = None
    has_end: bool | None = None


_PLAIN, _METADATA, _FRAME, _SCAN, _PROFILE, _COLOUR, _NO_LENGTH, _FILL, _JUNK = range(9)


def _kinds_of_markers() -> bytes:
    """Return what to do with a segment, by the second byte of its marker (ITU T.81, table B.1)."""
    kinds = bytearray(256)
    for marker in (*range(0xE0, 0xF0), 0xFE):
        kinds[marker] = _METADATA
    for marker in range(0xC0, 0xD0):
        if marker not in (0xC4, 0xC8, 0xCC):  # Huffman tables, reserved, arithmetic conditioning
            kinds[marker] = _FRAME
    for marker in (0x01, *range(0xD0, 0xDA)):
        kinds[marker] = _NO_LENGTH
    kinds[0xDA] = _SCAN
    kinds[0xE2] = _PROFILE
    kinds[0xE0] = kinds[0xEE] = _COLOUR  # JFIF's and Adobe's
    kinds[0xFF] = _FILL
    kinds[0x00] = _JUNK
    return bytes(kinds)


_KINDS = _kinds_of_markers()
_MARKER_IN_HEADER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_MARKUP = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml|script|title)", re.I)


def image_facts(buffer: Buffer, view: memoryview) -> ImageFacts:
    """Return what the first ``len(view)`` bytes of *buffer* say.

    Args:
        buffer: The bytes; indexed, which is twice as fast as with a view.
        view: The same bytes, without what may follow them in *buffer*; hashed.
    """
    if len(view) > 3 and buffer[0] == 0xFF and buffer[1] == 0xD8 and buffer[2] == 0xFF:
        return _jpeg_facts(buffer, view)
    return _other_facts(bytes(view[:64]), view)


def _jpeg_facts(  # noqa: C901, PLR0912 (one loop: speed)
    buffer: Buffer, view: memoryview
) -> ImageFacts:
    kinds = _KINDS
    size = len(view)
    place = start = 2
    before: list[memoryview] = []  # what is kept, before `start`
    frame_at = jfif_at = adobe_at = 0
    while place + 4 <= size:
        kind = kinds[buffer[place + 1]] if buffer[place] == 0xFF else _JUNK
        if not kind:  # plain
            place = _after(buffer, place)
            continue
        if kind == _NO_LENGTH:
            place += 2
            continue
        if kind == _JUNK:  # decoders skip it; it stays in the digest
            found = _MARKER_IN_HEADER.search(buffer, place, size)
            place = found.start() if found else size
            continue
        if kind == _SCAN:
            stop = _end_of_jpeg(buffer, place, size)
            colours = _unusual_colours(view, frame_at, jfif_at, adobe_at)
            digest = _digest_of(before, view[start : stop or size], colours)
            frame = _frame(buffer, frame_at, size)
            # The quickest way to make a named tuple.
            return tuple.__new__(ImageFacts, (digest, "jpeg", *frame, stop > 0))
        after = place + 1 if kind == _FILL else _after(buffer, place)
        if kind == _FRAME:
            frame_at = place
        elif kind != _PROFILE or buffer[place + 4 : place + 16] != b"ICC_PROFILE\0":
            if kind == _COLOUR:
                jfif_at, adobe_at = _colour_segments(buffer, place, after, jfif_at, adobe_at)
            if place > start:
                before.append(view[start:place])
            start = after
        place = after
    return ImageFacts(None, "jpeg", *_frame(buffer, frame_at, size), has_end=False)


_JFIF_BYTES, _ADOBE_BYTES = 18, 16  # of a segment that decides how colours are stored


def _after(buffer: Buffer, place: int) -> int:
    """Return where the segment at *place* ends; decoders take a length of less than 2 for 2."""
    return place + 2 + max(2, (buffer[place + 2] << 8) + buffer[place + 3])


def _colour_segments(
    buffer: Buffer, place: int, after: int, jfif_at: int, adobe_at: int
) -> tuple[int, int]:
    """Return where JFIF's and Adobe's segments are, with the one at *place*, if it is one."""
    head = bytes(buffer[place + 4 : place + 9])
    if buffer[place + 1] == 0xE0:
        is_jfif = head == b"JFIF\0" and after - place >= _JFIF_BYTES
        return place if is_jfif else jfif_at, adobe_at
    is_adobe = head == b"Adobe" and after - place >= _ADOBE_BYTES
    return jfif_at, place if is_adobe else adobe_at


def _unusual_colours(view: memoryview, frame_at: int, jfif_at: int, adobe_at: int) -> bytes:
    """Return how colours are stored, as libjpeg decides it; nothing for YCbCr, grey and CMYK.

    Args:
        view: A JPEG file.
        frame_at: Where its frame header is; 0: there is none.
        jfif_at: Where JFIF's segment is; 0: there is none.
        adobe_at: Where Adobe's last segment is; 0: there is none.
    """
    if not frame_at or len(view) < frame_at + 20:
        return b""
    transform = view[adobe_at + 15] if adobe_at else None
    num_components = view[frame_at + 9]
    if num_components == 4:
        return b"YCCK" if transform else b""
    if num_components != 3 or jfif_at:
        return b""
    if transform is not None:
        return b"" if transform else b"RGB"
    if view[frame_at + 1] == _LOSSLESS:
        return b"by decoder"
    identifiers = bytes(view[frame_at + at] for at in (10, 13, 16))
    return b"RGB" if identifiers == b"RGB" else b""


_LOSSLESS = 0xC3


def _frame(buffer: Buffer, place: int, size: int) -> tuple[int | None, int | None, int | None]:
    """Return width, height and number of components from the frame header at *place*."""
    if not place or place + 10 > size:
        return None, None, None
    width = buffer[place + 7] << 8 | buffer[place + 8]
    height = buffer[place + 5] << 8 | buffer[place + 6]
    return width or None, height or None, buffer[place + 9] or None


def _end_of_jpeg(buffer: Buffer, place: int, size: int) -> int:
    """Return where the image ends whose first scan begins at *place*; 0 if it does not end."""
    if buffer[size - 2] == 0xFF and buffer[size - 1] == 0xD9:  # nearly always
        scans = np.frombuffer(buffer, np.uint8, size - place, place)
        if np.count_nonzero((scans[:-1] == 0xFF) & (scans[1:] == 0xD9)) == 1:
            return size
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


def _digest_of(before: list[memoryview], last: memoryview, colours: bytes) -> bytes:
    if not before and not colours:
        return xxhash.xxh3_128_digest(last)
    hasher = xxhash.xxh3_128()
    for piece in before:
        hasher.update(piece)
    hasher.update(last)
    hasher.update(colours)
    return hasher.digest()


def _other_facts(  # noqa: PLR0911 (one for each format)
    head: bytes, view: memoryview
) -> ImageFacts:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_facts(head, view)
    if head.startswith((b"GIF87a", b"GIF89a")):
        return _gif_facts(view)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        has_end = 8 + int.from_bytes(head[4:8], "little") <= len(view)
        return ImageFacts(None, "webp", *_webp_size(head), None, has_end)
    if head.startswith(b"BM") and len(head) > 26:
        return ImageFacts(None, "bmp", *_bmp_size(head))
    if head.startswith(b"\x1f\x8b"):
        return _gzip_facts(view)
    if head.startswith(_TIFF_STARTS):
        return tiff_facts(lambda place, num_bytes: bytes(view[place : place + num_bytes]))
    if found := _PPM.match(view):
        width, height = (int(found[n]) & 0x7FFFFFFF or None for n in (2, 3))
        return ImageFacts(None, "ppm", width, height, 3 if found[1] in b"36" else 1)
    return ImageFacts(None, _plain_format(head))


def _plain_format(head: bytes) -> str:
    if head.startswith(b"%PDF-"):
        return "pdf"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    return "html" if _MARKUP.match(head) else UNKNOWN


_BLANKS = rb"(?:[\t-\r ]|#[^\r\n]{0,1000}[\r\n])"
_PPM = re.compile(
    rb"P([1-6])[\t-\r ]" + _BLANKS + rb"{0,99}(\d{1,9})" + _BLANKS + rb"{1,99}(\d{1,9})\s"
)

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_TYPES = {1: 1, 3: 2, 4: 4, 16: 8}  # bytes of the whole numbers that a size may be
_WIDTH_TAG, _HEIGHT_TAG, _PHOTOMETRIC_TAG, _SAMPLES_TAG = 256, 257, 262, 277
_PALETTE = 3


def tiff_facts(read: Callable[[int, int], bytes]) -> ImageFacts:
    """Return what the first directory of a TIFF or BigTIFF says.

    Args:
        read: (offset, number of bytes) -> bytes of the file, fewer where it ends.
    """
    head = read(0, 16)
    order: Literal["little", "big"] = "little" if head.startswith(b"II") else "big"
    is_big = b"+" in head[2:4]
    width = 8 if is_big else 4  # of offsets
    at = int.from_bytes(head[8:16] if is_big else head[4:8], order)
    count_bytes, entry_bytes = (8, 20) if is_big else (2, 12)
    count = int.from_bytes(read(at, count_bytes), order) if at < 1 << 62 else 0
    directory = read(at + count_bytes, entry_bytes * min(count, 0xFFFF))
    values: dict[int, int] = {}
    for place in range(0, len(directory) - entry_bytes + 1, entry_bytes):
        entry = directory[place : place + entry_bytes]
        tag, kind = (int.from_bytes(entry[k : k + 2], order) for k in (0, 2))
        num_bytes = _TIFF_TYPES.get(kind, 0)
        value = int.from_bytes(entry[4 + width : 4 + width + num_bytes], order)
        values.setdefault(tag, value)  # of equal tags the first one counts
    across, down = (
        value if 0 < (value := values.get(tag, 0)) < 1 << 31 else None
        for tag in (_WIDTH_TAG, _HEIGHT_TAG)
    )
    is_palette = values.get(_PHOTOMETRIC_TAG) == _PALETTE
    samples = 3 if is_palette else values.get(_SAMPLES_TAG, 1)
    components = samples if 0 < samples < 256 and across else None
    return ImageFacts(None, "tiff", across, down, components)


def _gif_facts(view: memoryview) -> ImageFacts:
    """Return the size of the screen, or as far as the first frame goes beyond it."""
    width, height = _pair(bytes(view[:10]), 6, "little")
    has_end = bytes(view[-1:]) == b";"
    place = 13 + (3 << (view[10] & 7) + 1 if len(view) > 10 and view[10] & 0x80 else 0)
    while place + 10 <= len(view) and view[place] != 0x2C:
        if view[place] == 0x21:  # an extension: blocks, to an empty one
            place += 2
            while place < len(view) and view[place]:
                place += 1 + view[place]
        place += 1
    if place + 10 <= len(view):
        left, top = _pair(bytes(view[place : place + 10]), 1, "little")
        across, down = _pair(bytes(view[place : place + 10]), 5, "little")
        width = max(width or 0, (left or 0) + (across or 0)) or None
        height = max(height or 0, (top or 0) + (down or 0)) or None
    return ImageFacts(None, "gif", width, height, 3, has_end)


_COMPONENTS_OF_PNG = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; 3 is a palette of RGB


def _png_facts(head: bytes, view: memoryview) -> ImageFacts:
    if len(head) < 26 or head[12:16] != b"IHDR":
        return ImageFacts(None, "png", has_end=False)
    width, height = (int.from_bytes(head[k : k + 4], "big") & 0x7FFFFFFF or None for k in (16, 20))
    has_end = b"IEND" in bytes(view[-64:]) or _has_png_end(view)
    return ImageFacts(None, "png", width, height, _COMPONENTS_OF_PNG.get(head[25]), has_end)


def _has_png_end(view: memoryview) -> bool:
    """Return whether there is an end chunk, with something after it."""
    place = 8
    while place + 12 <= len(view):
        if bytes(view[place + 4 : place + 8]) == b"IEND":
            return True
        place += 12 + int.from_bytes(view[place : place + 4], "big")
    return False


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


def _gzip_facts(view: memoryview) -> ImageFacts:
    """Return the facts of the image in gzip'd bytes; ImageNet-21K has 26 of those."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        content = unpacker.decompress(view, MAX_UNPACKED_BYTES)
    except zlib.error:
        content = b""
    if content.startswith(b"\x1f\x8b") or not unpacker.eof:
        return ImageFacts(None, "gzip of no image")
    facts = image_facts(content, memoryview(content))
    is_image = facts.format not in NOT_IMAGES and facts.format != UNKNOWN
    return facts._replace(format="gzip" if is_image else "gzip of no image")


BUFFER_BYTES = 1 << 20
"""Nearly every image of ImageNet-21K (mean 92 kB) fits, and is read with one call."""

WHOLE_BYTES = 32 << 20
"""What is larger goes through the buffer in pieces, without a content digest."""

PROBE_BYTES = 4096
"""Read of either end of a file by a quick run: a page."""

_NUM_TRIES = 2
_NO_LIMIT = 1 << 62
_buffers = threading.local()


class FileDigest(NamedTuple):
    """What is known of a file that did not change while it was read.

    Attributes:
        num_bytes: Its size.
        mtime_ns: When it was modified.
        digest: Of all bytes; None after a quick look at both ends.
        facts: What the bytes say; None likewise.
        ctime_ns: When its status changed.
        inode: Its number.
        probe: Digest of both ends, by a quick run.
    """

    num_bytes: int
    mtime_ns: int
    digest: bytes | None
    facts: ImageFacts | None
    ctime_ns: int = 0
    inode: int = 0
    probe: bytes | None = None


class _Content(NamedTuple):
    """What reading a file gave: all of `FileDigest` that is of its bytes."""

    num_bytes: int
    digest: bytes | None
    facts: ImageFacts | None
    probe: bytes | None = None


Flaw = tuple[ProblemKind, str]
"""What is wrong with a file, and a detail."""


class FileReader:
    """Reads and digests files; any number of threads may share it."""

    def __init__(self, algorithm: str, flags: int) -> None:
        """Make an instance.

        Args:
            algorithm: A key of `ALGORITHMS`.
            flags: To open files with.
        """
        self._algorithm = ALGORITHMS[algorithm]
        self._flags = flags

    def digest(self, name: bytes, folder: int) -> FileDigest | OSError | Flaw:
        """Read a file to its end; once more if it changed meanwhile.

        Args:
            name: Relative to the folder.
            folder: Descriptor of the folder.
        """
        return self._try(name, folder, self._digest_content)

    def probe(self, name: bytes, folder: int) -> FileDigest | OSError | Flaw:
        """Read both ends of a file only, unless that is all of it, or it is no JPEG."""
        return self._try(name, folder, self._probe_content)

    def prefetch(self, name: bytes, folder: int, *, only_ends: bool) -> None:
        """Have the system fetch a file, the first part of a large one, or both ends of it.

        It is not waited for.
        """
        self._advise(name, folder, _ends if only_ends else lambda _size: [(0, BUFFER_BYTES)])

    def _advise(
        self, name: bytes, folder: int, parts_of: Callable[[int], list[tuple[int, int]]]
    ) -> None:
        try:
            descriptor = os.open(name, self._flags, dir_fd=folder)
        except OSError:
            return  # reading it will say why
        try:
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode):
                for start, num_bytes in parts_of(status.st_size):
                    os.posix_fadvise(descriptor, start, num_bytes, os.POSIX_FADV_WILLNEED)
        except OSError:
            return
        finally:
            os.close(descriptor)

    def _try(
        self,
        name: bytes,
        folder: int,
        read: Callable[[int, int], _Content],
    ) -> FileDigest | OSError | Flaw:
        try:
            for _ in range(_NUM_TRIES):
                descriptor = os.open(name, self._flags, dir_fd=folder)
                try:
                    before = os.fstat(descriptor)
                    if not stat.S_ISREG(before.st_mode):
                        return ProblemKind.NOT_A_REGULAR_FILE, ""
                    limit = before.st_size + BUFFER_BYTES if before.st_size else _NO_LIMIT
                    content = read(descriptor, before.st_size)
                    after = os.fstat(descriptor)
                finally:
                    os.close(descriptor)
                if _version(before) == _version(after) and content.num_bytes <= limit:
                    return _checked(content, after)
        except OSError as error:
            return error
        return ProblemKind.CHANGED_WHILE_READ, ""

    def _digest_content(self, descriptor: int, size: int) -> _Content:
        """Digest all that can be read.

        The size that the system gives is not trusted: for files of /proc, and some network file
        systems, it is 0.
        """
        if BUFFER_BYTES <= size < WHOLE_BYTES:
            with large_buffer(size + 1) as buffer:
                return self._digest_with(buffer, descriptor, size)
        return self._digest_with(thread_buffer(), descriptor, size)

    def _digest_with(self, buffer: bytearray, descriptor: int, size: int) -> _Content:
        view = memoryview(buffer)
        num_bytes = 0
        while num_bytes < len(buffer):
            num_read = os.readv(descriptor, [view[num_bytes:]])
            num_bytes += num_read
            if not num_read or num_bytes == size:  # `_try` sees whether it has grown
                return _Content(num_bytes, *self.describe(buffer, view[:num_bytes]))
        limit = size + BUFFER_BYTES if size else _NO_LIMIT
        facts = image_facts(buffer, view)._replace(content_digest=None, has_end=None)
        if facts.format == "tiff":  # its directory may be anywhere
            facts = tiff_facts(lambda place, num: os.pread(descriptor, num, place))
        return _Content(*self._digest_rest(descriptor, view, limit), facts)

    def _probe_content(self, descriptor: int, size: int) -> _Content:
        if size <= 2 * PROBE_BYTES:
            content = self._digest_content(descriptor, size)
            whole = memoryview(thread_buffer())[: content.num_bytes]
            return content._replace(probe=self.probe_of(whole))
        buffer = thread_buffer()
        view = memoryview(buffer)[: 2 * PROBE_BYTES]
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # else the kernel reads on
        num_read = os.preadv(descriptor, [view[:PROBE_BYTES]], 0)
        num_read += os.preadv(descriptor, [view[PROBE_BYTES:]], size - PROBE_BYTES)
        if num_read < len(view):
            return _Content(num_read, None, None)
        probe = xxhash.xxh3_128_digest(view)
        if buffer.startswith(b"\xff\xd8\xff"):
            return _Content(size, None, None, probe)
        return self._digest_content(descriptor, size)._replace(probe=probe)

    def probe_of(self, content: memoryview) -> bytes:
        """Return the probe of a file, or of a member of an archive, with this *content*."""
        if len(content) <= 2 * PROBE_BYTES:
            return xxhash.xxh3_128_digest(content)
        hasher = xxhash.xxh3_128(content[:PROBE_BYTES])
        hasher.update(content[-PROBE_BYTES:])
        return hasher.digest()

    def describe(self, buffer: Buffer, view: memoryview) -> tuple[bytes, ImageFacts]:
        """Return digest and facts of the bytes in *view*, with which *buffer* begins."""
        return self._algorithm.at_once(view), image_facts(buffer, view)

    def _digest_rest(self, descriptor: int, buffer: memoryview, limit: int) -> tuple[int, bytes]:
        """Return size and digest of a file of which *buffer* holds the first part."""
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        hasher = self._algorithm.piecewise()
        num_bytes = num_read = len(buffer)
        while num_read and num_bytes <= limit:
            hasher.update(buffer[:num_read])
            num_read = os.readv(descriptor, [buffer])
            num_bytes += num_read
        return num_bytes, hasher.digest()


def thread_buffer() -> bytearray:
    """Return this thread's buffer, of `BUFFER_BYTES`."""
    try:
        buffer: bytearray = _buffers.bytes
    except AttributeError:
        buffer = _buffers.bytes = bytearray(BUFFER_BYTES)
    return buffer


def _ends(size: int) -> list[tuple[int, int]]:
    return [(0, PROBE_BYTES), (max(size - PROBE_BYTES, 0), PROBE_BYTES)]


def _version(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def no_image(facts: ImageFacts) -> tuple[ProblemKind, str]:
    """Return what is wrong with a file that is certainly not an image."""
    return ProblemKind.NOT_AN_IMAGE, f"its first bytes are those of {facts.format}"


def _checked(content: _Content, status: os.stat_result) -> FileDigest | Flaw:
    """Return the digest, unless there was nothing, or less than there should be."""
    num_bytes, digest, facts, probe = content
    if num_bytes < status.st_size:
        return ProblemKind.UNREADABLE, f"only {num_bytes:,} of {status.st_size:,} bytes"
    if not num_bytes:
        return ProblemKind.EMPTY, ""
    if facts is not None and facts.format in NOT_IMAGES:
        return no_image(facts)
    return FileDigest(
        num_bytes, status.st_mtime_ns, digest, facts, status.st_ctime_ns, status.st_ino, probe
    )
