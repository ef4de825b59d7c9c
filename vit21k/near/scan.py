"""Pictures -> fingerprints.parquet: every picture is decoded once, by threads, in order.

A run that is killed goes on where it was.  A picture that cannot be decoded keeps its row, with the
reason, and is compared by its bytes only.  One that could not be read has no digest: that is no
verdict on it, and the next run reads it again.
Memory: independent of the number of pictures.
"""

import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.data.pictures import Pictures
from vit21k.data.unread import read_again, refuse_gone, why_unread
from vit21k.errors import ImageError, ManifestError
from vit21k.hashing.algorithms import ALGORITHMS
from vit21k.lock import locked
from vit21k.manifest.header import Header
from vit21k.manifest.reader import Manifest, open_manifest
from vit21k.manifest.schema import FINGERPRINTS, IMAGES
from vit21k.manifest.writer import manifest_writer, write_manifest
from vit21k.near.fingerprint import Fingerprint, fingerprint

DEFAULT_NUM_WORKERS = 4

OnPictures = Callable[[int, int], None]
"""Called with how many pictures were done just now, and how many there are."""

PART_ROWS = 16_384
"""Pictures whose fingerprints are kept at a time while a run is under way: a minute's work."""

_PARTS = ".fingerprints"
_CHUNK_ROWS = 64
_CHUNKS_PER_WORKER = 4


class Scanned(NamedTuple):
    """What became of one picture.

    Attributes:
        content_digest: Of the file's bytes; empty if it could not be read.
        fingerprint: None if it cannot be decoded, or could not be read.
        problem: Why it cannot.
    """

    content_digest: bytes
    fingerprint: Fingerprint | None
    problem: str | None


def why_not_read(one: Scanned) -> str | None:
    """Return why a picture could not be read; None if it was."""
    return None if one.content_digest else one.problem


@dataclass(frozen=True, kw_only=True)
class ScanSummary:
    """Counts of a scan.

    Attributes:
        num_pictures: Rows of `fingerprints.parquet`.
        num_problems: Of them, those that could not be decoded.
        unread: Why pictures could not be read, by path.
    """

    num_pictures: int
    num_problems: int
    unread: dict[str, str]


def scan(
    read: Callable[[int], bytes],
    num_rows: int,
    *,
    digest: Callable[[memoryview], bytes],
    num_workers: int = DEFAULT_NUM_WORKERS,
) -> Iterator[Scanned]:
    """Yield what became of the pictures of all rows, in order.

    Args:
        read: Gives the content of a row's file.
        num_rows: How many rows there are.
        digest: Made of each file's bytes.
        num_workers: Threads that read and decode.
    """

    def chunk(start: int) -> list[Scanned]:
        rows = range(start, min(start + _CHUNK_ROWS, num_rows))
        return [_scan_one(read, row, digest) for row in rows]

    under_way: deque[Future[list[Scanned]]] = deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix="scan") as pool:
        try:
            for start in range(0, num_rows, _CHUNK_ROWS):
                under_way.append(pool.submit(chunk, start))
                if len(under_way) >= num_workers * _CHUNKS_PER_WORKER:
                    yield from under_way.popleft().result()
            while under_way:
                yield from under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _scan_one(
    read: Callable[[int], bytes], row: int, digest: Callable[[memoryview], bytes]
) -> Scanned:
    try:
        content = read_again(read, row)
    except (ImageError, OSError) as error:
        return Scanned(b"", None, why_unread(error))
    try:
        return Scanned(digest(memoryview(content)), fingerprint(content), None)
    except ImageError as error:
        return Scanned(digest(memoryview(content)), None, error.message)


def scan_images(
    manifests: Path,
    *,
    root: Path | None = None,
    num_workers: int = DEFAULT_NUM_WORKERS,
    on_pictures: OnPictures = lambda _done, _total: None,
) -> ScanSummary:
    """Make `fingerprints.parquet` of `images.parquet`, unless it is there and fresh.

    Args:
        manifests: The folder of both.
        root: Where the images are now; None: where they were hashed.
        num_workers: Threads that read and decode.
        on_pictures: Called with how many pictures were done just now, and how many there are.

    Raises:
        ManifestError: `images.parquet` is missing, stale or damaged.
        ImageTreeError: The image root is not there.
        LockedError: Another run works on *manifests*.
    """
    images = open_manifest(manifests, IMAGES)
    found = _fresh(manifests)
    if found and not found.read(["digest"])["digest"].null_count:
        return _summary(found, images)
    pictures = Pictures.from_manifest(images, root)
    header = replace(images.header, classes=None, inputs={"images": images.fingerprint}, options={})
    scanner = _Scanner(pictures, header, num_workers, on_pictures)
    with (
        locked(manifests, command="leaks"),
        manifest_writer(FINGERPRINTS, manifests, header) as writer,
    ):
        for rows in scanner.completed(found) if found else scanner.parts(manifests / _PARTS):
            writer.write(rows)
    shutil.rmtree(manifests / _PARTS, ignore_errors=True)
    return _summary(open_manifest(manifests, FINGERPRINTS), images)


