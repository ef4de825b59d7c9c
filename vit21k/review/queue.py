"""The review queue: leaks, near-duplicates, and merges by doubt."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vit21k.data.dataset import ImageDataset
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import Manifest, open_manifest
from vit21k.manifest.schema import CLASSES, IMAGES, LEAKS, NEAR_DUPLICATES, ManifestKind
from vit21k.manifest.wordnet import Relation
from vit21k.near.sheet import PairImages
from vit21k.report.numbers import MergedImages
from vit21k.review.decisions import ItemKind, Key, item_key
from vit21k.sources.read import Root

MAX_PAIRS = 20_000
"""Maximum number of leaks and of near-duplicates in the queue: the most certain."""

_MEANING = {str(relation): relation.doc for relation in Relation}


@dataclass(frozen=True)
class Item:
    """An item to decide on.

    Attributes:
        kind: Kind of decision.
        path: The kept file of the image.
        digest: Digest of its bytes, in hexadecimal, if known.
        other_path: The other image of a pair; empty for a merge.
        wnids: The image's labels.
        names: Names of the labels.
        about: What is doubtful, in a line.
        num_images: Number of images to show: 1 or 2.
    """

    kind: ItemKind
    path: str
    digest: str
    other_path: str
    wnids: list[str]
    names: list[str]
    about: str
    num_images: int

    @property
    def key(self) -> Key:
        """Key of the item in decisions."""
        return item_key(self.kind, self.path, self.other_path)


class _Part(Protocol):
    """Items of one kind."""

    def __len__(self) -> int: ...

    def item(self, index: int) -> Item: ...

    def read(self, index: int, which: int) -> bytes: ...


class Queue:
    """All items by index; only their rows are in memory."""

    def __init__(self, parts: dict[ItemKind, _Part]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts.values())

    def counts(self) -> dict[str, int]:
        """Return the number of items of each kind, in order."""
        return {str(kind): len(part) for kind, part in self._parts.items()}

    def item(self, index: int) -> Item:
        """Return an item.

        Raises:
            IndexError: There is no such item.
        """
        part, row = self._find(index)
        return part.item(row)

    def read(self, index: int, which: int) -> bytes:
        """Return the file of one of its images.

        Raises:
            IndexError: There is no such item or image.
            ImageError: The file does not exist.
        """
        part, row = self._find(index)
        return part.read(row, which)

    def _find(self, index: int) -> tuple[_Part, int]:
        if index >= 0:
            for part in self._parts.values():
                if index < len(part):
                    return part, index
                index -= len(part)
        raise IndexError("no such item")


class _Labels:
    """Names of the labels of an image."""

    def __init__(self, classes: ClassList) -> None:
        self._classes = classes

    def of(self, label_ids: list[int]) -> tuple[list[str], list[str]]:
        wnids = [self._classes.wnids[label] for label in label_ids]
        names = [self._classes.names[label] or self._classes.wnids[label] for label in label_ids]
        return wnids, names


class _Merges:
    def __init__(self, images: Manifest, dataset: ImageDataset, labels: _Labels) -> None:
        self._conflicts = MergedImages(images).conflicts
        self._images = dataset
        self._labels = labels

    def __len__(self) -> int:
        return int(self._conflicts.num_rows)

    def item(self, index: int) -> Item:
        (row,) = self._conflicts.slice(index, 1).to_pylist()
        wnids, names = self._labels.of(row["label_ids"])
        digest = row["digest"].hex() if row["digest"] else ""
        about = f"{row['relation']}: {_MEANING[row['relation']]}"
        return Item(ItemKind.MERGE, row["path"], digest, "", wnids, names, about, 1)

    def read(self, index: int, which: int) -> bytes:
        if which:
            raise IndexError("a merge has one image")
        return self._images.read_bytes(self._conflicts["row"][index].as_py())


class _Pairs:
    def __init__(self, kind: ItemKind, pairs: PairImages, labels: _Labels) -> None:
        self._kind = kind
        self._pairs = pairs
        self._labels = labels

    def __len__(self) -> int:
        return len(self._pairs)

    def item(self, index: int) -> Item:
        row: dict[str, Any] = self._pairs.rows[index]
        wnids, names = self._labels.of(self._pairs.label_ids(index))
        about = f"{row['level']}, distance {row['distance']}, similarity {row['similarity']:.2f}"
        digest = row["digest"].hex()
        return Item(self._kind, row["path"], digest, row["other_path"], wnids, names, about, 2)

    def read(self, index: int, which: int) -> bytes:
        if which not in (0, 1):
            raise IndexError("a pair has two images")
        return self._pairs.other(index) if which else self._pairs.one(index)


def open_queue(manifests: Path, *, root: Root | None = None) -> Queue:
    """Read the items to review.

    Args:
        manifests: The folder of `images` and `classes.parquet`, and optionally of `leaks` and
            `near_duplicates`.
        root: Current image root; None: as hashed.

    Raises:
        ManifestError: A manifest is missing, stale or damaged.
        ImageTreeError: The image root does not exist.
    """
    images = open_manifest(manifests, IMAGES)
    names = open_manifest(manifests, CLASSES).read(["name"])["name"].to_pylist()
    classes = images.classes()
    labels = _Labels(ClassList(classes.wnids, tuple(names)))
    parts: dict[ItemKind, _Part] = {}
    for kind, name in ((LEAKS, ItemKind.LEAK), (NEAR_DUPLICATES, ItemKind.NEAR)):
        if pairs := _open_pairs(manifests, kind, root):
            parts[name] = _Pairs(name, pairs, labels)
    merges = _Merges(images, ImageDataset.from_manifest(images, root), labels)
    return Queue({**parts, ItemKind.MERGE: merges})


def _open_pairs(manifests: Path, kind: ManifestKind, root: Root | None) -> PairImages | None:
    if not (manifests / kind.file_name).is_file():
        return None
    return PairImages(open_manifest(manifests, kind), root=root, max_pairs=MAX_PAIRS)
