"""Write report.html: one file, without network or scripts.

The bytes depend only on the manifests and the images.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from vit21k import charts
from vit21k.atomic import write_atomic
from vit21k.charts import Line
from vit21k.errors import UsageError
from vit21k.manifest.schema import IMAGES, LEAKS, NEAR_DUPLICATES, PROBLEMS, VAL
from vit21k.manifest.wordnet import RANKED
from vit21k.manifest.writer import refuse_inside
from vit21k.report import galleries
from vit21k.report.galleries import ThumbBudget
from vit21k.report.numbers import MergedImages, Numbers, read_numbers
from vit21k.sources.read import Root

MAX_BYTES = 5_000_000
MAX_TABLE_ROWS = 200
NUM_PAIRS = 60
VAL_MARK, LARGE_MARK = 20, 500
_BUDGETS = {"groups": 1_700_000, "val": 1_100_000, "pairs": 500_000}
_MAX_BARS = 16


class Chart(NamedTuple):
    """A chart and its table.

    Attributes:
        title: Heading.
        text: Description.
        svg: Empty if there is nothing to draw.
        columns, rows: The table.
    """

    title: str
    text: str
    svg: Markup
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class ReportSummary:
    """Summary of a report.

    Attributes:
        path: The page.
        num_bytes: Its size.
        num_images: Rows of `images.parquet`.
        num_groups, num_groups_shown: Images with several labels, and how many are on the page.
        num_unread: Images that could not be read and are not shown.
        do_counts_add_up: Whether all sums are correct.
    """

    path: str
    num_bytes: int
    num_images: int
    num_groups: int
    num_groups_shown: int
    num_unread: int
    do_counts_add_up: bool


def write_report(
    manifests: Path, out: Path, *, root: Root | None = None, title: str = "vit21k report"
) -> ReportSummary:
    """Write the page.

    Args:
        manifests: The folder of `images` and `classes.parquet`, and optionally other manifests.
        out: The file to write.
        root: Current image root; None: as hashed.
        title: Title of the page.

    Raises:
        ManifestError: A manifest is missing, stale or damaged.
        ImageTreeError: The image root does not exist.
        UsageError: *out* is inside the image root.
    """
    numbers = read_numbers(manifests)
    refuse_inside(out.parent, numbers.manifests[IMAGES.name].header.image_folder, option="--out")
    merged = MergedImages(numbers.manifests[IMAGES.name])
    budgets = {name: ThumbBudget(size) for name, size in _BUDGETS.items()}
    groups = galleries.show_groups(numbers, merged, budgets["groups"], root)
    page = _render(
        title=title,
        root=numbers.manifests[IMAGES.name].header.root,
        sums=numbers.sums(),
        charts=[
            _long_tail(numbers),
            _labels_per_image(numbers),
            _pairs(numbers, merged.co_occurrence()),
        ],
        relations=_relation_counts(merged),
        groups=groups,
        num_groups=len(merged),
        **_images(numbers, budgets, root),
    ).encode()
    if len(page) > MAX_BYTES:
        raise UsageError(f"the page would have {len(page):,} bytes, more than {MAX_BYTES:,}")
    write_atomic(out, page)
    return ReportSummary(
        path=str(out),
        num_bytes=len(page),
        num_images=numbers.num_rows(IMAGES) or 0,
        num_groups=len(merged),
        num_groups_shown=len(groups),
        num_unread=sum(len(budget.unread) for budget in budgets.values()),
        do_counts_add_up=all(one.adds_up for one in numbers.sums()),
    )


def _images(
    numbers: Numbers, budgets: Mapping[str, ThumbBudget], root: Root | None
) -> dict[str, Any]:
    """Return the values of the template for val, pairs and bad files."""
    near = [
        (
            name,
            numbers.num_rows(kind) or 0,
            galleries.show_pairs(numbers.manifests.get(kind.name), budgets["pairs"], root),
        )
        for name, kind in (("Leaks", LEAKS), ("Near-duplicates", NEAR_DUPLICATES))
    ]
    return {
        "val": galleries.show_val(numbers, budgets["val"], root),
        "val_options": _val_options(numbers),
        "near": near,
        "undecoded": galleries.show_undecoded(numbers, root),
        "num_undecoded": numbers.undecoded().num_rows,
        "num_unread": numbers.num_unread,
        "problems": galleries.show_problems(numbers, root),
        "num_problems": numbers.num_rows(PROBLEMS) or 0,
        "problem_kinds": sorted(numbers.problems.items()),
    }


def _render(**values: Any) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["count"] = lambda number: f"{number:,}"
    source = files("vit21k.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(**values)


def _long_tail(numbers: Numbers) -> Chart:
    columns = ["num_files", "num_images", "num_single_label"]
    sizes = numbers.classes[columns].apply(lambda size: np.sort(size)[::-1])
    before, after, single = (sizes[column] for column in columns)
    ranks = np.arange(1, len(before) + 1).tolist()
    svg = charts.count_lines(
        [
            Line("files (before merging)", ranks, before.tolist(), "before"),
            Line("images (after merging)", ranks, after.tolist(), "after"),
            Line("single-label images", ranks, single.tolist(), "single"),
        ],
        marks=[(VAL_MARK, f"{VAL_MARK}: val"), (LARGE_MARK, f"{LARGE_MARK}: ImageNet-21K-P")],
        x_name="classes, each line sorted by size",
        y_name="per class",
    )
    text = (
        f"{len(sizes):,} classes. Below {VAL_MARK} single-label images: "
        f"{(single < VAL_MARK).sum():,} classes; above {LARGE_MARK} images: "
        f"{(after > LARGE_MARK).sum():,}; without any: {(after == 0).sum():,}."
    )
    ranks_shown = np.linspace(0, len(sizes) - 1, min(len(sizes), MAX_TABLE_ROWS)).astype(int)
    table = sizes.iloc[ranks_shown].set_axis(ranks_shown + 1).reset_index().to_numpy().tolist()
    names = ["rank", "files", "images", "single-label"]
    return Chart("Images per class, before and after merging", text, svg, names, table)


def _labels_per_image(numbers: Numbers) -> Chart:
    rows = [(labels, count) for labels, count in numbers.labels_per_image.items() if labels]
    bars = [(f"{labels}", count) for labels, count in rows[:_MAX_BARS]]
    rest = sum(count for _, count in rows[_MAX_BARS:])
    if rest:
        bars.append(("more", rest))
    svg = charts.columns(bars, x_name="labels", y_name="images")
    total = sum(labels * count for labels, count in rows)
    num_images = sum(count for _, count in rows)
    mean = total / max(1, num_images)
    text = f"{total:,} labels on {num_images:,} images: {mean:.3f} on average."
    return Chart("Labels per image", text, svg, ["labels", "images"], rows)


def _pairs(numbers: Numbers, pairs: pd.DataFrame) -> Chart:
    shown = pairs.head(NUM_PAIRS)
    pair = shown[["class_index", "other_index"]].to_numpy()
    titles = numbers.classes["title"].to_numpy()[pair]
    names = numbers.classes["name"].str.split(",").str[0].to_numpy()[pair]
    counts, relations = shown["num_images"].tolist(), shown["relation"].tolist()
    rows = [(*both, *rest) for both, *rest in zip(titles, relations, counts, strict=True)]
    bars = [(" + ".join(both), *rest) for both, *rest in zip(names, counts, relations, strict=True)]
    title = "Most frequent pairs of classes on one image"
    text = f"{len(pairs):,} pairs of classes occur; the first {len(rows):,} are shown."
    svg = charts.rows(bars, title=title) if bars else Markup("")
    return Chart(title, text, svg, ["class", "class", "relation", "images"], rows)


def _relation_counts(merged: MergedImages) -> list[tuple[str, str, int]]:
    counts = Counter(merged.conflicts["relation"].to_pylist())
    return [(str(kind), kind.doc, counts[str(kind)]) for kind in RANKED]


def _val_options(numbers: Numbers) -> str:
    manifest = numbers.manifests.get(VAL.name)
    if manifest is None:
        return ""
    options = manifest.header.options
    seed = "the first of each class" if options.get("seed") is None else f"seed {options['seed']}"
    return f"{options.get('split')} split, {options.get('per_class')} per class, {seed}"
