"""What became of chunks -> rows of `digests.parquet` and `problems.parquet`."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from vit21k.hashing.arrow_arrays import arrow_array
from vit21k.hashing.digest import DigestedChunk
from vit21k.manifest.problems import Problem
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.manifest.writer import ManifestWriter

_BATCH_ROWS = 4_096
_NO_FACTS = (None,) * 6
_FACTS = ("content_digest", "format", "width", "height", "components", "has_end")  # as they come


def digest_rows(chunks: Sequence[DigestedChunk]) -> pa.Table:
    """Return the files of *chunks* as rows."""
    files = [file for chunk in chunks for file in chunk.files]
    num_bytes, mtimes, digests, known, _, _, probes = zip(*files, strict=True)
    facts = [_NO_FACTS if one is None else one for one in known]
    columns: dict[str, Sequence[Any]] = {
        "path": [path for chunk in chunks for path in chunk.paths],
        "wnid": [wnid for chunk in chunks for wnid in [chunk.wnid] * len(chunk.files)],
        "num_bytes": num_bytes,
        "mtime_ns": mtimes,
        "digest": digests,
        "probe": probes,
        **dict(zip(_FACTS, zip(*facts, strict=True), strict=True)),
        "archive": [name for chunk in chunks for name in [chunk.archive] * len(chunk.files)],
        "offset": [at for chunk in chunks for at in _offsets(chunk)],
    }
    arrays = [arrow_array(columns[field.name], field.type) for field in DIGESTS.schema]
    return pa.Table.from_arrays(arrays, schema=DIGESTS.schema)


def _offsets(chunk: DigestedChunk) -> Sequence[int | None]:
    return chunk.offsets or [None] * len(chunk.files)


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
