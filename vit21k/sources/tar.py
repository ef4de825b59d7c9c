"""Tars read in place: headers, members with their offsets, and what is wrong with them."""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from vit21k.manifest.problems import ProblemKind
from vit21k.sources.container import ByteSource


def parse_pax(content: bytes) -> dict[bytes, bytes] | None:
    r"""Return the records ``<length> <key>=<value>\n`` of *content*; None if one is malformed."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(content) and content[start]:
        digits, blank, _ = content[start : start + 20].partition(b" ")
        if not blank or not digits.isdigit():
            return None
        end = start + int(digits)
        record = content[start + len(digits) + 1 : end]
        key, equals, value = record.partition(b"=")
        if not equals or end > len(content) or not value.endswith(b"\n"):
            return None
        records[key] = value[:-1]
        start = end
    return records


BLOCK_BYTES = 512

_HEADER = struct.Struct("100s 24x 12s 12x 8s c 100x 6s 82x 155s 12x")
"""Name, size, checksum, type, magic and prefix."""

_ADLER_MODULUS = 65_521
_SPACES = 256  # the checksum field counts as eight spaces
_IS_EXTENDED_IN_PREFIX = 482 - 345
_LAST_PLAIN_BYTE = 0x7F
_NEGATIVE = 0xFF
_MAX_NUMBER = 1 << 62


class Header(NamedTuple):
    r"""Content of a header block.

    Attributes:
        name: As stored, after the POSIX prefix.
        num_bytes: Size of the data that follow, without padding.
        type: One byte; ``b"\0"`` and ``b"0"`` are regular files.
        is_extended: Of old GNU sparse files: another block of the map follows.
    """

    name: bytes
    num_bytes: int
    type: bytes
    is_extended: bool


def parse_header(block: memoryview) -> Header | None:
    """Parse *block*, 512 bytes; None if it is not a header."""
    name, size, checksum, kind, magic, prefix = _HEADER.unpack(block)
    num_bytes = parse_number(size)
    if num_bytes is None or not 0 <= num_bytes < _MAX_NUMBER:
        return None
    if not _is_checksum(checksum, block):
        return None
    name = _text(name)
    if magic == b"ustar\0" and prefix[0]:
        name = _text(prefix) + b"/" + name
    return Header(name, num_bytes, kind, prefix[_IS_EXTENDED_IN_PREFIX] != 0)


def parse_number(field: bytes) -> int | None:
    """Parse a numeric field, octal or GNU base-256; None if it is neither."""
    digits = field.rstrip(b"\0 ")
    if not digits:
        return 0
    if field[0] > _LAST_PLAIN_BYTE:
        if field[0] == _NEGATIVE:
            return int.from_bytes(field, "big", signed=True)
        return int.from_bytes(field, "big") - (0x80 << 8 * (len(field) - 1))
    if not digits.isdigit():
        digits = field.partition(b"\0")[0].strip() or field.strip(b"\0 ")
    try:
        return int(digits, 8) if digits.isdigit() else None
    except ValueError:  # 8, 9
        return None


def _is_checksum(digits: bytes, block: memoryview) -> bool:
    """Return whether *digits*, a field of a header block, are the checksum of the others.

    Adler-32 holds the sum in its lower half, modulo 65,521: 40 times as fast as `sum`.
    """
    stored = parse_number(digits)
    if not stored:  # an end block is all zeros
        return False
    others = stored - _SPACES + sum(digits)
    if (1 + others - (zlib.adler32(block) & 0xFFFF)) % _ADLER_MODULUS == 0:
        return True
    raw = bytes(block)
    # Old tars (Sun's) summed up signed bytes.
    signed = sum(raw[:148] + raw[156:]) - 256 * sum(
        byte > _LAST_PLAIN_BYTE for byte in raw[:148] + raw[156:]
    )
    return stored == signed + _SPACES


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


WINDOW_BYTES = 1 << 20
"""Holds most members many times, and fits into the processor cache with the code that hashes it."""


MAX_RATIO = 100
RATIO_COUNTS_FROM = 1 << 26
"""Compressed images hardly shrink: 64 MiB from less than a hundredth of that are a bomb."""


class BombError(Exception):
    """A compressed stream expands to more than a hundred times its size."""


class Source(Protocol):
    """Source of the bytes of a `Window`."""

    @property
    def num_bytes(self) -> int | None:
        """Length of the stream; None if it is not known."""

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill *view* with what is at *offset* of the stream, or a part of it; 0 at the end."""

    def can_jump(self) -> bool:
        """Return whether any offset can be read, not only the next one."""


