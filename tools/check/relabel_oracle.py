"""What `relabel`, `make-val`, `import-md5sum` and `export-lists` should have written, row by row.

Nothing here comes from `vit21k.prep`: rows are sorted whole instead of being filtered, and the
files are read with plain pyarrow.

Legend: N files, P images, L labels of images.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


class Expected(NamedTuple):
    """The images, in the order of `images.parquet`.

    Attributes:
        first_row_P: The row of `digests.parquet` of each image's first file.
        num_files_P: How many files it has.
        starts_P: Where its labels begin in *label_L*.
        label_L: Labels, ascending for each image.
    """

    first_row_P: NDArray[np.int64]
    num_files_P: NDArray[np.int64]
    starts_P: NDArray[np.int64]
    label_L: NDArray[np.int64]

    @property
    def num_labels_P(self) -> NDArray[np.int64]:
        """How many labels each image has."""
        return np.diff(self.starts_P, append=len(self.label_L))


def expected(folder: Path) -> Expected:
    """Merge the files of `digests.parquet` in *folder* by sorting all of them."""
    table = pq.read_table(folder / "digests.parquet", columns=["digest", "wnid"])
    names = table["wnid"].combine_chunks().dictionary_encode()
    rank = np.argsort(np.argsort(np.array(names.dictionary.to_pylist())))
    label_N = rank[names.indices.to_numpy()]
    halves_N2 = as_halves(table["digest"])
    row_N = np.lexsort((label_N, halves_N2[:, 1], halves_N2[:, 0]))
    is_new = np.ones(len(row_N), dtype=bool)
    is_new[1:] = (halves_N2[row_N[1:]] != halves_N2[row_N[:-1]]).any(axis=1)
    is_new_label = is_new.copy()
    is_new_label[1:] |= label_N[row_N[1:]] != label_N[row_N[:-1]]

    starts = np.flatnonzero(is_new)
    first_row = np.minimum.reduceat(row_N, starts)
    num_files = np.diff(starts, append=len(row_N))
    first_label = label_N[row_N[starts]]
    order = np.lexsort((first_row, first_label))
    num_labels = np.add.reduceat(is_new_label.astype(np.int64), starts)
    labels = label_N[row_N[is_new_label]]
    begins = np.cumsum(num_labels) - num_labels
    num_labels_P = num_labels[order]
    starts_P = np.cumsum(num_labels_P) - num_labels_P
    within = np.arange(len(labels)) - np.repeat(starts_P, num_labels_P)
    label_L = labels[np.repeat(begins[order], num_labels_P) + within]
    return Expected(first_row[order], num_files[order], starts_P, label_L)


def as_halves(digests: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Return digests as two numbers each."""
    whole = b"".join(chunk.cast(pa.binary()).buffers()[2].to_pybytes() for chunk in digests.chunks)
    return np.frombuffer(whole, dtype="<u8").reshape(-1, 2)


def _require(what: str, is_equal: bool) -> None:  # noqa: FBT001, RUF100
    if not is_equal:
        raise ValueError(f"{what} differ from the oracle's")


def check_relabel(folder: Path, wanted: Expected) -> int:
    """Compare `images.parquet` with *wanted* on every row; return how many rows."""
    names = ["digest", "path", "label_ids", "num_files"]
    images = pq.read_table(folder / "images.parquet", columns=names)
    files = pq.read_table(folder / "digests.parquet", columns=["digest", "path"])
    files = files.take(pa.array(wanted.first_row_P))
    labels = images["label_ids"].combine_chunks()
    _require("digests", images["digest"].equals(files["digest"]))
    _require("paths", images["path"].equals(files["path"]))
    _require("num_files", np.array_equal(images["num_files"].to_numpy(), wanted.num_files_P))
    _require("labels", np.array_equal(labels.flatten().to_numpy(), wanted.label_L))
    _require("numbers of labels", np.array_equal(np.diff(labels.offsets), wanted.num_labels_P))
    return int(images.num_rows)


def in_val(wanted: Expected, per_class: int) -> NDArray[np.bool_]:
    """Return which images are the first *per_class* with one label of their class."""
    indices = np.flatnonzero(wanted.num_labels_P == 1)
    label = wanted.label_L[wanted.starts_P[indices]]
    rank = np.arange(len(label)) - np.searchsorted(label, label)
    mask = np.zeros(len(wanted.starts_P), dtype=bool)
    mask[indices[rank < per_class]] = True
    return mask


