"""The plan of a pack: which image is in which shard; and its completed shards."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vit21k.atomic import atomic_file, write_atomic
from vit21k.data.dataset import ImageDataset
from vit21k.data.rng import derive_key, permute
from vit21k.errors import ManifestError, UsageError
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import Manifest, damage_is_an_error, open_manifest
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import CLASSES, IMAGES, TRAIN, VAL
from vit21k.prep.split import refuse_published
from vit21k.sources.read import Root


def scratch_array(folder: Path, dtype: np.dtype[Any], length: int) -> NDArray[Any]:
    """Return an array of *length* zeros, mapped from a file in *folder*.

    Its blocks are reserved in advance: a full disk would otherwise cause a signal, no exception.

    Raises:
        OSError: The disk is full or failing.
    """
    if not length:
        return np.zeros((0, *dtype.shape), dtype.base)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, length * dtype.itemsize)
        except OSError as error:  # without a path
            raise OSError(error.errno, error.strerror, str(folder)) from error
        mapped = np.memmap(file, dtype.base, mode="r+", shape=(length, *dtype.shape))
    # An ndarray: each access to a `memmap` is much slower.
    return np.asarray(mapped)


TRAIN_SPLIT, VAL_SPLIT = "train", "validation"


@dataclass(frozen=True)
class Sources:
    """The manifests to pack.

    Attributes:
        folder: Folder of the manifests.
        by_split: Manifests whose images are written to shards, by split.
        dummy_val: The val of a dummy split: its images are in the shards of train.
    """

    folder: Path
    by_split: Mapping[str, Manifest]
    dummy_val: Manifest | None

    @property
    def manifests(self) -> list[Manifest]:
        """All manifests."""
        return [*self.by_split.values(), *([self.dummy_val] if self.dummy_val else [])]

    @property
    def num_images(self) -> int:
        """Number of images."""
        return sum(manifest.num_rows for manifest in self.by_split.values())

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the manifests, by kind."""
        return {manifest.kind.name: manifest.fingerprint for manifest in self.manifests}

    @property
    def classes_file(self) -> Path | None:
        """`classes.parquet`, if it exists."""
        path = self.folder / CLASSES.file_name
        return path if path.is_file() else None

    def classes(self) -> ClassList:
        """Return the class list."""
        return self.by_split[TRAIN_SPLIT].classes()


def open_sources(manifests: Path) -> Sources:
    """Open the manifests in *manifests*.

    Raises:
        ManifestError: A manifest is missing, stale or damaged, or there are no images.
    """
    if (manifests / VAL.file_name).is_file():
        train, val = open_manifest(manifests, TRAIN), open_manifest(manifests, VAL)
        is_dummy = val.header.options.get("split") == "dummy"
        by_split = {TRAIN_SPLIT: train} if is_dummy else {TRAIN_SPLIT: train, VAL_SPLIT: val}
        sources = Sources(manifests, by_split, val if is_dummy else None)
    else:
        images = open_manifest(manifests, IMAGES)
        refuse_published(images, "`pack` without a split")
        sources = Sources(manifests, {TRAIN_SPLIT: images}, None)
    if not sources.num_images:
        raise ManifestError(f"`{manifests}` has no images")
    return sources


def open_images(
    sources: Sources, root: Root | None, note: Callable[[str], None] = lambda _text: None
) -> dict[str, ImageDataset]:
    """Open the images of each split; rows of a large one are mapped, which *note* reports.

    Raises:
        ImageTreeError: The image root does not exist.
    """
    return {
        split: ImageDataset.from_manifest(manifest, root, mapped=True, note=note)
        for split, manifest in sources.by_split.items()
    }


_STREAM = 0x7061636B  # separates the order from other uses of the seed
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class PackShard(NamedTuple):
    """A planned shard.

    Attributes:
        file_name: `<name>-<split>-00000.tar`.
        split: Split of its images.
        positions: Their positions in the order of the split.
        num_in_split: Number of images in the split.
        key: Key of the permutation; None: the order of the manifest.
    """

    file_name: str
    split: str
    positions: range
    num_in_split: int
    key: int | None

    @property
    def rows(self) -> NDArray[np.int64]:
        """Rows of its images in the split's manifest, in the order of the shard."""
        positions = np.arange(self.positions.start, self.positions.stop)
        return positions if self.key is None else permute(positions, self.num_in_split, self.key)


