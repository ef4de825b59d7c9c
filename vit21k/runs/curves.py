"""Runs -> curves -> an HTML page or a PNG."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from vit21k.atomic import atomic_file, write_atomic
from vit21k.errors import MissingExtraError, UsageError
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
        x_name: What lies to the right.
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
        places = [line["seconds"] / x.seconds for line in lines]
    elif x.kind == "images":
        places = _images_at(run, [line["step"] for line in lines])
    else:
        places = [float(line["step"]) for line in lines]
    return Curve(run=index, x=places, y=[float(line[metric]) for line in lines])


def _images_at(run: Run, steps: Sequence[int]) -> list[float]:
    """Return how many images were seen after each of *steps*, between the lines that say it."""
    lines = [line for line in run.lines if "images_seen" in line]
    known_steps = [0, *(line["step"] for line in lines)]
    known_images = [0, *(line["images_seen"] for line in lines)]
    return [float(value) for value in np.interp(steps, known_steps, known_images)]


WIDTH, HEIGHT = 480, 270
NUM_COLOURS = 8
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 40
_MAX_POINTS = 500
_NUM_TICKS = 5
_STEPS = (1, 2, 2.5, 5, 10)
_FEW_DECADES = 2
_SMALL = 1e-3


class Axis(NamedTuple):
    """Values -> pixels along one axis.

    Attributes:
        ticks: Values that are written at the axis.
        place: Pixel of a value.
    """

    ticks: Sequence[float]
    place: Callable[[float], float]


def draw(panel: Panel, x_name: str, run_names: Sequence[str]) -> Markup:
    """Return the chart of *panel*; each line has its run's name for whoever points at it."""
    x_values = [value for curve in panel.curves for value in curve.x]
    y_values = [value for curve in panel.curves for value in curve.y]
    across = _axis(x_values, _LEFT, WIDTH - _RIGHT, is_log=False)
    up = _axis(y_values, HEIGHT - _BOTTOM, _TOP, is_log=panel.is_log)
    parts = [*_grid(across, up)]
    parts += [_line(curve, across, up, run_names[curve.run]) for curve in panel.curves]
    middle = _LEFT + (WIDTH - _LEFT - _RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 6, x_name, "tick middle"))
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">')
    title = f"{panel.metric} by {x_name}"
    return head.format(WIDTH, HEIGHT, title) + Markup("").join(parts) + Markup("</svg>")


def _axis(values: Sequence[float], start: float, stop: float, *, is_log: bool) -> Axis:
    scale: Callable[[float], float] = math.log10 if is_log else float
    low, high = scale(min(values)), scale(max(values))
    if high - low < 1e-12 * max(1.0, abs(high)):  # a constant lies in the middle
        margin = abs(high) * 0.1 or 1.0
        low, high = low - margin, high + margin
    ticks = _log_ticks(low, high) if is_log else nice_ticks(low, high)
    return Axis(ticks, lambda value: start + (stop - start) * (scale(value) - low) / (high - low))


