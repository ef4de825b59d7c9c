"""Comments of recipe files: source, published results, source of each value.

A recipe file begins with comments: a summary line; paragraphs named ``Source``, ``Reached there``,
``Which value counts`` and ``Verified here``; a command.  The comment after a value is its source.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vit21k.recipe.load import load_recipe, read_text, shipped_recipes

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
