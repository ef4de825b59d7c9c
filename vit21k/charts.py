"""SVG charts with the colours of the page, and their rendering as pixels."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple
from xml.etree import ElementTree as ET

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from vit21k.errors import one_line

SIZE = (480, 270)
WIDTH = 720  # of a chart that is as wide as a page
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 40
_MAX_POINTS = 500
_NUM_TICKS = 5
_STEPS = (1, 2, 2.5, 5, 10)
_FEW_DECADES = 2
_SMALL = 1e-3
_LOG_FLOOR = 0.8  # drawn in place of a count of 0
_BAR_HEIGHT = 20
_NAME_WIDTH = 400
_MAX_NAME = 62  # letters
_TEXT_SIZE = 11
_DASH = 6
_DRAWN = 3  # pixels per unit at which `pixels` draws
_REDUCED = 2  # by which it reduces what it has drawn: lines are smooth
_ANCHORS = {"middle": "ms", "end": "rs"}


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        name: Shown in the legend and on hover.
        x, y: Coordinates of its points.
        css_class: Colour and dashes.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    css_class: str


class Axis(NamedTuple):
    """The scale of an axis.

    Attributes:
        ticks: Values with a label.
        place: Value -> pixel.
    """

    ticks: Sequence[float]
    place: Callable[[float], float]


def line_chart(
    lines: Sequence[Line],
    *,
    x_name: str,
    y_name: str,
    size: tuple[int, int] = SIZE,
    is_log: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    has_legend: bool = False,
    heading: str = "",
) -> Markup:
    """Draw lines; their names are shown on hover.

    Args:
        lines: Of one point or more.
        x_name: Name of the horizontal axis.
        y_name: Name of the vertical axis; not drawn, but in the title.
        size: Width and height.
        is_log: Whether the vertical axis is logarithmic.
        marks: Values to mark by a horizontal line, with labels; those outside are not drawn.
        has_legend: Whether to draw the names.
        heading: Drawn above the chart.
    """
    width, height = size
    x_values = [value for line in lines for value in line.x] or [0]
    y_values = [value for line in lines for value in line.y] or [1]
    across = _axis(x_values, _LEFT, width - _RIGHT, is_log=False)
    up = _axis(y_values, height - _BOTTOM, _TOP, is_log=is_log)
    parts = [*_grid(up, width)]
    for value in across.ticks:
        x = across.place(value)
        parts.append(_rule(x, _TOP, x, height - _BOTTOM))
        parts.append(_text(x, height - _BOTTOM + 15, short(value), "tick middle"))
    for value, name in marks:
        if min(y_values) <= value <= max(y_values):
            parts.append(_rule(_LEFT, up.place(value), width - _RIGHT, up.place(value), "mark"))
            parts.append(_text(width - _RIGHT, up.place(value) - 4, name, "tick end"))
    parts += [_line(line, across, up) for line in lines if line.x]
    if has_legend:
        parts += _legend(lines, width - 200, _TOP + 12)
    if heading:
        parts.append(_text((_LEFT + width - _RIGHT) / 2, _TOP - 5, heading, "value middle"))
    parts.append(_text((_LEFT + width - _RIGHT) / 2, height - 6, x_name, "tick middle"))
    return _svg(parts, width, height, f"{y_name} by {x_name}")


def count_lines(
    lines: Sequence[Line], *, marks: Sequence[tuple[float, str]], x_name: str, y_name: str
) -> Markup:
    """Draw lines of counts on a logarithmic scale, with the width of a page and a legend."""
    floored = [line._replace(y=[max(_LOG_FLOOR, value) for value in line.y]) for line in lines]
    return line_chart(
        floored, x_name=x_name, y_name=y_name, size=(WIDTH, 320), is_log=True,
        marks=marks, has_legend=True,
    )  # fmt: skip


def columns(values: Sequence[tuple[str, int]], *, x_name: str, y_name: str) -> Markup:
    """Draw vertical bars of counts on a logarithmic scale, each with its value."""
    height = 280
    floor = height - _BOTTOM
    top = max([10, *(value for _, value in values)])
    up = _axis([_LOG_FLOOR, top], floor, _TOP, is_log=True)
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(values))
    parts = [*_grid(up, WIDTH)]
    for index, (name, value) in enumerate(values):
        x, y = _LEFT + index * step, up.place(value) if value else floor
        parts.append(_bar(x + step * 0.15, y, step * 0.7, floor - y))
        parts.append(_text(x + step / 2, y - 4, f"{value:,}", "value middle"))
        parts.append(_text(x + step / 2, floor + 15, name, "tick middle"))
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, height - 6, x_name, "tick middle"))
    return _svg(parts, WIDTH, height, f"{y_name} by {x_name}")


def rows(values: Sequence[tuple[str, int, str]], *, title: str) -> Markup:
    """Draw horizontal bars: name, value, and the CSS class, which is also a label."""
    top = max([1, *(value for _, value, _ in values)])
    parts = []
    for index, (name, value, css_class) in enumerate(values):
        y = _TOP + index * _BAR_HEIGHT
        size = max(1, (WIDTH - _NAME_WIDTH - 110) * value / top)
        shown = name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"
        parts.append(_text(_NAME_WIDTH - 8, y + 12, shown, "tick end"))
        parts.append(_bar(_NAME_WIDTH, y, size, _BAR_HEIGHT - 5, css_class))
        parts.append(_text(_NAME_WIDTH + size + 5, y + 12, f"{value:,} {css_class}", "value"))
    return _svg(parts, WIDTH, _TOP + _BAR_HEIGHT * len(values) + 8, title)


def legend(title: str, lines: Sequence[Line], width: int) -> Markup:
    """Draw the title and legend of several charts."""
    parts = [_text(_LEFT, 20, title, "value"), *_legend(lines, _LEFT, 40)]
    return _svg(parts, width, 40 + 18 * len(lines), title)


def pixels(svg: str, colours: Mapping[str, str]) -> Image.Image:
    """Render *svg*.

    Args:
        svg: A result of `line_chart` or `legend`.
        colours: By CSS class, and of the "page".
    """
    root = ET.fromstring(svg)  # noqa: S314 - of this module
    width, height = (int(value) * _DRAWN for value in root.attrib["viewBox"].split()[2:])
    image = Image.new("RGB", (width, height), colours["page"])
    draw = ImageDraw.Draw(image)
    for node in root.iter():
        classes = node.get("class", "").split()
        colour = next((colours[name] for name in classes if name in colours), None)
        at = {name: float(node.get(name, 0)) * _DRAWN for name in ("x", "y", "cx", "cy", "r")}
        if node.tag in ("polyline", "line"):
            thickness = round((1.8 if "line" in classes else 0.7) * _DRAWN)
            points = _points(node) * _DRAWN
            for piece in _dashes(points) if "dashed" in classes else [points]:
                draw.line(piece.ravel().tolist(), colour, thickness, joint="curve")
        elif node.tag == "circle":
            draw.circle((at["cx"], at["cy"]), at["r"], colour)
        elif node.tag == "text":
            anchor = next((_ANCHORS[name] for name in classes if name in _ANCHORS), "ls")
            font = ImageFont.load_default(_TEXT_SIZE * _DRAWN)
            draw.text((at["x"], at["y"]), node.text or "", colour, font, anchor)
    return image.reduce(_REDUCED)


def _points(node: ET.Element) -> np.ndarray:
    text = node.get("points") or "{x1},{y1} {x2},{y2}".format(**node.attrib)
    return np.array([point.split(",") for point in text.split()], float)


def _dashes(points: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the dashes of a line."""
    lengths = np.hypot(*np.diff(points, axis=0).T)
    along = np.concatenate([[0], np.cumsum(lengths)])
    for start in np.arange(0, along[-1], 1.5 * _DASH * _DRAWN):
        at = np.linspace(start, min(start + _DASH * _DRAWN, along[-1]), _DASH)
        yield np.column_stack([np.interp(at, along, points[:, i]) for i in range(2)])


