"""What is known of many files: one row of numbers for each, as `scan.c` fills them.

The same bytes are what the journal of `memory.py` holds.  A chunk's files stay in this form from
the reading to the manifest: making Python objects of them would take as long as reading them.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from vit21k.hashing.file_digest import PROBE_BYTES, FileDigest
from vit21k.hashing.picture_facts import PictureFacts

_ROW = struct.Struct("<qqqQ16s16s16sBIIBB")
ROW = np.dtype(
    [
        ("num_bytes", "<i8"),
        ("mtime_ns", "<i8"),
        ("ctime_ns", "<i8"),
        ("inode", "<u8"),
        ("digest", "V16"),
        ("content_digest", "V16"),
        ("probe", "V16"),
        ("format", "u1"),
        ("width", "<u4"),  # 0: unknown, as with the next two
        ("height", "<u4"),
        ("components", "u1"),
        ("flags", "u1"),
    ]
)
"""Without gaps: `Row` of scan.c, and `_ROW`."""

FORMATS = ("unknown", "jpeg", "png", "gif", "webp", "bmp", "tiff", "gzip", "ppm")
"""By their numbers in a row."""

HAS_DIGEST, HAS_CONTENT, HAS_PROBE, HAS_FACTS, SAW_END, LOOKED_FOR_END = (
    1 << bit for bit in range(6)
)
_NONE = bytes(16)
_NO_FACTS = PictureFacts(None, "unknown")

Rows = NDArray[np.void]
"""An array of `ROW`."""


class FileRows(Sequence[FileDigest]):
    """Files, each as a `FileDigest` where one is asked for.

    Attributes:
        array: Their rows.
    """

    __slots__ = ("array",)

    def __init__(self, array: Rows) -> None:
        self.array = array

    @classmethod
    def of(cls, files: Iterable[FileDigest]) -> "FileRows":
        """Return *files* as rows."""
        return cls(np.frombuffer(b"".join(map(_packed, files)), ROW))

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, place: int) -> FileDigest: ...
    @overload
    def __getitem__(self, place: slice) -> "FileRows": ...
    def __getitem__(self, place: int | slice) -> "FileDigest | FileRows":
        if isinstance(place, slice):
            return FileRows(self.array[place])
        return _unpacked(_ROW.unpack(self.array[place].tobytes()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def have(self, flag: int) -> NDArray[np.bool_]:
        """Return which of them have a flag, such as `HAS_DIGEST`."""
        return have(self.array, flag)


def have(rows: Rows, flag: int) -> NDArray[np.bool_]:
    """Return which of *rows* have a flag, such as `HAS_DIGEST`."""
    has: NDArray[np.bool_] = rows["flags"] & flag != 0
    return has


def numbers(rows: Rows, column: str) -> NDArray[np.uint64]:
    """Return the digests in a *column* of *rows*, each as two numbers."""
    return np.ascontiguousarray(rows[column]).view("<u8").reshape(-1, 2)


def bytes_read(rows: Rows) -> NDArray[np.int64]:
    """Return how many bytes were read for each of *rows*."""
    return np.where(have(rows, HAS_DIGEST), rows["num_bytes"], 2 * PROBE_BYTES)


def as_row(file: FileDigest) -> np.void:
    """Return *file* as a row."""
    row: np.void = np.frombuffer(_packed(file), ROW)[0]
    return row


def _packed(file: FileDigest) -> bytes:
    facts = file.facts
    flags = HAS_DIGEST if file.digest is not None else 0
    flags |= HAS_PROBE if file.probe is not None else 0
    if facts is None:
        facts = _NO_FACTS
    else:
        flags |= HAS_FACTS
        flags |= HAS_CONTENT if facts.content_digest is not None else 0
        flags |= LOOKED_FOR_END if facts.has_end is not None else 0
        flags |= SAW_END if facts.has_end else 0
    return _ROW.pack(
        file.num_bytes,
        file.mtime_ns,
        file.ctime_ns,
        file.inode,
        file.digest or _NONE,
        facts.content_digest or _NONE,
        file.probe or _NONE,
        FORMATS.index(facts.format),
        facts.width or 0,
        facts.height or 0,
        facts.components or 0,
        flags,
    )


def _unpacked(row: tuple[Any, ...]) -> FileDigest:
    num_bytes, mtime_ns, ctime_ns, inode, digest, content, probe, *rest, flags = row
    format_, width, height, components = rest
    facts = PictureFacts(
        content if flags & HAS_CONTENT else None,
        FORMATS[format_],
        width or None,
        height or None,
        components or None,
        bool(flags & SAW_END) if flags & LOOKED_FOR_END else None,
    )
    return FileDigest(
        num_bytes,
        mtime_ns,
        digest if flags & HAS_DIGEST else None,
        facts if flags & HAS_FACTS else None,
        ctime_ns,
        inode,
        probe if flags & HAS_PROBE else None,
    )
