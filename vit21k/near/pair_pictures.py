"""A row of leaks.parquet or near_duplicates.parquet -> the bytes of both its pictures."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vit21k.data.pictures import Pictures
from vit21k.errors import ImageError
from vit21k.manifest.io import Manifest, open_manifest
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
        self._pictures = Pictures.from_manifest(open_manifest(manifest.path.parent, IMAGES), root)
        against = manifest.header.options.get("against")
        self._other_root = Path(against) if against else None
        paths = open_manifest(manifest.path.parent, IMAGES).read(["path"])["path"].combine_chunks()
        self._one = _places(table["path"], paths)
        self._other = [] if against else _places(table["other_path"], paths)

    def __len__(self) -> int:
        return len(self.rows)

    def label_ids(self, index: int) -> list[int]:
        """Return the class indices of a pair: of its first picture; of both, if both have some."""
        others = self._pictures.label_ids(self._other[index]) if self._other else []
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
        if self._other_root is None:
            return self._pictures.read_bytes(self._other[index])
        try:
            content: bytes = (self._other_root / self.rows[index]["other_path"]).read_bytes()
        except FileNotFoundError:
            raise ImageError("the file is not there") from None
        return content


def _places(wanted: pa.ChunkedArray, paths: pa.Array) -> list[int]:
    places: list[int] = pc.index_in(wanted, paths).to_pylist()
    return places
