"""Zip archives for tests, made byte by byte: records with any content."""

import struct
import zlib
from dataclasses import dataclass


@dataclass
class Entry:
    """A member; what is None follows from the others.

    Attributes:
        name: As it is stored in both headers.
        content: Of the member.
        method: 0 stored, 8 deflate.
        data: What is stored, if not what follows from content and method.
        local_name: In the header before the data.
        header_at: Where the directory says that header is.
        writes: Whether header and data are written at all.
    """

    name: bytes
    content: bytes = b""
    method: int = 0
    flags: int = 0
    system: int = 3
    mode: int = 0o100644
    extra: bytes = b""
    data: bytes | None = None
    crc: int | None = None
    num_bytes: int | None = None
    packed_bytes: int | None = None
    local_name: bytes | None = None
    header_at: int | None = None
    writes: bool = True


def raw_deflate(content: bytes, level: int = 9) -> bytes:
    """Return *content* as a raw deflate stream."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def zip_of(
    *entries: Entry, num_members: int | None = None, is_64: bool = False, comment: bytes = b""
) -> bytes:
    """Return a zip with *entries*, listed in their order."""
    body, directory = bytearray(), bytearray()
    for entry in entries:
        data = entry.data
        if data is None:
            data = raw_deflate(entry.content) if entry.method == 8 else entry.content
        crc = zlib.crc32(entry.content) if entry.crc is None else entry.crc
        num_bytes = len(entry.content) if entry.num_bytes is None else entry.num_bytes
        packed = len(data) if entry.packed_bytes is None else entry.packed_bytes
        at = len(body) if entry.header_at is None else entry.header_at
        local_name = entry.name if entry.local_name is None else entry.local_name
        if entry.writes:
            local = (b"PK\3\4", 20, entry.flags, entry.method, 0, 0, crc)
            sizes = (min(packed, 0xFFFFFFFF), min(num_bytes, 0xFFFFFFFF), len(local_name), 0)
            body += struct.pack("<4sHHHHHIIIHH", *local, *sizes) + local_name + data
        extra, numbers = entry.extra, (packed, num_bytes)
        if is_64 or max(numbers) > 0xFFFFFFFE:
            extra += struct.pack("<HHQQQ", 1, 24, num_bytes, packed, at)
            numbers, at = (0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF
        central = (b"PK\1\2", 20, entry.system, 20, entry.flags, entry.method, 0, 0, crc)
        lengths = (len(entry.name), len(extra), 0, 0, 0, entry.mode << 16, at)
        directory += struct.pack("<4sBBHHHHHIIIHHHHHII", *central, *numbers, *lengths)
        directory += entry.name + extra
    count = len(entries) if num_members is None else num_members
    end = b""
    if is_64:
        record = (b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), len(body))
        end = struct.pack("<4sQHHIIQQQQ", *record)
        end += struct.pack("<4sIQI", b"PK\6\7", 0, len(body) + len(directory), 1)
        last = (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    else:
        last = (count % 65536, count % 65536, len(directory), len(body))
    end += struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, *last, len(comment)) + comment
    return bytes(body + directory) + end
