"""Column-by-column definition of every manifest.

This module is the single source of truth: the writer checks against it, the reader checks against
it, and `data_manifests/README.md` is generated from it.
"""

from dataclasses import dataclass

import pyarrow as pa

DIGEST_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class ManifestKind:
    """One kind of manifest: its name, layout version, columns and order.

    Attributes:
        name: File stem, also stored in the file ("digests", "images", ...).
        version: Raised when a column is added, removed or redefined.
        schema: Arrow schema; every field carries a ``doc`` metadata entry.
        row: What one row is.
        order: The order of the rows, in words.
        made_by: The command that writes it.
        may_be_null: Columns that may hold nulls; all others never do.
    """

    name: str
    version: int
    schema: pa.Schema
    row: str
    order: str
    made_by: str
    may_be_null: frozenset[str] = frozenset()

    @property
    def file_name(self) -> str:
        """Name of the file in the manifest folder."""
        return f"{self.name}.parquet"


def _column(name: str, dtype: pa.DataType, doc: str) -> pa.Field:
    # Nullable in Arrow's sense, although no column is (see `may_be_null`): the `datasets` library
    # keeps `ClassLabel` only for fields that are declared nullable.
    return pa.field(name, dtype, metadata={"doc": doc})


_PATH = _column("path", pa.string(), "POSIX path of the file, relative to the image root.")
_KEPT_PATH = _column(
    "path",
    pa.string(),
    "POSIX path of the kept file: the first with this content, in digests order.",
)
_WNID = _column("wnid", pa.string(), "Name of the folder the file lies in: its class.")
_NUM_BYTES = _column("num_bytes", pa.int64(), "Size of the file in bytes; null if it was imported.")
_DIGEST = _column(
    "digest",
    pa.binary(DIGEST_BYTES),
    "Digest of the file's bytes, by the algorithm named in the metadata.",
)
_LABEL_IDS = _column(
    "label_ids",
    pa.list_(pa.int64()),
    "Class indices of the picture, ascending, without repeats; rows of classes.parquet.",
)

DIGESTS = ManifestKind(
    name="digests",
    version=1,
    schema=pa.schema(
        [
            _PATH,
            _WNID,
            _NUM_BYTES,
            _column("mtime_ns", pa.int64(), "Modification time, ns since 1970; null if imported."),
            _DIGEST,
        ]
    ),
    row="file",
    order="by path, byte by byte; or the order of an imported md5sum file",
    made_by="vit21k hash <image root>",
    may_be_null=frozenset({"num_bytes", "mtime_ns"}),
)

PROBLEMS = ManifestKind(
    name="problems",
    version=1,
    schema=pa.schema(
        [
            _column("path", pa.string(), "POSIX path; bytes that are not UTF-8 as `\\xNN`."),
            _column("kind", pa.string(), "What is wrong, from the closed list below."),
            _column("detail", pa.string(), "What the system said, or what was found."),
        ]
    ),
    row="file or folder that was not used",
    order="by path, byte by byte",
    made_by="vit21k hash <image root>",
)

IMAGES = ManifestKind(
    name="images",
    version=1,
    schema=pa.schema(
        [
            _DIGEST,
            _KEPT_PATH,
            _NUM_BYTES,
            _LABEL_IDS,
            _column("num_files", pa.int64(), "How many files have this content."),
        ]
    ),
    row="picture (distinct content)",
    order="by first label id; ties in digests order",
    made_by="vit21k relabel",
    may_be_null=frozenset({"num_bytes"}),
)

COPIES = ManifestKind(
    name="copies",
    version=1,
    schema=pa.schema([_DIGEST, _PATH, _WNID]),
    row="file that was merged into another",
    order="in digests order",
    made_by="vit21k relabel",
)

CLASSES = ManifestKind(
    name="classes",
    version=1,
    schema=pa.schema(
        [
            _column("class_index", pa.int64(), "0, 1, 2, ...: what `label_ids` hold."),
            _column("wnid", pa.string(), "Name of the class folder."),
            _column("name", pa.string(), "Name in words, where one is known."),
            _column("num_files", pa.int64(), "Files in the folders of this class."),
            _column("num_images", pa.int64(), "Pictures that carry this label."),
            _column("num_single_label", pa.int64(), "Pictures that carry this label alone."),
        ]
    ),
    row="class",
    order="by class index",
    made_by="vit21k relabel",
    may_be_null=frozenset({"name"}),
)

_SPLIT_SCHEMA = pa.schema([_DIGEST, _KEPT_PATH, _NUM_BYTES, _LABEL_IDS])

TRAIN = ManifestKind(
    name="train",
    version=1,
    schema=_SPLIT_SCHEMA,
    row="picture to train on",
    order="in images order",
    made_by="vit21k make-val",
    may_be_null=frozenset({"num_bytes"}),
)
VAL = ManifestKind(
    name="val",
    version=1,
    schema=_SPLIT_SCHEMA,
    row="picture to validate on",
    order="in images order",
    made_by="vit21k make-val",
    may_be_null=frozenset({"num_bytes"}),
)

KINDS = {kind.name: kind for kind in (DIGESTS, PROBLEMS, IMAGES, COPIES, CLASSES, TRAIN, VAL)}
"""Every kind of manifest by its name, in the order they are made."""

PICTURE_KINDS = (IMAGES, TRAIN, VAL)
"""The kinds whose rows are pictures with `label_ids`: what a loader, `eval` and `predict` read."""
