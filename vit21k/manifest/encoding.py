"""How the columns of a manifest are encoded: what makes the files small, and quick to read.

No column of numbers is in BYTE_STREAM_SPLIT: DuckDB before 2.0 cannot read that.
"""

import inspect
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vit21k.manifest.kind import ManifestKind

ROW_GROUP_ROWS = 131_072

_REPETITIVE = ("wnid", "kind", "archive", "format", "num_files", "width", "height")
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
