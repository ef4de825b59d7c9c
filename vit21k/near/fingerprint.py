"""Fingerprints of images: a pixel digest, a thumbnail, and 256-bit hashes of several views."""

import os
import shutil
import struct
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray
from PIL import Image

from vit21k.data.dataset import ImageDataset
from vit21k.data.decode import decode_rgb
from vit21k.errors import ImageError, ImageTreeError, ManifestError
from vit21k.lock import locked
from vit21k.manifest.io import Manifest, ManifestHeader, open_manifest
from vit21k.manifest.schema import FINGERPRINTS, IMAGES
from vit21k.manifest.writer import manifest_writer, write_manifest
from vit21k.prep.file_digest import ALGORITHMS
from vit21k.sources.folders import ARCHIVE, Skipped, describe_skipped, list_folder
from vit21k.sources.listing import list_images, read_path
from vit21k.sources.read import ImageReader, Root, read_again, refuse_gone, why_unread

THUMB_SIDE = 32
THUMB_BYTES = THUMB_SIDE * THUMB_SIDE

FLAT_DEVIATION = 2.0
"""A thumbnail with a smaller standard deviation of its grey values, of 255, is not compared."""


class Fingerprint(NamedTuple):
    """Fingerprint of an image.

    Attributes:
        pixel_digest: Digest of the decoded pixels and the size; equal for lossless copies.
        thumb_TT: Luma, squashed to a square; uint8.
    """

    pixel_digest: bytes
    thumb_TT: NDArray[np.uint8]


def fingerprint(content: bytes) -> Fingerprint:
    """Return the fingerprint of an image file.

    Raises:
        ImageError: It is not an image, or damaged.
    """
    image = decode_rgb(content)
    return Fingerprint(pixel_digest(image), thumbnail(image))


def pixel_digest(image: Image.Image) -> bytes:
    """Return a digest of 16 bytes of the size and the pixels of an RGB image."""
    digest = xxhash.xxh3_128(struct.pack("<II", image.width, image.height))
    digest.update(image.tobytes())
    return digest.digest()


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """Return the image's luma as a square of `THUMB_SIDE` pixels.

    Each pixel is a mean over its area, which re-encoding and resizing change least.
    """
    grey = image.convert("L").resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX)
    return np.asarray(grey, dtype=np.uint8)


