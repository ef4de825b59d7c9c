"""What there is to export: the split, or all pictures if none was made."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from vit21k.errors import DataError, UsageError
from vit21k.hashing.places import refuse_inside
from vit21k.manifest.classes import ClassList
from vit21k.manifest.reader import Manifest, open_manifest
from vit21k.manifest.schema import IMAGES, TRAIN, VAL
from vit21k.prep.ahead import ahead


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What is exported.

    Attributes:
        by_name: Manifests by the name of the split: `train`, and `validation` if it is held out.
            The val of a dummy split, whose pictures are in train too, is called `dummy_val`.
        classes: Their class list.
        root: Where the images are; "" if that is not known.
    """

    by_name: dict[str, Manifest]
    classes: ClassList
    root: str

    @property
    def num_rows(self) -> dict[str, int]:
        """Number of pictures of each split."""
        return {name: manifest.num_rows for name, manifest in self.by_name.items()}


def open_splits(manifests: Path, out: Path, root: Path | None = None) -> Splits:
    """Open what *manifests* holds for export into the new folder *out*.

    Args:
        manifests: The folder of the manifests.
        out: Where the export goes; must be empty, or not there.
        root: Where the images are now; default: where they were hashed.

    Raises:
        ManifestError: A manifest is missing, stale or damaged.
        UsageError: *out* is not empty, or lies inside the image root.
    """
    if (manifests / VAL.file_name).is_file():
        val = open_manifest(manifests, VAL)
        is_held_out = val.header.options["split"] == "holdout"
        by_name = {
            "train": open_manifest(manifests, TRAIN),
            "validation" if is_held_out else "dummy_val": val,
        }
    else:
        by_name = {"train": open_manifest(manifests, IMAGES)}
    train = by_name["train"]
    refuse_inside(out, str(root or train.header.root), option="--out")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"`{out}` is not empty", hint="name a new folder with `--out DIR`")
    out.mkdir(parents=True, exist_ok=True)
    return Splits(
        by_name=by_name,
        classes=train.classes(),
        root=str(root.resolve() if root else train.header.root),
    )


def plain_files(manifest: Manifest, columns: list[str]) -> Iterator[pa.Table]:
    """Yield *columns* of the manifest, a row group at a time.

    Raises:
        DataError: A picture lies in an archive, where other libraries do not look.
    """
    for rows in ahead(manifest.batches([*columns, "archive"])):
        if num_packed := pc.sum(rows["archive"].is_valid()).as_py():
            raise DataError(
                f"{num_packed:,} or more pictures of `{manifest.path}` lie in archives, which "
                "cannot be linked to",
                hint="unpack the archives, hash the tree again, and export that",
            )
        yield rows.select(columns)
