"""What files are compared by: their digests, or those of their content, as pairs of numbers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.errors import UsageError
from vit21k.manifest.kind import DIGEST_BYTES
from vit21k.manifest.reader import Manifest
from vit21k.prep.ahead import ahead

_NO_DIGEST = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_SPREAD = np.uint64(0x9E37_79B9_7F4A_7C15)  # odd, so that no two rows have the same product


@dataclass(frozen=True)
class LateDigests:
    """Digests of files that had none in their manifest, and were read later.

    Attributes:
        row_U: Which rows of the manifest, ascending.
        digests_U2: Their digests, as two numbers each.
    """

    row_U: NDArray[np.int64]
    digests_U2: NDArray[np.uint64]

    def put(self, digests: pa.FixedSizeBinaryArray, start: int) -> pa.FixedSizeBinaryArray:
        """Return the *digests* of the rows from *start* on, with the late ones in their places."""
        first, last = np.searchsorted(self.row_U, (start, start + len(digests)))
        if first == last:
            return digests
        is_late = np.zeros(len(digests), dtype=bool)
        is_late[self.row_U[first:last] - start] = True
        late = as_digests(self.digests_U2[first:last])
        return pc.replace_with_mask(digests, pa.array(is_late), late)


NO_LATE_DIGESTS = LateDigests(np.empty(0, dtype=np.int64), np.empty((0, 2), dtype=np.uint64))


@dataclass(frozen=True)
class FileKeys:
    """What each file is compared by, a row group at a time; read again whenever it is gone through.

    In place of a digest that is null stands what no other file has: a number made of its row.

    Attributes:
        digests: The files.
        by: Their bytes; or their content, and the bytes of what is no JPEG.
        late: Digests that the manifest does not hold.
    """

    digests: Manifest
    by: Literal["bytes", "content"] = "bytes"
    late: LateDigests = NO_LATE_DIGESTS

    def __iter__(self) -> Iterator[NDArray[np.uint64]]:
        columns = ["digest", "content_digest"] if self.by == "content" else ["digest"]
        start = 0
        for rows in ahead(self.digests.batches(columns)):
            keys = self.late.put(rows["digest"].combine_chunks(), start)
            if self.by == "content":
                keys = pc.coalesce(rows["content_digest"].combine_chunks(), keys)
            yield _filled(keys, start)
            start += rows.num_rows


def refuse_without_content(digests: Manifest) -> None:
    """Refuse to compare files by content that was not digested.

    Raises:
        UsageError: The files were not read in full, or not by vit21k.
    """
    if digests.header.options.get("mode") == "quick":
        raise UsageError(
            "a quick run does not digest the content of files",
            hint="run `vit21k hash` without `--mode quick`, or `vit21k relabel` by bytes",
        )
    batches = digests.batches(["format"], as_dictionary=["format"])
    if all(rows["format"].null_count == rows.num_rows for rows in batches):
        raise UsageError(
            f"`{digests.path}` holds no content digests: it was imported",
            hint="run `vit21k hash`, which reads the files",
        )


def _filled(digests: pa.FixedSizeBinaryArray, start: int) -> NDArray[np.uint64]:
    """Return *digests* as numbers, with others in place of nulls."""
    if not digests.null_count:
        return as_numbers(digests)
    is_null_B = digests.is_null().to_numpy(zero_copy_only=False)
    numbers_B2 = as_numbers(digests).copy()
    rows = start + np.flatnonzero(is_null_B)
    numbers_B2[is_null_B, 0] = rows.astype(np.uint64) * _SPREAD
    numbers_B2[is_null_B, 1] = _NO_DIGEST
    return numbers_B2


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


def find_rows(wanted_B2: NDArray[np.uint64], among_A2: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return for each of *wanted_B2* the row of *among_A2* that is equal to it; -1 for none.

    Args:
        wanted_B2: Digests, each as two numbers.
        among_A2: Digests, each at most once.
    """
    wanted, among = _as_keys(wanted_B2), _as_keys(among_A2)
    order = np.argsort(among)
    place = np.searchsorted(among[order], wanted)
    row = order[np.minimum(place, len(order) - 1)] if len(order) else np.zeros_like(place)
    is_there = among[row] == wanted if len(order) else np.zeros(len(place), dtype=bool)
    return np.where(is_there, row, -1)


def _as_keys(digests_B2: NDArray[np.uint64]) -> NDArray[np.complex128]:
    """Return digests as complex numbers of their halves: NumPy sorts those by both parts.

    The halves are integers of 53 bits and less in a float; what that loses (11 bits of each) leaves
    106 bits, which no two of the pictures share by chance.
    """
    keys = np.empty(len(digests_B2), dtype=np.complex128)
    keys.real = digests_B2[:, 0] >> np.uint64(11)
    keys.imag = digests_B2[:, 1] >> np.uint64(11)
    return keys
