"""Arrow files with image bytes, as `datasets` saves and caches them: images with their labels.

The values of a record batch are stored as they are, so an image is located by its offset in the
file, as a member of a tar is.

Memory: one record batch; `datasets` writes up to 1,000 rows.
Source of the format: https://arrow.apache.org/docs/format/Columnar.html, "IPC Streaming Format"
"""

from collections.abc import Iterator
from functools import partial

import pyarrow as pa

from vit21k.errors import LayoutError
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.sources.container import ByteSource, ContainerItems, LabelOptions
from vit21k.sources.rows import (
    DAMAGE,
    MEMORY,
    ArrowFile,
    DamagedError,
    RowItems,
    bytes_of,
    columns_with_images,
    flaw_from,
    names_and_labels,
    values_of,
)
from vit21k.sources.tar import SeekableSource

_FILE_MAGIC = b"ARROW1\0\0"
"""Before a stream that has an index behind it."""

_FIRST_BYTES = 1 << 24
"""Of a record batch, before one was seen: the others of a file are about as large."""

_END = b"\xff\xff\xff\xff\0\0\0\0"


def read_arrow(source: ByteSource, path: str, labels: LabelOptions) -> ContainerItems:
    """Yield the images of an Arrow file, and what is wrong with it.

    Args:
        source: The file.
        path: Of the file, relative to the root.
        labels: Where the class of an image comes from.

    Raises:
        LayoutError: Its columns are ambiguous, its labels have no names, or it is compressed.
        OSError: It cannot be read.
    """
    number = 0
    try:
        stream, schema = open_arrow(source)
        columns = columns_with_images(schema, labels, path)
        items = RowItems(columns, labels, path)
        for batch, start, body in _batches(stream, schema):
            images = bytes_of(batch[columns.image])
            values = values_of(images, partial(_offset_of, body, start, path))
            for row in zip(values, *names_and_labels(batch, columns), strict=True):
                yield items.item(number, *row)
                number += 1
    except DAMAGE as error:
        yield Problem(path, *flaw_from(error, f"after {number:,} rows: "))


def open_arrow(source: ByteSource) -> tuple[pa.NativeFile, pa.Schema]:
    """Return *source* as a stream behind its schema, and the schema.

    Raises:
        pa.ArrowException: It is no Arrow file.
        OSError: It cannot be read.
    """
    file = ArrowFile(SeekableSource(source))
    has_index = file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
    file.seek(len(_FILE_MAGIC) if has_index else 0)
    stream = pa.PythonFile(file, "r")
    return stream, pa.ipc.read_schema(stream)


def _batches(
    stream: pa.NativeFile, schema: pa.Schema
) -> Iterator[tuple[pa.RecordBatch, int, pa.Buffer]]:
    """Yield each record batch, where its body begins in the file, and its body.

    Raises:
        DamagedError: The stream ends without an end mark.
    """
    num_bytes = _FIRST_BYTES
    while True:
        with MEMORY.taken(num_bytes):
            if (message := _next_message(stream)) is None:
                return
            if message.type != "record batch":
                raise DamagedError(f"a message of type `{message.type}`, which is not read")
            body = message.body
            batch = pa.ipc.read_record_batch(message, schema)
            batch.validate(full=True)  # before anything else: wrong offsets may end the process
            yield batch, stream.tell() - body.size, body
            num_bytes = body.size


def _next_message(stream: pa.NativeFile) -> pa.Message | None:
    """Return the next message; None at the end mark."""
    try:
        return pa.ipc.read_message(stream)
    except EOFError:
        stream.seek(stream.tell() - len(_END))
        if stream.read(len(_END)) == _END:
            return None
    raise DamagedError("it ends without an end mark", ProblemKind.ARCHIVE_TRUNCATED)


def _offset_of(body: pa.Buffer, start: int, path: str, address: int) -> int:
    """Return where the byte at *address* is stored: in *body*, which is at *start* of the file."""
    if not 0 <= address - body.address <= body.size:
        raise LayoutError(
            f"`{path}` is a compressed Arrow file; its images cannot be read in place",
            hint="write its rows to Parquet: `datasets.Dataset.from_file(FILE).to_parquet(...)`",
        )
    return start + address - int(body.address)
