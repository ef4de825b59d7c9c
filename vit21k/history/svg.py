"""A panel of curves -> SVG, by hand: it takes its colours from the page, and needs no library."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup

from vit21k.history.curves import Curve, Panel

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