@dataclass(frozen=True, kw_only=True)
class PackPlan:
    """What the bytes of a pack depend on.

    Attributes:
        name: Prefix of the shard names.
        level: `PackLevel.options`.
        per_shard: Images per shard; the last one of a split may have fewer.
        seed: Seed of the order; None: the order of the manifest.
        num_images: Number of images of each split.
        inputs: Fingerprints of the packed manifests, by kind.
    """

    name: str
    level: Mapping[str, Any]
    per_shard: int
    seed: int | None
    num_images: Mapping[str, int]
    inputs: Mapping[str, str]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"`{self.name}` cannot be the prefix of shard names",
                hint="letters, digits, `-` and `_`: `--name imagenet21k`",
            )

    def as_json(self) -> dict[str, Any]:
        """Return the plan as JSON values; equal plans make equal packs."""
        return asdict(self)

    def shards(self) -> Iterator[PackShard]:
        """Yield all shards, in order."""
        for split, num_images in self.num_images.items():
            key = None if self.seed is None else derive_key(_STREAM, self.seed, len(split))
            for number in range(-(-num_images // self.per_shard)):
                start = number * self.per_shard
                positions = range(start, min(start + self.per_shard, num_images))
                name = f"{self.name}-{split}-{number:05}.tar"
                yield PackShard(name, split, positions, num_images, key)


def shard_pattern(name: str) -> re.Pattern[str]:
    """Return the pattern of the shard names of a pack called *name*."""
    return re.compile(re.escape(name) + r"-(train|validation)-\d{5,}\.tar")


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
"""A row for each image; skipped ones have only `row`, `path`, `problem` and `detail`."""


class CompletedShard(NamedTuple):
    """A completed shard.

    Attributes:
        file_name: The tar.
        split: Split of its images.
        num_images: Number of images.
        num_bytes: Size of the tar.
        digest: xxh3_128 of the tar, in hexadecimal.
    """

    file_name: str
    split: str
    num_images: int
    num_bytes: int
    digest: str


class Part(NamedTuple):
    """A completed shard and its images; `rows` have `PART_SCHEMA`."""

    facts: CompletedShard
    rows: pa.Table


class CompletedShards:
    """The completed shards of the unfinished pack in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / _FOLDER
        self._pack = folder

    def plan(self) -> Any:
        """Return the plan of an unfinished run; None if there is none."""
        try:
            return json.loads((self.folder / _PLAN).read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def begin(self, plan: dict[str, Any]) -> None:
        """Store the plan."""
        write_atomic(self.folder / _PLAN, json.dumps(plan, sort_keys=True).encode())

    def save(self, part: Part) -> None:
        """Store a completed shard."""
        metadata = {_FACTS: json.dumps(part.facts).encode()}
        with atomic_file(self._path(part.facts.file_name)) as file:
            pq.write_table(
                part.rows.replace_schema_metadata(metadata), file, compression="zstd",
                write_page_checksum=True,
            )  # fmt: skip

    def finished(self, file_name: str) -> CompletedShard | None:
        """Return the facts of a shard; None if it must be written.

        The complete part is read, so that damage is found early.  A shard without an image that
        could not be read is written again, as the image may be readable now.
        """
        try:
            problems = self.rows(file_name)["problem"]
            is_final = str(ProblemKind.VANISHED) not in problems.unique().to_pylist()
            return self.facts(file_name) if is_final else None
        except ManifestError:
            return None

    def facts(self, file_name: str) -> CompletedShard | None:
        """Return the facts of a shard; None if it has no part, or another size.

        Raises:
            ManifestError: The part is damaged.
        """
        path, tar = self._path(file_name), self._pack / file_name
        if not path.is_file() or not tar.is_file():
            return None
        with damage_is_an_error(path):
            facts = CompletedShard(*json.loads(pq.read_schema(path).metadata[_FACTS]))
        return facts if tar.stat().st_size == facts.num_bytes else None

    def rows(self, file_name: str, columns: Sequence[str] = PART_SCHEMA.names) -> pa.Table:
        """Return the images of a shard; *columns* of `PART_SCHEMA`.

        Raises:
            ManifestError: The part does not exist, or is damaged.
        """
        path = self._path(file_name)
        if not path.is_file():
            raise ManifestError(f"no part at `{path}`")
        with damage_is_an_error(path):
            rows = pq.ParquetFile(path, page_checksum_verification=True).read(columns)
            return rows.cast(pa.schema([PART_SCHEMA.field(name) for name in columns]))

    def remove(self) -> None:
        """Remove all parts: the pack is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, file_name: str) -> Path:
        return self.folder / f"{Path(file_name).stem}.parquet"


def part_rows(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Return *rows* as a table of `PART_SCHEMA`."""
    return pa.Table.from_pylist(list(rows), schema=PART_SCHEMA)
