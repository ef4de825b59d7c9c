"""Metrics of each class -> a table in a file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from vit21k.atomic import atomic_file
from vit21k.errors import UsageError
from vit21k.inference.class_counts import ClassTable
from vit21k.manifest.classes import ClassList

SUFFIXES = (".parquet", ".csv")


def check_table_path(path: Path) -> None:
    """Check that *path* says which kind of table it is.

    Raises:
        UsageError: It does not.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(f"`{path}` must end in {' or '.join(SUFFIXES)}")


def write_class_table(path: Path, table: ClassTable, classes: ClassList) -> None:
    """Write a row for each class, in one step: index, wnid, name, and the fields of `ClassTable`.

    Where a class has no such metric, the cell is null.

    Raises:
        OSError: The disk is full or failing; *path* is unchanged.
    """
    columns = {
        "class_index": pa.array(range(len(classes)), pa.int64()),
        "wnid": pa.array(classes.wnids, pa.string()),
        "name": pa.array(classes.names, pa.string()),
        **{name: pa.array(v.numpy(), from_pandas=True) for name, v in table._asdict().items()},
    }
    rows = pa.table(columns)
    with atomic_file(path) as file:
        if path.suffix == ".csv":
            pyarrow.csv.write_csv(rows, file)
        else:
            pq.write_table(rows, file, compression="zstd")
