"""Write the manifests of a pack: the offset of each image in the shards, and their index.

For vit21k: `train.parquet` and `val.parquet` with the rows, labels and order of the packed
manifests and the offset of each image; `packed.parquet`, the index of the shards.  For other
readers: `_info.json`, as in timm.

The rows of a manifest and the images of a shard are in different orders.  The data that map one
to the other are in files (`vit21k.pack.plan`), so that memory is that of a few row groups, and of
the paths of a dummy val.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.atomic import write_atomic
from vit21k.errors import ManifestError
from vit21k.manifest.io import ARCHIVE_OPTION, OWN_FOLDER, Manifest, ManifestHeader, open_manifest
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import DIGEST_BYTES, KINDS, PACKED, SKIPPED, VAL
from vit21k.manifest.writer import manifest_writer
from vit21k.pack.plan import (
    TRAIN_SPLIT,
    CompletedShard,
    CompletedShards,
    PackPlan,
    Sources,
    scratch_array,
)


class ShardIndex:
    """Shard, offset and size of each image of a split: 20 bytes each, in files next to the parts.

    Args:
        parts: Parts of the pack.
        shards: Shards of the split.
        num_rows: Number of rows of its manifest.

    Raises:
        ManifestError: A part is damaged.
        OSError: The disk is full or failing.
    """

    def __init__(
        self, parts: CompletedShards, shards: Sequence[CompletedShard], num_rows: int
    ) -> None:
        self._containers = [shard.file_name for shard in shards]
        self._shard_R = self._array(parts, np.int32, num_rows)  # from 1; 0: skipped
        self._offset_R = self._array(parts, np.int64, num_rows)
        self._num_bytes_R = self._array(parts, np.int64, num_rows)
        for number, name in enumerate(self._containers, start=1):
            packed = parts.rows(name, ["row", "offset", "num_bytes", "problem"])
            packed = packed.filter(pc.is_null(packed["problem"]))
            rows = packed["row"].to_numpy()
            self._shard_R[rows] = number
            self._offset_R[rows] = packed["offset"].to_numpy()
            self._num_bytes_R[rows] = packed["num_bytes"].to_numpy()

    def applied(self, rows: pa.Table, index_B: NDArray[np.int64]) -> pa.Table:
        """Return *rows*, with indices *index_B*, with their offsets; skipped images are dropped."""
        is_in = self._shard_R[index_B] > 0
        rows, index_B = rows.filter(pa.array(is_in)), index_B[is_in]
        containers = pa.DictionaryArray.from_arrays(
            pa.array(self._shard_R[index_B] - 1), pa.array(self._containers, pa.string())
        ).cast(pa.string())
        columns = {
            "container": containers,
            "offset": pa.array(self._offset_R[index_B]),
            "num_bytes": pa.array(self._num_bytes_R[index_B]),
            "storage": pa.nulls(rows.num_rows, pa.string()),
        }
        for name, values in columns.items():
            rows = rows.set_column(rows.schema.get_field_index(name), name, values)
        return rows

    @staticmethod
    def _array(parts: CompletedShards, dtype: type[np.generic], length: int) -> NDArray[Any]:
        return scratch_array(parts.folder, np.dtype(dtype), length)


OPTION = "pack"
"""Key of the plan in the headers of a pack's manifests."""

INFO = "_info.json"
_SAME_NAMES = (
    "path", "offset", "num_bytes", "packed_digest", "key", "form", "note", "source_bytes", "width",
    "height",
)  # fmt: skip


def write_index(
    folder: Path,
    sources: Sources,
    plan: PackPlan,
    parts: CompletedShards,
    shards: Mapping[str, list[CompletedShard]],
) -> None:
    """Write all manifests of the pack in *folder*; its index, which marks it complete, last.

    Args:
        folder: Folder of the pack.
        sources: The packed manifests.
        plan: Plan of the pack.
        parts: Parts of all shards.
        shards: Shards of each split, in order.

    Raises:
        ManifestError: A part or a manifest is damaged.
        OSError: The disk is full or failing.
    """
    write_atomic(folder / INFO, _info(plan.name, shards).encode())
    if sources.classes_file:
        write_atomic(folder / sources.classes_file.name, sources.classes_file.read_bytes())
    inputs: dict[str, str] = {}
    for split, manifest in reversed(list(sources.by_split.items())):  # val first: an input of train
        offsets = ShardIndex(parts, shards[split], manifest.num_rows)
        if split == TRAIN_SPLIT and sources.dummy_val:
            rows = _rows_in(manifest, sources.dummy_val)
            inputs |= _write(folder, sources.dummy_val, offsets, plan, inputs, rows)
        inputs |= _write(folder, manifest, offsets, plan, inputs)
    _write_skipped(folder, plan, parts, shards)
    _write_packed(folder, sources, plan, parts, shards)


def _write(
    folder: Path,
    manifest: Manifest,
    offsets: ShardIndex,
    plan: PackPlan,
    inputs: Mapping[str, str],
    rows_of: NDArray[np.int64] | None = None,
) -> dict[str, str]:
    """Write *manifest* with new offsets; return its kind and new fingerprint.

    Args:
        folder: Folder of the pack.
        manifest: The packed manifest.
        offsets: Offsets of the images.
        plan: Plan of the pack.
        inputs: Fingerprints of its inputs in this pack.
        rows_of: Row of each image in *offsets*; default: 0, 1, 2, ...
    """
    of_images = {
        name: one for name, one in manifest.header.options.items() if name != ARCHIVE_OPTION
    }
    header = replace(
        manifest.header,
        root=OWN_FOLDER,
        inputs=dict(inputs),
        inputs_in=".",
        options={**of_images, OPTION: plan.as_json()},
    )
    start = 0
    with manifest_writer(manifest.kind, folder, header, manifest.classes()) as writer:
        for rows in manifest.batches():
            here = np.arange(start, start + rows.num_rows)
            writer.write(offsets.applied(rows, here if rows_of is None else rows_of[here]))
            start += rows.num_rows
    return {manifest.kind.name: open_manifest(folder, manifest.kind).fingerprint}


