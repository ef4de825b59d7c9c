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

from vit21k.bench.plan import GPUS
from vit21k.models.cost import train_flops_per_image
from vit21k.recipe.load import SOURCES, base_of, by_source, header_of, load_recipe, recipe_lines
from vit21k.recipe.schema import Recipe
from vit21k.training.context import model_args_of

CHECKOUT = Path(__file__).parents[2]
DOCS = CHECKOUT / "docs"
EMPTY_PAGE = """\
# Recipes: {source}

[Recipes](../recipes.md) explains the parts of this page and lists all recipes.

<!-- begin recipes -->
<!-- end recipes -->
"""
TOP1 = {
    "pretrain_augreg_b16_in21k": "85.49",
    "pretrain_augreg_b32_in21k": "83.59",
    "pretrain_augreg_l16_in21k": "85.59",
    "pretrain_augreg_r26_s32_in21k": "83.85",
    "pretrain_augreg_r50_l32_in21k": "85.99",
    "pretrain_augreg_s16_in21k": "83.73",
    "pretrain_augreg_s32_in21k": "79.58",
    "pretrain_augreg_ti16_in21k": "78.22",
    "pretrain_b16_in1k": "75.196",
    "pretrain_deit3_b16_in1k": "83.8",
    "pretrain_deit3_b16_in21k": "85.7",
    "pretrain_deit3_h14_in21k": "87.2",
    "pretrain_deit3_l16_in21k": "87.0",
    "pretrain_deit3_s16_in21k": "83.1",
    "pretrain_google_b16_in21k": "84.53",
    "pretrain_google_l16_in21k": "85.05",
    "pretrain_l16_in21k": "85.03",
    "pretrain_miil_b16_in21kp": "84.4",
    "pretrain_mindcv_b32_in1k": "77.45",
    "pretrain_mindcv_l16_in1k": "81.25",
    "pretrain_mm_b16_mae_in1k": "82.37",
    "pretrain_pit_b_in1k": "82.0",
    "pretrain_pit_s_in1k": "80.9",
    "pretrain_pit_ti_in1k": "73.0",
    "pretrain_pit_xs_in1k": "78.1",
}
"""ImageNet-1K top-1 in percent that the note "Reached there" of a recipe states."""

NUM_IMAGES = {"in21k": 14_197_122, "in21kp": 11_060_223, "in1k": 1_281_167}
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


def choice() -> str:
    """Return a row for each recipe with a published accuracy, from cheap to expensive."""
    lines = [
        f"| recipe | top-1 | {' | '.join(f'{gpu.name.split()[0]}-days' for gpu in GPUS.values())} |",
        f"|---|--:|{'--:|' * len(GPUS)}",
    ]
    for name in sorted(TOP1, key=num_flops):
        if TOP1[name] not in header_of(name).notes["Reached there"]:
            raise ValueError(f"{TOP1[name]} is not in the note of `{name}`")
        days = [
            num_flops(name) / (gpu.peak_flops * gpu.assumed_share * 86_400) for gpu in GPUS.values()
        ]
        cells = [
            f"[`{name}`](recipes/{slug(sources()[name])}.md#{name})",
            TOP1[name],
        ]
        lines.append(f"| {' | '.join([*cells, *(f'{day:,.3g}' for day in days)])} |")
    return "\n".join(lines)


@cache
def num_flops(name: str) -> float:
    """Return the floating-point operations of a whole run."""
    recipe = load_recipe(name)
    num_images = NUM_IMAGES[name.rpartition("_")[2]] * (recipe.epochs or 0)
    if recipe.total_steps is not None:
        num_images = recipe.total_steps * recipe.data.global_batch_size
    num_classes = 1000 if name.endswith("_in1k") else 21_841
    return num_images * train_flops_per_image(model_args_of(recipe, num_classes=num_classes))


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
    status = write_or_check(
        DOCS / "recipes.md", {"choice": choice(), "overview": overview()}, check=is_check
    )
    for source in dict.fromkeys(sources().values()):
        path = DOCS / "recipes" / f"{slug(source)}.md"
        if not is_check and not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(EMPTY_PAGE.format(source=source), encoding="utf-8")
        status |= write_or_check(path, {"recipes": source_page(source)}, check=is_check)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