def is_flat(thumbs_NTT: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which thumbnails are nearly of one colour."""
    flat_N = np.empty(len(thumbs_NTT), dtype=bool)
    for start in range(0, len(thumbs_NTT), _BATCH_ROWS):
        batch = thumbs_NTT[start : start + _BATCH_ROWS].reshape(-1, THUMB_BYTES)
        flat_N[start : start + len(batch)] = batch.std(axis=1) < FLAT_DEVIATION
    return flat_N


class View(NamedTuple):
    """A window of the image, stretched to a square.

    Attributes:
        is_mirrored: Whether it is flipped horizontally.
        width, height: Size of the window as a fraction of the image.
        left, top: Fraction of the cropped width and height that is cropped on the left and top.
    """

    is_mirrored: bool = False
    width: float = 1.0
    height: float = 1.0
    left: float = 0.5
    top: float = 0.5


AS_IS = View()


def matrices(view: View) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the matrices of a view: rows (T x T) and cols (T x T)."""
    rows = _window(view.height, view.top)
    cols = _window(view.width, view.left)
    return rows, np.ascontiguousarray(cols[::-1]) if view.is_mirrored else cols


@cache
def _window(share: float, before: float) -> NDArray[np.float32]:
    """Return the matrix that stretches a window of *share* of T pixels to T, by area means."""
    start = (1 - share) * before * THUMB_SIDE
    edges = start + share * np.arange(THUMB_SIDE + 1)
    pixel = np.arange(THUMB_SIDE)
    covered = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    matrix: NDArray[np.float32] = (covered.clip(0) / share).astype(np.float32)
    return matrix


def crops(shares: tuple[float, ...], offsets: tuple[float, ...]) -> list[View]:
    """Return the full view, then windows of each size at each offset, not mirrored."""
    windows = [
        View(width=share, height=share, left=left, top=top)
        for share, left, top in product(shares, offsets, offsets)
    ]
    return [AS_IS, *windows]


def mirrored(views: list[View]) -> list[View]:
    """Return *views* flipped horizontally."""
    return [view._replace(is_mirrored=True) for view in views]


NUM_BITS = 256
NUM_WORDS = NUM_BITS // 64
NUM_BANDS = 7
BAND_BITS = 9

_SIDE = 17  # frequencies per side, of which the lowest are used
_BATCH_ROWS = 8_192


def hash_bits(thumbs_NTT: NDArray[np.uint8], view: View = AS_IS) -> NDArray[np.uint64]:
    """Return the hash of each thumbnail in *view*.

    Returns:
        Shape (N, 4): 256 bits as four integers.
    """
    words = np.empty((len(thumbs_NTT), NUM_WORDS), dtype=np.uint64)
    for start in range(0, len(thumbs_NTT), _BATCH_ROWS):
        batch = slice(start, start + _BATCH_ROWS)
        words[batch] = _pack(coefficients(thumbs_NTT[batch], view) > 0)
    return words


def coefficients(thumbs_NTT: NDArray[np.uint8], view: View = AS_IS) -> NDArray[np.float32]:
    """Return the 256 lowest frequencies of each thumbnail, in the order of the bits."""
    rows, cols = matrices(view)
    left, right = _COSINES @ rows, (_COSINES @ cols).T
    plane = left @ (thumbs_NTT.astype(np.float32) @ right)
    chosen: NDArray[np.float32] = plane.reshape(len(thumbs_NTT), -1)[:, _ORDER]
    return chosen


def distance(one_N4: NDArray[np.uint64], other_N4: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """Return the Hamming distance of each pair of hashes."""
    bits_N: NDArray[np.uint16] = np.bitwise_count(one_N4 ^ other_N4).sum(axis=1, dtype=np.uint16)
    return bits_N


def keys(words_N4: NDArray[np.uint64], table: tuple[int, ...]) -> NDArray[np.uint64]:
    """Return the bands *table* of each hash, concatenated, as one integer."""
    low_N = words_N4[:, 0]
    key_N = np.zeros(len(words_N4), dtype=np.uint64)
    for band in table:
        key_N <<= np.uint64(BAND_BITS)
        key_N |= (low_N >> np.uint64(BAND_BITS * band)) & np.uint64((1 << BAND_BITS) - 1)
    return key_N


def _pack(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    octets = np.packbits(bits, axis=1, bitorder="little")
    return np.ascontiguousarray(octets).view(np.uint64)


def _cosines() -> NDArray[np.float32]:
    """Return the first rows of the cosine transform, (F + 1) x T."""
    frequency = np.arange(_SIDE)[:, None]
    position = np.arange(THUMB_SIDE) + 0.5
    return np.cos(np.pi * frequency * position / THUMB_SIDE).astype(np.float32)


def _order() -> NDArray[np.int64]:
    """Return the coefficient of each bit: the lowest frequencies without the mean."""
    down, across = np.divmod(np.arange(_SIDE * _SIDE), _SIDE)
    by_frequency = np.argsort(down**2 + across**2, kind="stable")[1 : NUM_BITS + 1]
    in_bands = by_frequency[: NUM_BANDS * BAND_BITS].reshape(BAND_BITS, NUM_BANDS).T.reshape(-1)
    return np.concatenate([in_bands, by_frequency[len(in_bands) :]])


_COSINES = _cosines()
_ORDER = _order()


DEFAULT_NUM_WORKERS = 4

OnImages = Callable[[int, int], None]
"""Called with the number of images done since the last call, and their total."""

PART_ROWS = 16_384
"""Images per part that an interrupted run resumes from: about a minute."""

_PARTS = ".fingerprints"
_CHUNK_ROWS = 64
_CHUNKS_PER_WORKER = 4


class Scanned(NamedTuple):
    """Result of an image.

    Attributes:
        content_digest: Digest of the file's bytes; empty if it could not be read.
        fingerprint: None if it could not be read or decoded.
        problem: The reason.
    """

    content_digest: bytes
    fingerprint: Fingerprint | None
    problem: str | None


def scan_problem(one: Scanned) -> str | None:
    """Return why an image could not be read; None if it was."""
    return None if one.content_digest else one.problem


@dataclass(frozen=True, kw_only=True)
class ScanSummary:
    """Counts of a scan.

    Attributes:
        num_images: Rows of `fingerprints.parquet`.
        num_problems: Images that could not be decoded.
        unread: Why images could not be read, by path.
    """

    num_images: int
    num_problems: int
    unread: dict[str, str]


def scan(
    read: Callable[[int], bytes],
    num_rows: int,
    *,
    digest: Callable[[memoryview], bytes],
    num_workers: int = DEFAULT_NUM_WORKERS,
    prefetch: Callable[[range], None] = lambda _rows: None,
) -> Iterator[Scanned]:
    """Yield the results of all rows, in order.

    Args:
        read: Returns the content of a row's file.
        num_rows: Number of rows.
        digest: Hash of the bytes of a file.
        num_workers: Threads that read and decode.
        prefetch: Called with rows that are read soon.
    """

    def chunk(rows: range) -> list[Scanned]:
        return [_scan_one(read, row, digest) for row in rows]

    under_way: deque[Future[list[Scanned]]] = deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix="scan") as pool:
        try:
            for start in range(0, num_rows, _CHUNK_ROWS):
                rows = range(start, min(start + _CHUNK_ROWS, num_rows))
                prefetch(rows)
                under_way.append(pool.submit(chunk, rows))
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
    root: Root | None = None,
    num_workers: int = DEFAULT_NUM_WORKERS,
    on_images: OnImages = lambda _done, _total: None,
) -> ScanSummary:
    """Write `fingerprints.parquet` for `images.parquet`, unless it exists and is fresh.

    Args:
        manifests: The folder of both.
        root: Current image root; None: as hashed.
        num_workers: Threads that read and decode.
        on_images: Progress.

    Raises:
        ManifestError: `images.parquet` is missing, stale or damaged.
        ImageTreeError: The image root does not exist.
        LockedError: Another run works on *manifests*.
    """
    images = open_manifest(manifests, IMAGES)
    found = _fresh(manifests)
    if found and not found.read(["digest"])["digest"].null_count:
        return _summary(found, images)
    dataset = ImageDataset.from_manifest(images, root)
    header = replace(images.header, classes=None, inputs={"images": images.fingerprint}, options={})
    scanner = _Scanner(dataset, header, num_workers, on_images)
    with (
        locked(manifests, command="leaks"),
        manifest_writer(FINGERPRINTS, manifests, header) as writer,
    ):
        for rows in scanner.completed(found) if found else scanner.parts(manifests / _PARTS):
            writer.write(rows)
    shutil.rmtree(manifests / _PARTS, ignore_errors=True)
    return _summary(open_manifest(manifests, FINGERPRINTS), images)


class _Scanner:
    """Computes the fingerprints of the images of a manifest, in parts."""

    def __init__(
        self, dataset: ImageDataset, header: ManifestHeader, num_workers: int, on_images: OnImages
    ) -> None:
        self._images = dataset
        self._header = header
        self._num_workers = num_workers
        self._on_images = on_images

    def completed(self, found: Manifest) -> Iterator[pa.Table]:
        """Yield the rows of *found*; images that could not be read are read again."""
        start = 0
        for rows in found.batches():
            yield self._read_again(rows, start)
            start += rows.num_rows

    def parts(self, folder: Path) -> Iterator[pa.Table]:
        """Yield the rows of `PART_ROWS` images at a time, and store them in *folder*.

        A part is a manifest in its own folder; if it is damaged or stale, it is replaced.
        """
        for start in range(0, len(self._images), PART_ROWS):
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
        """Return *rows*, reading again the images that could not be read.

        Many failures are no evidence of a missing tree here, as these images failed before.
        """
        is_unread = pc.is_null(rows["digest"])
        again = np.flatnonzero(is_unread.to_numpy())
        self._on_images(rows.num_rows - len(again), len(self._images))
        if not len(again):
            return rows
        tables = [rows.filter(pc.invert(is_unread)), *self._rows(start + again)]
        order = np.argsort(np.concatenate([np.delete(np.arange(rows.num_rows), again), again]))
        return pa.concat_tables(tables).take(pa.array(order))

    def _make(self, start: int) -> pa.Table:
        stop = min(start + PART_ROWS, len(self._images))
        return pa.concat_tables(self._rows(np.arange(start, stop), refuse_if_gone=True))

    def _rows(self, numbers: NDArray[np.int64], *, refuse_if_gone: bool = False) -> list[pa.Table]:
        """Return the rows of the images with these indices."""
        scanned = scan(
            lambda row: self._images.read_bytes(int(numbers[row])),
            len(numbers),
            digest=ALGORITHMS[self._header.algorithm].at_once,
            num_workers=self._num_workers,
            prefetch=lambda rows: self._images.prefetch(numbers[rows.start : rows.stop]),
        )
        if refuse_if_gone:
            is_all = len(numbers) == len(self._images)
            scanned = refuse_gone(scanned, scan_problem, self._images.root, is_all=is_all)
        tables = []
        while some := list(islice(scanned, _CHUNK_ROWS)):
            tables.append(fingerprint_rows(some))
            self._on_images(len(some), len(self._images))
        return tables


def _summary(found: Manifest, images: Manifest) -> ScanSummary:
    rows = found.read(["digest", "problem"])
    is_unread = pc.is_null(rows["digest"])
    paths = images.read(["path"])["path"].filter(is_unread) if pc.any(is_unread).as_py() else []
    reasons = rows["problem"].filter(is_unread)
    return ScanSummary(
        num_images=found.num_rows,
        num_problems=found.num_rows - rows["problem"].null_count - len(reasons),
        unread=dict(zip(map(str, paths), map(str, reasons), strict=True)),
    )


def _fresh(manifests: Path) -> Manifest | None:
    """Return existing fingerprints, unless they are stale."""
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


MAX_BYTES_IN_MEMORY = 1 << 30
"""Larger arrays of thumbnails are memory-mapped from an unnamed temporary file."""

_DIGEST_BYTES = 16


@dataclass(frozen=True)
class FingerprintSet:
    """Fingerprints of images, in arrays.

    Attributes:
        digest_N: Digests of the files, as 16-byte strings.
        pixel_digest_N: Digests of the decoded pixels; empty if the image could not be decoded.
        thumbs_NTT: Thumbnails; zeros if the image could not be decoded.
    """

    digest_N: NDArray[np.bytes_]
    pixel_digest_N: NDArray[np.bytes_]
    thumbs_NTT: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.digest_N)