class _Scanner:
    """Fingerprints of the pictures of a manifest, some at a time."""

    def __init__(
        self, pictures: Pictures, header: Header, num_workers: int, on_pictures: OnPictures
    ) -> None:
        self._pictures = pictures
        self._header = header
        self._num_workers = num_workers
        self._on_pictures = on_pictures

    def completed(self, found: Manifest) -> Iterator[pa.Table]:
        """Yield the rows of *found*; pictures that could not be read are read again."""
        start = 0
        for rows in found.batches():
            yield self._read_again(rows, start)
            start += rows.num_rows

    def parts(self, folder: Path) -> Iterator[pa.Table]:
        """Yield the rows of `PART_ROWS` pictures at a time, and keep them in *folder*.

        A part is a manifest in a folder of its own; one of other pictures, or damaged, is made
        again.
        """
        for start in range(0, len(self._pictures), PART_ROWS):
            part = folder / f"{start:012d}"
            rows = self._kept(part)
            if rows is None:
                rows = self._make(start)
                write_manifest(rows, FINGERPRINTS, part, self._header)
            else:
                rows = self._read_again(rows, start)
            yield rows

    def _kept(self, part: Path) -> pa.Table | None:
        try:
            manifest = open_manifest(part, FINGERPRINTS, allow_stale=True)
            return manifest.read() if manifest.header == self._header else None
        except ManifestError:
            return None

    def _read_again(self, rows: pa.Table, start: int) -> pa.Table:
        """Return *rows*, in which pictures that were not read are replaced by what they give now.

        They need not be neighbours, so that many in a row do not mean that the tree is gone.
        """
        is_unread = pc.is_null(rows["digest"])
        again = np.flatnonzero(is_unread.to_numpy())
        self._on_pictures(rows.num_rows - len(again), len(self._pictures))
        if not len(again):
            return rows
        tables = [rows.filter(pc.invert(is_unread)), *self._rows(start + again)]
        order = np.argsort(np.concatenate([np.delete(np.arange(rows.num_rows), again), again]))
        return pa.concat_tables(tables).take(pa.array(order))

    def _make(self, start: int) -> pa.Table:
        stop = min(start + PART_ROWS, len(self._pictures))
        return pa.concat_tables(self._rows(np.arange(start, stop), refuse_if_gone=True))

    def _rows(self, numbers: NDArray[np.int64], *, refuse_if_gone: bool = False) -> list[pa.Table]:
        """Return the rows of the pictures of these *numbers*."""
        scanned = scan(
            lambda row: self._pictures.read_bytes(int(numbers[row])),
            len(numbers),
            digest=ALGORITHMS[self._header.algorithm].at_once,
            num_workers=self._num_workers,
        )
        if refuse_if_gone:
            is_all = len(numbers) == len(self._pictures)
            scanned = refuse_gone(scanned, why_not_read, self._pictures.root, is_all=is_all)
        tables = []
        while some := list(islice(scanned, _CHUNK_ROWS)):
            tables.append(fingerprint_rows(some))
            self._on_pictures(len(some), len(self._pictures))
        return tables


def _summary(found: Manifest, images: Manifest) -> ScanSummary:
    rows = found.read(["digest", "problem"])
    is_unread = pc.is_null(rows["digest"])
    paths = images.read(["path"])["path"].filter(is_unread) if pc.any(is_unread).as_py() else []
    reasons = rows["problem"].filter(is_unread)
    return ScanSummary(
        num_pictures=found.num_rows,
        num_problems=found.num_rows - rows["problem"].null_count - len(reasons),
        unread=dict(zip(map(str, paths), map(str, reasons), strict=True)),
    )


def _fresh(manifests: Path) -> Manifest | None:
    """Return the fingerprints that are there, if `images.parquet` is what they were made of."""
    try:
        return open_manifest(manifests, FINGERPRINTS)
    except ManifestError:
        return None


def fingerprint_rows(scanned: list[Scanned]) -> pa.Table:
    """Return rows of `fingerprints.parquet`."""
    prints = [one.fingerprint for one in scanned]
    return pa.table(
        [
            pa.array([one.content_digest or None for one in scanned], pa.binary(16)),
            pa.array([print_ and print_.pixel_digest for print_ in prints], pa.binary(16)),
            pa.array([print_ and print_.thumb_TT.tobytes() for print_ in prints], pa.binary(1024)),
            pa.array([one.problem for one in scanned], pa.string()),
        ],
        schema=FINGERPRINTS.schema,
    )
