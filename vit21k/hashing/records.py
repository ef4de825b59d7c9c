"""Digested files <-> bytes of the journal: one sealed record for the files of a chunk.

A record is its length, a checksum, the folder with the first and the last name in it, and the files
themselves, compressed.  A record that was not written to its end, or was damaged, is told by that.
No code is run from it, as a pickle's would be.
"""

import struct
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import pyarrow as pa
import xxhash

from vit21k.hashing.file_digest import FileDigest
from vit21k.hashing.picture_facts import PictureFacts

HEAD = struct.Struct("<IHQ")  # bytes of the body, of its label, checksum of the body
_NUM_FILES = struct.Struct("<II")  # files, bytes of the files before they were compressed
_FILE = struct.Struct("<qqqQ16s16s16sBIIBB")
_FORMATS = ("unknown", "jpeg", "png", "gif", "webp", "bmp", "tiff", "gzip")
_HAS_DIGEST, _HAS_CONTENT, _HAS_PROBE, _HAS_FACTS, _SAW_END, _LOOKED_FOR_END = (
    1 << bit for bit in range(6)
)
_NONE = bytes(16)


class Label(NamedTuple):
    """Which files a record holds.

    Attributes:
        folder: They all lie in it.
        first: The first of their names.
        last: The last of their names.
    """

    folder: bytes
    first: bytes
    last: bytes


@cache
def _codec() -> pa.Codec:
    return pa.Codec("zstd", compression_level=1)


def encode(folder: bytes, files: Mapping[bytes, FileDigest]) -> bytes:
    """Return the record of *files*, by name, in order; there must be some."""
    names = list(files)
    label = b"\0".join(Label(folder, names[0], names[-1]))
    rows = b"".join([_encode_file(file) for file in files.values()]) + b"\0".join(names)
    packed: bytes = _codec().compress(rows, asbytes=True)
    body = label + _NUM_FILES.pack(len(files), len(rows)) + packed
    head: bytes = HEAD.pack(len(body), len(label), xxhash.xxh3_64_intdigest(body))
    return head + body


def decode_label(text: bytes) -> Label | None:
    """Return the label that *text* is; None if it is none."""
    parts = text.split(b"\0")
    return Label(*parts) if len(parts) == len(Label._fields) else None


def decode(body: bytes, label_bytes: int, checksum: int) -> dict[bytes, FileDigest]:
    """Return the files of a record, by name; none if it is damaged."""
    if xxhash.xxh3_64_intdigest(body) != checksum:
        return {}
    num_files, num_bytes = _NUM_FILES.unpack_from(body, label_bytes)
    packed = memoryview(body)[label_bytes + _NUM_FILES.size :]
    rows = _codec().decompress(packed, num_bytes, asbytes=True)
    end = num_files * _FILE.size
    names = rows[end:].split(b"\0")
    files = map(_decode_file, _FILE.iter_unpack(rows[:end]))
    return dict(zip(names, files, strict=True))


def _encode_file(file: FileDigest) -> bytes:
    facts = file.facts
    flags = _HAS_DIGEST if file.digest is not None else 0
    flags |= _HAS_PROBE if file.probe is not None else 0
    if facts is None:
        facts = _NO_FACTS
    else:
        flags |= _HAS_FACTS
        flags |= _HAS_CONTENT if facts.content_digest is not None else 0
        flags |= _LOOKED_FOR_END if facts.has_end is not None else 0
        flags |= _SAW_END if facts.has_end else 0
    return _FILE.pack(
        file.num_bytes,
        file.mtime_ns,
        file.ctime_ns,
        file.inode,
        file.digest or _NONE,
        facts.content_digest or _NONE,
        file.probe or _NONE,
        _FORMATS.index(facts.format),
        facts.width or 0,
        facts.height or 0,
        facts.components or 0,
        flags,
    )


_NO_FACTS = PictureFacts(None, "unknown")


def _decode_file(row: tuple) -> FileDigest:  # type: ignore[type-arg]
    num_bytes, mtime_ns, ctime_ns, inode, digest, content, probe, *rest, flags = row
    format_, width, height, components = rest
    facts = PictureFacts(
        content if flags & _HAS_CONTENT else None,
        _FORMATS[format_],
        width or None,
        height or None,
        components or None,
        bool(flags & _SAW_END) if flags & _LOOKED_FOR_END else None,
    )
    return FileDigest(
        num_bytes,
        mtime_ns,
        digest if flags & _HAS_DIGEST else None,
        facts if flags & _HAS_FACTS else None,
        ctime_ns,
        inode,
        probe if flags & _HAS_PROBE else None,
    )
