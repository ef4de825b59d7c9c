"""Loading of recipes and their comments, with overrides and complete error reports.

A recipe file begins with comments: a summary line; paragraphs named ``Source``, ``Reached there``,
``Which value counts`` and ``Verified here``; a command.  The comment after a value is its source.
"""

import difflib
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from vit21k.errors import RecipeError
from vit21k.recipe.schema import Recipe, Section


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML.

    Args:
        text: A recipe, or a single value.
        name: Its name in messages.

    Raises:
        RecipeError: *text* is not YAML, or sets a key twice.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{name} is not YAML: {error}") from error


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Return *values* as YAML, in the same order, each list on one line."""
    return yaml.dump(values, Dumper=_PlainDumper, sort_keys=False)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that reads `1e-3` as a number and rejects duplicate keys.

    In YAML 1.1 `1e-3` is text, and the last of two equal keys wins.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"`{key}` is set twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


class _PlainDumper(yaml.SafeDumper):
    """SafeDumper that writes a list of numbers on one line."""


_PlainDumper.add_representer(
    list,
    lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True),
)


# Also for the dumper, which quotes text that would be read as a number.
for _reader_or_writer in (_StrictLoader, _PlainDumper):
    _reader_or_writer.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d[\d_]*)?\.?\d[\d_]*[eE][-+]?\d+"),
        list("-+.0123456789"),
    )


class FieldDocs(NamedTuple):
    """Documentation of a field of a recipe."""

    name: str
    """Dotted name, as for `--set`."""
    values: str
    """Valid values: a type with limits, or words."""
    default: str
    """Default in YAML; "required": there is none."""
    meaning: str
    """Description in one line."""


def describe_fields() -> list[FieldDocs]:
    """Return every field of a recipe, in declaration order."""
    return [
        FieldDocs(
            name,
            _values(field.annotation, field.metadata),
            "required" if field.is_required() else _as_yaml(field.default),
            " ".join((field.description or "").split()),
        )
        for name, field in _walk(Recipe)
        if _section_of(field) is None
    ]


def _walk(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield dotted name and declaration of sections and their fields."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        if (inner := _section_of(field)) is not None:
            yield from _walk(inner, f"{prefix}{name}.")


def _section_of(field: FieldInfo) -> type[Section] | None:
    annotation: Any = field.annotation
    is_section = isinstance(annotation, type) and issubclass(annotation, Section)
    return annotation if is_section else None


def _values(annotation: Any, limits: list[Any]) -> str:
    """Describe the valid values of a type."""
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
    """Return the limits in *metadata*, such as `` > 0``."""
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


_SHIPPED = files("vit21k") / "recipes"
_SUFFIXES = (".yaml", ".yml")
_MAX_BASES = 8


def shipped_recipes() -> list[str]:
    """Return the names that `vit21k train --recipe NAME` accepts."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in _SHIPPED.iterdir()
        if entry.name.endswith(".yaml")
    )


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """Return the recipe with *overrides* applied.

    Args:
        name_or_path: Name of a shipped recipe, or a path that ends in ``.yaml``.
        overrides: Dotted assignments such as ``"optim.lr=3e-4"``.  Later ones have precedence over
            earlier ones, and all over the file.

    Raises:
        RecipeError: The recipe is not valid; the message has all errors.
    """
    values = _with_bases(name_or_path)
    for override in overrides:
        assign(values, override)
    return recipe_from(values, name_or_path)


def base_of(name_or_path: str) -> str | None:
    """Return the recipe whose fields this one inherits; None: there is none.

    Raises:
        RecipeError: There is no such recipe, or `base` is not the name of one.
    """
    base = _fields_of(name_or_path).get("base")
    if base is not None and not isinstance(base, str):
        raise RecipeError(f"recipe `{name_or_path}`: `base` is {base!r}, not a recipe")
    if base is not None and base.endswith(_SUFFIXES):
        return str(Path(name_or_path).parent / base)
    return base


