"""Predictions -> a Parquet file, written as they come, there when it is whole."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vit21k.atomic import atomic_file
from vit21k.inference.predict import Prediction
from vit21k.one_line import printable

ROW_GROUP_ROWS = 8192

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("class_indices", pa.list_(pa.int64())),
        ("wnids", pa.list_(pa.string())),
        ("names", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float32())),
        ("problem", pa.string()),
    ]
)
"""A row for each picture, in order; the lists run from the best class on.  A picture that could not
be read has empty lists, and a problem."""


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write *predictions* to *path*, in one step; in memory is one row group at a time.

    Raises:
        OSError: The disk is full or failing; *path* is unchanged.
    """
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(file, SCHEMA, compression="zstd") as parquet,
    ):
        waiting = (_row(prediction) for prediction in predictions)
        while rows := list(islice(waiting, ROW_GROUP_ROWS)):
            parquet.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))


def _row(prediction: Prediction) -> dict[str, object]:
    top = prediction.top
    return {
        "path": printable(prediction.path),
        "class_indices": [score.class_index for score in top],
        "wnids": [score.wnid for score in top],
        "names": [score.name for score in top],
        "probabilities": [score.probability for score in top],
        "problem": prediction.problem,
    }
