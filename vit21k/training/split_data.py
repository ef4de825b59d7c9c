"""train.parquet and val.parquet, opened for training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vit21k.data.pictures import Pictures
from vit21k.errors import ManifestError
from vit21k.manifest.classes import ClassList
from vit21k.manifest.reader import Manifest, open_manifest, read_manifest
from vit21k.manifest.schema import CLASSES, TRAIN, VAL


@dataclass(frozen=True, kw_only=True)
class SplitData:
    """The two halves of a split.

    Attributes:
        train: Pictures to train on.
        val: Pictures to evaluate on.
        val_name: Prefix of the metrics on *val*: `dummy_val` if its pictures are also in train.
        classes: The class list both are labelled by.
        fingerprint: Identifies the train manifest.
        val_fingerprint: Identifies the val manifest.
    """

    train: Pictures
    val: Pictures
    val_name: str
    classes: ClassList
    fingerprint: str
    val_fingerprint: str


def open_split_data(
    manifests: Path, root: Path | None, note: Callable[[str], None] = lambda _text: None
) -> SplitData:
    """Open both manifests of the folder; *note* hears of what takes long.

    Raises:
        ManifestError: One is missing, damaged or stale, or holds no pictures, or the two are
            labelled by different class lists.
    """
    train, val = open_manifest(manifests, TRAIN), open_manifest(manifests, VAL)
    if train.header.classes != val.header.classes:
        raise ManifestError(
            f"`{train.path}` and `{val.path}` are labelled by different class lists",
            hint="make both again with `vit21k make-val`",
        )
    for manifest in (train, val):
        if not manifest.num_rows:
            raise ManifestError(
                f"`{manifest.path}` holds no pictures",
                hint="only pictures with one label are in val: `vit21k make-val` says how many",
            )
    return SplitData(
        train=Pictures.from_manifest(train, root, mapped=True, note=note),
        val=Pictures.from_manifest(val, root, mapped=True, note=note),
        val_name=metric_prefix(val),
        classes=_with_names(train.classes(), manifests),
        fingerprint=train.fingerprint,
        val_fingerprint=val.fingerprint,
    )


def _with_names(classes: ClassList, manifests: Path) -> ClassList:
    """Return *classes* with the names that classes.parquet of the folder gives them, if it does."""
    try:
        rows = read_manifest(manifests, CLASSES, ["wnid", "name"])
    except ManifestError:
        return classes
    named = ClassList(tuple(rows["wnid"].to_pylist()), tuple(rows["name"].to_pylist()))
    return named if named.fingerprint == classes.fingerprint else classes


def metric_prefix(manifest: Manifest) -> str:
    """Return what metrics on *manifest* are called; a dummy split's are not held-out accuracy."""
    if manifest.header.options.get("split") == "dummy" and manifest.kind is VAL:
        return "dummy_val"
    return manifest.kind.name
