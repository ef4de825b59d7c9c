"""Schema of a Parquet or Arrow file -> which column holds images, which labels, the class names.

Class names are looked for in the schema's own metadata (key `huggingface`), then in the dataset
card next to the file or in a folder above it: `dataset_info.json`, `dataset_infos.json`,
`README.md`, as the `datasets` library and the Hugging Face hub write them.

What is ambiguous is refused.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa

from vit21k.errors import LayoutError
from vit21k.sources.container import LabelOptions

LABEL_COLUMNS = frozenset(
    {
        "label", "labels", "class", "classes", "category", "target", "wnid", "synset",
        "class_name", "label_name", "class_id", "label_id", "fine_label",
    }
)  # fmt: skip
"""Names of columns of integers or strings that hold labels, where no metadata says so."""

COLUMN = "column:"
"""Value of `--label-from`, before the name of a column."""

_FROM_PATH = ("folder", "parent", "top")


class Columns(NamedTuple):
    """Where a file holds images and labels.

    Attributes:
        image: Column of the images.
        is_struct: It is a struct with a field `bytes`, else binary.
        has_path: That has a field `path`, too.
        label: Column of the labels; None: the class is in the path of the file.
        class_names: In the order of the labels; None: labels are names, or have none.
        is_declared: The file or its dataset card names the classes.
    """

    image: str
    is_struct: bool
    has_path: bool
    label: str | None
    class_names: tuple[str, ...] | None
    is_declared: bool

    @property
    def leaf(self) -> str:
        """Name of the column of bytes, as Parquet has it."""
        return f"{self.image}.bytes" if self.is_struct else self.image

    @property
    def others(self) -> list[str]:
        """Names of the other columns that are read: the images' paths and the labels."""
        paths = [f"{self.image}.path"] if self.has_path else []
        return paths if self.label is None else [*paths, self.label]


@dataclass(frozen=True)
class Features:
    """Features of columns in Hugging Face metadata.

    Attributes:
        images: Columns of type `Image`.
        classes: Class names by column, for `ClassLabel` and lists of it.
    """

    images: frozenset[str] = frozenset()
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


NO_FEATURES = Features()


def columns_of(
    schema: pa.Schema, labels: LabelOptions, path: str, card: Features = NO_FEATURES
) -> Columns:
    """Return which columns of *schema* hold images and labels, and the names of the classes.

    Args:
        schema: Of the file.
        labels: What the user says.
        path: Of the file, for messages.
        card: What the dataset card says; the metadata of *schema* win.

    Raises:
        LayoutError: There are no such columns, or several; or the class list does not fit.
    """
    own = _features_of(schema)
    features = Features(own.images or card.images, {**card.classes, **own.classes})
    image = _image_column(schema, features, labels.image_column, path)
    label = _label_column(schema, features, labels.label_from, path)
    dtype = schema.field(image).type
    is_struct = pa.types.is_struct(dtype)
    has_path = is_struct and dtype.get_field_index("path") >= 0
    names = None
    if label is not None and not is_text(_value_type(schema.field(label).type)):
        names = features.classes.get(label)
    chosen = labels.class_names if names is None else _fitting(names, labels.class_names, path)
    return Columns(image, is_struct, has_path, label, chosen, names is not None)


