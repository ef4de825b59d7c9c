"""Fingerprints of many pictures in flat arrays: from a manifest, or from a folder at hand.

Dimensions: N pictures, T pixels along a thumbnail's side.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.data.unread import refuse_gone
from vit21k.errors import ImageError, ImageTreeError
from vit21k.hashing.algorithms import ALGORITHMS
from vit21k.hashing.folder import ARCHIVE, Skipped, in_words, list_folder
from vit21k.inference.files import Files, list_archive
from vit21k.manifest.reader import Manifest
from vit21k.near.fingerprint import THUMB_BYTES, THUMB_SIDE
from vit21k.near.scan import DEFAULT_NUM_WORKERS, OnPictures, Scanned, scan, why_not_read

MAX_BYTES_IN_MEMORY = 1 << 30
"""Thumbnails of more are kept in a file without a name, which the system pages in and out."""

_DIGEST_BYTES = 16


@dataclass(frozen=True)
class PictureSet:
    """What pictures are compared by.

    Attributes:
        digest_N: Of the file's bytes, as 16-byte strings.
        pixel_digest_N: Of the decoded pixels; empty where the picture could not be decoded.
        thumbs_NTT: Thumbnails; zeros where it could not.
    """

    digest_N: NDArray[np.bytes_]
    pixel_digest_N: NDArray[np.bytes_]
    thumbs_NTT: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.digest_N)


def load_set(fingerprints: Manifest) -> PictureSet:
    """Return what `fingerprints.parquet` holds.

    Raises:
        ManifestError: The manifest is damaged.
        OSError: There is no room beside it for the thumbnails.
    """
    size = fingerprints.num_rows
    digest_N = np.empty(size, dtype="S16")
    pixel_N = np.empty(size, dtype="S16")
    thumbs_NTT = _room_for(size, fingerprints.path.parent)
    row = 0
    for rows in fingerprints.batches(["digest", "pixel_digest", "thumb"]):
        stop = row + rows.num_rows
        digest_N[row:stop] = np.frombuffer(_octets(rows["digest"], _DIGEST_BYTES), "S16")
        pixel_N[row:stop] = np.frombuffer(_octets(rows["pixel_digest"], _DIGEST_BYTES), "S16")
        thumbs = np.frombuffer(_octets(rows["thumb"], THUMB_BYTES), np.uint8)
        thumbs_NTT[row:stop] = thumbs.reshape(-1, THUMB_SIDE, THUMB_SIDE)
        row = stop
    return PictureSet(digest_N, pixel_N, thumbs_NTT)


def _octets(column: pa.ChunkedArray, width: int) -> memoryview:
    """Return the bytes of a column of fixed-size values; zeros for nulls."""
    filled = pc.fill_null(column, pa.scalar(bytes(width), pa.binary(width)))
    array = pa.concat_arrays(filled.chunks) if filled.num_chunks != 1 else filled.chunk(0)
    start = array.offset * width
    return memoryview(array.buffers()[1])[start : start + len(array) * width]


def _room_for(size: int, folder: Path) -> NDArray[np.uint8]:
    shape = (size, THUMB_SIDE, THUMB_SIDE)
    if size * THUMB_BYTES <= MAX_BYTES_IN_MEMORY:
        return np.empty(shape, dtype=np.uint8)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:  # or a disk that is full later would end the process, without a message
            os.posix_fallocate(file.fileno(), 0, size * THUMB_BYTES)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(folder)) from error
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)


@dataclass(frozen=True)
class FolderSet:
    """The pictures of a folder at hand.

    Attributes:
        root: The folder.
        paths: Relative to it, in order; POSIX.
        pictures: Their fingerprints, in that order.
        problems: Why pictures cannot be decoded, by path.
        unread: Why pictures could not be read, by path.
        skipped: What was not looked at.
    """

    root: Path
    paths: Sequence[str]
    pictures: PictureSet
    problems: dict[str, str]
    unread: dict[str, str]
    skipped: Sequence[Skipped]


def scan_folder(
    root: Path,
    *,
    algorithm: str,
    num_workers: int = DEFAULT_NUM_WORKERS,
    on_pictures: OnPictures = lambda _done, _total: None,
) -> FolderSet:
    """Take the fingerprints of every picture below *root*, in memory (1.1 kB each).

    Args:
        root: A folder of pictures at any depth, or right in it; also in archives.
        algorithm: Of the digests to compare with.
        num_workers: Threads that read and decode.
        on_pictures: Called with how many pictures were done just now, and how many there are.

    Raises:
        ImageTreeError: No such folder, or no pictures in it.
    """
    if not root.is_dir():
        raise ImageTreeError(f"no such folder: `{root}`", hint="give a folder of pictures")
    paths, skipped = _list_with_archives(root)
    if not paths:
        raise ImageTreeError(
            f"no images below `{root}`" + (f", but {in_words(skipped)}" if skipped else ""),
            hint="give a folder with .JPEG, .jpg, .png ... files in it",
        )
    scanned: list[Scanned] = []
    each = scan(
        lambda row: _read(root / paths[row]),
        len(paths),
        digest=ALGORITHMS[algorithm].at_once,
        num_workers=num_workers,
    )
    for one in refuse_gone(each, why_not_read, root):
        scanned.append(one)
        on_pictures(1, len(paths))
    by_path = list(zip(paths, scanned, strict=True))
    unread = {path: why for path, one in by_path if (why := why_not_read(one))}
    problems = {path: one.problem for path, one in by_path if one.problem and path not in unread}
    return FolderSet(root, paths, _as_set(scanned), problems, unread, skipped)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except NotADirectoryError:  # a member of an archive
        return Files([path]).read_bytes(0)


def _list_with_archives(root: Path) -> tuple[list[str], list[Skipped]]:
    """Return the images below *root*, also those in archives, and what is not looked at."""
    paths, skipped = list_folder(root)
    left: list[Skipped] = []
    for one in skipped:
        if one.why != ARCHIVE:
            left.append(one)
            continue
        try:
            members, others = list_archive(root / one.path)
        except ImageError:
            left.append(one._replace(why="an archive that cannot be read"))
        else:
            paths += [f"{one.path}/{name}" for name in members]
            left += [other._replace(path=one.path) for other in others]
    return paths, left


def _as_set(scanned: list[Scanned]) -> PictureSet:
    blank = np.zeros((THUMB_SIDE, THUMB_SIDE), dtype=np.uint8)
    prints = [one.fingerprint for one in scanned]
    return PictureSet(
        np.array([one.content_digest for one in scanned], dtype="S16"),
        np.array([one.pixel_digest if one else b"" for one in prints], dtype="S16"),
        np.stack([one.thumb_TT if one else blank for one in prints]),
    )