def nice_ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers between *low* and *high*, which are different."""
    rough = (high - low) / _NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in _STEPS if size * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def short(value: float) -> str:
    """Format *value* for an axis: ``0.25``, ``12k``, ``1e-05``."""
    if value and abs(value) < _SMALL:
        return f"{value:.3g}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _axis(values: Sequence[float], start: float, stop: float, *, is_log: bool) -> Axis:
    scale: Callable[[float], float] = math.log10 if is_log else float
    low, high = scale(min(values)), scale(max(values))
    if high - low < 1e-12 * max(1.0, abs(high)):  # a constant is drawn in the middle
        margin = abs(high) * 0.1 or 1.0
        low, high = low - margin, high + margin
    ticks = _log_ticks(low, high) if is_log else nice_ticks(low, high)
    return Axis(ticks, lambda value: start + (stop - start) * (scale(value) - low) / (high - low))


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(low), math.ceil(high) + 1)
    sizes = (1, 2, 5) if high - low < _FEW_DECADES else (1,)
    ticks = [size * 10.0**power for power in powers for size in sizes]
    return [tick for tick in ticks if low - 1e-9 <= math.log10(tick) <= high + 1e-9]


def _grid(up: Axis, width: int) -> Iterator[Markup]:
    for value in up.ticks:
        y = up.place(value)
        yield _rule(_LEFT, y, width - _RIGHT, y)
        yield _text(_LEFT - 6, y + 4, short(value), "tick end")


def _line(line: Line, across: Axis, up: Axis) -> Markup:
    size = len(line.x)
    chosen = sorted({round(i) for i in np.linspace(0, size - 1, min(size, _MAX_POINTS))})
    points = [f"{across.place(line.x[i]):.1f},{up.place(line.y[i]):.1f}" for i in chosen]
    if len(points) == 1:
        x, y = points[0].split(",")
        dot = Markup('<circle class="dot {}" cx="{}" cy="{}" r="3.5"><title>{}</title></circle>')
        return dot.format(line.css_class, x, y, one_line(line.name))
    drawn = Markup('<polyline class="line {}" points="{}"><title>{}</title></polyline>')
    return drawn.format(line.css_class, " ".join(points), one_line(line.name))


def _legend(lines: Sequence[Line], x: float, y: float) -> Iterator[Markup]:
    for line in lines:
        yield _rule(x, y - 4, x + 28, y - 4, f"line {line.css_class}")
        yield _text(x + 36, y, line.name, "tick")
        y += 18


def _rule(x1: float, y1: float, x2: float, y2: float, css_class: str = "grid") -> Markup:
    line = Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>')
    return line.format(css_class, *(f"{value:.1f}" for value in (x1, y1, x2, y2)))


def _bar(x: float, y: float, width: float, height: float, css_class: str = "") -> Markup:
    bar = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>')
    numbers = (f"{value:.1f}" for value in (x, y, width, height))
    return bar.format(f"bar {css_class}".strip(), *numbers)


def _text(x: float, y: float, text: str, css_class: str) -> Markup:
    element = Markup('<text class="{}" x="{}" y="{}">{}</text>')
    return element.format(css_class, f"{x:.1f}", f"{y:.1f}", one_line(text))


def _svg(parts: Sequence[Markup], width: int, height: int, title: str) -> Markup:
    start = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">')
    return start.format(width, height, one_line(title)) + Markup("").join(parts) + Markup("</svg>")