def _fitting(
    declared: tuple[str, ...], given: tuple[str, ...] | None, path: str
) -> tuple[str, ...]:
    """Return the names of classes that a file has *declared*, or those *given* for them."""
    names = _distinct(declared)
    if given is None or set(names) <= set(given):
        return names
    if len(names) == len(given) and set(declared).isdisjoint(given):
        return given
    raise LayoutError(
        f"`{path}` names {len(names):,} classes, the class list {len(given):,}, and they have "
        f"{len(set(names) & set(given)):,} in common",
        hint="give a list with all of these classes, or with other names for them in the same "
        "order; without `--classes` those in the file are used",
    )


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return *names* with the class index behind those that several classes have."""
    counts = Counter(names)
    if counts.total() == len(counts):
        return names
    return tuple(
        f"{name} ({index})" if counts[name] > 1 else name for index, name in enumerate(names)
    )


def holds_images(schema: pa.Schema) -> bool:
    """Return whether *schema* may be that of images: it has a column of bytes, or of such structs.

    Manifests of vit21k are none.
    """
    return b"vit21k" not in (schema.metadata or {}) and bool(_holders(schema))


def _image_column(schema: pa.Schema, features: Features, wanted: str | None, path: str) -> str:
    holders = _holders(schema)
    if wanted is not None:
        if wanted in holders:
            return wanted
        raise LayoutError(
            f"`{path}` has no column `{wanted}` of images",
            hint=f"columns that may hold images: {_listed(holders)}",
        )
    structs = [name for name in holders if pa.types.is_struct(schema.field(name).type)]
    found = [name for name in holders if name in features.images] or structs or holders
    if len(found) > 1:
        raise LayoutError(
            f"`{path}` has several columns that may hold images: {_listed(found)}",
            hint=f"name one: `--image-column {found[0]}`",
        )
    if not found:
        raise LayoutError(
            f"`{path}` has no column with the bytes of images",
            hint=f"its columns are {_listed(schema.names)}; a binary column can hold images, or "
            "one of structs with a binary field `bytes`",
        )
    return found[0]


def _holders(schema: pa.Schema) -> list[str]:
    """Return the columns that may hold images."""
    return [field.name for field in schema if _is_binary(_type_of_bytes(field.type))]


def _type_of_bytes(dtype: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(dtype) and dtype.get_field_index("bytes") >= 0:
        return dtype.field("bytes").type
    return dtype


def _is_binary(dtype: pa.DataType) -> bool:
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(is_kind(dtype) for is_kind in kinds)


def _label_column(
    schema: pa.Schema, features: Features, label_from: str | None, path: str
) -> str | None:
    """Return the column of the labels; None if the class is in the path of the file."""
    if label_from in _FROM_PATH:
        return None
    if label_from is not None:
        return _named_column(schema, label_from, path)
    candidates = [name for name in schema.names if _may_be_labels(schema.field(name).type)]
    by_feature = [name for name in candidates if name in features.classes]
    found: list[str] = by_feature or [n for n in candidates if n.lower() in LABEL_COLUMNS]
    if len(found) == 1:
        return found[0]
    what = f"several columns of labels: {_listed(found)}" if found else "no column of labels"
    hint = (
        f"its columns are {_listed(schema.names)}; `--label-from folder` takes the name of the "
        "file for the class of its images, `--label-from parent` that of its folder"
    )
    if shown := found or candidates:
        hint = f"name one: `--label-from {COLUMN}{shown[0]}`"
    raise LayoutError(f"`{path}` has {what}", hint=hint)


def _named_column(schema: pa.Schema, label_from: str, path: str) -> str:
    name: str = label_from.removeprefix(COLUMN)
    if not label_from.startswith(COLUMN):
        raise LayoutError(
            f"`--label-from {label_from}` is for other layouts than Parquet (`{path}`)",
            hint=f"use `{COLUMN}NAME`, `folder`, `parent` or `top`",
        )
    if name in schema.names and _may_be_labels(schema.field(name).type):
        return name
    what = f"is of type {schema.field(name).type}" if name in schema.names else "is not there"
    names = [name for name in schema.names if _may_be_labels(schema.field(name).type)]
    raise LayoutError(
        f"`{path}`: the column of labels, `{name}`, {what}",
        hint=f"columns of integers, strings or lists of them: {_listed(names)}",
    )


def _value_type(dtype: pa.DataType) -> pa.DataType:
    """Return the type of the labels in a column: of the items of lists, and of dictionaries."""
    types = pa.types
    if types.is_list(dtype) or types.is_large_list(dtype) or types.is_fixed_size_list(dtype):
        dtype = dtype.value_type
    return dtype.value_type if types.is_dictionary(dtype) else dtype


def is_text(dtype: pa.DataType) -> bool:
    """Return whether values of *dtype* are strings."""
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(is_kind(dtype) for is_kind in kinds)


def _may_be_labels(dtype: pa.DataType) -> bool:
    """Return whether a column may hold labels; floating-point ones are pandas' for missing ones."""
    value_type = _value_type(dtype)
    is_number = pa.types.is_integer(value_type) or pa.types.is_floating(dtype)
    return is_text(value_type) or is_number


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def _features_of(schema: pa.Schema) -> Features:
    """Return what the metadata of *schema* say; nothing if they are malformed."""
    try:
        stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return _features(stored["info"]["features"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return NO_FEATURES


def _features(fields: Any) -> Features:
    """Return the features that a mapping (JSON) or a list (YAML of a dataset card) describes."""
    if isinstance(fields, list):
        fields = {entry["name"]: entry for entry in fields}
    images = (name for name, each in fields.items() if _is_image(each))
    classes = {name: names for name, each in fields.items() if (names := _names_in(each))}
    return Features(frozenset(images), classes)


def _is_image(feature: Any) -> bool:
    is_dict = isinstance(feature, dict)
    return is_dict and (feature.get("_type") == "Image" or feature.get("dtype") == "image")


def _names_in(feature: Any) -> tuple[str, ...] | None:
    """Return the class names of a feature, or of the items of a list; None if it has none."""
    if isinstance(feature, list) and len(feature) == 1:
        return _names_in(feature[0])
    if not isinstance(feature, dict):
        return None
    label = feature if feature.get("_type") == "ClassLabel" else feature.get("class_label")
    if label is None:
        inner = (_names_in(feature.get(key)) for key in ("feature", "sequence", "list", "dtype"))
        return next((names for names in inner if names), None)
    names = label["names"]
    if isinstance(names, dict):
        by_index = {int(index): name for index, name in names.items()}
        names = [by_index[index] for index in range(len(by_index))]
    if not all(isinstance(name, str) for name in names):
        raise TypeError("a class name is no text")
    return tuple(names)


ReadText = Callable[[str], str | None]
"""Returns the text of a small file, by its path relative to the root; None if there is none."""


def read_card(path: str, read: ReadText) -> Features:
    """Return the features of the columns of a file in the nearest dataset card.

    Args:
        path: Of the file, relative to the root.
        read: Reads a card.
    """
    parents = PurePosixPath(path).parents
    for folder in parents:
        for name, parse in _CARDS.items():
            text = read(str(folder / name))
            configs = _parsed(text, parse) if text else {}
            named = [each.name for each in parents if each.name in configs]
            found = [configs[name] for name in named[:1]] or list(configs.values())
            if len(found) == 1:
                return found[0]
    return NO_FEATURES


def _parsed(text: str, parse: Callable[[str], dict[str, Any]]) -> dict[str, Features]:
    """Return the features by the name of the configuration; none of a malformed card."""
    try:
        return {name: _features(fields) for name, fields in parse(text).items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def _of_info(text: str) -> dict[str, Any]:
    return {"": json.loads(text)["features"]}


def _of_infos(text: str) -> dict[str, Any]:
    return {name: info["features"] for name, info in json.loads(text).items()}


def _of_readme(text: str) -> dict[str, Any]:
    """Return the features in the YAML at the start of a README.md."""
    import yaml  # noqa: PLC0415 (most sources have no card)

    start, _, rest = text.partition("---\n")
    if start.strip():
        return {}
    try:
        infos = yaml.safe_load(rest.partition("\n---")[0])["dataset_info"]
    except yaml.YAMLError as error:
        raise ValueError from error
    infos = infos if isinstance(infos, list) else [infos]
    return {info.get("config_name", ""): info["features"] for info in infos}


_CARDS = {
    "dataset_info.json": _of_info,
    "dataset_infos.json": _of_infos,
    "README.md": _of_readme,
}
