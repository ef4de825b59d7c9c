"""Digested files <-> bytes of the journal: one sealed record for the files of a chunk.

A record is its length, a checksum, the folder with the first and the last name in it, and the rows
and names of the files, compressed.  A record that was not written to its end, or was damaged, is
told by that.  No code is run from it, as a pickle's would be.
"""

import struct
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from vit21k.hashing.file_rows import ROW, Rows

HEAD = struct.Struct("<IHQ")  # bytes of the body, of its label, checksum of the body
_NUM_FILES = struct.Struct("<II")  # files, bytes of the files before they were compressed


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


class NamedRows(NamedTuple):
    """Files of one folder.

    Attributes:
        names: In order.
        rows: What is known of each.
    """

    names: Sequence[bytes]
    rows: Rows


NO_ROWS = NamedRows([], np.empty(0, ROW))


@cache
def _codec() -> pa.Codec:
    return pa.Codec("zstd", compression_level=1)


def encode(folder: bytes, files: NamedRows) -> bytes:
    """Return the record of *files*; there must be some."""
    names = files.names
    label = b"\0".join(Label(folder, names[0], names[-1]))
    rows = files.rows.tobytes() + b"\0".join(names)
    packed: bytes = _codec().compress(rows, asbytes=True)
    body = label + _NUM_FILES.pack(len(names), len(rows)) + packed
    head: bytes = HEAD.pack(len(body), len(label), xxhash.xxh3_64_intdigest(body))
    return head + body


def decode_label(text: bytes) -> Label | None:
    """Return the label that *text* is; None if it is none."""
    parts = text.split(b"\0")
    return Label(*parts) if len(parts) == len(Label._fields) else None


def decode(body: bytes, label_bytes: int, checksum: int) -> NamedRows:
    """Return the files of a record; none if it is damaged."""
    if xxhash.xxh3_64_intdigest(body) != checksum:
        return NO_ROWS
    num_files, num_bytes = _NUM_FILES.unpack_from(body, label_bytes)
    packed = memoryview(body)[label_bytes + _NUM_FILES.size :]
    content = _codec().decompress(packed, num_bytes, asbytes=True)
    end = num_files * ROW.itemsize
    return NamedRows(content[end:].split(b"\0"), np.frombuffer(content[:end], ROW))
