"""Zip archives read in place: members with their offsets, and what is wrong with them.

The central directory, at the end of the file, lists the members (PKWARE's APPNOTE 6.3.10).  It is
read in a window, and the members in the order of their offsets, so that a zip is read once, from
its beginning to its end, in 24 bytes of memory a member (Python's `zipfile`: 600).
"""

import stat
import struct
import zlib
from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit21k.errors import ImageError, is_utf8, printable
from vit21k.manifest.problems import ProblemKind
from vit21k.sources.container import ByteSource, ReadAt
from vit21k.sources.tar import (
    MAX_MEMBER_BYTES,
    MAX_RATIO,
    RATIO_COUNTS_FROM,
    WINDOW_BYTES,
    Flaw,
    SeekableSource,
    Window,
    plain_name,
)

DEFLATE = "deflate"
"""`storage` of a member that is compressed."""

_ENTRY = struct.Struct("<4sBBHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_END = struct.Struct("<4sHHHHIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_END64_LOCATOR = struct.Struct("<4sIQI")
_ENTRY_MARK, _LOCAL_MARK, _END_MARK = b"PK\1\2", b"PK\3\4", b"PK\5\6"
_END64_MARK, _END64_LOCATOR_MARK = b"PK\6\6", b"PK\6\7"
_MAX_16, _MAX_32 = 0xFFFF, 0xFFFFFFFF
_ZIP64, _UNICODE_PATH = 1, 0x7075  # extra fields

_ENCRYPTED, _IS_UTF8, _MASKED = 1, 1 << 11, 1 << 13  # flags
_STORED, _DEFLATED = 0, 8  # methods
_METHODS = {
    1: "shrink", 6: "implode", 9: "deflate64", 10: "PKWARE implode", 12: "bzip2", 14: "LZMA",
    93: "zstd", 94: "MP3", 95: "xz", 96: "JPEG", 97: "WavPack", 98: "PPMd",
}  # fmt: skip
_HOW_TO_UNPACK = "unpack the zip (`7z x`), and hash the folder"
_UNIX, _MACOS = 3, 19  # systems
_DOS = frozenset({0, 6, 10, 11, 14})  # FAT, HPFS, NTFS, MVS as 7-Zip has it, VFAT
_INFLATE_BYTES = 1 << 18
_RAW_DEFLATE = -15

_ENTRY_BYTES = 512  # of the directory, read at once where its entries are in another order

_Numbers = NDArray[np.uint64]


class ZipMember(NamedTuple):
    """A member of a zip, or something that is wrong with the zip.

    Attributes:
        name: Relative, without ``.`` and doubled slashes; as stored if it is not relative; empty
            for what is no member.
        offset: Where its data, or its deflate stream, begin in the file.
        num_bytes: Size of its content.
        storage: None: stored as it is; or `DEFLATE`.
        flaw: What is wrong with it; None for a regular file.
        content: Of a regular file; valid until the next member is asked for.
    """

    name: bytes
    offset: int
    num_bytes: int
    storage: str | None = None
    flaw: Flaw | None = None
    content: memoryview | bytes = b""


class _Entry(NamedTuple):
    """An entry of the central directory.

    Attributes:
        name: As it is stored.
        system: Where it was made.
        header_at: Offset of its local header, from where the zip begins.
        packed_bytes: Size of its data in the zip.
        extra: Its extra fields, by their ids.
    """

    name: bytes
    system: int
    flags: int
    method: int
    crc: int
    packed_bytes: int
    num_bytes: int
    mode: int
    header_at: int
    extra: dict[int, bytes]


class _DamagedError(Exception):
    """The zip, or one of its records, makes no sense."""

    def __init__(self, detail: str, kind: ProblemKind = ProblemKind.ARCHIVE_DAMAGED) -> None:
        super().__init__(detail)
        self.flaw = kind, detail


class _Directory(NamedTuple):
    """Where the central directory is.

    Attributes:
        start: Its offset in the file.
        end: Offset of what comes after it.
        shift: Of all offsets in the zip: the number of bytes before its beginning.
        num_members: As many as it says, modulo 2**16 perhaps.
    """

    start: int
    end: int
    shift: int
    num_members: int


def read_deflated(read_at: ReadAt, offset: int, num_bytes: int) -> bytes:
    """Return the *num_bytes* that the raw deflate stream at *offset* inflates to.

    Raises:
        ImageError: It inflates to something else.
        OSError: It cannot be read.
    """
    inflater = zlib.decompressobj(_RAW_DEFLATE)
    parts = []
    left = num_bytes + 1  # one more, to notice a stream that does not end
    step = min(num_bytes + (num_bytes >> 8) + 64, _INFLATE_BYTES)  # images hardly shrink
    try:
        while left and not inflater.eof and (packed := read_at(step, offset)):
            parts.append(inflater.decompress(packed, left))
            left -= len(parts[-1])
            offset += len(packed)
    except zlib.error as error:
        raise _changed(str(error)) from None
    if left != 1 or not inflater.eof:
        raise _changed(f"it does not inflate to {num_bytes:,} bytes")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _changed(why: str) -> ImageError:
    return ImageError(
        f"the deflate stream of a zip is damaged: {why}",
        hint="if the zip has changed since it was hashed, run `vit21k hash` again",
    )


def read_zip_members(
    source: ByteSource, is_wanted: Callable[[bytes], bool] = lambda _name: True
) -> Iterator[ZipMember]:
    """Yield the members of a zip in the order of their offsets, folders excepted.

    Each is checked by its CRC-32.  Of members of one name all are yielded, in the order in which
    programs that unpack the zip write them, so the last one counts.

    Args:
        source: The zip.
        is_wanted: Returns whether the content of a member is read, by its name; others have
            neither a content nor a flaw.

    Raises:
        OSError: It cannot be read.
    """
    try:
        yield from _Reader(source, is_wanted).members()
    except _DamagedError as error:
        yield ZipMember(b"", 0, 0, flaw=error.flaw)


class _Reader:
    def __init__(self, source: ByteSource, is_wanted: Callable[[bytes], bool]) -> None:
        self._file = SeekableSource(source)
        self._is_wanted = is_wanted
        self._data = Window(self._file)
        self._directory = _find_directory(self._file)

    def members(self) -> Iterator[ZipMember]:
        starts, entries, unpacked_bytes, flaw = self._scan()
        if unpacked_bytes > max(MAX_RATIO * self._file.num_bytes, RATIO_COUNTS_FROM):
            detail = f"inflates to {unpacked_bytes:,} bytes"
            raise _DamagedError(detail, ProblemKind.ARCHIVE_BOMB)
        order = np.argsort(starts, kind="stable")
        is_sorted = bool((starts[1:] >= starts[:-1]).all())
        window = Window(self._file, window_bytes=WINDOW_BYTES if is_sorted else _ENTRY_BYTES)
        end_of_last = np.uint64(self._directory.start - self._directory.shift)
        ends = np.minimum(np.append(starts[order], end_of_last)[1:], end_of_last)
        for place, end in zip(entries[order].tolist(), ends.tolist(), strict=True):
            window.go_to(place)
            entry = _read_entry(window)
            name = _name_of(entry.name, entry.flags, entry)
            if not name.endswith(b"/"):
                yield self._member(entry, name, end + self._directory.shift)
        if flaw is not None:
            yield ZipMember(b"", 0, 0, flaw=flaw)

    def _scan(self) -> tuple[_Numbers, _Numbers, int, Flaw | None]:
        """Return where members begin, where their entries are, and what is wrong with the rest.

        The third value is the number of bytes that all that is compressed inflates to.
        """
        start, end, _, num_members = self._directory
        window = Window(self._file, start)
        starts, entries = array("Q"), array("Q")
        unpacked_bytes = 0
        flaw: Flaw | None = None
        try:
            while window.offset < end:
                place = window.offset
                entry = _read_entry(window)
                starts.append(entry.header_at)
                entries.append(place)
                unpacked_bytes += entry.num_bytes if entry.method == _DEFLATED else 0
            if (len(starts) - num_members) % (_MAX_16 + 1):
                detail = f"its directory has {len(starts):,} members, and says {num_members:,}"
                flaw = ProblemKind.ARCHIVE_DAMAGED, detail
        except _DamagedError as error:
            flaw = error.flaw
        return np.frombuffer(starts, "u8"), np.frombuffer(entries, "u8"), unpacked_bytes, flaw

    def _member(self, entry: _Entry, name: bytes, end: int) -> ZipMember:
        plain = plain_name(name)
        if plain is None:
            return ZipMember(name, 0, entry.num_bytes, flaw=(ProblemKind.UNSAFE_NAME, ""))
        if not self._is_wanted(plain):
            return ZipMember(plain, 0, entry.num_bytes)
        storage = DEFLATE if entry.method == _DEFLATED else None
        try:
            _check(entry)
            offset = self._go_to_data(entry, name, end)
            content = self._content(entry)
        except _DamagedError as error:
            return ZipMember(plain, 0, entry.num_bytes, storage, error.flaw)
        return ZipMember(plain, offset, entry.num_bytes, storage, None, content)

    def _go_to_data(self, entry: _Entry, name: bytes, end: int) -> int:
        """Move to the data of a member, which are before *end*; return their offset."""
        start = entry.header_at + self._directory.shift
        left = end - start - _LOCAL.size - len(entry.name)
        if left < 0:
            raise _overlaps(entry)
        self._data.go_to(start)
        mark, _, flags, *_, name_bytes, extra_bytes = _LOCAL.unpack(self._data.take(_LOCAL.size))
        if mark != _LOCAL_MARK:
            raise _DamagedError(f"no header at offset {start:,}")
        if start + _LOCAL.size + name_bytes + extra_bytes + entry.packed_bytes > end:
            raise _overlaps(entry)
        local_name = bytes(self._data.take(name_bytes))
        if local_name != entry.name and _name_of(local_name, flags, entry) != name:
            raise _DamagedError(f"the header before its data says `{printable(local_name)}`")
        self._data.take(extra_bytes)
        return self._data.offset

    def _content(self, entry: _Entry) -> memoryview | bytes:
        """Return the content of a member; its data are next in the window."""
        content: memoryview | bytes = self._data.take(entry.packed_bytes)
        if entry.method == _DEFLATED:
            inflater = zlib.decompressobj(_RAW_DEFLATE)
            try:
                content = inflater.decompress(content, entry.num_bytes + 1)
            except zlib.error as error:
                raise _DamagedError(str(error)) from None
            if not inflater.eof:
                raise _DamagedError(f"does not inflate to {entry.num_bytes:,} bytes")
        if len(content) != entry.num_bytes:
            raise _DamagedError(f"has {len(content):,} of {entry.num_bytes:,} bytes")
        if zlib.crc32(content) != entry.crc:
            raise _DamagedError("its CRC-32 is another one")
        return content


def _overlaps(entry: _Entry) -> _DamagedError:
    return _DamagedError(f"its {entry.packed_bytes:,} bytes overlap what comes after them")


def _check(entry: _Entry) -> None:
    """Check a member's entry in the directory.

    Raises:
        _DamagedError: It cannot be read.
    """
    kind = stat.S_IFMT(entry.mode)
    if kind == stat.S_IFLNK:
        raise _DamagedError("a symbolic link", ProblemKind.MEMBER_IS_LINK)
    if kind not in {0, stat.S_IFREG}:
        raise _DamagedError("", ProblemKind.NOT_A_REGULAR_FILE)
    if entry.flags & (_ENCRYPTED | _MASKED):
        detail = f"encrypted; {_HOW_TO_UNPACK}"
        raise _DamagedError(detail, ProblemKind.MEMBER_NOT_SUPPORTED)
    if entry.method not in {_STORED, _DEFLATED}:
        method = _METHODS.get(entry.method, f"method {entry.method}")
        detail = f"compressed with {method}; {_HOW_TO_UNPACK}"
        raise _DamagedError(detail, ProblemKind.MEMBER_NOT_SUPPORTED)
    if max(entry.num_bytes, entry.packed_bytes) > MAX_MEMBER_BYTES:
        raise _DamagedError(f"{entry.num_bytes:,} bytes", ProblemKind.MEMBER_TOO_LARGE)
    if not entry.num_bytes:
        raise _DamagedError("", ProblemKind.EMPTY)


def _name_of(name: bytes, flags: int, entry: _Entry) -> bytes:
    """Return the name of a member in UTF-8; where it says that it is UTF-8, that is not checked.

    Otherwise it is in code page 437, but for names made on Unix, which are bytes, as Info-ZIP
    unpacks them.
    """
    if name.isascii() or flags & _IS_UTF8:
        decoded = name
    elif (path := _unicode_path(name, entry.extra.get(_UNICODE_PATH, b""))) is not None:
        decoded = path
    elif entry.system in {_UNIX, _MACOS} and is_utf8(name):
        decoded = name
    else:
        decoded = name.decode("cp437").encode()
    if entry.system in _DOS and b"/" not in decoded:
        return decoded.replace(b"\\", b"/")  # as .NET wrote them until 2016
    return decoded


def _unicode_path(name: bytes, extra: bytes) -> bytes | None:
    """Return the UTF-8 name of an extra field of Info-ZIP, if it is that of *name*."""
    if extra[:1] != b"\1" or int.from_bytes(extra[1:5], "little") != zlib.crc32(name):
        return None
    return extra[5:]


def _read_entry(window: Window) -> _Entry:
    """Return the next entry of the directory at *window*."""
    head = window.take(_ENTRY.size)
    if len(head) < _ENTRY.size or head[:4] != _ENTRY_MARK:
        raise _DamagedError(f"no entry of its directory at offset {window.offset - len(head):,}")
    _, _, system, _, flags, method, _, _, crc, *sizes, _, _, attributes, start = _ENTRY.unpack(head)
    packed_bytes, num_bytes, name_bytes, extra_bytes, comment_bytes = sizes
    rest = bytes(window.take(name_bytes + extra_bytes + comment_bytes))
    if len(rest) < name_bytes + extra_bytes + comment_bytes:
        raise _DamagedError("its directory ends within an entry", ProblemKind.ARCHIVE_TRUNCATED)
    extra = _fields(rest[name_bytes : name_bytes + extra_bytes])
    if _MAX_32 in (packed_bytes, num_bytes, start):
        num_bytes, packed_bytes, start = _large(extra, num_bytes, packed_bytes, start)
    mode = attributes >> 16 if system in {_UNIX, _MACOS} else 0
    name = rest[:name_bytes]
    return _Entry(name, system, flags, method, crc, packed_bytes, num_bytes, mode, start, extra)


def _fields(extra: bytes) -> dict[int, bytes]:
    """Return extra fields by their ids, the first of each; what is malformed is not looked at."""
    fields: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(extra):
        key, num_bytes = struct.unpack_from("<HH", extra, at)
        fields.setdefault(key, extra[at + 4 : at + 4 + num_bytes])
        at += 4 + num_bytes
    return fields


def _large(extra: dict[int, bytes], *numbers: int) -> list[int]:
    """Return *numbers*, those that are too large for 32 bits from the field of zip64."""
    content = extra.get(_ZIP64, b"")
    at = 0
    found = []
    for number in numbers:
        if number == _MAX_32:
            number = int.from_bytes(content[at : at + 8], "little")  # noqa: PLW2901
            at += 8
        found.append(number)
    if at > len(content):
        raise _DamagedError("an entry of its directory lacks a number of 64 bits")
    return found


def _find_directory(file: SeekableSource) -> _Directory:
    """Return where the central directory of a zip is.

    Raises:
        _DamagedError: There is none.
    """
    size = file.num_bytes
    tail_at = max(size - _END.size - _MAX_16, 0)
    tail = file.read(size - tail_at, tail_at)
    at = _find_end(tail)
    if at < 0:
        raise _no_directory(file)
    _, disk, first_disk, _, num_members, num_bytes, offset, _ = _END.unpack_from(tail, at)
    end = tail_at + at
    locator = file.read(_END64_LOCATOR.size, max(end - _END64_LOCATOR.size, 0))
    if locator[:4] == _END64_LOCATOR_MARK:
        _, _, end64, num_disks = _END64_LOCATOR.unpack(locator)
        if num_disks > 1:
            raise _split()
        end -= _END64_LOCATOR.size
        end, num_members, num_bytes, offset = _find_end64(file, end64, end)
    elif disk or first_disk:
        raise _split()
    return _placed(file, end, num_members, num_bytes, offset)


def _find_end(tail: bytes) -> int:
    """Return where the record at the end of a zip is in its last bytes; -1: nowhere."""
    at = last = tail.rfind(_END_MARK, 0, len(tail) - _END.size + len(_END_MARK))
    while at >= 0:
        comment_bytes = int.from_bytes(tail[at + _END.size - 2 : at + _END.size], "little")
        if at + _END.size + comment_bytes == len(tail):
            return at
        at = tail.rfind(_END_MARK, 0, at)
    return last  # something follows


def _find_end64(file: SeekableSource, offset: int, end: int) -> tuple[int, int, int, int]:
    """Return what the record of zip64 at *offset*, or right before *end*, says.

    Its own offset, the number of members, and size and offset of the directory.
    """
    for at in (offset, end - _END64.size):
        record = file.read(_END64.size, at) if 0 <= at <= end else b""
        if len(record) == _END64.size and record.startswith(_END64_MARK):
            *_, num_members, num_bytes, start = _END64.unpack(record)
            return at, num_members, num_bytes, start
    raise _DamagedError("its record of zip64 is not where it should be")


def _placed(
    file: SeekableSource, end: int, num_members: int, num_bytes: int, offset: int
) -> _Directory:
    """Return the directory that ends at *end*, or begins at *offset*, whichever is one."""
    for start in (end - num_bytes, offset):
        is_inside = offset <= start <= start + num_bytes <= end
        mark = file.read(len(_ENTRY_MARK), start) if is_inside and num_bytes else _ENTRY_MARK
        if is_inside and mark == _ENTRY_MARK:
            return _Directory(start, start + num_bytes, start - offset, num_members)
    raise _DamagedError("its directory is not where it should be")


def _no_directory(file: SeekableSource) -> _DamagedError:
    if not file.num_bytes:
        return _DamagedError("", ProblemKind.EMPTY)
    if file.read(len(_LOCAL_MARK), 0) == _LOCAL_MARK:
        detail = "has no directory at its end; copy it again, or repair it with `zip -FF`"
        return _DamagedError(detail, ProblemKind.ARCHIVE_TRUNCATED)
    return _DamagedError("is not a zip")


def _split() -> _DamagedError:
    detail = "is the last part of a split zip; join its parts: `zip -s 0 FILE.zip --out WHOLE.zip`"
    return _DamagedError(detail, ProblemKind.ARCHIVE_NOT_SUPPORTED)
