"""Runs -> curves -> an HTML page or a PNG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from vit21k.runs.history import Run, names_of

XAxis = Literal["step", "images", "time"]

_FIRST = ("loss", "lr", "grad_norm", "weight_norm", "images_per_second", "mfu", "data_wait")
_UNSHOWN = ("images_seen", "num_skipped", "num_replaced", "loss_scale", "skipped_updates")
_LOG_RATIO = 50
_LOG_NAMES = ("loss", "grad_norm")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The values of a metric in a run.

    Attributes:
        run: Place of the run among all; it decides the colour.
        x, y: Its points, of equal number.
    """

    run: int
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart.

    Attributes:
        metric: What is drawn.
        curves: One for each run that measured it.
        is_log: Whether its height is the logarithm.
    """

    metric: str
    curves: Sequence[Curve]
    is_log: bool


@dataclass(frozen=True, kw_only=True)
class Plot:
    """All charts, whatever they are drawn with.

    Attributes:
        run_names: In the legend.
        x_name: Label of the x-axis.
        panels: In the order in which they are drawn.
    """

    run_names: Sequence[str]
    x_name: str
    panels: Sequence[Panel]


def plot_of(runs: Sequence[Run], *, metrics: Sequence[str] = (), x: XAxis = "step") -> Plot:
    """Return the charts of *runs*.

    Args:
        runs: Which.
        metrics: Which metrics; default: all that say how a run went.
        x: What the values are drawn over.

    Raises:
        UsageError: No run has measured one of *metrics*, or nothing at all, or not over *x*.
    """
    known = _in_order(list(dict.fromkeys(name for run in runs for name in run.metric_names)))
    if unknown := [name for name in metrics if name not in known]:
        raise UsageError(
            f"no run has measured `{unknown[0]}`", hint=f"there are: {', '.join(known)}"
        )
    chosen = list(metrics) or [name for name in known if name not in _UNSHOWN and _is_curve(name)]
    axis = _axis_of(runs, x)
    panels = [_panel(runs, metric, axis) for metric in chosen]
    panels = [panel for panel in panels if panel.curves]
    if not panels:
        raise UsageError("there is nothing to draw: no run has logged a line with that yet")
    return Plot(run_names=names_of(runs), x_name=axis.name, panels=panels)


class _Axis(NamedTuple):
    kind: XAxis
    name: str
    seconds: int  # of a unit of time


def _axis_of(runs: Sequence[Run], x: XAxis) -> _Axis:
    if x != "time":
        return _Axis(x, "step" if x == "step" else "images seen", 1)
    longest = max((run.seconds or 0.0 for run in runs), default=0.0)
    for name, seconds in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if longest >= seconds:
            return _Axis(x, f"{name} of training", seconds)
    return _Axis(x, "seconds of training", 1)


def _is_curve(metric: str) -> bool:
    return not metric.endswith("/num_images")


def _in_order(names: list[str]) -> list[str]:
    """Return the loss, then the evaluations, then the rest."""
    evaluated = [name for name in names if "/" in name]
    first = [name for name in _FIRST if name in names]
    rest = [name for name in names if name not in first and name not in evaluated]
    return [*first[:1], *evaluated, *first[1:], *rest]


def _panel(runs: Sequence[Run], metric: str, x: _Axis) -> Panel:
    curves = [curve for index, run in enumerate(runs) if (curve := _curve(run, index, metric, x)).x]
    values = [value for curve in curves for value in curve.y]
    may_be_log = metric.rpartition("/")[2] in _LOG_NAMES and min(values, default=0) > 0
    is_log = may_be_log and max(values) / min(values) > _LOG_RATIO
    return Panel(metric=metric, curves=curves, is_log=is_log)


def _curve(run: Run, index: int, metric: str, x: _Axis) -> Curve:
    lines = [line for line in run.lines if metric in line and math.isfinite(line[metric])]
    if x.kind == "time":
        lines = [line for line in lines if "seconds" in line]
        x_values = [line["seconds"] / x.seconds for line in lines]
    elif x.kind == "images":
        x_values = _images_at(run, [line["step"] for line in lines])
    else:
        x_values = [float(line["step"]) for line in lines]
    return Curve(run=index, x=x_values, y=[float(line[metric]) for line in lines])


def _images_at(run: Run, steps: Sequence[int]) -> list[float]:
    """Return how many images were seen after each of *steps*, between the lines that say it."""
    lines = [line for line in run.lines if "images_seen" in line]
    known_steps = [0, *(line["step"] for line in lines)]
    known_images = [0, *(line["images_seen"] for line in lines)]
    return [float(value) for value in np.interp(steps, known_steps, known_images)]


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
    """Write *plot* to *out*; its suffix says as what.

    Args:
        plot: What is drawn.
        out: Ends in ``.html`` or ``.png``.
        title: Of the page.
        theme: Of a PNG; a page follows its reader's.

    Raises:
        UsageError: Another suffix.
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
    return environment.from_string(source).render(
        title=title,
        run_names=plot.run_names,
        styles=[_style(run) for run in range(len(plot.run_names))],
        colours=COLOURS,
        num_colours=NUM_COLOURS,
        panels=[
            {
                "metric": panel.metric,
                "is_log": panel.is_log,
                "svg": _chart(panel, plot),
            }
            for panel in plot.panels
        ],
        rows=[
            {"metric": panel.metric, "last": _last(panel, len(plot.run_names))}
            for panel in plot.panels
        ],
    )


def _last(panel: Panel, num_runs: int) -> list[str]:
    values = {curve.run: _in_short(curve.y[-1]) for curve in panel.curves}
    return [values.get(run, "-") for run in range(num_runs)]


def _in_short(value: float) -> str:
    return short(value) if abs(value) >= _LARGE else f"{value:.5g}"


def _chart(panel: Panel, plot: Plot, *, heading: str = "") -> Markup:
    return charts.line_chart(
        [Line(plot.run_names[one.run], one.x, one.y, _style(one.run)) for one in panel.curves],
        x_name=plot.x_name,
        y_name=panel.metric,
        is_log=panel.is_log,
        heading=heading,
    )


def _style(run: int) -> str:
    """Return the classes of a run: a colour, and dashes where the colours are used up."""
    return f"c{run % NUM_COLOURS}" + (" dashed" if run >= NUM_COLOURS else "")


def _image_of(plot: Plot, title: str, colours: Mapping[str, str]) -> Image.Image:
    """Return the charts below a legend, in two columns."""
    colours = {
        **colours, "tick": colours["quiet"], "value": colours["ink"], "grid": colours["rule"]
    }  # fmt: skip
    panels = [_chart(panel, plot, heading=panel.metric) for panel in plot.panels]
    images = [charts.pixels(panel, colours) for panel in panels]
    width, height = images[0].size
    columns = min(_COLUMNS, len(images))
    runs = [Line(name, (), (), _style(run)) for run, name in enumerate(plot.run_names)]
    head = charts.pixels(charts.legend(title, runs, charts.SIZE[0] * columns), colours)
    num_rows = -(-len(images) // columns)
    size = (width * columns, head.height + height * num_rows)
    whole = Image.new("RGB", size, colours["page"])
    whole.paste(head)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        whole.paste(image, (width * column, head.height + height * row))
    return whole
