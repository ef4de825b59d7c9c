"""Sources of Parquet and Arrow files: which are read, and what their columns mean."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

import pyarrow as pa

from vit21k.errors import LayoutError
from vit21k.sources.arrow import open_arrow, read_arrow
from vit21k.sources.columns import COLUMN, Columns, columns_of, holds_images, read_card
from vit21k.sources.container import ByteSource, ContainerItems, LabelOptions, SourceTree
from vit21k.sources.parquet import OpenParquet, read_parquet
from vit21k.sources.rows import DAMAGE, flaw_from

_ARROW = ".arrow"
_MAX_CARD_BYTES = 1 << 24


def read_table(source: ByteSource, path: str, labels: LabelOptions) -> ContainerItems:
    """Yield the images of a Parquet or Arrow file; see `read_parquet`."""
    is_arrow = path.lower().endswith(_ARROW)
    return read_arrow(source, path, labels) if is_arrow else read_parquet(source, path, labels)


def hold_images(tree: SourceTree, paths: Sequence[str]) -> bool | None:
    """Return whether one of *paths* may hold images; None if all of them are damaged.

    Raises:
        OSError: One cannot be read.
    """
    schemas = [_schema(tree, path) for path in paths]
    if any(map(holds_images, filter(None, schemas))):
        return True
    return None if paths and not any(schemas) else False


def detect_columns(tree: SourceTree, paths: Sequence[str], labels: LabelOptions) -> LabelOptions:
    """Return which columns of *paths* hold images and labels, and what the classes are called.

    Files that are damaged, or hold no images while others do, do not count.

    Raises:
        LayoutError: It is not clear, or differs from file to file.
        OSError: One cannot be read.
    """
    schemas = {path: schema for path in paths if (schema := _schema(tree, path))}
    with_images = {path: schema for path, schema in schemas.items() if holds_images(schema)}
    first: tuple[str, Columns] | None = None
    for path, schema in (with_images or schemas).items():
        columns = columns_of(schema, labels, path, read_card(path, partial(_read_card, tree)))
        first = first or (path, columns)
        if _meaning(columns) != _meaning(first[1]):
            raise LayoutError(
                f"{_difference(first[1], columns)} in `{first[0]}` and in `{path}`: these are "
                "files of different datasets, or of several configurations of one",
                hint="hash each of them by itself: give its folder",
            )
    if first is None:
        return labels
    columns = first[1]
    label_from = labels.label_from if columns.label is None else COLUMN + columns.label
    return replace(
        labels,
        label_from=label_from,
        class_names=columns.class_names,
        image_column=columns.image,
        is_detected=labels.label_from is None,
    )


def _read_card(tree: SourceTree, path: str) -> str | None:
    try:
        with closing(tree.open(path)) as file:
            return file.read(_MAX_CARD_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return None


def _schema(tree: SourceTree, path: str) -> pa.Schema | None:
    """Return the columns of a file; None if it is damaged, which `read_table` lists."""
    with closing(tree.open(path)) as file:
        try:
            is_arrow = path.lower().endswith(_ARROW)
            return open_arrow(file)[1] if is_arrow else OpenParquet(file).schema
        except DAMAGE as error:
            flaw_from(error)  # raises what is no damage
            return None


def _meaning(columns: Columns) -> tuple[object, ...]:
    """Return what must not differ between files; how images are stored may."""
    return columns.image, columns.label, columns.class_names


def _difference(one: Columns, other: Columns) -> str:
    if one.class_names != other.class_names:
        return "the class names differ"
    return "the columns of images and labels differ"
