"""A row of leaks.parquet or near_duplicates.parquet -> the bytes of both its pictures."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vit21k.data.pictures import Pictures
from vit21k.inference.files import Files
from vit21k.manifest.reader import Manifest, open_manifest
from vit21k.manifest.schema import IMAGES


class PairPictures:
    """The pictures of the first pairs of a manifest.

    Attributes:
        rows: The pairs, as the manifest has them.
    """

    def __init__(self, manifest: Manifest, *, root: Path | None, max_pairs: int) -> None:
        """Open the first *max_pairs* pairs of *manifest*.

        Raises:
            ManifestError: `images.parquet` beside it is missing, stale or damaged.
            ImageTreeError: The image root is not there.
        """
        table = manifest.read().slice(0, max_pairs)
        self.rows: list[dict[str, Any]] = table.to_pylist()
        self._pictures = _pictures_of(manifest.path.parent, root)
        self._one = _places(table["path"], manifest.path.parent)
        options = manifest.header.options
        self._other_root = Path(options["against"]) if "against" in options else None
        self._others: Pictures | None = None
        others_at = manifest.path.parent if self._other_root is None else None
        if _is_there(options.get("against_manifests", "")):
            others_at = Path(options["against_manifests"])
        if others_at:
            same = others_at == manifest.path.parent
            self._others = self._pictures if same else _pictures_of(others_at, self._other_root)
            self._other = _places(table["other_path"], others_at)

    def __len__(self) -> int:
        return len(self.rows)

    def label_ids(self, index: int) -> list[int]:
        """Return the class indices of a pair: of its first picture; of both, if both have some."""
        within = self._other_root is None
        others = self._pictures.label_ids(self._other[index]) if within else []
        return sorted({*self._pictures.label_ids(self._one[index]), *others})

    def one(self, index: int) -> bytes:
        """Return the content of the first picture of a pair.

        Raises:
            ImageError: The file is not there.
            OSError: It cannot be read.
        """
        return self._pictures.read_bytes(self._one[index])

    def other(self, index: int) -> bytes:
        """Return the content of the second; as `one`."""
        if self._others is not None:
            return self._others.read_bytes(self._other[index])
        if self._other_root is None:
            raise AssertionError("pairs are within a set, or with another one")
        return Files([self._other_root / self.rows[index]["other_path"]]).read_bytes(0)


def _is_there(manifests: str) -> bool:
    """Return whether the evaluation set's manifests are where they were."""
    return bool(manifests) and (Path(manifests) / IMAGES.file_name).is_file()


def _pictures_of(manifests: Path, root: Path | None) -> Pictures:
    return Pictures.from_manifest(open_manifest(manifests, IMAGES), root)


def _places(wanted: pa.ChunkedArray, manifests: Path) -> list[int]:
    """Return at which rows of the `images.parquet` in *manifests* the *wanted* paths are."""
    paths = open_manifest(manifests, IMAGES).read(["path"])["path"].combine_chunks()
    places: list[int] = pc.index_in(wanted, paths).to_pylist()
    return places