def load_set(fingerprints: Manifest) -> FingerprintSet:
    """Return the content of `fingerprints.parquet`.

    Raises:
        ManifestError: The manifest is damaged.
        OSError: The disk has no space for the thumbnails.
    """
    size = fingerprints.num_rows
    digest_N = np.empty(size, dtype="S16")
    pixel_N = np.empty(size, dtype="S16")
    thumbs_NTT = _empty_thumbs(size, fingerprints.path.parent)
    row = 0
    for rows in fingerprints.batches(["digest", "pixel_digest", "thumb"]):
        stop = row + rows.num_rows
        digest_N[row:stop] = np.frombuffer(_octets(rows["digest"], _DIGEST_BYTES), "S16")
        pixel_N[row:stop] = np.frombuffer(_octets(rows["pixel_digest"], _DIGEST_BYTES), "S16")
        thumbs = np.frombuffer(_octets(rows["thumb"], THUMB_BYTES), np.uint8)
        thumbs_NTT[row:stop] = thumbs.reshape(-1, THUMB_SIDE, THUMB_SIDE)
        row = stop
    return FingerprintSet(digest_N, pixel_N, thumbs_NTT)


def _octets(column: pa.ChunkedArray, width: int) -> memoryview:
    """Return the bytes of a column of fixed-size values; zeros for nulls."""
    filled = pc.fill_null(column, pa.scalar(bytes(width), pa.binary(width)))
    array = pa.concat_arrays(filled.chunks) if filled.num_chunks != 1 else filled.chunk(0)
    start = array.offset * width
    return memoryview(array.buffers()[1])[start : start + len(array) * width]


