"""Features of pictures <-> Parquet shards.

Dimensions: B images, L labels of them; `shape` is that of one picture's features.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vit21k.atomic import atomic_file
from vit21k.errors import DataError

Problem = tuple[str, str]
"""Path of a picture that could not be read, and why."""

Dtype = Literal["float32", "float16"]

_PROBLEMS = b"vit21k.problems"
_UNREAD = b"vit21k.unread"
_TYPES = {"float32": pa.float32(), "float16": pa.float16()}


def schema_of(shape: tuple[int, ...], dtype: Dtype) -> pa.Schema:
    """Return the columns: path, label ids (none where they are not known), features.

    Features are lists of fixed size, of lists of fixed size for tokens.
    """
    features = _TYPES[dtype]
    for length in reversed(shape):
        features = pa.list_(features, length)
    return pa.schema(
        [("path", pa.string()), ("label_ids", pa.list_(pa.int64())), ("features", features)]
    )


def rows_of(
    paths: Sequence[str],
    label_rows_L: NDArray[np.int64],
    label_ids_L: NDArray[np.int64],
    features: NDArray[np.floating],
    schema: pa.Schema,
) -> pa.Table:
    """Return a batch as rows of *schema*.

    Args:
        paths: What each picture is called.
        label_rows_L: Which picture each label belongs to, ascending.
        label_ids_L: Class index of each label.
        features: (B, *shape).
        schema: From `schema_of`.
    """
    offsets = np.searchsorted(label_rows_L, np.arange(len(paths) + 1)).astype(np.int32)
    values = pa.array(features.reshape(-1))
    for length in reversed(features.shape[1:]):
        values = pa.FixedSizeListArray.from_arrays(values, length)
    labels = pa.ListArray.from_arrays(pa.array(offsets), pa.array(label_ids_L))
    return pa.table([pa.array(paths, pa.string()), labels, values], schema=schema)


def write_shard(
    path: Path,
    batches: Sequence[pa.Table],
    problems: Sequence[Problem],
    schema: pa.Schema,
    *,
    num_unread: int = 0,
) -> None:
    """Write *batches* as one row group, in one step; *problems* travel in the schema's metadata.

    Args:
        path: The shard.
        batches: Its rows.
        problems: Of pictures without a row.
        schema: From `schema_of`.
        num_unread: How many of these could not be read, which is no verdict on them.

    Raises:
        OSError: The disk is full or failing; *path* is not there.
    """
    schema = _with_problems(schema, problems)
    if num_unread:
        schema = schema.with_metadata({**schema.metadata, _UNREAD: str(num_unread).encode()})
    rows = pa.concat_tables([schema.empty_table(), *batches]).cast(schema)
    with atomic_file(path) as file, _writer(file, schema) as parquet:
        parquet.write_table(rows, row_group_size=max(1, len(rows)))


def problems_in(path: Path) -> list[Problem]:
    """Return the pictures that a shard or a merged file has no rows for.

    Raises:
        DataError: It is damaged.
    """
    with _reading(path):
        problems = json.loads(pq.read_schema(path).metadata[_PROBLEMS])
    return [(name, reason) for name, reason in problems]


def is_shard(path: Path, schema: pa.Schema, num_pictures: int) -> bool:
    """Return whether *path* is a complete shard of *num_pictures*, all read, by its footer."""
    try:
        found = pq.read_metadata(path)
        num_problems = len(problems_in(path))
    except (OSError, DataError, ValueError):
        return False  # cut off, or something else: `pyarrow.ArrowInvalid` is a ValueError
    same = found.schema.to_arrow_schema().remove_metadata().equals(schema.remove_metadata())
    is_read = _UNREAD not in pq.read_schema(path).metadata
    return same and is_read and found.num_rows + num_problems == num_pictures


def merge_shards(shards: Sequence[Path], path: Path) -> None:
    """Write all *shards*, in order, to one file; a row group for each, one in memory at a time.

    Raises:
        DataError: A shard is damaged; *path* is unchanged.
        OSError: The disk is full or failing; *path* is unchanged.
    """
    problems = [problem for shard in shards for problem in problems_in(shard)]
    schema = _with_problems(pq.read_schema(shards[0]), problems)
    with atomic_file(path) as file, _writer(file, schema) as parquet:
        for shard in shards:
            with _reading(shard):
                rows = pq.read_table(shard, page_checksum_verification=True).cast(schema)
            if len(rows):
                parquet.write_table(rows, row_group_size=len(rows))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise a `DataError` where *path* turns out to be damaged."""
    try:
        yield
    except (OSError, pa.ArrowException, LookupError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DataError(
            f"`{path}` is damaged: {str(error).partition(chr(10))[0]:.200}",
            hint="remove it and give the same command again: only its images are computed again",
        ) from error


def _with_problems(schema: pa.Schema, problems: Sequence[Problem]) -> pa.Schema:
    return schema.with_metadata({_PROBLEMS: json.dumps(problems).encode()})


def _writer(file: IO[bytes], schema: pa.Schema) -> pq.ParquetWriter:
    # Features do not shrink: neither a dictionary nor zstd is worth its time.
    return pq.ParquetWriter(
        file,
        schema,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
