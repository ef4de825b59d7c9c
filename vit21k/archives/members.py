"""A window on a tar archive -> its members, one after the other, each with what is wrong with it.

Nothing is unpacked, and nothing in an archive decides which file of the system is touched: a
member's name is only ever a name.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from vit21k.archives.header import BLOCK_BYTES, Header, parse_header
from vit21k.archives.pax import parse_pax
from vit21k.archives.window import Window
from vit21k.manifest.problems import ProblemKind

MAX_MEMBER_BYTES = 1 << 28
"""256 MiB: no picture of ImageNet-21K comes near."""

_MAX_NAME_BYTES = 4096
_MAX_AMENDMENT_BYTES = 1 << 20
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
    b"M": (ProblemKind.MEMBER_NOT_SUPPORTED, "goes on from another archive"),
}

_TRUNCATED = ProblemKind.ARCHIVE_TRUNCATED

Flaw = tuple[ProblemKind, str]


class Member(NamedTuple):
    """A member of an archive, or a stretch of it that is damaged.

    Attributes:
        name: Relative, without ``.`` and doubled slashes; as stored if it is not relative, and
            empty for a stretch.
        offset: Where its data begin in the stream; where a stretch begins.
        num_bytes: Size of the data.
        flaw: What is wrong with it; None for a regular file, which may be read.
    """

    name: bytes
    offset: int
    num_bytes: int
    flaw: Flaw | None


@dataclass
class _Amendments:
    """What the blocks before a header say of its member."""

    long_name: bytes | None = None
    pax: dict[bytes, bytes] = field(default_factory=dict)
    flaw: Flaw | None = None


def read_members(window: Window, end: int | None = None) -> Iterator[Member]:
    """Yield the members of the archive at *window*, folders excepted, in the archive's order.

    Whoever is given a member may take its data, or some of them, from *window* before asking for
    the next one.

    Args:
        window: At the first header.
        end: Where the archive ends, if that is before the end of the stream.
    """
    return _Reader(window, window.num_bytes if end is None else end).members()


class _Reader:
    def __init__(self, window: Window, end: int | None) -> None:
        self._window = window
        self._end = end

    def members(self) -> Iterator[Member]:
        amendments = _Amendments()
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
            elif not self._amend(amendments, header):
                member, stop = self._member(header, amendments)
                amendments = _Amendments()
                if header.type != _FOLDER and not member.name.endswith(b"/"):
                    yield member
                is_cut = member.flaw is not None and member.flaw[0] is _TRUNCATED
                if is_cut or not self._go_to(stop):
                    return

    def _take(self, num_bytes: int) -> memoryview:
        if self._end is not None:
            num_bytes = max(min(num_bytes, self._end - self._window.offset), 0)
        return self._window.take(num_bytes)

    def _go_to(self, stop: int) -> bool:
        """Move forward, not beyond the end of the archive: the last padding may be missing."""
        return self._window.go_to(stop if self._end is None else min(stop, self._end))

    def _amend(self, amendments: _Amendments, header: Header) -> bool:
        """Note what an extended header says of the next one; return False if it is a member's."""
        num_bytes = _padded(header.num_bytes)
        if header.type in _NO_MEMBER:
            return self._go_to(self._window.offset + num_bytes) or True
        if header.type not in {b"L", b"x", b"X"}:
            return False
        if header.num_bytes > _MAX_AMENDMENT_BYTES:
            detail = f"has a name, or a record, of {header.num_bytes:,} bytes"
            amendments.flaw = ProblemKind.ARCHIVE_DAMAGED, detail
            return self._go_to(self._window.offset + num_bytes) or True
        content = bytes(self._take(num_bytes)[: header.num_bytes])
        if header.type == b"L":
            amendments.long_name = content.partition(b"\0")[0]
        elif (records := parse_pax(content)) is None:
            amendments.flaw = ProblemKind.ARCHIVE_DAMAGED, "has a malformed pax record"
        else:
            amendments.pax |= records
        return True

    def _member(self, header: Header, amendments: _Amendments) -> tuple[Member, int]:
        """Return the member of *header*, and where the next header is."""
        pax = amendments.pax
        while header.is_extended and header.type == b"S":  # the map goes on in blocks of its own
            block = self._take(BLOCK_BYTES)
            header = header._replace(
                is_extended=len(block) == BLOCK_BYTES and bool(block[_IS_EXTENDED_AT])
            )
        name = pax.get(b"path", amendments.long_name or header.name)
        num_bytes = parse_pax_size(pax) if b"size" in pax else header.num_bytes
        offset = self._window.offset
        flaw = amendments.flaw or _FLAWS.get(header.type) or _flaw_of(header, pax, num_bytes)
        data = 0 if header.type in _WITHOUT_DATA else max(num_bytes, 0)
        if self._end is not None and offset + data > self._end:
            detail = f"has {self._end - offset:,} of {num_bytes:,} bytes"
            flaw = _TRUNCATED, detail
        plain = plain_name(name)
        if plain is None:
            return Member(name, offset, num_bytes, flaw or _UNSAFE), offset + _padded(data)
        return Member(plain, offset, num_bytes, flaw), offset + _padded(data)

    def _rest(self, at: int) -> Iterator[Member]:
        """Look at what comes after the first end block: there should be zeros only."""
        while len(content := self._take(_SCAN_BYTES)):
            if content.tobytes().strip(b"\0"):
                detail = "goes on after its end mark; what comes there is not read"
                yield _stretch(at, 0, ProblemKind.ARCHIVE_DAMAGED, detail)
                return

    def _damaged_stretch(self) -> Member:
        """Move to the next header that can be told from data."""
        at = self._window.offset
        while len(content := self._take(_SCAN_BYTES)):
            if (place := _next_header(content)) is not None:
                self._window.give_back(len(content) - place)
                break
        num_bytes = self._window.offset - at
        detail = f"no header where one should be; {num_bytes:,} bytes are passed over"
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
    """Return where in *content*, which begins at a block, the first header is."""
    raw = content.tobytes()
    place = raw.find(_MAGIC, _MAGIC_AT)
    while place >= 0:
        start = place - _MAGIC_AT
        block = content[start : start + BLOCK_BYTES]
        if start % BLOCK_BYTES == 0 and len(block) == BLOCK_BYTES and parse_header(block):
            return start
        place = raw.find(_MAGIC, place + 1)
    return None


def _stretch(at: int, num_bytes: int, kind: ProblemKind, detail: str) -> Member:
    return Member(b"", at, num_bytes, (kind, f"at offset {at:,}: {detail}"))


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES
