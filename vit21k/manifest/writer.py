"""Write manifests atomically; equal rows give byte-identical files."""

import base64
import inspect
import shlex
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vit21k.atomic import atomic_file
from vit21k.errors import ManifestError, UsageError
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import ChecksummedFile, Manifest, ManifestHeader, Metadata, to_metadata
from vit21k.manifest.schema import ManifestKind

ROW_GROUP_ROWS = 131_072

_REPETITIVE = (
    "wnid", "kind", "container", "storage", "source_split", "format", "num_files", "width",
    "height",
)  # fmt: skip
_INCOMPRESSIBLE = ("digest", "content_digest", "probe")
_ENCODING = {
    "path": "DELTA_BYTE_ARRAY",
    "num_bytes": "DELTA_BINARY_PACKED",  # a sixth less than plain
    "offset": "DELTA_BINARY_PACKED",
}
_LEVEL = {"path": 4}  # 5 is larger; 7 is 2 % smaller, in twice the time
_LEVEL_OF_LISTS = 2  # a quarter less than 3
_PAGE_BYTES = 1 << 24
# A row group in one page takes 1 % less; older releases end a page after 20,000 rows.
_LONG_PAGES = (
    {"max_rows_per_page": ROW_GROUP_ROWS}
    if "max_rows_per_page" in inspect.signature(pq.ParquetWriter).parameters
    else {}
)


def encoding(kind: ManifestKind) -> dict[str, Any]:
    """Return the arguments of `pyarrow.parquet.ParquetWriter` for a manifest of this *kind*."""
    names = kind.schema.names
    lists = {f"{f.name}.list.element" for f in kind.schema if pa.types.is_list(f.type)}
    columns = {f.name for f in kind.schema if not pa.types.is_list(f.type)} | lists
    return {
        "compression": {c: "none" if c in _INCOMPRESSIBLE else "zstd" for c in columns},
        "compression_level": {
            column: _LEVEL_OF_LISTS if column in lists else _LEVEL.get(column, 3)
            for column in columns.difference(_INCOMPRESSIBLE)
        },
        "data_page_size": _PAGE_BYTES,
        "write_page_checksum": True,
        "write_statistics": False,
        "store_schema": True,
        "use_dictionary": [name for name in _REPETITIVE if name in names],
        "column_encoding": {name: _ENCODING[name] for name in names if name in _ENCODING} or None,
        **_LONG_PAGES,
    }


_SPREAD = np.uint64(0x9E37_79B9_7F4A_7C15)


class DistinctDigests:
    """Finds repeated digests; nulls do not count."""

    def __init__(self) -> None:
        self._keys: list[NDArray[np.uint64]] = []

    def add(self, digests: pa.ChunkedArray) -> None:
        """Add the digests of more rows."""
        self._keys += [_keys(chunk.drop_null()) for chunk in digests.chunks]

    def suspects(self) -> NDArray[np.uint64]:
        """Return the 64-bit keys that occur more than once."""
        keys = np.concatenate([*self._keys, np.empty(0, dtype=np.uint64)])
        keys.sort()
        return np.unique(keys[1:][keys[1:] == keys[:-1]])


def refuse_repeated(manifest: Manifest) -> None:
    """Refuse a manifest with two rows of the same digest.

    Raises:
        ManifestError: There are two.
    """
    found = DistinctDigests()
    for rows in manifest.batches(["digest"]):
        found.add(rows["digest"])
    suspects = found.suspects()
    if len(suspects):
        digests = (rows["digest"] for rows in manifest.batches(["digest"]))
        compare_suspects(digests, suspects, f"`{manifest.path}`")


def compare_suspects(
    digests: Iterable[pa.ChunkedArray], suspects: NDArray[np.uint64], name: str
) -> None:
    """Compare the complete *digests* whose keys are among *suspects*.

    Raises:
        ManifestError: Two are equal.
    """
    seen: set[bytes] = set()
    for column in digests:
        for chunk in column.chunks:
            some = chunk.drop_null()
            for digest in some.filter(pa.array(np.isin(_keys(some), suspects))).to_pylist():
                if digest in seen:
                    raise ManifestError(
                        f"two rows of {name} have the digest {digest.hex()}: it must be unique",
                        hint="rerun the commands from `vit21k relabel` on: earlier versions of "
                        "`labels apply` split merges",
                    )
                seen.add(digest)


def _keys(digests: pa.FixedSizeBinaryArray) -> NDArray[np.uint64]:
    numbers = np.frombuffer(digests.buffers()[1], dtype="<u8").reshape(-1, 2)
    halves = numbers[digests.offset : digests.offset + len(digests)]
    return halves[:, 0] ^ halves[:, 1] * _SPREAD


