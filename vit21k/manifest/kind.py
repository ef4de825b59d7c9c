"""What a kind of manifest is, and the columns that several of them have."""

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
        is_by_digest: A row is one digest: no two rows have the same, and the writer sees to it.
    """

    name: str
    version: int
    schema: pa.Schema
    row: str
    order: str
    made_by: str
    may_be_null: frozenset[str] = frozenset()
    is_by_digest: bool = False

    @property
    def file_name(self) -> str:
        """Name of the file in the manifest folder."""
        return f"{self.name}.parquet"


def column(name: str, dtype: pa.DataType, doc: str) -> pa.Field:
    """Return a column with *doc*, its line in the data dictionary."""
    # Nullable in Arrow's sense, although no column is (see `may_be_null`): the `datasets` library
    # keeps `ClassLabel` only for fields that are declared nullable.
    return pa.field(name, dtype, metadata={"doc": doc})


PATH = column("path", pa.string(), "POSIX path of the file, relative to the image root.")
KEPT_PATH = column(
    "path",
    pa.string(),
    "POSIX path of the kept file: the first with this content, in digests order.",
)
WNID = column("wnid", pa.string(), "Name of the folder the file lies in: its class.")
DIGEST = column(
    "digest",
    pa.binary(DIGEST_BYTES),
    "Digest of the file's bytes, by the algorithm named in the metadata; null if a quick run has "
    "proven without reading all of it that no other file is equal.",
)
ARCHIVE = column(
    "archive",
    pa.string(),
    "POSIX path of the tar that holds the file, relative to the image root; null for a plain file.",
)
OFFSET = column(
    "offset", pa.int64(), "Where its bytes begin in the archive; null for a plain file."
)
MEMBER_BYTES = column(
    "num_bytes",
    pa.int64(),
    "How many bytes it has in the archive; null for a plain file, whose size the system knows.",
)
LABEL_IDS = column(
    "label_ids",
    pa.list_(pa.int64()),
    "Class indices of the picture, ascending, without repeats; rows of classes.parquet.",
)

MAY_BE_NULL_IN_PICTURES = frozenset({"digest", "num_bytes", "archive", "offset"})