def recipe_from(values: Mapping[str, Any], name: str) -> Recipe:
    """Return the recipe of *values*, which are those of a `state.json` too.

    Args:
        values: Fields and values, sections as nested mappings.
        name: Its name in messages.

    Raises:
        RecipeError: The recipe is not valid; the message has all errors.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = "\n".join(f"  {line}" for line in _explain(error))
        raise RecipeError(
            f"recipe `{name}` is not usable:\n{problems}",
            hint="`vit21k recipes fields` lists every field with its meaning and limits",
        ) from error


def dump_recipe(recipe: Recipe) -> str:
    """Return *recipe* as YAML with all fields, in declaration order."""
    return dump_yaml(recipe.model_dump(mode="json"))


def _with_bases(name_or_path: str, above: int = 0) -> dict[str, Any]:
    """Return the fields of a recipe, with those that it inherits."""
    values, base = _fields_of(name_or_path), base_of(name_or_path)
    values.pop("base", None)
    if base is None:
        return values
    if above == _MAX_BASES:
        raise RecipeError(
            f"recipe `{name_or_path}` is based on itself, or on more than {_MAX_BASES} others"
        )
    merged = _with_bases(base, above + 1)
    for name, value in values.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = {**merged[name], **value} if both else value
    return merged


def _fields_of(name_or_path: str) -> dict[str, Any]:
    values = parse_yaml(read_text(name_or_path), f"recipe `{name_or_path}`")
    if not isinstance(values, dict):
        raise RecipeError(f"recipe `{name_or_path}` must be a mapping of fields to values")
    return values


def read_text(name_or_path: str) -> str:
    """Return the text of a recipe file.

    Raises:
        RecipeError: There is no such recipe.
    """
    if name_or_path.endswith(_SUFFIXES):
        return _read_file(Path(name_or_path))
    known = shipped_recipes()
    if name_or_path not in known:
        close = difflib.get_close_matches(name_or_path, known, n=1)
        meant = f"; did you mean `{close[0]}`?" if close else ""
        raise RecipeError(
            f"no recipe is called `{name_or_path}`{meant}",
            hint="`vit21k recipes list` lists the shipped ones; a file ends in .yaml",
        )
    return (_SHIPPED / f"{name_or_path}.yaml").read_text(encoding="utf-8")


def _read_file(path: Path) -> str:
    if not path.is_file():
        raise RecipeError(
            f"no such recipe file: `{path}`",
            hint="`vit21k recipes list` lists the shipped ones, which have names without .yaml",
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe `{path}` is not text: {error.reason}") from error


def assign(values: dict[str, Any], override: str) -> None:
    """Apply *override* to *values*, which have sections as nested mappings.

    Raises:
        RecipeError: *override* is not ``section.field=value``.
    """
    dotted, equals, text = override.partition("=")
    parts = dotted.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(
            f"cannot read the override `{override}`",
            hint="write it as section.field=value, for example optim.lr=3e-4",
        )
    *sections, field = parts
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise RecipeError(f"cannot read the override `{override}`: `{section}` has no fields")
    values[field] = parse_yaml(text, f"the value of `{override}`")


def _explain(error: ValidationError) -> list[str]:
    """Return a line for each error of pydantic's report."""
    lines: list[str] = []
    for problem in error.errors():
        dotted = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{dotted}: no such field{_did_you_mean(dotted)}")
        elif problem["type"] == "missing":
            lines.append(_missing(dotted, problem))
        elif problem["type"] == "model_type":
            lines.append(f"{dotted}: a section with fields, got {problem['input']!r}")
        elif problem["type"] == "value_error":
            lines += str(problem["ctx"]["error"]).splitlines()
        else:
            lines.append(_about_value(dotted, problem))
    return lines


def _about_value(dotted: str, problem: Mapping[str, Any]) -> str:
    """Return the valid values of a field, and its value."""
    given = problem["input"]
    if problem["type"] == "too_long":
        wanted = f"{problem['ctx']['max_length']} values"
    elif problem["type"] == "tuple_type":
        wanted = "a list such as [0.1, 0.2]"
    elif problem["type"] == "finite_number" or str(given).lower().lstrip("+-") in _NOT_FINITE:
        return f"{dotted}: a finite number, got {given}"
    else:
        wanted = problem["msg"][:1].lower() + problem["msg"][1:]
    return f"{dotted}: {wanted}, got {given!r}"


def _missing(dotted: str, problem: Mapping[str, Any]) -> str:
    if not isinstance(problem["loc"][-1], int):
        return f"{dotted}: required"
    given = list(problem["input"])
    return f"{dotted.rpartition('.')[0]}: too few values, {len(given)}, got {given}"