def check_make_val(folder: Path, wanted: Expected, per_class: int) -> int:
    """Compare `train.parquet` and `val.parquet` of a dummy split; return how many rows."""
    images = pq.read_table(folder / "images.parquet", columns=["digest", "path", "label_ids"])
    mask = pa.array(in_val(wanted, per_class))
    num_rows = 0
    for name, rows in (("train", images), ("val", images.filter(mask))):
        found = pq.read_table(folder / f"{name}.parquet", columns=rows.schema.names)
        _require(name, found.equals(rows.replace_schema_metadata(found.schema.metadata)))
        num_rows += found.num_rows
    return num_rows


def check_import(made: Path, imported: Path) -> int:
    """Compare what was imported with what the md5sum file was made from."""
    names = ["path", "wnid", "digest"]
    wanted, found = (pq.read_table(f / "digests.parquet", columns=names) for f in (made, imported))
    for name in names:
        _require(name, found[name].equals(wanted[name]))
    return int(found.num_rows)


def check_lists(folder: Path, lists: Path, wanted: Expected, per_class: int) -> int:
    """Compare the text lists line by line; return how many lines."""
    paths = pq.read_table(folder / "digests.parquet", columns=["path"])["path"]
    lines = list(_lines(paths.take(pa.array(wanted.first_row_P)).to_pylist(), wanted))
    num_lines = _check_lines(lists / "image_all_list.txt", iter(lines))
    indices = np.flatnonzero(in_val(wanted, per_class)).tolist()
    chosen = (lines[place] for place in indices)
    return num_lines + _check_lines(lists / "image_dummy_val_list.txt", chosen)


def _lines(paths: list[str], wanted: Expected) -> Iterator[str]:
    labels = iter(wanted.label_L.tolist())
    for path, num_labels in zip(paths, wanted.num_labels_P.tolist(), strict=True):
        yield f"{path} {','.join(map(str, islice(labels, num_labels)))}\n"


def _check_lines(path: Path, wanted: Iterator[str]) -> int:
    num_lines = 0
    with path.open(encoding="utf-8") as file:
        for found, line in zip(file, wanted, strict=True):
            _require(f"line {num_lines + 1} of {path.name}", found == line)
            num_lines += 1
    return num_lines


def with_duckdb(folder: Path) -> pa.Table:
    """Return digest, first row and labels of every image, as DuckDB merges them."""
    import duckdb  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

    path = folder / "digests.parquet"
    query = f"""
        WITH names AS (SELECT wnid, row_number() OVER (ORDER BY wnid) - 1 AS label
                       FROM (SELECT DISTINCT wnid FROM '{path}'))
        SELECT digest, min(file_row_number) AS first_row, list_sort(list_distinct(list(label)))
               AS label_ids
        FROM read_parquet('{path}', file_row_number = true) JOIN names USING (wnid)
        GROUP BY digest ORDER BY label_ids[1], first_row
    """  # noqa: S608  (a path of our own)
    if (images := duckdb.sql(query)) is None:
        raise ValueError("DuckDB gives no rows")
    return images.to_arrow_table()


def with_polars(folder: Path) -> pa.Table:
    """Return the same as Polars merges them."""
    import polars as pl  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415

    files = pl.scan_parquet(folder / "digests.parquet").select("digest", "wnid")
    label = pl.col("wnid").rank("dense").cast(pl.Int64) - 1
    images = (
        files.with_row_index("first_row")
        .with_columns(label.alias("label"))
        .group_by("digest")
        .agg(pl.col("first_row").min(), pl.col("label").unique().sort().alias("label_ids"))
        .sort(pl.col("label_ids").list.first(), "first_row")
    )
    return images.collect().to_arrow()


PEERS: dict[str, Callable[[Path], pa.Table]] = {"duckdb": with_duckdb, "polars": with_polars}


def check_peer(name: str, folder: Path, wanted: Expected) -> int:
    """Compare what the engine *name* finds with *wanted* on every row."""
    found = PEERS[name](folder)
    labels = found["label_ids"].combine_chunks()
    _require("first rows", np.array_equal(found["first_row"].to_numpy(), wanted.first_row_P))
    _require("labels", np.array_equal(labels.flatten().to_numpy(), wanted.label_L))
    return int(found.num_rows)
