"""The manifests that are packed: train and val, or all pictures if there is no split."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vit21k.data.pictures import Pictures
from vit21k.errors import ManifestError
from vit21k.manifest.classes import ClassList
from vit21k.manifest.reader import Manifest, open_manifest
from vit21k.manifest.schema import CLASSES, IMAGES, TRAIN, VAL

TRAIN_SPLIT, VAL_SPLIT = "train", "validation"


@dataclass(frozen=True)
class Sources:
    """What is packed.

    Attributes:
        folder: Of the manifests.
        by_split: Manifests whose pictures go into shards, by the name of the split.
        dummy_val: The val of a dummy split: its pictures are in train's shards.
    """

    folder: Path
    by_split: Mapping[str, Manifest]
    dummy_val: Manifest | None

    @property
    def manifests(self) -> list[Manifest]:
        """All of them."""
        return [*self.by_split.values(), *([self.dummy_val] if self.dummy_val else [])]

    @property
    def num_pictures(self) -> int:
        """How many pictures there are."""
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
        ManifestError: A manifest is missing, stale or damaged, or there are no pictures.
    """
    if (manifests / VAL.file_name).is_file():
        train, val = open_manifest(manifests, TRAIN), open_manifest(manifests, VAL)
        is_dummy = val.header.options.get("split") == "dummy"
        by_split = {TRAIN_SPLIT: train} if is_dummy else {TRAIN_SPLIT: train, VAL_SPLIT: val}
        sources = Sources(manifests, by_split, val if is_dummy else None)
    else:
        sources = Sources(manifests, {TRAIN_SPLIT: open_manifest(manifests, IMAGES)}, None)
    if not sources.num_pictures:
        raise ManifestError(f"`{manifests}` holds no pictures")
    return sources


def open_pictures(
    sources: Sources, root: Path | None, note: Callable[[str], None] = lambda _text: None
) -> dict[str, Pictures]:
    """Open the pictures of each split; rows of a large one are mapped, and *note* hears of it.

    Raises:
        ImageTreeError: They are not there.
    """
    return {
        split: Pictures.from_manifest(manifest, root, mapped=True, note=note)
        for split, manifest in sources.by_split.items()
    }
