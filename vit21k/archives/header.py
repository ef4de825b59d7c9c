"""A block of 512 bytes -> what the header of a tar member says, or that it is none.

Layouts: V7, POSIX ustar, GNU.  What comes before a header to amend it (GNU long names, pax
records) is put together in `members.py`.
"""

import zlib
from typing import NamedTuple

BLOCK_BYTES = 512

_ADLER_MODULUS = 65_521
_CHECKSUM = slice(148, 156)
_BLANKS = 256  # the sum of the eight blanks that stand for the checksum while it is made
_LAST_PLAIN_BYTE = 0x7F
_NEGATIVE = 0xFF
_MAX_NUMBER = 1 << 62


class Header(NamedTuple):
    r"""What one header block says.

    Attributes:
        name: As stored; the prefix of POSIX joined to it.
        num_bytes: Size of the data that follow, without padding.
        type: One byte; ``b"\0"`` and ``b"0"`` are regular files.
        is_extended: For sparse files of old GNU: another block of their map follows.
    """

    name: bytes
    num_bytes: int
    type: bytes
    is_extended: bool


def parse_header(block: memoryview) -> Header | None:
    """Return what *block*, of 512 bytes, says; None if it is not a header."""
    raw = bytes(block)
    if not _has_its_checksum(raw):
        return None
    num_bytes = parse_number(raw[124:136])
    if num_bytes is None or not 0 <= num_bytes < _MAX_NUMBER:
        return None
    name = _text(raw[:100])
    if raw[257:263] == b"ustar\0" and raw[345]:
        name = _text(raw[345:500]) + b"/" + name
    return Header(name, num_bytes, raw[156:157], bool(raw[482]))


def parse_number(field: bytes) -> int | None:
    """Return the number in *field*: octal digits, or base 256 as GNU has it; None if neither."""
    if field[0] > _LAST_PLAIN_BYTE:
        if field[0] == _NEGATIVE:
            return int.from_bytes(field, "big", signed=True)
        return int.from_bytes(field, "big") - (0x80 << 8 * (len(field) - 1))
    digits = field.partition(b"\0")[0].strip() or field.strip(b"\0 ")
    if not digits:
        return 0
    try:
        return int(digits, 8) if digits.isdigit() else None
    except ValueError:  # 8, 9
        return None


def _has_its_checksum(raw: bytes) -> bool:
    """Compare the sum of the block's bytes with the one that it says it has.

    Adler-32 holds the sum in its lower half, modulo 65,521: 40 times as fast as `sum`.
    """
    said = parse_number(raw[_CHECKSUM])
    if not said:  # an end block is all zeros
        return False
    others = said - _BLANKS + sum(raw[_CHECKSUM])
    if (1 + others - (zlib.adler32(raw) & 0xFFFF)) % _ADLER_MODULUS == 0:
        return True
    # Old tars (Sun's) summed up signed bytes.
    signed = sum(raw[:148] + raw[156:]) - 256 * sum(
        byte > _LAST_PLAIN_BYTE for byte in raw[:148] + raw[156:]
    )
    return said == signed + _BLANKS


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]