def nice_ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers between *low* and *high*, which differ."""
    rough = (high - low) / _NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in _STEPS if size * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(low), math.ceil(high) + 1)
    sizes = (1, 2, 5) if high - low < _FEW_DECADES else (1,)
    ticks = [size * 10.0**power for power in powers for size in sizes]
    return [tick for tick in ticks if low - 1e-9 <= math.log10(tick) <= high + 1e-9]


def short(value: float) -> str:
    """Return *value* as it is written at an axis: ``0.25``, ``12k``, ``1e-05``."""
    if value and abs(value) < _SMALL:
        return f"{value:.3g}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _grid(across: Axis, up: Axis) -> Iterator[Markup]:
    for value in up.ticks:
        y = up.place(value)
        yield _rule(_LEFT, y, WIDTH - _RIGHT, y)
        yield _text(_LEFT - 6, y + 4, short(value), "tick end")
    for value in across.ticks:
        x = across.place(value)
        yield _rule(x, _TOP, x, HEIGHT - _BOTTOM)
        yield _text(x, HEIGHT - _BOTTOM + 15, short(value), "tick middle")


def _rule(x1: float, y1: float, x2: float, y2: float) -> Markup:
    line = Markup('<line class="grid" x1="{}" y1="{}" x2="{}" y2="{}"/>')
    return line.format(*(f"{value:.1f}" for value in (x1, y1, x2, y2)))


def _line(curve: Curve, across: Axis, up: Axis, name: str) -> Markup:
    points = [
        f"{across.place(curve.x[i]):.1f},{up.place(curve.y[i]):.1f}" for i in _some(len(curve.x))
    ]
    style = style_of(curve.run)
    if len(points) == 1:
        x, y = points[0].split(",")
        return Markup(
            '<circle class="dot {}" cx="{}" cy="{}" r="3.5"><title>{}</title></circle>'
        ).format(style, x, y, name)
    line = Markup('<polyline class="line {}" points="{}"><title>{}</title></polyline>')
    return line.format(style, " ".join(points), name)


def style_of(run: int) -> str:
    """Return the classes of a run: a colour, and dashes where the colours are used up."""
    return f"c{run % NUM_COLOURS}" + (" dashed" if run >= NUM_COLOURS else "")


def _some(size: int) -> list[int]:
    """Return which of so many points are drawn."""
    if size <= _MAX_POINTS:
        return list(range(size))
    return sorted({round(index * (size - 1) / (_MAX_POINTS - 1)) for index in range(_MAX_POINTS)})


def _text(x: float, y: float, text: str, css_class: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(
        css_class, f"{x:.1f}", f"{y:.1f}", text
    )


Theme = Literal["light", "dark"]
_COLUMNS = 2
_INCHES = (6.4, 3.6)  # of a panel
_DPI = 110
_LARGE = 10_000
_PAPER = {"light": ("#ffffff", "#1d2125", "#e1e4e8"), "dark": ("#15181b", "#e6e8ea", "#2b3136")}
_COLOURS = {  # those of the page
    "light": (
        "#1864a8",
        "#b0530b",
        "#2b7a3d",
        "#a1356f",
        "#7a5c00",
        "#00737d",
        "#5b4bb5",
        "#5c6670",
    ),
    "dark": (
        "#6cb2f2",
        "#f0a35e",
        "#79c98b",
        "#f08cc0",
        "#e3c14e",
        "#5fd0d8",
        "#b1a5ff",
        "#a2abb3",
    ),
}


def write_plot(plot: Plot, out: Path, *, title: str, theme: Theme = "light") -> None:
    """Write *plot* to *out*; its suffix says as what.

    Args:
        plot: What is drawn.
        out: Ends in ``.html`` or ``.png``.
        title: Of the page.
        theme: Of a PNG; a page follows its reader's.

    Raises:
        UsageError: Another suffix.
        MissingExtraError: A PNG needs matplotlib, which is not installed.
    """
    suffix = out.suffix.lower()
    if suffix in (".html", ".htm"):
        write_atomic(out, html_of(plot, title).encode())
    elif suffix == ".png":
        _write_png(plot, out, title, theme)
    else:
        raise UsageError(f"cannot draw `{out}`", hint="give a name that ends in .html or .png")


def html_of(plot: Plot, title: str) -> str:
    """Return the page."""
    source = files("vit21k").joinpath("runs/curves.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(source).render(
        title=title,
        run_names=plot.run_names,
        styles=[style_of(index) for index in range(len(plot.run_names))],
        num_colours=NUM_COLOURS,
        panels=[
            {
                "metric": panel.metric,
                "is_log": panel.is_log,
                "svg": draw(panel, plot.x_name, plot.run_names),
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


def _write_png(plot: Plot, out: Path, title: str, theme: Theme) -> None:
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - takes half a second
    except ImportError as error:
        raise MissingExtraError(
            "a PNG is drawn with matplotlib, which is not installed",
            hint="pip install 'vit21k[plot]', or give a name that ends in .html",
        ) from error
    num_rows = -(-len(plot.panels) // _COLUMNS)
    width = _INCHES[0] * min(_COLUMNS, len(plot.panels))
    paper, ink, rule = _PAPER[theme]
    figure = Figure(figsize=(width, _INCHES[1] * num_rows + 0.8), dpi=_DPI, layout="constrained")
    figure.set_facecolor(paper)
    figure.suptitle(title, color=ink)
    for index, panel in enumerate(plot.panels):
        columns = min(_COLUMNS, len(plot.panels))
        axes = figure.add_subplot(num_rows, columns, index + 1)
        _draw_axes(axes, panel, plot, theme)
        axes.set_facecolor(paper)
        axes.grid(color=rule)
        axes.tick_params(colors=ink)
        for spine in axes.spines.values():
            spine.set_color(rule)
        axes.title.set_color(ink)
        axes.xaxis.label.set_color(ink)
    handles = [_handle(index, theme) for index in range(len(plot.run_names))]
    figure.legend(
        handles,
        plot.run_names,
        loc="outside lower center",
        ncols=min(4, len(handles)),
        labelcolor=ink,
        frameon=False,
    )
    with atomic_file(out) as file:
        figure.savefig(file, format="png", facecolor=paper)


def _draw_axes(axes: Any, panel: Panel, plot: Plot, theme: Theme) -> None:
    for curve in panel.curves:
        single = {"marker": "o", "markersize": 5} if len(curve.x) == 1 else {}
        axes.plot(curve.x, curve.y, linewidth=1.6, **_style(curve.run, theme), **single)
    axes.set_title(panel.metric, fontsize=10)
    axes.set_xlabel(plot.x_name, fontsize=9)
    if panel.is_log:
        axes.set_yscale("log")


def _handle(run: int, theme: Theme) -> Any:
    from matplotlib.lines import Line2D  # noqa: PLC0415

    return Line2D([], [], **_style(run, theme))


def _style(run: int, theme: Theme) -> dict[str, Any]:
    return {
        "color": _COLOURS[theme][run % NUM_COLOURS],
        "linestyle": "--" if run >= NUM_COLOURS else "-",
    }
