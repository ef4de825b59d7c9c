"""What files are compared by: their digests, or those of their content, as pairs of numbers."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.errors import UsageError
from vit21k.manifest.reader import Manifest
from vit21k.prep.ahead import ahead
from vit21k.prep.picture_rows import as_numbers

_NO_DIGEST = np.uint64(0xFFFF_FFFF_FFFF_FFFF)


def read_digests(digests: Manifest) -> tuple[NDArray[np.uint64], NDArray[np.bool_] | None]:
    """Return the digest of each file, and which files have one (None: all).

    In place of a digest that is null stands what no other file has: the number of the row.
    """
    digests_N2 = np.empty((digests.num_rows, 2), dtype=np.uint64)
    has_digest_N = np.ones(digests.num_rows, dtype=bool)
    row = 0
    for rows in ahead(digests.batches(["digest"])):
        here = slice(row, row + rows.num_rows)
        _fill(digests_N2[here], rows["digest"].combine_chunks(), has_digest_N[here])
        row += rows.num_rows
    if has_digest_N.all():
        return digests_N2, None
    digests_N2[~has_digest_N, 0] = np.flatnonzero(~has_digest_N)
    digests_N2[~has_digest_N, 1] = _NO_DIGEST
    return digests_N2, has_digest_N


def read_content_keys(digests: Manifest) -> NDArray[np.uint64]:
    """Return the content digest of each file; of what is no JPEG, that of all its bytes.

    Raises:
        UsageError: The files were not read in full, or not by vit21k.
    """
    if digests.header.options.get("mode") == "quick":
        raise UsageError(
            "a quick run does not digest the content of files",
            hint="run `vit21k hash` without `--mode quick`, or `vit21k relabel` by bytes",
        )
    keys_N2, _ = read_digests(digests)
    is_jpeg_N = np.zeros(digests.num_rows, dtype=bool)
    row = num_known = 0
    for rows in ahead(digests.batches(["content_digest", "format"])):
        here = slice(row, row + rows.num_rows)
        _fill(keys_N2[here], rows["content_digest"].combine_chunks(), is_jpeg_N[here])
        num_known += rows.num_rows - rows["format"].null_count
        row += rows.num_rows
    if not num_known:
        raise UsageError(
            f"`{digests.path}` holds no content digests: it was imported",
            hint="run `vit21k hash`, which reads the files",
        )
    return keys_N2


def _fill(
    numbers_B2: NDArray[np.uint64], digests: pa.FixedSizeBinaryArray, is_there_B: NDArray[np.bool_]
) -> None:
    """Put *digests* where they are not null; note where that is."""
    if digests.null_count:
        is_there_B[:] = digests.is_valid().to_numpy(zero_copy_only=False)
        numbers_B2[is_there_B] = as_numbers(digests)[is_there_B]
    else:
        is_there_B[:] = True
        numbers_B2[:] = as_numbers(digests)
