"""What a pack is to be: which image goes where, and which shards are finished."""

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
from vit21k.sources.read import Root


def scratch_array(folder: Path, dtype: np.dtype[Any], length: int) -> NDArray[Any]:
    """Return an array of *length* zeros, mapped from a file in *folder*.

    Its blocks are reserved at once: a disk that is full later would be a signal, not an exception.

    Raises:
        OSError: The disk is full or failing.
    """
    if not length:
        return np.zeros((0, *dtype.shape), dtype.base)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, length * dtype.itemsize)
        except OSError as error:  # it does not say where
            raise OSError(error.errno, error.strerror, str(folder)) from error
        mapped = np.memmap(file, dtype.base, mode="r+", shape=(length, *dtype.shape))
    # A plain array: what a `memmap` adds to each access costs more than the access.
    return np.asarray(mapped)


TRAIN_SPLIT, VAL_SPLIT = "train", "validation"


@dataclass(frozen=True)
class Sources:
    """What is packed.

    Attributes:
        folder: Of the manifests.
        by_split: Manifests whose images go into shards, by the name of the split.
        dummy_val: The val of a dummy split: its images are in train's shards.
    """

    folder: Path
    by_split: Mapping[str, Manifest]
    dummy_val: Manifest | None

    @property
    def manifests(self) -> list[Manifest]:
        """All of them."""
        return [*self.by_split.values(), *([self.dummy_val] if self.dummy_val else [])]

    @property
    def num_images(self) -> int:
        """How many images there are."""
        return sum(manifest.num_rows for manifest in self.by_split.values())

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of each manifest, by its kind."""
        return {manifest.kind.name: manifest.fingerprint for manifest in self.manifests}

    @property
    def classes_file(self) -> Path | None:
        """The names of the classes, if they are there."""
        path = self.folder / CLASSES.file_name
        return path if path.is_file() else None

    def classes(self) -> ClassList:
        """Return the class list of all."""
        return self.by_split[TRAIN_SPLIT].classes()


def open_sources(manifests: Path) -> Sources:
    """Open what *manifests* holds.

    Raises:
        ManifestError: A manifest is missing, stale or damaged, or there are no images.
    """
    if (manifests / VAL.file_name).is_file():
        train, val = open_manifest(manifests, TRAIN), open_manifest(manifests, VAL)
        is_dummy = val.header.options.get("split") == "dummy"
        by_split = {TRAIN_SPLIT: train} if is_dummy else {TRAIN_SPLIT: train, VAL_SPLIT: val}
        sources = Sources(manifests, by_split, val if is_dummy else None)
    else:
        sources = Sources(manifests, {TRAIN_SPLIT: open_manifest(manifests, IMAGES)}, None)
    if not sources.num_images:
        raise ManifestError(f"`{manifests}` holds no images")
    return sources


def open_dataset(
    sources: Sources, root: Root | None, note: Callable[[str], None] = lambda _text: None
) -> dict[str, ImageDataset]:
    """Open the images of each split; rows of a large one are mapped, and *note* hears of it.

    Raises:
        ImageTreeError: They are not there.
    """
    return {
        split: ImageDataset.from_manifest(manifest, root, mapped=True, note=note)
        for split, manifest in sources.by_split.items()
    }


_STREAM = 0x7061636B  # keeps the order apart from what else depends on a seed
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Shard(NamedTuple):
    """A tar of a pack.

    Attributes:
        file_name: `<name>-<split>-00000.tar`.
        split: Which split its images are of.
        positions: Their places in the order of the split.
        num_in_split: How many images that has.
        key: Of the order; None: that of the manifest.
    """

    file_name: str
    split: str
    positions: range
    num_in_split: int
    key: int | None

    @property
    def rows(self) -> NDArray[np.int64]:
        """Its images' rows in the split's manifest, in the shard's order; computed anew."""
        positions = np.arange(self.positions.start, self.positions.stop)
        return positions if self.key is None else permute(positions, self.num_in_split, self.key)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides every byte of a pack.

    Attributes:
        name: What shards' names begin with.
        level: `Level.options`.
        per_shard: Images of a shard; the last one of a split may have fewer.
        seed: Of the order; None: that of the manifest.
        num_images: Of each split.
        inputs: Fingerprints of the manifests that are packed, by kind.
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
                f"`{self.name}` is no name for shards",
                hint="letters, digits, `-` and `_`: `--name imagenet21k`",
            )

    def as_json(self) -> dict[str, Any]:
        """Return it as plain JSON values; equal plans make equal packs."""
        return asdict(self)

    def shards(self) -> Iterator[Shard]:
        """Yield all shards, in order."""
        for split, num_images in self.num_images.items():
            key = None if self.seed is None else derive_key(_STREAM, self.seed, len(split))
            for number in range(-(-num_images // self.per_shard)):
                start = number * self.per_shard
                positions = range(start, min(start + self.per_shard, num_images))
                name = f"{self.name}-{split}-{number:05}.tar"
                yield Shard(name, split, positions, num_images, key)


def shard_pattern(name: str) -> re.Pattern[str]:
    """Return what the names of the shards of a pack called *name* look like."""
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
"""A row for each image; of those that are skipped only `row`, `path`, `problem` and `detail`."""


class ShardFacts(NamedTuple):
    """A finished shard.

    Attributes:
        file_name: The tar.
        split: Which split its images are of.
        num_images: How many it holds.
        num_bytes: Its size.
        digest: xxh3_128 of all its bytes, in hexadecimal digits.
    """

    file_name: str
    split: str
    num_images: int
    num_bytes: int
    digest: str


class Part(NamedTuple):
    """A finished shard and its images; `rows` are of `PART_SCHEMA`."""

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
        lacks an image which could not be read is made again: it may be there now.
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
        """Return the images of a shard; *columns* of `PART_SCHEMA`.

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
