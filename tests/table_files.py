"""Parquet and Arrow files for tests: images that are a few bytes, and their labels."""

import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def content(seed: int) -> bytes:
    """Return bytes that begin like a JPEG, of a length of their own."""
    return b"\xff\xd8\xff" + bytes([seed % 256]) * (20 + 7 * seed)


def table(
    labels: Sequence[Any] | pa.Array,
    *,
    names: Sequence[str] | None = None,
    images: Sequence[dict[str, Any] | None] | None = None,
    label: str = "label",
) -> pa.Table:
    """Return a table as `datasets` writes it, with a `ClassLabel` of *names* if there are any."""
    if images is None:
        images = [{"bytes": content(i), "path": f"x_{i}.JPEG"} for i in range(len(labels))]
    columns = {"image": pa.array(images, IMAGE), label: pa.array(labels)}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if names is not None:
        features[label] = {"names": list(names), "_type": "ClassLabel"}
        if pa.types.is_list(pa.array(labels).type):
            features[label] = {"feature": features[label], "_type": "List"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table(columns).replace_schema_metadata(metadata)


def parquet_of(rows: pa.Table, **options: Any) -> io.BytesIO:
    """Return *rows* as a Parquet file."""
    file = io.BytesIO()
    pq.write_table(rows, file, **options)
    return named(file)


def arrow_of(rows: pa.Table, *, batch_rows: int | None = None, **options: Any) -> io.BytesIO:
    """Return *rows* as an Arrow file, as `Dataset.save_to_disk` writes it."""
    file = io.BytesIO()
    with pa.ipc.new_stream(file, rows.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(rows, max_chunksize=batch_rows)
    return named(file)


class _NamedBytes(io.BytesIO):
    name = "in memory"


def named(file: io.BytesIO) -> io.BytesIO:
    """Return the content of *file* as a file with a name."""
    return _NamedBytes(file.getvalue())