_NOT_FINITE = ("nan", "inf", "infinity")  # YAML has `.nan` and `.inf`
# Names in other training programs.
_SYNONYMS = {
    "base_lr": "lr",
    "batch_size": "global_batch_size",
    "clip_grad": "grad_clip_norm",
    "dropout": "proj_drop_rate",
    "image_size": "img_size",
    "label_smoothing": "smoothing",
    "learning_rate": "lr",
    "warmup_step": "warmup_steps",
    "wd": "weight_decay",
}


def _did_you_mean(dotted: str) -> str:
    """Return the valid name of a field that is in another section, misspelt, or of a synonym."""
    known = [name for name, _ in _walk(Recipe)]
    section, _, leaf = dotted.rpartition(".")
    leaf = _SYNONYMS.get(leaf, leaf)
    elsewhere = [name for name in known if name.rpartition(".")[2] == leaf]
    elsewhere.sort(key=lambda name: name.rpartition(".")[0] != section)
    best = elsewhere or difflib.get_close_matches(dotted, known, n=1)
    return f"; did you mean `{best[0]}`?" if best else ""


SOURCES: Mapping[str, str] = {
    "PLSC": "https://github.com/PaddlePaddle/PLSC",
    "Google": "https://github.com/google-research/vision_transformer",
    "big_vision": "https://github.com/google-research/big_vision",
    "MIIL": "https://github.com/Alibaba-MIIL/ImageNet21K",
    "MindCV": "https://github.com/mindspore-lab/mindcv",
    "MMPretrain": "https://github.com/open-mmlab/mmpretrain",
    "DeiT": "https://github.com/facebookresearch/deit",
    "paddle_pit": "https://github.com/hatimwen/paddle_pit",
    "ours": "",
}
"""Sources of recipes, in the order of lists, and their repositories."""

_NAMED = re.compile(r"(Source|Reached there|Which value counts|Verified here): *(.*)")
_FIELD = re.compile(r"(?P<indent> *)(?P<name>\w+): *(?P<value>[^#]*?)(?: *# *(?P<remark>.*))?")


class RecipeHeader(NamedTuple):
    """The first comments of a recipe."""

    summary: str
    """One line."""
    notes: Mapping[str, str]
    """The named paragraphs, each in one line."""
    command: str
    """Commands that run it, one per line; may be empty."""


class RecipeLine(NamedTuple):
    """A line of a recipe file that sets a field."""

    field: str
    """Dotted name."""
    value: str
    """In YAML."""
    remark: str
    """Its source."""


def header_of(name_or_path: str) -> RecipeHeader:
    """Parse the first comments of a recipe.

    Raises:
        RecipeError: There is no such recipe.
    """
    summary, *lines = comments_of(name_or_path) or [""]
    notes: dict[str, str] = {}
    command, current = "", ""
    for line in (line.strip() for line in lines):
        if match := _NAMED.fullmatch(line):
            current, notes[match[1]] = match[1], match[2]
        elif line.startswith("vit21k "):
            command, current = f"{command}\n{line}".strip(), ""
        elif line and current:
            notes[current] += f" {line}"
        elif not line:
            current = ""
    return RecipeHeader(summary.strip(), notes, command)


def comments_of(name_or_path: str) -> list[str]:
    """Return the lines of the first comments of a recipe, without ``#``.

    Raises:
        RecipeError: There is no such recipe.
    """
    lines = []
    for line in read_text(name_or_path).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" "))
    return lines


def recipe_lines(name: str) -> Iterator[RecipeLine]:
    """Yield the fields that a shipped recipe sets, without those of its base.

    Raises:
        RecipeError: There is no such recipe.
    """
    section = ""
    for text in read_text(name).splitlines():
        match = _FIELD.fullmatch(text)
        if match is None or match["name"] in ("base", "source", "commit"):
            continue
        if not match["indent"] and not match["value"]:
            section = f"{match['name']}."
        else:
            prefix = section if match["indent"] else ""
            yield RecipeLine(prefix + match["name"], match["value"], match["remark"] or "")


def by_source(word: str = "") -> Iterator[tuple[str, str]]:
    """Yield source and name of every shipped recipe, ordered by source.

    Args:
        word: Only recipes with this in their name or source.
    """
    source_of = {name: source_name(name) for name in shipped_recipes()}
    for source in SOURCES:
        for name, own in source_of.items():
            if own == source and word.lower() in f"{name} {source}".lower():
                yield source, name


def source_name(name: str) -> str:
    """Return the source of a shipped recipe: a key of `SOURCES`."""
    return re.split(r"[ ,]", load_recipe(name).source, maxsplit=1)[0]
