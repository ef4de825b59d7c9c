"""Definition of every manifest, column by column.

Column-by-column definition of every manifest.

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
        row: Content of one row.
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
WNID = column("wnid", pa.string(), "Name of the folder that contains the file: its class.")
DIGEST = column(
    "digest",
    pa.binary(DIGEST_BYTES),
    "Digest of the file's bytes, by the algorithm named in the metadata; null if a quick run has "
    "proven without reading all of it that no other file is equal.",
)
CONTAINER = column(
    "container",
    pa.string(),
    "POSIX path of the tar, zip or Parquet file that holds the image, relative to the image root; "
    "null for a plain file.",
)
OFFSET = column(
    "offset",
    pa.int64(),
    "Offset of its bytes in the container, or its row in a Parquet file; null for a plain file.",
)
STORAGE = column(
    "storage",
    pa.string(),
    "How the container stores it. Null: unchanged. `deflate`: a raw deflate stream begins at "
    "`offset`. `gzip`: `offset` counts in what the compressed tar unpacks to. `parquet:COLUMN`: "
    "`offset` is the row in that column.",
)
MEMBER_BYTES = column(
    "num_bytes",
    pa.int64(),
    "Size of an image in a container; null for a plain file, whose size the file system knows.",
)
SOURCE_SPLITS = ("train", "validation", "test")
"""Values of `source_split`; of copies that differ, the image has the last."""

SOURCE_SPLIT = column(
    "source_split",
    pa.string(),
    "Published split it is from: `train`, `validation` or `test`; null where the source has none.",
)
LOCATOR_COLUMNS = ["path", "container", "offset", "num_bytes", "storage"]
"""Where the bytes of an image are: the fields of `sources.read.Locator`."""

LABEL_IDS = column(
    "label_ids",
    pa.list_(pa.int64()),
    "Class indices of the image, ascending, without repeats; rows of classes.parquet.",
)

MAY_BE_NULL_IN_COPIES = frozenset({"num_bytes", "container", "offset", "storage", "source_split"})
MAY_BE_NULL_IN_IMAGES = MAY_BE_NULL_IN_COPIES | {"digest"}


DIGESTS = ManifestKind(
    name="digests",
    version=4,
    schema=pa.schema(
        [
            PATH,
            WNID,
            column("num_bytes", pa.int64(), "Size of the file in bytes; null if imported."),
            column("mtime_ns", pa.int64(), "Modification time, ns since 1970; null if imported."),
            DIGEST,
            column(
                "content_digest",
                pa.binary(DIGEST_BYTES),
                "xxh3_128 of a JPEG without its metadata (comments, EXIF) and what follows it, but "
                "with how its colours are stored; null for what is no JPEG, or was not read to "
                "its end.",
            ),
            column(
                "probe",
                pa.binary(DIGEST_BYTES),
                "xxh3_128 of the first and the last 4,096 bytes; quick runs only.",
            ),
            column("format", pa.string(), "Format by the first bytes; null if not read."),
            column("width", pa.int32(), "Pixels; null if unknown."),
            column("height", pa.int32(), "Pixels; null if unknown."),
            column("components", pa.int32(), "Number of colour components; null if unknown."),
            column(
                "has_end", pa.bool_(), "Whether the end marker was found; null if not searched."
            ),
            CONTAINER,
            OFFSET,
            STORAGE,
            SOURCE_SPLIT,
        ]
    ),
    row="file",
    order="by path, byte by byte; or the order of an imported md5sum file",
    made_by="vit21k hash <image root>",
    may_be_null=frozenset(
        {
            "num_bytes",
            "mtime_ns",
            "digest",
            "content_digest",
            "probe",
            "format",
            "width",
            "height",
            "components",
            "has_end",
            "container",
            "offset",
            "storage",
            "source_split",
        }
    ),
)

PROBLEMS = ManifestKind(
    name="problems",
    version=1,
    schema=pa.schema(
        [
            column("path", pa.string(), "POSIX path; bytes that are not UTF-8 as `\\xNN`."),
            column("kind", pa.string(), "Kind of problem, from the list below."),
            column("detail", pa.string(), "Message of the system, or details."),
        ]
    ),
    row="file or folder that was not used",
    order="by path, byte by byte; names of a label file that no image has come last",
    made_by="vit21k hash <image root>",
)

UNDECODABLE = ManifestKind(
    name="undecodable",
    version=1,
    schema=PROBLEMS.schema,
    row="image that cannot be decoded, at the first path it has",
    order="in digests order",
    made_by="vit21k verify --decode",
)

IMAGES = ManifestKind(
    name="images",
    version=3,
    schema=pa.schema(
        [
            DIGEST,
            KEPT_PATH,
            MEMBER_BYTES,
            LABEL_IDS,
            column("num_files", pa.int64(), "Number of files with this content."),
            CONTAINER,
            OFFSET,
            STORAGE,
            SOURCE_SPLIT,
        ]
    ),
    row="image (distinct content)",
    order="by first label id; ties in digests order",
    made_by="vit21k relabel",
    may_be_null=MAY_BE_NULL_IN_IMAGES,
    is_by_digest=True,
)

COPIES = ManifestKind(
    name="copies",
    version=3,
    schema=pa.schema(
        [
            column(
                "digest",
                pa.binary(DIGEST_BYTES),
                "Digest of the kept file: that of the image in images.parquet.",
            ),
            PATH,
            WNID,
            MEMBER_BYTES,
            CONTAINER,
            OFFSET,
            STORAGE,
            SOURCE_SPLIT,
        ]
    ),
    row="file that was merged into another",
    order="in digests order",
    made_by="vit21k relabel",
    may_be_null=MAY_BE_NULL_IN_COPIES,
)

OVERLABELLED = ManifestKind(
    name="overlabelled",
    version=2,
    schema=pa.schema([DIGEST, PATH, WNID, MEMBER_BYTES, CONTAINER, OFFSET, STORAGE, SOURCE_SPLIT]),
    row="file skipped by `relabel --max-labels`: its image is in too many classes",
    order="in digests order",
    made_by="vit21k relabel",
    may_be_null=MAY_BE_NULL_IN_COPIES,
)

CLASSES = ManifestKind(
    name="classes",
    version=1,
    schema=pa.schema(
        [
            column("class_index", pa.int64(), "0, 1, 2, ...: the values of `label_ids`."),
            column("wnid", pa.string(), "Name of the class folder."),
            column("name", pa.string(), "Name, if known."),
            column("num_files", pa.int64(), "Files in the folders of this class."),
            column("num_images", pa.int64(), "Images with this label."),
            column("num_single_label", pa.int64(), "Images with only this label."),
        ]
    ),
    row="class",
    order="by class index",
    made_by="vit21k relabel",
    may_be_null=frozenset({"name"}),
)

_SPLIT_SCHEMA = pa.schema([DIGEST, KEPT_PATH, MEMBER_BYTES, LABEL_IDS, CONTAINER, OFFSET, STORAGE])

TRAIN = ManifestKind(
    name="train",
    version=3,
    schema=_SPLIT_SCHEMA,
    row="image to train on",
    order="in images order",
    made_by="vit21k make-val",
    may_be_null=MAY_BE_NULL_IN_IMAGES,
    is_by_digest=True,
)
VAL = ManifestKind(
    name="val",
    version=3,
    schema=_SPLIT_SCHEMA,
    row="image to validate on",
    order="in images order",
    made_by="vit21k make-val",
    may_be_null=MAY_BE_NULL_IN_IMAGES,
    is_by_digest=True,
)

FINGERPRINTS = ManifestKind(
    name="fingerprints",
    version=1,
    schema=pa.schema(
        [
            column(
                "digest",
                pa.binary(DIGEST_BYTES),
                "Digest of the file's bytes, by the algorithm named in the metadata; null if it "
                "could not be read: the next run reads it again.",
            ),
            column(
                "pixel_digest",
                pa.binary(DIGEST_BYTES),
                "xxh3_128 of the size and the decoded RGB pixels; null if it cannot be decoded.",
            ),
            column(
                "thumb",
                pa.binary(1024),
                "32 x 32 luma values, row by row; null if it cannot be decoded.",
            ),
            column(
                "problem",
                pa.string(),
                "Why it cannot be decoded, or could not be read; null if it is decoded.",
            ),
        ]
    ),
    row="image",
    order="in images order",
    made_by="vit21k leaks",
    may_be_null=frozenset({"digest", "pixel_digest", "thumb", "problem"}),
)

_PAIR_SCHEMA = pa.schema(
    [
        column("digest", pa.binary(DIGEST_BYTES), "Digest of the image's file."),
        KEPT_PATH,
        column("other_digest", pa.binary(DIGEST_BYTES), "Digest of the other image's file."),
        column("other_path", pa.string(), "Path of the other, relative to its own root."),
        column("level", pa.string(), "`exact`: same bytes; `pixel`: same pixels; `near`."),
        column("distance", pa.int64(), "Hamming distance of the hashes, 0 to 256."),
        column("similarity", pa.float64(), "Similarity of the thumbnails: 1 equal, 0 unrelated."),
    ]
)

LEAKS = ManifestKind(
    name="leaks",
    version=1,
    schema=_PAIR_SCHEMA,
    row="training image and an equal or similar image of an evaluation set",
    order="by level, the most similar first",
    made_by="vit21k leaks",
)
NEAR_DUPLICATES = ManifestKind(
    name="near_duplicates",
    version=1,
    schema=_PAIR_SCHEMA,
    row="two images of the set that differ only in their bytes, or are similar",
    order="by level, the most similar first",
    made_by="vit21k labels near-duplicates",
)

CHANGES = ManifestKind(
    name="changes",
    version=1,
    schema=pa.schema(
        [
            column("path", pa.string(), "The image: its path in the old images.parquet."),
            column(
                "action",
                pa.string(),
                "`drop`: labels were dropped; `join`: another became a part of it, or the reverse; "
                "`remove`: it was skipped.",
            ),
            column("before", pa.list_(pa.int64()), "Its class indices, before."),
            column("after", pa.list_(pa.int64()), "Its class indices, after."),
            column(
                "other_path",
                pa.string(),
                "Path of the image it was joined with or removed for; or empty.",
            ),
        ]
    ),
    row="image that decisions changed",
    order="in images order of the old manifest",
    made_by="vit21k labels apply",
)
EXPANDED = ManifestKind(
    name="expanded",
    version=2,
    schema=pa.schema(
        [
            *_SPLIT_SCHEMA,
            column(
                "hypernym_ids",
                pa.list_(pa.int64()),
                "Class indices of the hypernyms of its labels, without the labels themselves; "
                "ascending, without repeats.",
            ),
        ]
    ),
    row="image",
    order="in images order",
    made_by="vit21k labels expand",
    may_be_null=MAY_BE_NULL_IN_IMAGES,
    is_by_digest=True,
)

CONFLICTS = ManifestKind(
    name="conflicts",
    version=2,
    schema=pa.schema(
        [
            *_SPLIT_SCHEMA,
            column(
                "relation",
                pa.string(),
                "Relation of its two least related labels: `far`, `unknown`, `near`, "
                "`siblings` or `ancestor`.",
            ),
            column("first_id", pa.int64(), "Class index of one, the smaller."),
            column("second_id", pa.int64(), "Class index of the other."),
            column(
                "common_wnid",
                pa.string(),
                "Their lowest common ancestor in WordNet, perhaps one of them; null if unknown.",
            ),
            column("common_depth", pa.int64(), "Steps from `entity` to it; -1 if unknown."),
            column("distance", pa.int64(), "Steps between them through it; -1 if unknown."),
        ]
    ),
    row="image with several labels",
    order="by relation as listed, then the least related first",
    made_by="vit21k labels conflicts",
    may_be_null=MAY_BE_NULL_IN_IMAGES | {"common_wnid"},
)

PACKED = ManifestKind(
    name="packed",
    version=2,
    schema=pa.schema(
        [
            column(
                "digest",
                pa.binary(DIGEST_BYTES),
                "Digest of the image's file before it was packed, as in images.parquet.",
            ),
            column("path", pa.string(), "Path of that file, relative to its image root."),
            column("split", pa.string(), "`train` or `validation`."),
            column("container", pa.string(), "Name of the shard."),
            column("offset", pa.int64(), "Offset of the image in the shard."),
            column("num_bytes", pa.int64(), "How many bytes it has there."),
            column("packed_digest", pa.binary(DIGEST_BYTES), "xxh3_128 of those bytes."),
            column(
                "key", pa.string(), "Name of its members up to the dot: webdataset's `__key__`."
            ),
            column(
                "form",
                pa.string(),
                "`tiles`: JPEG with restart markers, the same pixels; `as_is`: the same file; "
                "`resized`: a smaller JPEG; `raw`: RGB pixels.",
            ),
            column("note", pa.string(), "Reason for `as_is`; else null."),
            column("source_bytes", pa.int64(), "Size of the original file in bytes."),
            column("width", pa.int32(), "Pixels, in the pack."),
            column("height", pa.int32(), "Pixels, in the pack."),
        ]
    ),
    row="image in a pack",
    order="as stored in the shards",
    made_by="vit21k pack",
    may_be_null=frozenset({"digest", "note"}),
    is_by_digest=True,
)
SKIPPED = ManifestKind(
    name="skipped",
    version=1,
    schema=PROBLEMS.schema,
    row="image that is not in the pack, because it cannot be decoded",
    order="as they would be stored in the shards",
    made_by="vit21k pack",
)

KINDS = {
    kind.name: kind
    for kind in (
        DIGESTS,
        PROBLEMS,
        UNDECODABLE,
        IMAGES,
        COPIES,
        OVERLABELLED,
        CLASSES,
        TRAIN,
        VAL,
        FINGERPRINTS,
        LEAKS,
        NEAR_DUPLICATES,
        CHANGES,
        EXPANDED,
        CONFLICTS,
        PACKED,
        SKIPPED,
    )
}
"""Every kind of manifest by its name, in the order they are made."""

IMAGE_KINDS = (IMAGES, TRAIN, VAL)
"""The kinds whose rows are images with `label_ids`: what a loader, `eval` and `predict` read."""
