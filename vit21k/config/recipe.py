"""Load a recipe, apply overrides, and say clearly everything that is wrong with it."""

import difflib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vit21k.config.describe import field_names
from vit21k.config.schema import Recipe
from vit21k.config.yaml_text import dump_yaml, parse_yaml
from vit21k.errors import RecipeError

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
        name_or_path: A shipped recipe's name, or a path that ends in ``.yaml``.
        overrides: Dotted assignments such as ``"optim.lr=3e-4"``.  Later ones win over earlier
            ones, and all of them over the file.

    Raises:
        RecipeError: With *every* problem found, not only the first.
    """
    values = _spelled_out(name_or_path)
    for override in overrides:
        assign(values, override)
    return recipe_from(values, name_or_path)


def base_of(name_or_path: str) -> str | None:
    """Return the recipe that sets what the recipe leaves out, if it names one.

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
    """Return the recipe that *values* spell out, as in a checkpoint's `state.json`.

    Args:
        values: Fields and values, sections as nested mappings.
        name: What messages call it.

    Raises:
        RecipeError: With every problem found.
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
    """Return *recipe* as YAML, every field spelled out, in declaration order."""
    return dump_yaml(recipe.model_dump(mode="json"))


def summary(name: str) -> str:
    """Return the first comment of a shipped recipe: one line that says what it is."""
    first = (_SHIPPED / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def _spelled_out(name_or_path: str, above: int = 0) -> dict[str, Any]:
    """Return what a recipe sets, and what its base sets, and the base of that.

    A field that several set is that of the recipe, or of the base nearest to it.
    """
    values, base = _fields_of(name_or_path), base_of(name_or_path)
    values.pop("base", None)
    if base is None:
        return values
    if above == _MAX_BASES:
        raise RecipeError(
            f"recipe `{name_or_path}` is based on itself, or on more than {_MAX_BASES} others"
        )
    merged = _spelled_out(base, above + 1)
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
            hint=f"shipped recipes: {', '.join(known)}; or give a path that ends in .yaml",
        )
    return (_SHIPPED / f"{name_or_path}.yaml").read_text(encoding="utf-8")


def _read_file(path: Path) -> str:
    if not path.is_file():
        raise RecipeError(
            f"no such recipe file: `{path}`",
            hint=f"shipped recipes, by name: {', '.join(shipped_recipes())}",
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe `{path}` is not text: {error.reason}") from error


def assign(values: dict[str, Any], override: str) -> None:
    """Set a field of *values*, sections as nested tables, to what *override* says.

    Raises:
        RecipeError: It is not ``section.field=value``.
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
    """Turn pydantic's report into one plain line per problem."""
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
    """Return what a field takes, and what it got."""
    given = problem["input"]
    if problem["type"] == "too_long":
        return f"{dotted}: {problem['ctx']['max_length']} values, got {given!r}"
    if problem["type"] == "tuple_type":
        return f"{dotted}: a list such as [0.1, 0.2], got {given!r}"
    if problem["type"] == "finite_number" or _is_no_number(given):
        return f"{dotted}: a finite number, got {given}"
    return f"{dotted}: {_lower_first(problem['msg'])}, got {given!r}"


def _missing(dotted: str, problem: Mapping[str, Any]) -> str:
    if not isinstance(problem["loc"][-1], int):
        return f"{dotted}: required"
    given = list(problem["input"])
    return f"{dotted.rpartition('.')[0]}: too few values, {len(given)}, got {given}"


def _is_no_number(value: Any) -> bool:
    """Return whether *value* is how people write what YAML spells `.nan` and `.inf`."""
    return isinstance(value, str) and value.lower().lstrip("+-") in ("nan", "inf", "infinity")


# What other trainers call the same thing: no spelling is close to it.
_ELSEWHERE_CALLED = {
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
    known = field_names(Recipe)
    leaf = dotted.rpartition(".")[2]
    leaf = _ELSEWHERE_CALLED.get(leaf, leaf)
    close = difflib.get_close_matches(dotted, known, n=1)
    elsewhere = [name for name in known if name.rpartition(".")[2] == leaf]
    section = dotted.rpartition(".")[0]
    elsewhere.sort(key=lambda name: name.rpartition(".")[0] != section)
    best = (elsewhere or close)[:1]
    return f"; did you mean `{best[0]}`?" if best else ""


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