class SeekableSource:
    """An uncompressed seekable file object, local or behind a URL."""

    def __init__(self, source: ByteSource) -> None:
        self.num_bytes: int = source.seek(0, os.SEEK_END)
        self._source = source

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill *view* from *offset* of the file."""
        self._source.seek(offset)
        return self._source.readinto(view) or 0

    def read(self, num_bytes: int, offset: int) -> bytes:
        """Return *num_bytes* from *offset*, fewer if the file ends."""
        content = bytearray(min(num_bytes, max(self.num_bytes - offset, 0)))
        view = memoryview(content)
        at = 0
        while at < len(content) and (num_read := self.read_into(view[at:], offset + at)):
            at += num_read
        return bytes(view[:at])

    def can_jump(self) -> bool:
        """Return True."""
        return True


class Window:
    """A buffered, forward-moving view of a stream.

    Attributes:
        offset: Of the next byte of the stream.
        num_fills: How often bytes were read; what was taken before the last time is not valid.
    """

    def __init__(self, source: Source, offset: int = 0, *, window_bytes: int = WINDOW_BYTES):
        self.offset = offset
        self.num_fills = 0
        self._source = source
        self._window_bytes = window_bytes
        self._buffer = memoryview(bytearray(window_bytes))
        self._start = self._end = 0  # of the buffered bytes that are not taken yet

    @property
    def num_bytes(self) -> int | None:
        """Length of the stream; None if it is not known."""
        return self._source.num_bytes

    def take(self, num_bytes: int) -> memoryview:
        """Return the next *num_bytes*, fewer if the stream ends; valid until the next call."""
        self.read_ahead(num_bytes)
        stop = min(self._start + num_bytes, self._end)
        view = self._buffer[self._start : stop]
        self.offset += stop - self._start
        self._start = stop
        return view

    def read_ahead(self, num_bytes: int) -> None:
        """Have the next *num_bytes* in memory, so that taking them invalidates nothing."""
        if self._end - self._start < num_bytes:
            self._fill(num_bytes)

    def can_jump(self) -> bool:
        """Return whether any offset of the stream can be read, not only the next one."""
        return self._source.can_jump()

    def read_again(self, offset: int, num_bytes: int) -> bytes:
        """Return bytes that were taken before, fewer if the stream has been cut since.

        Raises:
            ValueError: The stream cannot jump.
        """
        if not self._source.can_jump():
            raise ValueError("the stream cannot be read again")
        view = memoryview(bytearray(num_bytes))
        end = 0
        while end < num_bytes and (num_read := self._source.read_into(view[end:], offset + end)):
            end += num_read
        return bytes(view[:end])

    def give_back(self, num_bytes: int) -> None:
        """Move back over the last *num_bytes* of what `take` has just returned."""
        self.offset -= num_bytes
        self._start -= num_bytes

    def go_to(self, offset: int) -> bool:
        """Move to *offset*; return whether the stream is that long.

        Backwards only if any offset of the source may be asked for.
        """
        num_bytes = offset - self.offset
        if 0 <= num_bytes <= self._end - self._start:
            self._start += num_bytes
            self.offset = offset
            return True
        if self._source.can_jump():
            self._start = self._end = 0
            self.offset = offset
            return self.num_bytes is None or offset <= self.num_bytes
        while self.offset < offset:
            if not len(self.take(min(offset - self.offset, self._window_bytes))):
                return False
        return True

    def _fill(self, num_bytes: int) -> None:
        """Read *num_bytes* or up to the end of the stream, and more if it fits."""
        self.num_fills += 1
        waiting = self._buffer[self._start : self._end]
        too_small = num_bytes > len(self._buffer)
        if too_small or len(self._buffer) > max(num_bytes, self._window_bytes):
            buffer = memoryview(bytearray(max(num_bytes, self._window_bytes)))
            buffer[: len(waiting)] = waiting
            self._buffer = buffer
        else:
            self._buffer[: len(waiting)] = waiting
        self._start, self._end = 0, len(waiting)
        while self._end < num_bytes:
            at = self.offset + self._end
            num_read = self._source.read_into(self._buffer[self._end :], at)
            if not num_read:
                return
            self._end += num_read


MAX_MEMBER_BYTES = 1 << 28
"""256 MiB; the largest image of ImageNet-21K is far smaller."""

_MAX_NAME_BYTES = 4096
_MAX_EXTENDED_BYTES = 1 << 20
_SCAN_BYTES = 1 << 20
_MAGIC, _MAGIC_AT = b"ustar", 257
_IS_EXTENDED_AT = 504
_ZEROS = bytes(BLOCK_BYTES)

_FOLDER = b"5"
_REGULAR = frozenset((b"\0", b"0", b"7"))
_WITHOUT_DATA = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
_NO_MEMBER = frozenset((b"g", b"K", b"V", b"D"))  # pax defaults, long link, label, list of a folder
_FLAWS = {
    b"1": (ProblemKind.MEMBER_IS_LINK, "a hard link"),
    b"2": (ProblemKind.MEMBER_IS_LINK, "a symbolic link"),
    b"3": (ProblemKind.NOT_A_REGULAR_FILE, "a character device"),
    b"4": (ProblemKind.NOT_A_REGULAR_FILE, "a block device"),
    b"6": (ProblemKind.NOT_A_REGULAR_FILE, "a pipe"),
    b"S": (ProblemKind.MEMBER_NOT_SUPPORTED, "a sparse file"),
    b"M": (ProblemKind.MEMBER_NOT_SUPPORTED, "resumes from another archive"),
}

_TRUNCATED = ProblemKind.ARCHIVE_TRUNCATED

Flaw = tuple[ProblemKind, str]


class Member(NamedTuple):
    """A member of a tar, or a damaged stretch of it.

    Attributes:
        name: Relative, without ``.`` and doubled slashes; as stored if it is not relative, and
            empty for a stretch.
        offset: Of the first byte of its data, or of a stretch, in the stream.
        num_bytes: Size of the data.
        flaw: What is wrong with it; None for a readable regular file.
    """

    name: bytes
    offset: int
    num_bytes: int
    flaw: Flaw | None


@dataclass
class _Extended:
    """Extended headers (pax, GNU) that precede the header of a member."""

    long_name: bytes | None = None
    pax: dict[bytes, bytes] = field(default_factory=dict)
    flaw: Flaw | None = None


def read_members(window: Window, end: int | None = None) -> Iterator[Member]:
    """Yield the members of the tar at *window* in its order, without folders.

    The data of a member may be taken from *window* before the next member is requested.

    Args:
        window: At the first header.
        end: Offset where the tar ends, if before the end of the stream.
    """
    return _Reader(window, window.num_bytes if end is None else end).members()


class _Reader:
    def __init__(self, window: Window, end: int | None) -> None:
        self._window = window
        self._end = end

    def members(self) -> Iterator[Member]:
        extended = _Extended()
        while True:
            at = self._window.offset
            block = self._take(BLOCK_BYTES)
            if len(block) < BLOCK_BYTES:
                yield _stretch(at, len(block), _TRUNCATED, "has no end mark")
                return
            if block == _ZEROS:
                yield from self._rest(at)
                return
            header = parse_header(block)
            if header is None:
                self._window.give_back(BLOCK_BYTES)
                yield self._damaged_stretch()
            elif not self._take_extended(extended, header):
                member, stop = self._member(header, extended)
                extended = _Extended()
                if header.type != _FOLDER and not member.name.endswith(b"/"):
                    yield member
                is_cut = member.flaw is not None and member.flaw[0] is _TRUNCATED
                if is_cut or not self._go_to(stop):
                    return

    def _take(self, num_bytes: int) -> memoryview:
        if self._end is not None and num_bytes > self._end - self._window.offset:
            num_bytes = max(self._end - self._window.offset, 0)
        return self._window.take(num_bytes)

    def _go_to(self, stop: int) -> bool:
        """Move forward, not beyond the end of the archive: the last padding may be missing."""
        return self._window.go_to(stop if self._end is None else min(stop, self._end))

    def _take_extended(self, extended: _Extended, header: Header) -> bool:
        """Store an extended header; return False if *header* is that of a member."""
        num_bytes = _padded(header.num_bytes)
        if header.type in _NO_MEMBER:
            return self._go_to(self._window.offset + num_bytes) or True
        if header.type not in {b"L", b"x", b"X"}:
            return False
        if header.num_bytes > _MAX_EXTENDED_BYTES:
            detail = f"has a name, or a record, of {header.num_bytes:,} bytes"
            extended.flaw = ProblemKind.ARCHIVE_DAMAGED, detail
            return self._go_to(self._window.offset + num_bytes) or True
        content = bytes(self._take(num_bytes)[: header.num_bytes])
        if header.type == b"L":
            extended.long_name = content.partition(b"\0")[0]
        elif (records := parse_pax(content)) is None:
            extended.flaw = ProblemKind.ARCHIVE_DAMAGED, "has a malformed pax record"
        else:
            extended.pax |= records
        return True

    def _member(self, header: Header, extended: _Extended) -> tuple[Member, int]:
        """Return the member of *header* and the offset of the next header."""
        pax = extended.pax
        while header.is_extended and header.type == b"S":  # the map continues in blocks of its own
            block = self._take(BLOCK_BYTES)
            header = header._replace(
                is_extended=len(block) == BLOCK_BYTES and bool(block[_IS_EXTENDED_AT])
            )
        name = pax.get(b"path", extended.long_name or header.name)
        num_bytes = parse_pax_size(pax) if b"size" in pax else header.num_bytes
        offset = self._window.offset
        flaw = extended.flaw or _FLAWS.get(header.type) or _flaw_of(header, pax, num_bytes)
        data = 0 if header.type in _WITHOUT_DATA else max(num_bytes, 0)
        if self._end is not None and offset + data > self._end:
            detail = f"has {self._end - offset:,} of {num_bytes:,} bytes"
            flaw = _TRUNCATED, detail
        plain = plain_name(name)
        if plain is None:
            return Member(name, offset, num_bytes, flaw or _UNSAFE), offset + _padded(data)
        return Member(plain, offset, num_bytes, flaw), offset + _padded(data)

    def _rest(self, at: int) -> Iterator[Member]:
        """Check that only zeros follow the first end block."""
        while len(content := self._take(_SCAN_BYTES)):
            if content.tobytes().strip(b"\0"):
                detail = "has data after its end mark, which are not read"
                yield _stretch(at, 0, ProblemKind.ARCHIVE_DAMAGED, detail)
                return

    def _damaged_stretch(self) -> Member:
        """Skip to the next block that is recognisably a header."""
        at = self._window.offset
        while len(content := self._take(_SCAN_BYTES)):
            if (start := _next_header(content)) is not None:
                self._window.give_back(len(content) - start)
                break
        num_bytes = self._window.offset - at
        detail = f"no header where one is expected; {num_bytes:,} bytes are skipped"
        return _stretch(at, num_bytes, ProblemKind.ARCHIVE_DAMAGED, detail)


_UNSAFE = ProblemKind.UNSAFE_NAME, ""


def _flaw_of(header: Header, pax: dict[bytes, bytes], num_bytes: int) -> Flaw | None:
    if header.type not in _REGULAR:
        return ProblemKind.MEMBER_NOT_SUPPORTED, f"is of type {header.type!r}"
    if any(key.startswith(b"GNU.sparse.") for key in pax):
        return ProblemKind.MEMBER_NOT_SUPPORTED, "a sparse file"
    if num_bytes < 0:
        return ProblemKind.ARCHIVE_DAMAGED, "has no sensible size"
    return None


def plain_name(name: bytes) -> bytes | None:
    """Return *name* without ``.`` and doubled slashes; None if it does not stay in its folder."""
    if b"/." not in name and b"//" not in name and b"\0" not in name and name[:1] not in b"./":
        return name if name and len(name) <= _MAX_NAME_BYTES else None
    if name.startswith(b"/") or b"\0" in name or len(name) > _MAX_NAME_BYTES:
        return None
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if b".." in parts or not parts:
        return b"./" if name and not parts else None
    return b"/".join(parts) + (b"/" if name.endswith(b"/") else b"")


def parse_pax_size(pax: dict[bytes, bytes]) -> int:
    """Return the `size` of pax records; -1 if it is no number."""
    digits = pax[b"size"]
    return int(digits) if digits.isdigit() and len(digits) < 19 else -1  # noqa: PLR2004 (2**62)


def _next_header(content: memoryview) -> int | None:
    """Return the offset of the first header in *content*, which begins at a block; None if none."""
    raw = content.tobytes()
    at = raw.find(_MAGIC, _MAGIC_AT)
    while at >= 0:
        start = at - _MAGIC_AT
        block = content[start : start + BLOCK_BYTES]
        if start % BLOCK_BYTES == 0 and len(block) == BLOCK_BYTES and parse_header(block):
            return start
        at = raw.find(_MAGIC, at + 1)
    return None


def _stretch(at: int, num_bytes: int, kind: ProblemKind, detail: str) -> Member:
    return Member(b"", at, num_bytes, (kind, f"at offset {at:,}: {detail}"))


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
