"""The fields of a recipe in words, for `vit21k recipes fields` and for suggestions."""

from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vit21k.config.fields import Section
from vit21k.config.schema import Recipe


class FieldInWords(NamedTuple):
    """One field of a recipe, as documented."""

    name: str
    """Dotted name, as `--set` takes it."""
    values: str
    """What it may be: a type with limits, or the words."""
    default: str
    """Its default as YAML writes it; "required" where there is none."""
    meaning: str
    """What it does, in one line."""


def describe_fields() -> list[FieldInWords]:
    """Return every field of a recipe, in declaration order."""
    return list(_describe(Recipe, ""))


def field_names(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the dotted names of the fields below *section*, sections included."""
    names = []
    for name, field in section.model_fields.items():
        names.append(prefix + name)
        if (inner := _section_of(field)) is not None:
            names += field_names(inner, f"{prefix}{name}.")
    return names


def _describe(section: type[BaseModel], prefix: str) -> list[FieldInWords]:
    rows = []
    for name, field in section.model_fields.items():
        if (inner := _section_of(field)) is not None:
            rows += _describe(inner, f"{prefix}{name}.")
            continue
        rows.append(
            FieldInWords(
                prefix + name,
                _values(field.annotation, field.metadata),
                "required" if field.is_required() else _as_yaml(field.default),
                " ".join((field.description or "").split()),
            )
        )
    return rows


def _section_of(field: FieldInfo) -> type[Section] | None:
    annotation: Any = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return None


def _values(annotation: Any, limits: list[Any]) -> str:
    """Return what a field of this type may hold, in words."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _values(inside[0], list(inside[1:]))
    if origin in (Union, UnionType):
        return " or ".join(_values(part, []) for part in inside)
    if origin is Literal:
        return " or ".join(str(word) for word in inside)
    if origin is dict:
        return f"mapping of {_values(inside[0], [])} to {_values(inside[1], [])}"
    if origin is tuple:
        how_many = "list" if inside[-1] is Ellipsis else str(len(inside))
        return f"{how_many} of: {_values(inside[0], [])}"
    words = {int: "integer", float: "number", bool: "true or false", str: "text"}
    return words.get(annotation, "null") + _limits(limits)


def _limits(metadata: list[Any]) -> str:
    """Return the limits that *metadata* sets, as `` > 0``."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return ",".join(
        f" {sign} {getattr(limit, name):g}"
        for limit in _flat(metadata)
        for name, sign in signs.items()
        if hasattr(limit, name)
    )


def _flat(metadata: list[Any]) -> list[Any]:
    return [
        part
        for item in metadata
        for part in (item.metadata if isinstance(item, FieldInfo) else [item])
    ]


def _as_yaml(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_as_yaml(part) for part in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'
