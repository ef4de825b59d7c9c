"""A finished pack that lacks shards -> the parts of those that are there.

Parts are removed when a pack is finished.  Its index and its list of what was left out say all that
was in them but for the rows' numbers, which the plan gives.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from vit21k.data.pictures import Pictures
from vit21k.errors import ManifestError
from vit21k.manifest.reader import open_manifest
from vit21k.manifest.schema import LEFT_OUT, PACKED
from vit21k.pack.parts import PART_SCHEMA, Part, Parts, ShardFacts, part_rows
from vit21k.pack.plan import Plan

_FROM_INDEX = [name for name in PART_SCHEMA.names if name not in ("row", "problem", "detail")]


def restore_parts(folder: Path, plan: Plan, parts: Parts, pictures: Mapping[str, Pictures]) -> None:
    """Write the part of each shard in *folder* that is as large as its index says.

    Raises:
        ManifestError: The index is damaged, or does not go with what was left out.
        OSError: The disk is full or failing.
    """
    index = open_manifest(folder, PACKED)
    facts = [ShardFacts(**each) for each in index.header.options["shards"]]
    has_left_out = (folder / LEFT_OUT.file_name).is_file()
    left_out = open_manifest(folder, LEFT_OUT).read().to_pylist() if has_left_out else []
    problems = {each["path"]: (each["kind"], each["detail"]) for each in left_out}
    rows_of_shards = _by_shard(index.batches(_FROM_INDEX), facts)
    for shard, (found, rows) in zip(plan.shards(), rows_of_shards, strict=True):
        tar = folder / found.file_name
        if tar.is_file() and tar.stat().st_size == found.num_bytes:
            named = [(row, pictures[shard.split].path(row)) for row in shard.rows.tolist()]
            parts.save(Part(found, part_rows(_in_order(named, rows.to_pylist(), problems))))


def _by_shard(
    batches: Iterator[pa.Table], facts: list[ShardFacts]
) -> Iterator[tuple[ShardFacts, pa.Table]]:
    """Yield each shard with its rows of the index; those of a shard follow each other."""
    rows = pa.schema([PART_SCHEMA.field(name) for name in _FROM_INDEX]).empty_table()
    for shard in facts:
        while rows.num_rows < shard.num_pictures:
            rows = pa.concat_tables([rows, next(batches).select(_FROM_INDEX).cast(rows.schema)])
        yield shard, rows.slice(0, shard.num_pictures)
        rows = rows.slice(shard.num_pictures)


def _in_order(
    named: list[tuple[int, str]],
    packed: list[dict[str, Any]],
    problems: Mapping[str, tuple[str, str]],
) -> Iterator[dict[str, Any]]:
    """Yield what became of each picture of a shard: it is in the index, or was left out."""
    of_path = {each["path"]: each for each in packed}
    for row, path in named:
        if path in of_path:
            yield {"row": row, **of_path[path]}
        elif path not in problems:
            raise ManifestError(
                f"the index and the list of what was left out do not know `{path}`",
                hint="make the pack again with `--fresh`",
            )
        else:
            kind, detail = problems[path]
            yield {"row": row, "path": path, "problem": kind, "detail": detail}