class ManifestWriter:
    """Writes rows in order, in row groups of a fixed size.

    The file does not depend on how the rows are divided into calls.  Where digests must be unique,
    repeated ones are refused.

    Attributes:
        header: Metadata; may be replaced until the end, for values that are known last.
        num_rows: Number of rows so far.

    Performance: a row group is encoded in a thread while the rows of the next one are gathered.
    """

    def __init__(
        self,
        kind: ManifestKind,
        header: ManifestHeader,
        parquet: pq.ParquetWriter,
        thread: ThreadPoolExecutor,
        row_group_rows: int | None = None,
        digests: DistinctDigests | None = None,
    ) -> None:
        self.header = header
        self._digests = digests
        self._row_group_rows = row_group_rows or ROW_GROUP_ROWS
        self._kind = kind
        self._parquet = parquet
        self._thread = thread
        self._encoding: Future[None] | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._num_waiting = 0
        self.num_rows = 0

    def write(self, rows: pa.Table | pa.RecordBatch) -> None:
        """Append *rows*; nullable columns may be missing.

        Raises:
            ManifestError: A column is missing, has another type, or holds a null.
        """
        rows = _fit(rows, self._kind)
        if self._digests:
            self._digests.add(rows["digest"])
        self.num_rows += rows.num_rows
        self._waiting += rows.to_batches()
        self._num_waiting += rows.num_rows
        while self._num_waiting >= self._row_group_rows:
            self._flush(self._row_group_rows)

    def finish(self) -> None:
        """Write the remaining rows."""
        if self._num_waiting or not self.num_rows:
            self._flush(self._num_waiting)
        self._encoded()

    def _flush(self, num_rows: int) -> None:
        rows = pa.Table.from_batches(self._waiting, schema=self._kind.schema)
        row_group = rows.slice(0, num_rows).combine_chunks()
        self._waiting = rows.slice(num_rows).to_batches()
        self._num_waiting -= num_rows
        self._encoded()
        self._encoding = self._thread.submit(
            self._parquet.write_table, row_group, row_group_size=self._row_group_rows
        )

    def _encoded(self) -> None:
        """Wait for the last row group; raise its exception, if any."""
        if self._encoding:
            self._encoding.result()


@contextmanager
def manifest_writer(
    kind: ManifestKind,
    folder: Path,
    header: ManifestHeader,
    classes: ClassList | None = None,
    *,
    row_group_rows: int | None = None,
    is_distinct: bool = False,
) -> Iterator[ManifestWriter]:
    """Yield a writer; the manifest appears in *folder* when the block ends without an exception.

    Args:
        kind: Kind of manifest.
        folder: Its folder; created if missing.
        header: Metadata.
        classes: The class list of its `label_ids`; its wnids are stored in the file.
        row_group_rows: Rows of a row group; default: `ROW_GROUP_ROWS`.
        is_distinct: The caller guarantees that digests are unique.

    Raises:
        ManifestError: Two rows have the same digest, where digests must be unique; the old manifest
            is unchanged.
        OSError: The disk is full or failing; the old manifest is unchanged.
    """
    schema = kind.schema.with_metadata(to_metadata(kind, header, classes))
    digests = DistinctDigests() if kind.is_by_digest and not is_distinct else None
    with atomic_file(folder / kind.file_name) as file:
        output = ChecksummedFile(file)
        parquet = pq.ParquetWriter(pa.PythonFile(output, "w"), schema, **encoding(kind))
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="encode") as thread:
                writer = ManifestWriter(kind, header, parquet, thread, row_group_rows, digests)
                yield writer
                writer.finish()
            if writer.header != header:
                _replace_metadata(parquet, schema, to_metadata(kind, writer.header, classes))
            output.finish(parquet)
        except BaseException:
            output.abandon(parquet)
            raise
        if digests and len(suspects := digests.suspects()):
            file.flush()
            written = pq.ParquetFile(file.name).iter_batches(columns=["digest"])
            columns = (pa.chunked_array([rows["digest"]]) for rows in written)
            compare_suspects(columns, suspects, f"`{folder / kind.file_name}`")


def _replace_metadata(parquet: pq.ParquetWriter, schema: pa.Schema, metadata: Metadata) -> None:
    """Replace the metadata of *schema*, with which *parquet* was opened.

    A key that is added again replaces the earlier one.  Arrow reads metadata from a copy of the
    schema, which has its own key.
    """
    copy = base64.b64encode(schema.with_metadata(metadata).serialize())
    parquet.add_key_value_metadata({**metadata, b"ARROW:schema": copy})


def write_manifest(
    rows: pa.Table,
    kind: ManifestKind,
    folder: Path,
    header: ManifestHeader,
    classes: ClassList | None = None,
) -> None:
    """Write *rows* as the *kind* manifest of *folder*, replacing an existing one atomically."""
    with manifest_writer(kind, folder, header, classes) as writer:
        writer.write(rows)


def _fit(rows: pa.Table | pa.RecordBatch, kind: ManifestKind) -> pa.Table:
    if isinstance(rows, pa.RecordBatch):
        rows = pa.Table.from_batches([rows])
    for column in kind.schema:
        if column.name in kind.may_be_null and column.name not in rows.schema.names:
            rows = rows.append_column(column, pa.nulls(rows.num_rows, column.type))
    try:
        rows = rows.select(kind.schema.names)
        if not rows.schema.equals(kind.schema, check_metadata=True):  # to cast takes an import
            rows = rows.cast(kind.schema)
    except (KeyError, ValueError, pa.ArrowInvalid) as error:
        raise ManifestError(f"rows do not fit the {kind.name} manifest: {error}") from error
    for name in kind.schema.names:
        if name not in kind.may_be_null and rows[name].null_count:
            raise ManifestError(f"column `{name}` of the {kind.name} manifest must not hold nulls")
    return rows


def _beside(root: str, name: str) -> str:
    return shlex.quote(str(Path(root).resolve().parent / (name or "manifests")))


def refuse_inside(folder: Path, root: str, *, option: str = "--manifests") -> None:
    """Refuse to write into *folder* if it is below the image root.

    Args:
        folder: Output folder of a command.
        root: An absolute path, or "" if the image root is unknown.
        option: The option that names *folder*.

    Raises:
        UsageError: *folder* is below *root*.
    """
    if root and folder.resolve().is_relative_to(Path(root).resolve()):
        raise UsageError(
            f"`{folder}` is inside the image root `{root}`, which is never written to",
            hint=f"name a folder outside it, for example `{option} {_beside(root, folder.name)}`",
        )
