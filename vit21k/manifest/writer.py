"""Write manifests: rows in order, in one step, the same bytes for the same rows.

Writing is atomic, and the bytes depend on the rows and the header alone (no clock, no host name),
so the same inputs give the same file and `sha256sum` can compare runs.
"""

import base64
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vit21k.atomic import atomic_file
from vit21k.errors import ManifestError
from vit21k.manifest.classes import ClassList
from vit21k.manifest.distinct import DistinctDigests, compare_suspects
from vit21k.manifest.encoding import ROW_GROUP_ROWS, encoding
from vit21k.manifest.header import Header, Metadata, to_metadata
from vit21k.manifest.integrity import SealingFile
from vit21k.manifest.kind import ManifestKind


class ManifestWriter:
    """Takes rows in order and writes them in row groups of one fixed size.

    How the rows arrive (in how many pieces) does not change the file.  Where a row is one digest,
    two rows with the same one are refused.

    Attributes:
        header: What the manifest says of itself; may be replaced until it is finished, for what is
            known at the end only.
        num_rows: How many rows it has been given.

    Performance: a row group is encoded in a thread while the rows of the next one are gathered.
    """

    def __init__(
        self,
        kind: ManifestKind,
        header: Header,
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
        """Append *rows*; a column that may be null need not be there.

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
        """Write what is still waiting."""
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
        """Wait for the last row group; raise what writing it has raised."""
        if self._encoding:
            self._encoding.result()


@contextmanager
def manifest_writer(
    kind: ManifestKind,
    folder: Path,
    header: Header,
    classes: ClassList | None = None,
    *,
    row_group_rows: int | None = None,
    is_distinct: bool = False,
) -> Iterator[ManifestWriter]:
    """Yield a writer; the manifest appears in *folder* when the block ends without an exception.

    Args:
        kind: Which manifest.
        folder: Where; made if need be.
        header: What it says of itself.
        classes: The list that its `label_ids` index; its wnids travel in the file.
        row_group_rows: What a reader holds at a time; default: `ROW_GROUP_ROWS`.
        is_distinct: Where a row is one digest: the caller has compared all digests already, or
            takes each row at most once from a manifest in which they were compared.

    Raises:
        ManifestError: Two rows have the same digest, where a row is one; the old manifest is
            unchanged.
        OSError: The disk is full or failing; the old manifest is unchanged.
    """
    schema = kind.schema.with_metadata(to_metadata(kind, header, classes))
    digests = DistinctDigests() if kind.is_by_digest and not is_distinct else None
    with atomic_file(folder / kind.file_name) as file:
        sealing = SealingFile(file)
        parquet = pq.ParquetWriter(pa.PythonFile(sealing, "w"), schema, **encoding(kind))
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="encode") as thread:
                writer = ManifestWriter(kind, header, parquet, thread, row_group_rows, digests)
                yield writer
                writer.finish()
            if writer.header != header:
                _replace_metadata(parquet, schema, to_metadata(kind, writer.header, classes))
            sealing.seal(parquet)
        except BaseException:
            sealing.abandon(parquet)
            raise
        if digests and len(suspects := digests.suspects()):
            file.flush()
            written = pq.ParquetFile(file.name).iter_batches(columns=["digest"])
            columns = (pa.chunked_array([rows["digest"]]) for rows in written)
            compare_suspects(columns, suspects, f"`{folder / kind.file_name}`")


def _replace_metadata(parquet: pq.ParquetWriter, schema: pa.Schema, metadata: Metadata) -> None:
    """Put *metadata* in place of that of *schema*, with which *parquet* was opened.

    A key that is added again replaces the one before.  Arrow's readers take it from a copy of the
    schema, which is a key of its own.
    """
    copy = base64.b64encode(schema.with_metadata(metadata).serialize())
    parquet.add_key_value_metadata({**metadata, b"ARROW:schema": copy})


def write_manifest(
    rows: pa.Table,
    kind: ManifestKind,
    folder: Path,
    header: Header,
    classes: ClassList | None = None,
) -> None:
    """Write *rows* as the *kind* manifest of *folder*, replacing what is there in one step."""
    with manifest_writer(kind, folder, header, classes) as writer:
        writer.write(rows)


def _fit(rows: pa.Table | pa.RecordBatch, kind: ManifestKind) -> pa.Table:
    if isinstance(rows, pa.RecordBatch):
        rows = pa.Table.from_batches([rows])
    for column in kind.schema:
        if column.name in kind.may_be_null and column.name not in rows.schema.names:
            rows = rows.append_column(column, pa.nulls(rows.num_rows, column.type))
    try:
        rows = rows.select(kind.schema.names).cast(kind.schema)
    except (KeyError, ValueError, pa.ArrowInvalid) as error:
        raise ManifestError(f"rows do not fit the {kind.name} manifest: {error}") from error
    for name in kind.schema.names:
        if name not in kind.may_be_null and rows[name].null_count:
            raise ManifestError(f"column `{name}` of the {kind.name} manifest must not hold nulls")
    return rows
