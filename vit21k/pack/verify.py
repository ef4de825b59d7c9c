"""Compare a pack with its index: every byte of shards and manifests is read.

A manifest is correct if it is intact, belongs to this pack, and has the images of the index at
their offsets.  A shard with the digest of the index is correct.  The images of any other shard are
hashed one by one, to find the damaged ones.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from vit21k.errors import ImageError, ManifestError
from vit21k.manifest.io import Manifest, open_manifest
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import IMAGE_KINDS, KINDS, PACKED, SKIPPED, VAL
from vit21k.pack.index import INFO, OPTION, is_info_of
from vit21k.pack.plan import TRAIN_SPLIT, VAL_SPLIT
from vit21k.pack.shards import read_tar_digest
from vit21k.prep.decode_check import check_images
from vit21k.prep.dedup import as_numbers
from vit21k.sources.read import ImageReader, Root, existing_root, open_file

Sign = Literal["=", "*", "-", "+"]
OnFile = Callable[[Sign, str], None]
OnShard = Callable[[int, int], None]

_OFFSET_COLUMNS = ["container", "offset", "num_bytes", "digest"]
_OFFSET_BITS = 40


@dataclass
class VerifyPackSummary:
    """Counts of a run of `verify_pack`.

    Attributes:
        num_images: Images of the index: the sum of the next three.
        num_same: Unchanged images.
        num_different: Images with other bytes.
        num_missing: Images whose shard is missing or truncated.
        num_shards: Shards of the index.
        num_shards_same: Byte-identical shards.
        manifest_problems: Problems of the pack's manifests, by file name.
        num_decoded: Images that were decoded, if asked for.
        problems: Images that could not be decoded, by kind.
    """

    num_images: int = 0
    num_same: int = 0
    num_different: int = 0
    num_missing: int = 0
    num_shards: int = 0
    num_shards_same: int = 0
    manifest_problems: dict[str, str] = field(default_factory=dict)
    num_decoded: int = 0
    problems: Counter[ProblemKind] = field(default_factory=Counter)

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        is_same = self.num_shards_same == self.num_shards and self.num_same == self.num_images
        return is_same and not self.manifest_problems


def is_pack(folder: Path) -> bool:
    """Return whether *folder* is a pack."""
    return (folder / PACKED.file_name).is_file()


def verify_pack(
    folder: Path,
    *,
    root: Root | None = None,
    on_file: OnFile = lambda _sign, _name: None,
    on_shard: OnShard = lambda _num_images, _num_bytes: None,
) -> VerifyPackSummary:
    """Compare the pack in *folder* with its index.

    Args:
        folder: Folder of the pack.
        root: Folder of its shards; default: *folder*.
        on_file: Called with each image, each shard that differs outside its images, and each
            manifest that is missing or differs.
        on_shard: Called with the number of images and bytes of each completed shard.

    Raises:
        ManifestError: The index is missing or damaged.
        OSError: A shard cannot be read.
    """
    index = open_manifest(folder, PACKED)
    shards = index.header.options["shards"]
    summary = VerifyPackSummary(num_images=index.num_rows, num_shards=len(shards))
    summary.manifest_problems = manifest_problems(folder, index)
    for name in summary.manifest_problems:
        on_file("*" if (folder / name).is_file() else "-", name)
    root = existing_root(str(folder), root)
    reader = ImageReader(root)
    for facts, rows in _by_shard(index, shards):
        if _is_same(root, facts):
            summary.num_shards_same += 1
            summary.num_same += rows.num_rows
            for path in rows["path"].to_pylist():
                on_file("=", path)
        elif not _compare_images(reader, rows, summary, on_file):
            on_file("*", facts["file_name"])
        on_shard(rows.num_rows, facts["num_bytes"])
    return summary


def manifest_problems(folder: Path, index: Manifest) -> dict[str, str]:
    """Return the problems of the manifests of a pack, by file name.

    Raises:
        ManifestError: The index is damaged.
    """
    plan = index.header.options[OPTION]
    offsets: _Offsets | None = None
    problems = {}
    for kind in (kind for kind in KINDS.values() if kind is not PACKED):
        path = folder / kind.file_name
        is_ours = kind.name in plan["inputs"] or kind is SKIPPED
        if not path.is_file() and not is_ours:
            continue
        try:
            manifest = open_manifest(path, kind)
            problem = None
            if is_ours and manifest.header.options.get(OPTION) != plan:
                problem = "it belongs to another pack"
            elif kind in IMAGE_KINDS and is_ours:
                offsets = offsets or _Offsets(index)
                problem = offsets.compared(manifest)
            else:
                deque(manifest.batches(), maxlen=0)  # read to the end, as damage raises
        except ManifestError as error:
            problem = error.message
        if problem:
            problems[kind.file_name] = problem
    if not is_info_of(folder, index):
        problems[INFO] = "it does not list the shards of the index"
    return problems


class _Offsets:
    """Offset, size and digest of the images of a pack: 24 bytes each."""

    def __init__(self, index: Manifest) -> None:
        shards = index.header.options["shards"]
        self._containers = pa.array([facts["file_name"] for facts in shards], pa.string())
        self._num_in: Counter[str] = Counter()
        for facts in shards:
            self._num_in[facts["split"]] += facts["num_images"]
        parts = [self._numbers(rows) for rows in index.batches(_OFFSET_COLUMNS)]
        numbers = np.concatenate([*parts, np.empty((0, 3), dtype=np.uint64)])
        self._numbers_P3 = numbers[np.argsort(numbers[:, 0])]

    def compared(self, manifest: Manifest) -> str | None:
        """Return how the images of a manifest differ from those of the index.

        Raises:
            ManifestError: It is damaged.
        """
        split = VAL_SPLIT if manifest.kind is VAL else TRAIN_SPLIT
        wanted = self._num_in[split]  # none of a dummy val, which is a subset of train
        if wanted and manifest.num_rows != wanted:
            return f"it has {manifest.num_rows:,} images, the index {wanted:,}"
        num_wrong = sum(
            self._num_wrong(self._numbers(rows), rows["digest"].is_valid().to_numpy())
            for rows in manifest.batches(_OFFSET_COLUMNS)
        )
        return f"{num_wrong:,} images have other offsets than in the index" if num_wrong else None

    def _num_wrong(self, numbers_R3: NDArray[np.uint64], has_digest_R: NDArray[np.bool_]) -> int:
        if not len(self._numbers_P3):
            return len(numbers_R3)
        row_R = np.searchsorted(self._numbers_P3[:, 0], numbers_R3[:, 0])
        found_R3 = self._numbers_P3[row_R.clip(max=len(self._numbers_P3) - 1)]
        differs_R3 = found_R3 != numbers_R3
        differs_R3[:, 2] &= has_digest_R
        return int(differs_R3.any(axis=1).sum())

    def _numbers(self, rows: pa.Table) -> NDArray[np.uint64]:
        """Return shard and offset, size and half of the digest of each image."""
        shard_R = pc.fill_null(pc.index_in(rows["container"], self._containers), -1).to_numpy()
        offset_R = pc.fill_null(rows["offset"], 0).to_numpy()
        size_R = pc.fill_null(rows["num_bytes"], 0).to_numpy()
        half_R = as_numbers(rows["digest"].combine_chunks())[:, 0]
        position_R = (shard_R.astype(np.int64) << _OFFSET_BITS) + offset_R
        return np.stack([position_R.view(np.uint64), size_R.view(np.uint64), half_R], axis=1)


def _by_shard(
    index: Manifest, shards: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    """Yield each shard with its rows, which are consecutive."""
    batches = index.batches(["path", "container", "offset", "num_bytes", "packed_digest"])
    rows = index.kind.schema.empty_table().select(
        ["path", "container", "offset", "num_bytes", "packed_digest"]
    )
    for facts in shards:
        while rows.num_rows < facts["num_images"]:
            rows = pa.concat_tables([rows, next(batches).select(rows.schema.names)])
        yield facts, rows.slice(0, facts["num_images"])
        rows = rows.slice(facts["num_images"])


def _is_same(root: Root, facts: dict[str, Any]) -> bool:
    try:
        with open_file(root, facts["file_name"]) as file:
            return bool(read_tar_digest(file) == facts["digest"])
    except (FileNotFoundError, IsADirectoryError):
        return False


def _compare_images(
    reader: ImageReader, rows: pa.Table, summary: VerifyPackSummary, on_file: OnFile
) -> bool:
    """Compare images one by one; return whether any of them differs."""
    num_bad = summary.num_different + summary.num_missing
    for row in rows.to_pylist():
        try:
            content = reader.read(row["path"], row["container"], row["offset"], row["num_bytes"])
        except ImageError:
            summary.num_missing += 1
            on_file("-", row["path"])
            continue
        if xxhash.xxh3_128_digest(content) == row["packed_digest"]:
            summary.num_same += 1
            on_file("=", row["path"])
        else:
            summary.num_different += 1
            on_file("*", row["path"])
    return summary.num_different + summary.num_missing > num_bad


def decode_pack(
    folder: Path,
    summary: VerifyPackSummary,
    *,
    root: Root | None = None,
    num_workers: int,
    on_bad: Callable[[str, ProblemKind, str], None],
    on_verdict: Callable[[bool], None] = lambda _is_bad: None,
) -> None:
    """Decode every image of the pack in *folder* completely, in worker processes.

    Args:
        folder: Folder of the pack.
        summary: Counts to update.
        root: Folder of its shards; default: *folder*.
        num_workers: Processes.
        on_bad: Called with path, kind and detail of each image that cannot be decoded.
        on_verdict: Called with each image, and whether it is bad.

    Raises:
        ManifestError: The index is missing or damaged.
    """
    index = open_manifest(folder, PACKED)
    reader = ImageReader(existing_root(str(folder), root))
    for rows in index.batches(["path", "container", "offset", "num_bytes"]):
        read = _reader_of(rows, reader)
        for verdict in check_images(read, range(rows.num_rows), num_workers=num_workers):
            if verdict.kind is None:
                summary.num_decoded += 1
            else:
                summary.problems[verdict.kind] += 1
                on_bad(rows["path"][verdict.row].as_py(), verdict.kind, verdict.detail)
            on_verdict(verdict.kind is not None)


def _reader_of(rows: pa.Table, reader: ImageReader) -> Callable[[int], bytes]:
    """Return a thread-safe function that reads the image of a row of *rows*."""
    columns = [rows[name] for name in ("path", "container", "offset", "num_bytes")]
    return lambda row: reader.read(*(column[row].as_py() for column in columns))
