"""What became of chunks -> rows of `digests.parquet` and `problems.parquet`."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.hashing.arrow_arrays import array_of_numbers, array_of_texts, arrow_array
from vit21k.hashing.digest import DigestedChunk
from vit21k.hashing.file_rows import (
    FORMATS,
    HAS_CONTENT,
    HAS_DIGEST,
    HAS_FACTS,
    HAS_PROBE,
    LOOKED_FOR_END,
    ROW,
    SAW_END,
    Rows,
    have,
)
from vit21k.manifest.problems import Problem
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.manifest.writer import ManifestWriter

_BATCH_ROWS = 4_096
_DIGESTS = {"digest": HAS_DIGEST, "content_digest": HAS_CONTENT, "probe": HAS_PROBE}


def digest_rows(chunks: Sequence[DigestedChunk]) -> pa.Table:
    """Return the files of *chunks* as rows."""
    # Three times as fast as `np.concatenate`.
    rows = np.frombuffer(b"".join([chunk.files.array.tobytes() for chunk in chunks]), ROW)
    columns = {**_columns_of_files(rows), **_columns_of_chunks(chunks)}
    arrays = [columns[field.name] for field in DIGESTS.schema]
    return pa.Table.from_arrays(arrays, schema=DIGESTS.schema)


def _columns_of_files(rows: Rows) -> dict[str, pa.Array]:
    types = {field.name: field.type for field in DIGESTS.schema}
    columns = {
        name: array_of_numbers(rows[name], types[name], have(rows, flag))
        for name, flag in _DIGESTS.items()
    }
    for name in ("num_bytes", "mtime_ns"):
        columns[name] = array_of_numbers(rows[name], types[name])
    has_facts = have(rows, HAS_FACTS)
    for name in ("width", "height", "components"):
        numbers = rows[name].astype(np.int32)
        columns[name] = array_of_numbers(numbers, types[name], has_facts & (numbers != 0))
    looked = have(rows, LOOKED_FOR_END)
    columns["has_end"] = array_of_numbers(have(rows, SAW_END), types["has_end"], looked)
    columns["format"] = array_of_texts(FORMATS, _places(rows["format"], has_facts))
    return columns


def _columns_of_chunks(chunks: Sequence[DigestedChunk]) -> dict[str, pa.Array]:
    num_files = [len(chunk.files) for chunk in chunks]
    number = np.repeat(np.arange(len(chunks)), num_files)
    in_archive = np.repeat([chunk.archive is not None for chunk in chunks], num_files)
    offsets = [at for chunk in chunks for at in chunk.offsets or [0] * len(chunk.files)]
    return {
        "path": arrow_array([path for chunk in chunks for path in chunk.paths], pa.string()),
        "wnid": array_of_texts([chunk.wnid for chunk in chunks], number),
        "archive": array_of_texts(
            [chunk.archive or "" for chunk in chunks], _places(number, in_archive)
        ),
        "offset": array_of_numbers(np.array(offsets, np.int64), pa.int64(), in_archive),
    }


def _places(numbers: NDArray[np.integer], is_valid: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return *numbers*, -1 where they are not valid."""
    return np.where(is_valid, numbers.astype(np.int64), -1)


def problem_rows(problems: Sequence[Problem]) -> pa.Table:
    """Return *problems* as rows of `problems.parquet`."""
    columns = zip(*problems, strict=True)
    arrays = [arrow_array(list(map(str, column)), pa.string()) for column in columns]
    return pa.Table.from_arrays(arrays, schema=PROBLEMS.schema)


class RowWriter:
    """Gathers chunks, and hands them on in batches that are worth Arrow's overhead."""

    def __init__(self, digests: ManifestWriter, problems: ManifestWriter) -> None:
        self._digests = digests
        self._problems = problems
        self._chunks: list[DigestedChunk] = []
        self._num_waiting = 0

    def add(self, chunk: DigestedChunk) -> None:
        """Take what became of *chunk*."""
        self._chunks.append(chunk)
        self._num_waiting += len(chunk.files) + len(chunk.problems)
        if self._num_waiting >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if digests := [chunk for chunk in self._chunks if chunk.files]:
            self._digests.write(digest_rows(digests))
        if problems := [problem for chunk in self._chunks for problem in chunk.problems]:
            self._problems.write(problem_rows(problems))
        self._chunks = []
        self._num_waiting = 0
