"""Pictures -> fingerprints.parquet: every picture is decoded once, by threads, in order.

A picture that cannot be decoded keeps its row, with the reason, and is compared by its bytes only.
Memory: independent of the number of pictures.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from vit21k.data.pictures import Pictures
from vit21k.errors import ImageError, ManifestError
from vit21k.lock import locked
from vit21k.manifest.io import Manifest, manifest_writer, open_manifest
from vit21k.manifest.schema import FINGERPRINTS, IMAGES
from vit21k.near.fingerprint import Fingerprint, fingerprint
from vit21k.prep.digest import ALGORITHMS

DEFAULT_NUM_WORKERS = 4

OnPictures = Callable[[int, int], None]
"""Called with how many pictures were done just now, and how many there are."""

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
    at_once = ALGORITHMS[images.header.algorithm].at_once
    header = replace(images.header, classes=None, inputs={"images": images.fingerprint}, options={})
    num_problems = 0
    with (
        locked(manifests, command="leaks"),
        manifest_writer(FINGERPRINTS, manifests, header) as writer,
    ):
        for scanned in scan(
            pictures.read_bytes, len(pictures), digest=at_once, num_workers=num_workers
        ):
            writer.write(fingerprint_rows(scanned))
            num_problems += sum(one.problem is not None for one in scanned)
            on_pictures(len(scanned), len(pictures))
    return ScanSummary(num_pictures=len(pictures), num_problems=num_problems)


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
