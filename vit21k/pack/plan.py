"""What a pack is to be: which picture goes where, before any is read."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit21k.data.mix64 import derive_key
from vit21k.data.permutation import permute
from vit21k.errors import UsageError

_STREAM = 0x7061636B  # keeps the order apart from what else hangs on a seed
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Shard(NamedTuple):
    """A tar of a pack.

    Attributes:
        file_name: `<name>-<split>-00000.tar`.
        split: Which split its pictures are of.
        positions: Their places in the order of the split.
        num_in_split: How many pictures that has.
        key: Of the order; None: that of the manifest.
    """

    file_name: str
    split: str
    positions: range
    num_in_split: int
    key: int | None

    @property
    def rows(self) -> NDArray[np.int64]:
        """Its pictures' rows in the split's manifest, in the shard's order; computed anew."""
        positions = np.arange(self.positions.start, self.positions.stop)
        return positions if self.key is None else permute(positions, self.num_in_split, self.key)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides every byte of a pack.

    Attributes:
        name: What shards' names begin with.
        level: `Level.options`.
        per_shard: Pictures of a shard; the last one of a split may have fewer.
        seed: Of the order; None: that of the manifest.
        num_pictures: Of each split.
        inputs: Fingerprints of the manifests that are packed, by kind.
    """

    name: str
    level: Mapping[str, Any]
    per_shard: int
    seed: int | None
    num_pictures: Mapping[str, int]
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
        for split, num_pictures in self.num_pictures.items():
            key = None if self.seed is None else derive_key(_STREAM, self.seed, len(split))
            for number in range(-(-num_pictures // self.per_shard)):
                start = number * self.per_shard
                positions = range(start, min(start + self.per_shard, num_pictures))
                name = f"{self.name}-{split}-{number:05}.tar"
                yield Shard(name, split, positions, num_pictures, key)


def shard_pattern(name: str) -> re.Pattern[str]:
    """Return what the names of the shards of a pack called *name* look like."""
    return re.compile(re.escape(name) + r"-(train|validation)-\d{5,}\.tar")
