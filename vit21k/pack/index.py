"""Finished shards -> the manifests and lists by which a pack is read.

Readers of ours: `train.parquet` and `val.parquet` with the rows, labels and order of those that
were packed, and the place of each picture in the shards; `packed.parquet`, the index of the shards.
Readers of others: `_info.json`, as timm has it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vit21k.atomic import write_atomic
from vit21k.manifest.header import Header
from vit21k.manifest.reader import BESIDE, Manifest, open_manifest
from vit21k.manifest.schema import LEFT_OUT, PACKED, VAL
from vit21k.manifest.writer import manifest_writer
from vit21k.pack.parts import Part
from vit21k.pack.plan import Plan
from vit21k.pack.sources import TRAIN_SPLIT, Sources

OPTION = "pack"
"""Under which the plan stands in the headers of a pack's manifests."""

_INFO = "_info.json"
_SAME_NAMES = ("offset", "num_bytes", "packed_digest", "key", "form", "note", "source_bytes")


class PlacesInShards:
    """Where the pictures of a split lie, by row of its manifest: 20 bytes each."""

    def __init__(self, parts: Sequence[Part], num_rows: int) -> None:
        self._archives = [part.facts.file_name for part in parts]
        self._archive_R = np.full(num_rows, -1, dtype=np.int32)
        self._offset_R = np.zeros(num_rows, dtype=np.int64)
        self._num_bytes_R = np.zeros(num_rows, dtype=np.int64)
        for number, part in enumerate(parts):
            packed = part.rows.filter(pc.is_null(part.rows["problem"]))
            rows = packed["row"].to_numpy()
            self._archive_R[rows] = number
            self._offset_R[rows] = packed["offset"].to_numpy()
            self._num_bytes_R[rows] = packed["num_bytes"].to_numpy()

    def applied(self, rows: pa.Table, numbers_B: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Table:
        """Return *rows*, which have these *numbers_B*, with their places; those that have any."""
        is_in = self._archive_R[numbers_B] >= 0
        rows, numbers_B = rows.filter(pa.array(is_in)), numbers_B[is_in]
        archives = pa.DictionaryArray.from_arrays(
            pa.array(self._archive_R[numbers_B]), pa.array(self._archives, pa.string())
        ).cast(pa.string())
        columns = {
            "archive": archives,
            "offset": pa.array(self._offset_R[numbers_B]),
            "num_bytes": pa.array(self._num_bytes_R[numbers_B]),
        }
        for name, values in columns.items():
            rows = rows.set_column(rows.schema.get_field_index(name), name, values)
        return rows


def write_index(
    folder: Path, sources: Sources, plan: Plan, parts: Mapping[str, list[Part]]
) -> None:
    """Write all manifests of the pack in *folder*; its index, which says that it is whole, last.

    Raises:
        OSError: The disk is full or failing.
    """
    write_atomic(folder / _INFO, _info(plan, parts).encode())
    if sources.classes_file:
        write_atomic(folder / sources.classes_file.name, sources.classes_file.read_bytes())
    inputs: dict[str, str] = {}
    for split, manifest in reversed(list(sources.by_split.items())):  # val first: train names it
        places = PlacesInShards(parts[split], manifest.num_rows)
        if split == TRAIN_SPLIT and sources.dummy_val:
            numbers = _numbers_in(manifest, sources.dummy_val)
            inputs |= _write(folder, sources.dummy_val, places, plan, inputs, numbers)
        inputs |= _write(folder, manifest, places, plan, inputs)
    _write_left_out(folder, sources, plan, parts)
    _write_packed(folder, sources, plan, parts)


def _write(
    folder: Path,
    manifest: Manifest,
    places: PlacesInShards,
    plan: Plan,
    inputs: Mapping[str, str],
    numbers: np.ndarray[Any, np.dtype[np.int64]] | None = None,
) -> dict[str, str]:
    """Write *manifest* with new places; return its kind and new fingerprint.

    Args:
        folder: Of the pack.
        manifest: What is packed.
        places: Of the pictures.
        plan: Of the pack.
        inputs: Fingerprints of manifests of this pack that it was made with.
        numbers: Of each row in *places*; default: 0, 1, 2, ...
    """
    header = replace(
        manifest.header,
        root=BESIDE,
        inputs=dict(inputs),
        inputs_in=".",
        options={**manifest.header.options, OPTION: plan.as_json()},
    )
    start = 0
    with manifest_writer(manifest.kind, folder, header, manifest.classes()) as writer:
        for rows in manifest.batches():
            here = np.arange(start, start + rows.num_rows)
            writer.write(places.applied(rows, here if numbers is None else numbers[here]))
            start += rows.num_rows
    return {manifest.kind.name: open_manifest(folder, manifest.kind).fingerprint}


def _numbers_in(train: Manifest, val: Manifest) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the row in *train* of each picture of *val*, all of which are in it."""
    paths = train.read(["path"])["path"]
    numbers = pc.index_in(val.read(["path"])["path"], value_set=paths.combine_chunks())
    found: np.ndarray[Any, np.dtype[np.int64]] = numbers.to_numpy().astype(np.int64)
    return found


def _write_packed(
    folder: Path, sources: Sources, plan: Plan, parts: Mapping[str, list[Part]]
) -> None:
    facts = [part.facts._asdict() for split in parts.values() for part in split]
    header = Header(
        algorithm=next(iter(sources.by_split.values())).header.algorithm,
        root=BESIDE,
        options={OPTION: plan.as_json(), "shards": facts},
    )
    with manifest_writer(PACKED, folder, header) as writer:
        for split, manifest in sources.by_split.items():
            names = manifest.read(["path", "digest"])
            for part in parts[split]:
                writer.write(_packed_rows(part, names))


def _packed_rows(part: Part, names: pa.Table) -> pa.Table:
    rows = part.rows.filter(pc.is_null(part.rows["problem"]))
    named = names.take(rows["row"])
    count = rows.num_rows
    columns = {
        "digest": named["digest"],
        "path": named["path"],
        "split": pa.array([part.facts.split] * count, pa.string()),
        "archive": pa.array([part.facts.file_name] * count, pa.string()),
        **{name: rows[name] for name in (*_SAME_NAMES, "width", "height")},
    }
    return pa.table(columns)


def _write_left_out(
    folder: Path, sources: Sources, plan: Plan, parts: Mapping[str, list[Part]]
) -> None:
    header = Header(algorithm="", root=BESIDE, options={OPTION: plan.as_json()})
    with manifest_writer(LEFT_OUT, folder, header) as writer:
        for rows in _left_out(sources, parts):
            writer.write(rows)


def _left_out(sources: Sources, parts: Mapping[str, list[Part]]) -> Iterator[pa.Table]:
    for split, manifest in sources.by_split.items():
        paths = manifest.read(["path"])
        for part in parts[split]:
            rows = part.rows.filter(pc.is_valid(part.rows["problem"]))
            named = paths.take(rows["row"])["path"]
            yield pa.table({"path": named, "kind": rows["problem"], "detail": rows["detail"]})


def _info(plan: Plan, parts: Mapping[str, list[Part]]) -> str:
    """Return what timm's `wds/` reader wants to know."""
    splits = {
        split: {
            "name": split,
            "num_samples": sum(part.facts.num_pictures for part in of_split),
            "filenames": [part.facts.file_name for part in of_split],
            "shard_lengths": [part.facts.num_pictures for part in of_split],
        }
        for split, of_split in parts.items()
    }
    return json.dumps({"name": plan.name, "version": "1", "splits": splits}, indent=1) + "\n"


def is_whole(folder: Path, plan: Plan) -> bool:
    """Return whether *folder* holds the finished pack of *plan*: its index, and all shards."""
    if not (folder / PACKED.file_name).is_file():
        return False
    options = open_manifest(folder, PACKED).header.options
    return options[OPTION] == plan.as_json() and all(
        (path := folder / facts["file_name"]).is_file()
        and path.stat().st_size == facts["num_bytes"]
        for facts in options["shards"]
    )


def has_val(folder: Path) -> bool:
    """Return whether the pack in *folder* has pictures to validate on."""
    return (folder / VAL.file_name).is_file()
