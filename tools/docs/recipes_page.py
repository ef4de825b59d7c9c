"""Rewrite the pages of recipes: docs/recipes.md, the overview, and docs/recipes/, one per source.

python tools/docs/recipes_page.py            rewrite
python tools/docs/recipes_page.py --check    exit 1 if that is out of date
"""

import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from pathlib import Path

from generated_block import write_or_check

from vit21k.recipe.load import SOURCES, base_of, by_source, header_of, load_recipe, recipe_lines
from vit21k.recipe.schema import Recipe

CHECKOUT = Path(__file__).parents[2]
DOCS = CHECKOUT / "docs"
EMPTY_PAGE = """\
# Recipes: {source}

[Recipes](../recipes.md) explains the parts of this page and lists all recipes.

<!-- begin recipes -->
<!-- end recipes -->
"""
_TEST = re.compile(r"\b(tests/\w+/test_\w+\.py)")


@cache
def sources() -> dict[str, str]:
    """Return each recipe with its source, in the order of the pages; this loads all recipes."""
    return {name: source for source, name in by_source()}


def overview() -> str:
    """Return a row for each recipe, with its main settings."""
    columns = (
        "from",
        "recipe",
        "model",
        "pixels",
        "batch",
        "length",
        "optimizer, peak rate",
        "loss",
    )
    lines = [f"| {' | '.join(columns)} |", "|---|---|---|--:|--:|--:|---|---|"]
    for source, group in groupby(sources(), key=sources().__getitem__):
        for index, name in enumerate(group):
            cells = [
                "" if index else source,
                f"[`{name}`](recipes/{slug(source)}.md#{name})",
                *numbers(load_recipe(name)),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def numbers(recipe: Recipe) -> Iterator[str]:
    """Yield the cells of a recipe after its name."""
    model = recipe.model
    own = f", {model.depth} blocks of width {model.embed_dim}" if model.embed_dim else ""
    yield model.name.rpartition("_")[0] + own
    yield str(recipe.model.img_size)
    yield f"{recipe.data.global_batch_size:,}"
    steps = recipe.total_steps
    yield f"{recipe.epochs:g} epochs" if steps is None else f"{steps:,} steps"
    yield f"{recipe.optim.kind}, {recipe.optim.lr:g}"
    smoothing = f", e = {recipe.loss.smoothing:.4g}" if recipe.loss.smoothing else ""
    yield recipe.loss.kind.replace("_", " ") + smoothing


def slug(source: str) -> str:
    """Return the file name of the page of a source, without its suffix."""
    return source.lower().replace("_", "-").replace(" ", "-")


def source_page(source: str) -> str:
    """Return the sections of the recipes of one source."""
    link = SOURCES[source]
    lines = [f"<{link}>", ""] if link else []
    for name, its_source in sources().items():
        if its_source == source:
            lines += section(name)
    return "\n".join(lines)


def section(name: str) -> Iterator[str]:
    """Yield the lines of the section of one recipe."""
    header, base = header_of(name), base_of(name)
    yield from (f"## {name}", "", header.summary, "")
    for title in ("Source", "Reached there", "Which value counts", "Verified here"):
        if title in header.notes:
            yield from (f"**{title}**: {quoted(header.notes[title])}", "")
    yield from (f"**Commit**: {load_recipe(name).commit}", "")
    yield from ("```sh", header.command, "```", "")
    if base is not None:
        yield from (f"Based on [`{base}`]({link_to(base)}), with these changes:", "")
    yield from ("| field | value | from |", "|---|---|---|")
    for line in recipe_lines(name):
        yield f"| {' | '.join(cell.replace('|', '/') for cell in line)} |"
    yield ""


def link_to(recipe: str) -> str:
    """Return the address of the section of a recipe, from another page of a source."""
    return f"{slug(sources()[recipe])}.md#{recipe}"


def quoted(text: str) -> str:
    """Return *text* with the tests that it names as code."""
    return _TEST.sub(r"`\1`", text)


def main(arguments: list[str]) -> int:
    """Rewrite or check all pages; return the exit status."""
    is_check = "--check" in arguments
    status = write_or_check(DOCS / "recipes.md", {"overview": overview()}, check=is_check)
    for source in dict.fromkeys(sources().values()):
        path = DOCS / "recipes" / f"{slug(source)}.md"
        if not is_check and not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(EMPTY_PAGE.format(source=source), encoding="utf-8")
        status |= write_or_check(path, {"recipes": source_page(source)}, check=is_check)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
