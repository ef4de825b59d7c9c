"""Samples -> a tar as webdataset has it: members of a sample share a name and follow each other.

Nothing in it hangs on when, where or by whom it was made.
"""

import io
import json
import tarfile
from collections.abc import Sequence
from typing import IO, NamedTuple

import xxhash

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_MAX_NAME = 100
_SIZE = slice(124, 136)
_CHECKSUM = slice(148, 156)


class Place(NamedTuple):
    """Where a member's data lie."""

    offset: int
    num_bytes: int


class TarWriter:
    """Writes members to a file, and digests all that it writes.

    Attributes:
        num_bytes: Written so far.
        digest: xxh3_128 of it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.num_bytes = 0
        self.digest = xxhash.xxh3_128()
        self._file = file

    def add(self, name: str, content: bytes) -> Place:
        """Append a member."""
        self._write(member_header(name, len(content)))
        place = Place(self.num_bytes, len(content))
        self._write(content)
        self._write(bytes(-len(content) % _BLOCK))
        return place

    def finish(self) -> None:
        """Append the end mark."""
        self._write(_END)

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self.digest.update(content)
        self.num_bytes += len(content)


def _template() -> bytes:
    """Return a header without name, size and checksum."""
    header = bytearray(tarfile.TarInfo("").tobuf(tarfile.GNU_FORMAT))
    header[_SIZE] = bytes(12)
    header[_CHECKSUM] = b" " * 8
    return bytes(header)


_TEMPLATE = _template()
_TEMPLATE_SUM = sum(_TEMPLATE)


def member_header(name: str, num_bytes: int) -> bytes:
    """Return the header of a member as `tarfile` makes it in GNU's format, a tenth as long."""
    encoded = name.encode()
    if len(encoded) > _MAX_NAME:
        info = tarfile.TarInfo(name)
        info.size = num_bytes
        return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    size = b"%011o\0" % num_bytes
    header = bytearray(_TEMPLATE)
    header[: len(encoded)] = encoded
    header[_SIZE] = size
    header[_CHECKSUM] = b"%06o\0 " % (_TEMPLATE_SUM + sum(encoded) + sum(size))
    return bytes(header)


def sample_key(path: str, taken: set[str], row: int) -> str:
    """Return what the members of a sample are called, before the dot; add it to *taken*.

    The path without its suffix and without dots, which end the key for webdataset; with the row
    behind it if that is taken.
    """
    folder, slash, name = path.rpartition("/")
    stem = name.rpartition(".")[0] or name
    key = (folder + slash + stem).replace(".", "_")
    if key in taken:
        key = f"{key}-row{row}"
    taken.add(key)
    return key


def label_members(path: str, label_ids: Sequence[int], wnids: Sequence[str]) -> tuple[bytes, bytes]:
    """Return `.cls` and `.json` of a sample.

    `.cls` is the first label, for readers that know one only; `.json` has all of them.
    """
    first = label_ids[0] if label_ids else -1
    fields = {
        "label": first,
        "labels": list(label_ids),
        "wnids": [wnids[label] for label in label_ids],
        "filename": path,
    }
    return b"%d" % first, json.dumps(fields, ensure_ascii=False).encode()


def read_tar_digest(file: io.BufferedReader, piece_bytes: int = 1 << 20) -> str:
    """Return the xxh3_128 of all bytes of *file*, from where it stands."""
    digest = xxhash.xxh3_128()
    while piece := file.read(piece_bytes):
        digest.update(piece)
    return digest.hexdigest()