def _rows_in(train: Manifest, val: Manifest) -> NDArray[np.int64]:
    """Return the row in *train* of each image of *val*.

    Raises:
        ManifestError: An image is missing.
    """
    paths = val.read(["path"])["path"].combine_chunks()
    rows_in = np.full(val.num_rows, -1)
    start = 0
    for rows in train.batches(["path"]):
        found = pc.index_in(rows["path"], value_set=paths)
        is_val = found.is_valid().to_numpy()
        rows_in[found.drop_null().to_numpy()] = start + np.flatnonzero(is_val)
        start += rows.num_rows
    if (rows_in < 0).any():
        raise ManifestError(
            f"`{val.path}` is a dummy split, but some of its images are not in train",
            hint="make both again with `vit21k make-val`",
        )
    return rows_in


def _write_packed(
    folder: Path,
    sources: Sources,
    plan: PackPlan,
    parts: CompletedShards,
    shards: Mapping[str, list[CompletedShard]],
) -> None:
    facts = [shard._asdict() for split in shards.values() for shard in split]
    header = ManifestHeader(
        algorithm=next(iter(sources.by_split.values())).header.algorithm,
        root=OWN_FOLDER,
        options={OPTION: plan.as_json(), "shards": facts},
    )
    with manifest_writer(PACKED, folder, header) as writer:
        for split, manifest in sources.by_split.items():
            digests = _digests_of(manifest, parts.folder)
            for shard in shards[split]:
                writer.write(_packed_rows(shard, parts, digests))


def _digests_of(manifest: Manifest, folder: Path) -> NDArray[Any]:
    """Return the digest of each image of *manifest*, in an unnamed file in *folder*."""
    digests = scratch_array(folder, np.dtype((np.uint8, DIGEST_BYTES)), manifest.num_rows)
    start = 0
    for rows in manifest.batches(["digest"]):
        column = rows["digest"].combine_chunks()
        values = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, DIGEST_BYTES)
        digests[start : start + len(column)] = values[column.offset :][: len(column)]
        start += len(column)
    return digests


def _packed_rows(shard: CompletedShard, parts: CompletedShards, digests: NDArray[Any]) -> pa.Table:
    rows = parts.rows(shard.file_name)
    rows = rows.filter(pc.is_null(rows["problem"]))
    count = rows.num_rows
    of_files = pa.py_buffer(digests[rows["row"].to_numpy()].tobytes())
    columns = {
        "digest": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(DIGEST_BYTES), count, [None, of_files]
        ),
        "split": pa.array([shard.split] * count, pa.string()),
        "container": pa.array([shard.file_name] * count, pa.string()),
        **{name: rows[name] for name in _SAME_NAMES},
    }
    return pa.table(columns)


def _write_skipped(
    folder: Path, plan: PackPlan, parts: CompletedShards, shards: Mapping[str, list[CompletedShard]]
) -> None:
    header = ManifestHeader(algorithm="", root=OWN_FOLDER, options={OPTION: plan.as_json()})
    with manifest_writer(SKIPPED, folder, header) as writer:
        for shard in (shard for split in shards.values() for shard in split):
            rows = parts.rows(shard.file_name, ["path", "problem", "detail"])
            rows = rows.filter(pc.is_valid(rows["problem"]))
            writer.write(rows.rename_columns(["path", "kind", "detail"]))


def _info(name: str, shards: Mapping[str, list[CompletedShard]]) -> str:
    """Return the `_info.json` of timm's `wds/` reader."""
    splits = {
        split: {
            "name": split,
            "num_samples": sum(shard.num_images for shard in of_split),
            "filenames": [shard.file_name for shard in of_split],
            "shard_lengths": [shard.num_images for shard in of_split],
        }
        for split, of_split in shards.items()
    }
    return json.dumps({"name": name, "version": "1", "splits": splits}, indent=1) + "\n"


def is_info_of(folder: Path, index: Manifest) -> bool:
    """Return whether `_info.json` lists the shards of *index*."""
    plan = index.header.options[OPTION]
    shards: dict[str, list[CompletedShard]] = {split: [] for split in plan["num_images"]}
    for facts in index.header.options["shards"]:
        shards[facts["split"]].append(CompletedShard(**facts))
    path = folder / INFO
    return path.is_file() and path.read_bytes() == _info(plan["name"], shards).encode()


def is_complete(folder: Path, plan: PackPlan) -> bool:
    """Return whether *folder* has the complete pack of *plan*: its manifests, and all shards.

    A pack without images that could not be read is incomplete, as they may be readable now.
    """
    names = {PACKED.name, SKIPPED.name, *plan.inputs}
    if not all((folder / KINDS[name].file_name).is_file() for name in names):
        return False
    kinds = open_manifest(folder, SKIPPED).read(["kind"])["kind"]
    if str(ProblemKind.VANISHED) in kinds.unique().to_pylist():
        return False
    options = open_manifest(folder, PACKED).header.options
    return options[OPTION] == plan.as_json() and all(
        (path := folder / facts["file_name"]).is_file()
        and path.stat().st_size == facts["num_bytes"]
        for facts in options["shards"]
    )


def has_val(folder: Path) -> bool:
    """Return whether the pack in *folder* has a val split."""
    return (folder / VAL.file_name).is_file()
