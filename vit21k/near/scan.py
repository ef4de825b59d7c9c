"""Pictures -> fingerprints.parquet: every picture is decoded once, by threads, in order.

A run that is killed goes on where it was.  A picture that cannot be decoded keeps its row, with the
reason, and is compared by its bytes only.
Memory: independent of the number of pictures.
"""

import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from vit21k.data.pictures import Pictures
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
        content_digest: Of the file's bytes; empty if it cannot be read.
        fingerprint: None if it cannot be decoded or read.
        problem: Why it cannot.
    """

    content_digest: bytes
    fingerprint: Fingerprint | None
    problem: str | None


@dataclass(frozen=True, kw_only=True)
class ScanSummary:
    """Counts of a scan.

    Attributes:
        num_pictures: Rows of `fingerprints.parquet`.
        num_problems: Of them, those that could not be decoded.
    """

    num_pictures: int
    num_problems: int


def scan(
    read: Callable[[int], bytes],
    num_rows: int,
    *,
    digest: Callable[[memoryview], bytes],
    num_workers: int = DEFAULT_NUM_WORKERS,
) -> Iterator[list[Scanned]]:
    """Yield what became of the pictures of all rows, in order, some at a time.

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
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _scan_one(
    read: Callable[[int], bytes], row: int, digest: Callable[[memoryview], bytes]
) -> Scanned:
    try:
        content = read(row)
    except (ImageError, OSError) as error:
        return Scanned(b"", None, str(error))
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
    if found := _fresh(manifests):
        problems = found.read(["problem"])["problem"]
        return ScanSummary(
            num_pictures=found.num_rows, num_problems=found.num_rows - problems.null_count
        )
    pictures = Pictures.from_manifest(images, root)
    header = replace(images.header, classes=None, inputs={"images": images.fingerprint}, options={})
    parts = _Parts(manifests / _PARTS, header, pictures, num_workers, on_pictures)
    num_problems = 0
    with (
        locked(manifests, command="leaks"),
        manifest_writer(FINGERPRINTS, manifests, header) as writer,
    ):
        for start in range(0, len(pictures), PART_ROWS):
            rows = parts.rows(start)
            writer.write(rows)
            num_problems += rows.num_rows - rows["problem"].null_count
    shutil.rmtree(manifests / _PARTS, ignore_errors=True)
    return ScanSummary(num_pictures=len(pictures), num_problems=num_problems)


class _Parts:
    """Fingerprints of `PART_ROWS` pictures at a time, kept so that a run that was killed goes on.

    A part is a manifest in a folder of its own; one of other pictures, or damaged, is made again.
    """

    def __init__(
        self,
        folder: Path,
        header: Header,
        pictures: Pictures,
        num_workers: int,
        on_pictures: OnPictures,
    ) -> None:
        self._folder = folder
        self._header = header
        self._pictures = pictures
        self._num_workers = num_workers
        self._on_pictures = on_pictures

    def rows(self, start: int) -> pa.Table:
        """Return the fingerprints of a part, and keep them if they were not kept already."""
        folder = self._folder / f"{start:012d}"
        try:
            part = open_manifest(folder, FINGERPRINTS, allow_stale=True)
            if part.header == self._header:
                rows = part.read()
                self._on_pictures(rows.num_rows, len(self._pictures))
                return rows
        except ManifestError:
            pass
        rows = self._make(start)
        write_manifest(rows, FINGERPRINTS, folder, self._header)
        return rows

    def _make(self, start: int) -> pa.Table:
        num_rows = min(PART_ROWS, len(self._pictures) - start)
        scanned = scan(
            lambda row: self._pictures.read_bytes(start + row),
            num_rows,
            digest=ALGORITHMS[self._header.algorithm].at_once,
            num_workers=self._num_workers,
        )
        tables = []
        for some in scanned:
            tables.append(fingerprint_rows(some))
            self._on_pictures(len(some), len(self._pictures))
        return pa.concat_tables(tables)


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
