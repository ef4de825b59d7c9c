"""Files with equal digests -> whether their bytes are equal too.

Digests of 128 bits do not collide by chance.  Whoever has to reckon with pictures that were made to
collide, or just wants to be sure, reads the candidates again: about one file in eight.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.archives.reader import ArchiveReader
from vit21k.errors import DataError, ImageError
from vit21k.manifest.reader import Manifest, open_manifest
from vit21k.manifest.schema import DIGESTS
from vit21k.prep.copies import find_copies
from vit21k.prep.keys import FileKeys
from vit21k.prep.verify import tree_of

_AT_ONCE = 4096
_COLUMNS = ["path", "archive", "offset", "num_bytes"]
_AGAIN_HINT = "it has gone since it was hashed; run `vit21k hash` again"
_HINT = "hash again with `vit21k hash --algorithm blake2b_128`, which cannot be made to collide"


class _Place(NamedTuple):
    """Where a file's bytes are."""

    path: str
    archive: str | None
    offset: int | None
    num_bytes: int | None


def compare_copies(manifests: Path, *, root: Path | None = None, num_workers: int = 16) -> int:
    """Compare every file that has a copy with the first of its copies, byte by byte.

    Args:
        manifests: The folder that holds `digests.parquet`.
        root: Where the image tree is now; default: where it was hashed.
        num_workers: Pairs read at a time.

    Returns:
        How many pairs were compared.

    Raises:
        DataError: Two files have the same digest, and other bytes.
        ImageError: A file is not there any more.
        ImageTreeError: The image tree is not there, or an archive in it is compressed.
        ManifestError: `digests.parquet` is missing or damaged.
        OSError: A file cannot be read.
    """
    digests = open_manifest(manifests, DIGESTS)
    root = tree_of(digests, root)
    groups = find_copies(FileKeys(digests), digests.num_rows)
    places = _places(digests, groups.rows_M)
    first_M = np.repeat(groups.starts_G, groups.sizes_G)
    copies = [place for place in range(len(places)) if first_M[place] != place]
    reader = ArchiveReader(str(root))

    def compare(copy: int) -> None:
        one, other = places[first_M[copy]], places[copy]
        if _read(one, reader, root) != _read(other, reader, root):
            raise DataError(
                f"`{one.path}` and `{other.path}` have the same digest, but not the same bytes",
                hint=_HINT,
            )

    with ThreadPoolExecutor(num_workers, thread_name_prefix="compare") as pool:
        for first in range(0, len(copies), _AT_ONCE):  # each waits as an object of its own
            for _ in pool.map(compare, copies[first : first + _AT_ONCE]):
                pass
    return len(copies)


def _places(digests: Manifest, rows_M: NDArray[np.int64]) -> list[_Place]:
    """Return where the files of *rows_M* are, in its order."""
    order = np.argsort(rows_M)
    found: list[_Place] = []
    for start, files in _numbered(digests):
        first, last = np.searchsorted(rows_M[order], (start, start + files.num_rows))
        chosen = files.take(pa.array(rows_M[order][first:last] - start))
        found += [_Place(**row) for row in chosen.to_pylist()]
    place_of = np.empty_like(order)
    place_of[order] = np.arange(len(order))
    return [found[place] for place in place_of]


def _numbered(digests: Manifest) -> Iterator[tuple[int, pa.Table]]:
    start = 0
    for files in digests.batches(_COLUMNS):
        yield start, files
        start += files.num_rows


def _read(place: _Place, reader: ArchiveReader, root: Path) -> bytes:
    if place.archive is None:
        try:
            return (root / place.path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ImageError(f"`{place.path}` is not there", hint=_AGAIN_HINT) from None
    return reader.read(place.archive, place.offset or 0, place.num_bytes or 0)
