"""The second pass of `relabel`: carry paths from `digests` to `images` and `copies`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.manifest.io import Manifest
from vit21k.manifest.schema import COPIES, DIGEST_BYTES, IMAGES
from vit21k.prep.ahead import ahead
from vit21k.prep.pictures import Pictures

ROWS_IN_MEMORY = 2_000_000
"""How many rows of `images` are held at a time when they must be put in another order."""


@dataclass(frozen=True)
class RowSource:
    """Makes the rows of `images` and `copies`.

    Attributes:
        digests: Where paths and sizes come from.
        digests_N2: Its digests, each as two numbers.
        pictures: What became of its files.
        wnids: The class list.
    """

    digests: Manifest
    digests_N2: NDArray[np.uint64]
    pictures: Pictures
    wnids: Sequence[str]

    def batches(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yield rows of `images` and of `copies`, each in the order of its manifest."""
        place = self.pictures.image_order()
        wnids = pa.array(self.wnids, pa.string())
        for start, files in ahead(self._files()):
            images = self._images(start, files) if place is None else IMAGES.schema.empty_table()
            yield images, self._copies(start, files, wnids)
        if place is not None:
            for images in self._reordered(place):
                yield images, COPIES.schema.empty_table()

    def _files(self) -> Iterator[tuple[int, pa.Table]]:
        """Yield a row group of paths and sizes at a time, with the number of its first row."""
        start = 0
        for files in self.digests.batches(["path", "num_bytes", "archive", "offset"]):
            yield start, files
            start += files.num_rows

    def _images(self, start: int, files: pa.Table) -> pa.Table:
        """Return the pictures among *files*, in file order."""
        stop = start + files.num_rows
        is_kept = ~self.pictures.is_copy_N[start:stop]
        label_ids, num_files = self.pictures.columns(start, stop)
        kept = files.filter(pa.array(is_kept))
        columns = [
            as_digests(self.digests_N2[start:stop][is_kept]),
            kept["path"],
            pc.if_else(kept["archive"].is_valid(), kept["num_bytes"], None),
            label_ids,
            pa.array(num_files),
            kept["archive"],
            kept["offset"],
        ]
        return pa.table(columns, schema=IMAGES.schema)

    def _copies(self, start: int, files: pa.Table, wnids: pa.Array) -> pa.Table:
        """Return those of *files* that an earlier file is equal to."""
        stop = start + files.num_rows
        is_copy = self.pictures.is_copy_N[start:stop]
        columns = [
            as_digests(self.digests_N2[start:stop][is_copy]),
            files["path"].filter(pa.array(is_copy)),
            wnids.take(pa.array(self.pictures.label_N[start:stop][is_copy])),
            files["archive"].filter(pa.array(is_copy)),
            files["offset"].filter(pa.array(is_copy)),
        ]
        return pa.table(columns, schema=COPIES.schema)

    def _reordered(self, place: NDArray[np.int64]) -> Iterator[pa.Table]:
        """Yield the pictures by *place*, reading the files once for each part that is held."""
        for first in range(0, len(place), ROWS_IN_MEMORY):
            parts: list[pa.Table] = []
            places: list[NDArray[np.int64]] = []
            row = 0
            for start, files in self._files():
                images = self._images(start, files)
                its_place = place[row : row + images.num_rows]
                row += images.num_rows
                is_in = (its_place >= first) & (its_place < first + ROWS_IN_MEMORY)
                parts.append(images.filter(pa.array(is_in)))
                places.append(its_place[is_in])
            order = np.argsort(np.concatenate(places))
            yield pa.concat_tables(parts).take(pa.array(order))


def as_digests(numbers_N2: NDArray[np.unsignedinteger[Any]]) -> pa.FixedSizeBinaryArray:
    """Return rows of 16 bytes (two numbers, or sixteen) as digests."""
    buffer = pa.py_buffer(np.ascontiguousarray(numbers_N2))
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(DIGEST_BYTES), len(numbers_N2), [None, buffer]
    )


def as_numbers(digests: pa.FixedSizeBinaryArray) -> NDArray[np.uint64]:
    """Return digests of 16 bytes as two numbers each; a view, not a copy."""
    numbers_B2 = np.frombuffer(digests.buffers()[1], dtype="<u8").reshape(-1, 2)
    return numbers_B2[digests.offset : digests.offset + len(digests)]
