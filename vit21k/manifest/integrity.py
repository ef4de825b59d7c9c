"""What tells a damaged manifest from a whole one, wherever the damage is.

Parquet has a checksum for the data of a page, but none for the header of a page, nor for the footer
with the schema and the offsets: one flipped bit there can take rows away without a sound.  So the
footer of a manifest carries two digests: of the *body*, which is all that comes before the footer,
and of the footer itself.  The latter covers the former, and with it every byte of the file: it is
the manifest's *fingerprint*.
"""

from contextlib import suppress
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from vit21k.errors import ManifestError

_BODY = b"vit21k.body"
_FINGERPRINT = b"vit21k.fingerprint"
_BLANK = b"-" * 32
"""Stands for the fingerprint while the footer that holds it is digested."""

_TAIL_BYTES = 8  # length of the footer, and the magic number
_PIECE_BYTES = 1 << 20


class SealingFile:
    """A binary file for a Parquet writer; puts the two digests into what passes through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.closed = False
        self._file = file
        self._body = xxhash.xxh3_128()
        self._end: bytearray | None = None
        self._is_abandoned = False

    def write(self, data: bytes) -> int:
        """Pass *data* on; the footer is held back."""
        if self._is_abandoned:
            return len(data)
        if self._end is not None:
            self._end += data
            return len(data)
        self._body.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        """Return how many bytes have been written, or are held back."""
        if self._is_abandoned:
            return 0
        return self._file.tell() + len(self._end or b"")

    def flush(self) -> None:
        """Flush what was passed on."""
        if not self._is_abandoned:
            self._file.flush()

    def abandon(self, parquet: pq.ParquetWriter) -> None:
        """Close *parquet* for good after an error, without another byte being written.

        Left open, it would write its footer to a closed file when it is collected.
        """
        self._is_abandoned = True
        with suppress(pa.ArrowException, OSError):
            parquet.close()
        parquet.is_open = False

    def seal(self, parquet: pq.ParquetWriter) -> None:
        """Close *parquet*, whose rows are all written, with the digests in its footer."""
        digests = {_BODY: self._body.hexdigest(), _FINGERPRINT: _BLANK.decode()}
        parquet.add_key_value_metadata(digests)
        self._end = bytearray()
        parquet.close()
        footer, tail = self._end[:-_TAIL_BYTES], self._end[-_TAIL_BYTES:]
        if int.from_bytes(tail[:4], "little") != len(footer) or footer.count(_BLANK) != 1:
            raise AssertionError("the Parquet writer has written more than a footer")
        digest = xxhash.xxh3_128_hexdigest(footer).encode()
        self._file.write(footer.replace(_BLANK, digest) + tail)


def fingerprint_of(path: Path, parquet: pq.ParquetFile) -> str:
    """Return the fingerprint of the manifest at *path*, after checking its footer.

    Raises:
        ManifestError: The footer is damaged.
    """
    fingerprint: bytes = (parquet.metadata.metadata or {}).get(_FINGERPRINT, b"")
    footer = _footer(path)
    if footer.count(fingerprint) != 1 or len(fingerprint) != len(_BLANK):
        raise _damaged(path, "its footer has no fingerprint")
    blank = footer.replace(fingerprint, _BLANK)
    if xxhash.xxh3_128_hexdigest(blank).encode() != fingerprint:
        raise _damaged(path, "its footer does not match its fingerprint")
    return fingerprint.decode()


def check_body(path: Path, parquet: pq.ParquetFile) -> None:
    """Read the manifest at *path* up to its footer, and compare.

    Performance: 0.1 s for the 400 MB of 14.2 million rows, once they are in memory.

    Raises:
        ManifestError: A byte is not what was written.
    """
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_PIECE_BYTES))
    with path.open("rb", buffering=0) as file:
        left = path.stat().st_size - _TAIL_BYTES - len(_footer(path))
        while left and (num_read := file.readinto(buffer[: min(left, _PIECE_BYTES)])):
            digest.update(buffer[:num_read])
            left -= num_read
    if digest.hexdigest().encode() != (parquet.metadata.metadata or {}).get(_BODY):
        raise _damaged(path, "its rows are not those that were written")


def _footer(path: Path) -> bytes:
    with path.open("rb") as file:
        end = file.seek(-_TAIL_BYTES, 2)
        num_bytes = int.from_bytes(file.read(4), "little")
        file.seek(max(end - num_bytes, 0))
        return file.read(min(num_bytes, end))


def _damaged(path: Path, why: str) -> ManifestError:
    return ManifestError(
        f"`{path}` is damaged: {why}", hint="restore it from a copy, or make it again"
    )
