"""The second pass of `relabel`: carry paths from `digests` to `images` and `copies`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.manifest.reader import Manifest
from vit21k.manifest.schema import COPIES, IMAGES
from vit21k.prep.ahead import ahead
from vit21k.prep.keys import LateDigests, as_digests, as_numbers
from vit21k.prep.pictures import Pictures

_COLUMNS = ["digest", "path", "num_bytes", "archive", "offset"]

ROWS_IN_MEMORY = 2_000_000
"""How many rows of `images` are held at a time when they must be put in another order."""


@dataclass(frozen=True)
class RowSource:
    """Makes the rows of `images` and `copies`.

    Attributes:
        digests: Where paths and sizes come from.
        late: Digests that it does not hold.
        pictures: What became of its files.
        wnids: The class list.
    """

    digests: Manifest
    late: LateDigests
    pictures: Pictures
    wnids: Sequence[str]

    def batches(self) -> Iterator[dict[str, pa.Table]]:
        """Yield rows of `images`, `copies` and `crowded`, each in the order of its manifest."""
        place = self.pictures.image_order()
        not_kept = _NotKept(self.pictures, self.wnids)
        for start, files in self._files():
            images = self._images(start, files) if place is None else IMAGES.schema.empty_table()
            yield {"images": images, **not_kept.among(start, files)}
        if place is not None:
            for images in self._reordered(place):
                yield {"images": images}

    def _files(self) -> Iterator[tuple[int, pa.Table]]:
        """Yield a row group of files at a time, with the number of its first row."""
        start = 0
        for files in ahead(self.digests.batches(_COLUMNS)):
            digests = self.late.put(files["digest"].combine_chunks(), start)
            yield start, files.set_column(0, "digest", digests)
            start += files.num_rows

    def _images(self, start: int, files: pa.Table) -> pa.Table:
        """Return the pictures among *files*, in file order."""
        stop = start + files.num_rows
        label_ids, num_files = self.pictures.columns(start, stop)
        kept = files.filter(pa.array(~self.pictures.is_copy_N[start:stop]))
        columns = [
            kept["digest"],
            kept["path"],
            pc.if_else(kept["archive"].is_valid(), kept["num_bytes"], None),
            label_ids,
            pa.array(num_files),
            kept["archive"],
            kept["offset"],
        ]
        return pa.table(columns, schema=IMAGES.schema)

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


class _NotKept:
    """Makes the rows of `copies` and `crowded`, from the files in order."""

    def __init__(self, pictures: Pictures, wnids: Sequence[str]) -> None:
        self._pictures = pictures
        self._copy_row_C = pictures.copy_row_C
        self._wnids = pa.array(wnids, pa.string())
        self._digests_G2 = np.empty((len(pictures.first_row_G), 2), dtype=np.uint64)

    def among(self, start: int, files: pa.Table) -> dict[str, pa.Table]:
        """Return those of *files* that an earlier file is equal to, and those of crowded ones."""
        stop = start + files.num_rows
        digests_B2 = as_numbers(files["digest"].combine_chunks())
        first_row_G = self._pictures.first_row_G
        first, last = np.searchsorted(first_row_G, (start, stop))
        self._digests_G2[first:last] = digests_B2[first_row_G[first:last] - start]

        first, last = np.searchsorted(self._copy_row_C, (start, stop))
        row_C = self._copy_row_C[first:last]
        group_C = self._pictures.group_C[first:last]
        is_crowded_C = group_C < 0
        digests_C2 = digests_B2[row_C - start]
        digests_C2[~is_crowded_C] = self._digests_G2[group_C[~is_crowded_C]]
        files = files.take(pa.array(row_C - start))
        wnids = self._wnids.take(pa.array(self._pictures.label_N[row_C]))
        columns = [as_digests(digests_C2), files["path"], wnids, files["archive"], files["offset"]]
        rows = pa.table(columns, schema=COPIES.schema)
        return {
            "copies": rows.filter(pa.array(~is_crowded_C)),
            "crowded": rows.filter(pa.array(is_crowded_C)),
        }
