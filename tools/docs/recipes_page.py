"""Rewrite docs/recipes.md: for each shipped recipe what its file says of it, and what it sets.

python tools/docs/recipes_page.py            rewrite
python tools/docs/recipes_page.py --check    exit 1 if that is out of date
"""

import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from generated_block import write_or_check

from vit21k.recipe.comments import SOURCES, by_source, header_of, lines_of
from vit21k.recipe.load import base_of, load_recipe
from vit21k.recipe.schema import Recipe

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "recipes.md"
_TEST = re.compile(r"\b(tests/\w+/test_\w+\.py)")


def overview() -> str:
    """Return a row for each recipe: the numbers that tell them apart."""
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
    for source, group in groupby(by_source(), key=lambda pair: pair[0]):
        for index, (_, name) in enumerate(group):
            cells = ["" if index else source, f"[`{name}`](#{name})", *numbers(load_recipe(name))]
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


def pages() -> str:
    """Return a section for each source, and in it one for each recipe."""
    lines: list[str] = []
    for source, group in groupby(by_source(), key=lambda pair: pair[0]):
        link = SOURCES[source]
        lines += [f"## {'Our own' if source == 'ours' else source}", ""]
        lines += [f"<{link}>", ""] if link else []
        for _, name in group:
            lines += page(name)
    return "\n".join(lines)


def page(name: str) -> Iterator[str]:
    """Yield the lines of the section of one recipe."""
    header, base = header_of(name), base_of(name)
    yield from (f"### {name}", "", header.summary, "")
    for title in ("Source", "Reached there", "Which value counts", "Verified here"):
        if title in header.notes:
            yield from (f"**{title}**: {linked(header.notes[title])}", "")
    yield from (f"**Commit**: {load_recipe(name).commit}", "")
    yield from ("```sh", header.command, "```", "")
    if base is not None:
        yield from (f"Like [`{base}`](#{base}), but for:", "")
    yield from ("| field | value | from |", "|---|---|---|")
    for line in lines_of(name):
        yield f"| {' | '.join(cell.replace('|', '/') for cell in line)} |"
    yield ""


def linked(text: str) -> str:
    """Return *text* with links to the tests that it names."""
    return _TEST.sub(lambda match: f"[{Path(match[1]).stem}](../{match[1]})", text)


def main(arguments: list[str]) -> int:
    """Rewrite or check the page; return the exit status."""
    blocks = {"overview": overview(), "pages": pages()}
    return write_or_check(PAGE, blocks, check="--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
