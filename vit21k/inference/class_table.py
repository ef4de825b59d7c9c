"""Metrics of each class -> a table in a file."""

from pathlib import Path

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
    import pandas as pd  # noqa: PLC0415 - takes a third of a second

    columns = {name: values.numpy() for name, values in table._asdict().items()}
    rows = pd.DataFrame({"wnid": classes.wnids, "name": classes.names, **columns})
    rows = rows.rename_axis("class_index").reset_index()
    with atomic_file(path) as file:
        if path.suffix == ".csv":
            rows.to_csv(file, index=False)
        else:
            rows.to_parquet(file, index=False, compression="zstd")
