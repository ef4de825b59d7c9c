"""The second pass of `relabel`: carry paths from `digests` to `images` and `copies`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.manifest.kind import DIGEST_BYTES
from vit21k.manifest.reader import Manifest
from vit21k.manifest.schema import COPIES, IMAGES
from vit21k.prep.ahead import ahead
from vit21k.prep.pictures import Pictures

ROWS_IN_MEMORY = 2_000_000
"""How many rows of `images` are held at a time when they must be put in another order."""


@dataclass(frozen=True)
class RowSource:
    """Makes the rows of `images` and `copies`.

    Attributes:
        digests: Where paths and sizes come from.
        digests_N2: Its digests, each as two numbers; None: read again, all there, and those of
            copies are those of the files that are kept.
        has_digest_N: Which files have one; None: all.
        pictures: What became of its files.
        wnids: The class list.
    """

    digests: Manifest
    digests_N2: NDArray[np.uint64] | None
    has_digest_N: NDArray[np.bool_] | None
    pictures: Pictures
    wnids: Sequence[str]

    def batches(self) -> Iterator[dict[str, pa.Table]]:
        """Yield rows of `images`, `copies` and `crowded`, each in the order of its manifest."""
        place = self.pictures.image_order()
        wnids = pa.array(self.wnids, pa.string())
        copy_row_C = self.pictures.copy_row_C
        for start, files in ahead(self._files()):
            images = self._images(start, files) if place is None else IMAGES.schema.empty_table()
            yield {"images": images, **self._not_kept(start, files, wnids, copy_row_C)}
        if place is not None:
            for images in self._reordered(place):
                yield {"images": images}

    def _files(self) -> Iterator[tuple[int, pa.Table]]:
        """Yield a row group of paths and sizes at a time, with the number of its first row."""
        start = 0
        columns = ["path", "num_bytes", "archive", "offset"]
        if self.digests_N2 is None:
            columns.append("digest")
        for files in self.digests.batches(columns):
            yield start, files
            start += files.num_rows

    def _images(self, start: int, files: pa.Table) -> pa.Table:
        """Return the pictures among *files*, in file order."""
        stop = start + files.num_rows
        is_kept = ~self.pictures.is_copy_N[start:stop]
        label_ids, num_files = self.pictures.columns(start, stop)
        kept = files.filter(pa.array(is_kept))
        if self.digests_N2 is None:
            digests = kept["digest"]
        else:
            digests = as_digests(self.digests_N2[start:stop][is_kept])
        if self.has_digest_N is not None:
            digests = pc.if_else(pa.array(self.has_digest_N[start:stop][is_kept]), digests, None)
        columns = [
            digests,
            kept["path"],
            pc.if_else(kept["archive"].is_valid(), kept["num_bytes"], None),
            label_ids,
            pa.array(num_files),
            kept["archive"],
            kept["offset"],
        ]
        return pa.table(columns, schema=IMAGES.schema)

    def _not_kept(
        self, start: int, files: pa.Table, wnids: pa.Array, copy_row_C: NDArray[np.int64]
    ) -> dict[str, pa.Table]:
        """Return those of *files* that an earlier file is equal to, and those of crowded ones."""
        first, last = np.searchsorted(copy_row_C, (start, start + files.num_rows))
        row_C = copy_row_C[first:last]
        kept_row_C = self.pictures.kept_row_C[first:last]
        is_crowded_C = kept_row_C < 0
        files = files.take(pa.array(row_C - start))
        if self.digests_N2 is None:
            digests = files["digest"]
        else:
            digests = as_digests(self.digests_N2[np.where(is_crowded_C, row_C, kept_row_C)])
        rows = pa.table(
            [
                digests,
                files["path"],
                wnids.take(pa.array(self.pictures.label_N[row_C])),
                files["archive"],
                files["offset"],
            ],
            schema=COPIES.schema,
        )
        return {
            "copies": rows.filter(pa.array(~is_crowded_C)),
            "crowded": rows.filter(pa.array(is_crowded_C)),
        }

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
