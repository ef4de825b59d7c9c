"""Read manifests in Python: `vit21k.read_manifest("images").to_pandas()`."""

import os
from pathlib import Path

import pyarrow as pa

from vit21k.errors import UsageError
from vit21k.manifest import DEFAULT_FOLDER, FOLDER_VARIABLE
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import KINDS


def read_manifest(
    kind: str, manifests: str | os.PathLike[str] | None = None, columns: list[str] | None = None
) -> pa.Table:
    """Return the rows of a manifest as an Arrow table; `.to_pandas()` makes a data frame of it.

    Args:
        kind: "digests", "problems", "images", "copies", "classes", "train" or "val".
        manifests: Its folder, or the file itself.  Default: the folder `VIT21K_MANIFESTS`, or else
            `data_manifests`.
        columns: Read only these.

    Raises:
        UsageError: There is no such kind.
        ManifestError: No such file, damaged, another kind or version, or stale.
    """
    if kind not in KINDS:
        raise UsageError(f"no manifest is called `{kind}`", hint=f"kinds: {', '.join(KINDS)}")
    folder = manifests or os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER
    return open_manifest(Path(folder), KINDS[kind]).read(columns)
