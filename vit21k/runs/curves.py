"""Curves of runs, as an HTML page or a PNG."""

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from vit21k import charts
from vit21k.atomic import atomic_file, write_atomic
from vit21k.charts import Line, short
from vit21k.errors import UsageError
from vit21k.runs.history import Run, run_names

XAxis = Literal["step", "images", "time"]

_FIRST = ("loss", "lr", "grad_norm", "weight_norm", "images_per_second", "mfu", "data_wait")
_NOT_SHOWN = (
    "images_seen", "num_skipped", "num_replaced", "loss_scale", "skipped_updates", "/num_images"
)  # fmt: skip
_LOG_RATIO = 50
_LOG_NAMES = ("loss", "grad_norm")


class Panel(NamedTuple):
    """The chart of a metric.

    Attributes:
        metric: Its name.
        lines: One for each run that measured it.
        is_log: Whether the vertical axis is logarithmic.
    """

    metric: str
    lines: Sequence[Line]
    is_log: bool = False


class Plot(NamedTuple):
    """Charts of one or more runs.

    Attributes:
        runs: The legend: lines without points.
        x_name: Name of the horizontal axis.
        panels: The charts in their order.
    """

    runs: Sequence[Line]
    x_name: str
    panels: Sequence[Panel]


def plot_of(runs: Sequence[Run], *, metrics: Sequence[str] = (), x: XAxis = "step") -> Plot:
    """Return the charts of *runs*.

    Args:
        runs: The runs.
        metrics: The metrics to plot; empty: all that describe training or evaluation.
        x: The horizontal axis.

    Raises:
        UsageError: No run has values of one of *metrics*, or there is no value to plot.
    """
    known = _in_order(list(dict.fromkeys(name for run in runs for name in run.metric_names)))
    if unknown := [name for name in metrics if name not in known]:
        raise UsageError(
            f"no run has measured `{unknown[0]}`", hint=f"there are: {', '.join(known)}"
        )
    legend = [Line(name, (), (), css_class(run)) for run, name in enumerate(run_names(runs))]
    x_name, unit_seconds = {"step": ("step", 1), "images": ("images seen", 1)}.get(x) or _time_unit(
        runs
    )
    panels = []
    for metric in metrics or [name for name in known if not name.endswith(_NOT_SHOWN)]:
        points = [_points(run, metric, x, unit_seconds) for run in runs]
        pairs = zip(legend, points, strict=True)
        lines = [line._replace(x=at, y=values) for line, (at, values) in pairs if at]
        if lines:
            panels.append(Panel(metric, lines, _wants_log(metric, lines)))
    if not panels:
        raise UsageError("there is nothing to plot: no run has logged such a line yet")
    return Plot(legend, x_name, panels)


def css_class(run: int) -> str:
    """Return the CSS classes of a run: a colour, and dashes once all colours are used."""
    return f"c{run % NUM_COLOURS}" + (" dashed" if run >= NUM_COLOURS else "")


def _time_unit(runs: Sequence[Run]) -> tuple[str, int]:
    longest = max((run.seconds or 0.0 for run in runs), default=0.0)
    for name, seconds in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if longest >= seconds:
            return f"{name} of training", seconds
    return "seconds of training", 1


def _in_order(names: list[str]) -> list[str]:
    """Return the loss, then the evaluations, then the rest."""
    evaluated = [name for name in names if "/" in name]
    first = [name for name in _FIRST if name in names]
    rest = [name for name in names if name not in first and name not in evaluated]
    return [*first[:1], *evaluated, *first[1:], *rest]


def _wants_log(metric: str, lines: Sequence[Line]) -> bool:
    values = [value for line in lines for value in line.y]
    is_positive = metric.rpartition("/")[2] in _LOG_NAMES and min(values) > 0
    return is_positive and max(values) / min(values) > _LOG_RATIO