def _empty_thumbs(size: int, folder: Path) -> NDArray[np.uint8]:
    shape = (size, THUMB_SIDE, THUMB_SIDE)
    if size * THUMB_BYTES <= MAX_BYTES_IN_MEMORY:
        return np.empty(shape, dtype=np.uint8)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:  # otherwise a full disk would end the process later, without a message
            os.posix_fallocate(file.fileno(), 0, size * THUMB_BYTES)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from error
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)


@dataclass(frozen=True)
class ImageSet:
    """Images with their fingerprints: an evaluation set.

    Attributes:
        root: Folder of the paths.
        paths: Path of each image, relative to *root*.
        fingerprints: Their fingerprints.
        problems: Why images cannot be decoded, by path.
        unread: Why images could not be read, by path.
        skipped: Entries of the folder that are not images.
        manifests: Folder of the manifests that list them, if there is one.
    """

    root: Root
    paths: pa.Array
    fingerprints: FingerprintSet
    problems: dict[str, str]
    unread: dict[str, str]
    skipped: Sequence[Skipped] = ()
    manifests: Path | None = None


def scan_folder(
    root: Path,
    *,
    algorithm: str,
    num_workers: int = DEFAULT_NUM_WORKERS,
    on_images: OnImages = lambda _done, _total: None,
) -> ImageSet:
    """Compute the fingerprints of all images below *root*, in memory (1.1 kB each).

    Args:
        root: A folder of images at any depth, also in archives.
        algorithm: Hash algorithm of the digests to compare with.
        num_workers: Threads that read and decode.
        on_images: Progress.

    Raises:
        ImageTreeError: No such folder, or no images in it.
    """
    if not root.is_dir():
        raise ImageTreeError(f"`{root}` does not exist", hint="name a folder of images")
    reader = ImageReader(root, unpacks=True)
    paths, skipped = _list_with_archives(root, reader)
    if not paths:
        raise ImageTreeError(
            f"no images below `{root}`" + (f", but {describe_skipped(skipped)}" if skipped else ""),
            hint="name a folder with .JPEG, .jpg, .png ... files",
        )
    scanned: list[Scanned] = []
    each = scan(
        lambda row: read_path(reader, paths[row]),
        len(paths),
        digest=ALGORITHMS[algorithm].at_once,
        num_workers=num_workers,
    )
    for one in refuse_gone(each, scan_problem, root):
        scanned.append(one)
        on_images(1, len(paths))
    by_path = list(zip(paths, scanned, strict=True))
    unread = {path: why for path, one in by_path if (why := scan_problem(one))}
    problems = {path: one.problem for path, one in by_path if one.problem and path not in unread}
    return ImageSet(
        root.resolve(), pa.array(paths, pa.string()), _as_set(scanned), problems, unread, skipped
    )


def _list_with_archives(root: Path, reader: ImageReader) -> tuple[list[str], list[Skipped]]:
    """Return the images below *root*, also in archives, and the skipped entries."""
    paths, skipped = list_folder(root)
    left: list[Skipped] = []
    for one in skipped:
        if one.why != ARCHIVE:
            left.append(one)
            continue
        try:
            members, others = list_images(reader, one.path)
        except ImageError:
            left.append(one._replace(why="an archive that cannot be read"))
        else:
            paths += [f"{one.path}/{name}" for name in members]
            left += [other._replace(path=one.path) for other in others]
    return paths, left


def _as_set(scanned: list[Scanned]) -> FingerprintSet:
    blank = np.zeros((THUMB_SIDE, THUMB_SIDE), dtype=np.uint8)
    prints = [one.fingerprint for one in scanned]
    return FingerprintSet(
        np.array([one.content_digest for one in scanned], dtype="S16"),
        np.array([one.pixel_digest if one else b"" for one in prints], dtype="S16"),
        np.stack([one.thumb_TT if one else blank for one in prints]),
    )
