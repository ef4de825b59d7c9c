"""What is known of each finished shard, so that a run that was killed goes on behind it.

A part lies in `.parts` beside the shards, under the name of its shard.  It is written after the
shard, and the shard after all its bytes: where there is a part, there is a whole shard.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vit21k.atomic import atomic_file, write_atomic
from vit21k.errors import ManifestError
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.reader import damage_is_an_error

_FOLDER = ".parts"
_PLAN = "plan.json"
_FACTS = b"vit21k.shard"

PART_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("path", pa.string()),
        ("key", pa.string()),
        ("form", pa.string()),
        ("note", pa.string()),
        ("offset", pa.int64()),
        ("num_bytes", pa.int64()),
        ("source_bytes", pa.int64()),
        ("packed_digest", pa.binary(16)),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("problem", pa.string()),
        ("detail", pa.string()),
    ]
)
"""A row for each picture; of those that are left out only `row`, `path`, `problem` and `detail`."""


class ShardFacts(NamedTuple):
    """A finished shard.

    Attributes:
        file_name: The tar.
        split: Which split its pictures are of.
        num_pictures: How many it holds.
        num_bytes: Its size.
        digest: xxh3_128 of all its bytes, in hexadecimal digits.
    """

    file_name: str
    split: str
    num_pictures: int
    num_bytes: int
    digest: str


class Part(NamedTuple):
    """A finished shard and its pictures; `rows` are of `PART_SCHEMA`."""

    facts: ShardFacts
    rows: pa.Table


class Parts:
    """The parts of the pack in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / _FOLDER
        self._pack = folder

    def plan(self) -> Any:
        """Return the plan of the run that was not finished; None if there is none."""
        try:
            return json.loads((self.folder / _PLAN).read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def begin(self, plan: dict[str, Any]) -> None:
        """Note what is going to be made."""
        write_atomic(self.folder / _PLAN, json.dumps(plan, sort_keys=True).encode())

    def save(self, part: Part) -> None:
        """Note a finished shard."""
        metadata = {_FACTS: json.dumps(part.facts).encode()}
        with atomic_file(self._path(part.facts.file_name)) as file:
            pq.write_table(
                part.rows.replace_schema_metadata(metadata), file, compression="zstd",
                write_page_checksum=True,
            )  # fmt: skip

    def finished(self, file_name: str) -> ShardFacts | None:
        """Return what is known of a shard; None if it has to be made.

        All of its part is read, so that damage is not found when all else is done.  A shard that
        lacks a picture which could not be read is made again: it may be there now.
        """
        try:
            problems = self.rows(file_name)["problem"]
            is_final = str(ProblemKind.VANISHED) not in problems.unique().to_pylist()
            return self.facts(file_name) if is_final else None
        except ManifestError:
            return None

    def facts(self, file_name: str) -> ShardFacts | None:
        """Return what is known of a shard; None if it has no part, or is not as large as it was.

        Raises:
            ManifestError: The part is damaged.
        """
        path, tar = self._path(file_name), self._pack / file_name
        if not path.is_file() or not tar.is_file():
            return None
        with damage_is_an_error(path):
            facts = ShardFacts(*json.loads(pq.read_schema(path).metadata[_FACTS]))
        return facts if tar.stat().st_size == facts.num_bytes else None

    def rows(self, file_name: str, columns: Sequence[str] = PART_SCHEMA.names) -> pa.Table:
        """Return the pictures of a shard; *columns* of `PART_SCHEMA`.

        Raises:
            ManifestError: The part is not there, or damaged.
        """
        path = self._path(file_name)
        if not path.is_file():
            raise ManifestError(f"no part at `{path}`")
        with damage_is_an_error(path):
            rows = pq.ParquetFile(path, page_checksum_verification=True).read(columns)
            return rows.cast(pa.schema([PART_SCHEMA.field(name) for name in columns]))

    def remove(self) -> None:
        """Forget all of it: the pack is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, file_name: str) -> Path:
        return self.folder / f"{Path(file_name).stem}.parquet"


def part_rows(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Return *rows* as a table of `PART_SCHEMA`."""
    return pa.Table.from_pylist(list(rows), schema=PART_SCHEMA)