def _points(
    run: Run, metric: str, x: XAxis, unit_seconds: int
) -> tuple[Sequence[float], Sequence[float]]:
    """Return positions on the horizontal axis, and the values of *metric*."""
    lines = [line for line in run.lines if metric in line and math.isfinite(line[metric])]
    if x == "time":
        lines = [line for line in lines if "seconds" in line]
        at = [line["seconds"] / unit_seconds for line in lines]
    else:
        at = [float(line["step"]) for line in lines]
    if x == "images":  # lines of evaluations do not have it
        counted = [line for line in run.lines if "images_seen" in line]
        steps = [0, *(line["step"] for line in counted)]
        at = np.interp(at, steps, [0, *(line["images_seen"] for line in counted)]).tolist()
    return at, [float(line[metric]) for line in lines]


Theme = Literal["light", "dark"]
NUM_COLOURS = 8
_COLUMNS = 2
_LARGE = 10_000
COLOURS = {  # of the CSS classes of a chart, and of the page
    "light": {
        "page": "#fdfdfb", "ink": "#1d2125", "quiet": "#5c6670", "rule": "#e1e4e8",
        "c0": "#1864a8", "c1": "#b0530b", "c2": "#2b7a3d", "c3": "#a1356f",
        "c4": "#7a5c00", "c5": "#00737d", "c6": "#5b4bb5", "c7": "#5c6670",
    },
    "dark": {
        "page": "#15181b", "ink": "#e6e8ea", "quiet": "#a2abb3", "rule": "#2b3136",
        "c0": "#6cb2f2", "c1": "#f0a35e", "c2": "#79c98b", "c3": "#f08cc0",
        "c4": "#e3c14e", "c5": "#5fd0d8", "c6": "#b1a5ff", "c7": "#a2abb3",
    },
}  # fmt: skip


def write_plot(plot: Plot, out: Path, *, title: str, theme: Theme = "light") -> None:
    """Write *plot* to *out*.

    Args:
        plot: The charts.
        out: Ends in ``.html`` or ``.png``.
        title: Title of the page.
        theme: Theme of a PNG; a page follows the browser.

    Raises:
        UsageError: *out* has another suffix.
    """
    suffix = out.suffix.lower()
    if suffix in (".html", ".htm"):
        write_atomic(out, html_of(plot, title).encode())
    elif suffix == ".png":
        with atomic_file(out) as file:
            _image_of(plot, title, COLOURS[theme]).save(file, "PNG")
    else:
        raise UsageError(f"cannot draw `{out}`", hint="give a name that ends in .html or .png")


def html_of(plot: Plot, title: str) -> str:
    """Return the page."""
    source = files("vit21k").joinpath("runs/curves.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    panels = []
    for panel in plot.panels:
        last = {line.name: _in_short(line.y[-1]) for line in panel.lines}
        values = [last.get(run.name, "-") for run in plot.runs]
        panels.append({"panel": panel, "svg": _chart(panel, plot), "last": values})
    return environment.from_string(source).render(
        title=title, runs=plot.runs, colours=COLOURS, num_colours=NUM_COLOURS, panels=panels
    )


def _in_short(value: float) -> str:
    return short(value) if abs(value) >= _LARGE else f"{value:.5g}"


def _chart(panel: Panel, plot: Plot, *, heading: str = "") -> Markup:
    return charts.line_chart(
        panel.lines,
        x_name=plot.x_name,
        y_name=panel.metric,
        is_log=panel.is_log,
        heading=heading,
    )


def _image_of(plot: Plot, title: str, colours: Mapping[str, str]) -> Image.Image:
    """Return the charts below a legend, in two columns."""
    colours = {
        **colours, "tick": colours["quiet"], "value": colours["ink"], "grid": colours["rule"]
    }  # fmt: skip
    panels = [_chart(panel, plot, heading=panel.metric) for panel in plot.panels]
    images = [charts.pixels(panel, colours) for panel in panels]
    width, height = images[0].size
    columns = min(_COLUMNS, len(images))
    legend = charts.legend(title, plot.runs, charts.SIZE[0] * columns)
    head = charts.pixels(legend, colours)
    num_rows = -(-len(images) // columns)
    size = (width * columns, head.height + height * num_rows)
    whole = Image.new("RGB", size, colours["page"])
    whole.paste(head)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        whole.paste(image, (width * column, head.height + height * row))
    return whole
