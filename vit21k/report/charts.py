"""Numbers -> SVG charts, by hand: they take their colours from the page, and need no library."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup

WIDTH = 720
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 40
_MAX_POINTS = 360
_BAR_HEIGHT = 20
_NAME_WIDTH = 400
_MAX_NAME = 62  # letters


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        name: In the legend.
        values: From left to right; 0 is drawn at the bottom.
        css_class: Its colour and dashes.
    """

    name: str
    values: Sequence[float]
    css_class: str


def long_tail(
    lines: Sequence[Line], *, marks: Sequence[tuple[float, str]], x_name: str, y_name: str
) -> Markup:
    """Draw lines over ranks 1, 2, 3 ..., on a logarithmic scale.

    Args:
        lines: Values in descending order.
        marks: Heights to mark by a horizontal line, with names.
        x_name: What the ranks are.
        y_name: What the values are.
    """
    height = 320
    size = max((len(line.values) for line in lines), default=1)
    top = max([1.0, *(value for line in lines for value in line.values)])
    decades = max(1, math.ceil(math.log10(top)))

    def x_of(rank: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (rank / max(1, size - 1))

    def y_of(value: float) -> float:
        share = math.log10(max(value, 0.8)) / decades
        return height - _BOTTOM - (height - _TOP - _BOTTOM) * max(share, -0.03)

    parts = [_grid_line(y_of(10**power), f"{10**power:,}") for power in range(decades + 1)]
    parts += [_mark(y_of(value), name) for value, name in marks if value <= 10**decades]
    for line in lines:
        points = " ".join(
            f"{x_of(rank):.1f},{y_of(line.values[rank]):.1f}" for rank in _ranks(len(line.values))
        )
        parts.append(
            Markup('<polyline class="line {}" points="{}"/>').format(line.css_class, points)
        )
    parts += _legend(lines, height)
    parts.append(_axis_names(height, x_name, y_name))
    return _svg(parts, height, f"{y_name} by {x_name}")


def _ranks(size: int) -> list[int]:
    """Return at which ranks a line of so many values has its points."""
    if size <= _MAX_POINTS:
        return list(range(size))
    return sorted({round(index * (size - 1) / (_MAX_POINTS - 1)) for index in range(_MAX_POINTS)})


def columns(values: Sequence[tuple[str, int]], *, x_name: str, y_name: str) -> Markup:
    """Draw upright bars on a logarithmic scale, each with its value."""
    height = 280
    top = max([1, *(value for _, value in values)])
    decades = max(1, math.ceil(math.log10(top)))
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(values))
    floor = height - _BOTTOM
    parts = []
    for power in range(decades + 1):
        y = floor - (floor - _TOP) * power / decades
        parts.append(_grid_line(y, f"{10**power:,}"))
    for index, (name, value) in enumerate(values):
        share = (math.log10(value) + 0.02) / decades if value else 0
        bar = (floor - _TOP) * min(share, 1) if value else 0
        x = _LEFT + index * step
        middle = x + step / 2
        parts.append(
            Markup('<rect class="bar" x="{}" y="{}" width="{}" height="{}"/>').format(
                f"{x + step * 0.15:.1f}", f"{floor - bar:.1f}", f"{step * 0.7:.1f}", f"{bar:.1f}"
            )
        )
        parts.append(_text(middle, floor - bar - 4, f"{value:,}", "value middle"))
        parts.append(_text(middle, floor + 15, name, "tick middle"))
    parts.append(_axis_names(height, x_name, y_name))
    return _svg(parts, height, f"{y_name} by {x_name}")


def rows(values: Sequence[tuple[str, int, str]], *, title: str) -> Markup:
    """Draw lying bars: name, value, and a word that gives the colour and is written beside it."""
    top = max([1, *(value for _, value, _ in values)])
    height = _TOP + _BAR_HEIGHT * len(values) + 8
    room = WIDTH - _NAME_WIDTH - 110
    parts = []
    for index, (name, value, css_class) in enumerate(values):
        y = _TOP + index * _BAR_HEIGHT
        parts.append(_text(_NAME_WIDTH - 8, y + 12, _shortened(name), "tick end"))
        parts.append(
            Markup('<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"/>').format(
                css_class, _NAME_WIDTH, y, f"{max(1, room * value / top):.1f}", _BAR_HEIGHT - 5
            )
        )
        x = _NAME_WIDTH + max(1, room * value / top) + 5
        parts.append(_text(x, y + 12, f"{value:,} {css_class}", "value"))
    return _svg(parts, height, title)


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def _grid_line(y: float, name: str) -> Markup:
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
        _LEFT, WIDTH - _RIGHT, f"{y:.1f}", f"{y:.1f}"
    )
    return line + _text(_LEFT - 6, y + 4, name, "tick end")


def _mark(y: float, name: str) -> Markup:
    line = Markup('<line class="mark" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
        _LEFT, WIDTH - _RIGHT, f"{y:.1f}", f"{y:.1f}"
    )
    return line + _text(WIDTH - _RIGHT, y - 4, name, "tick end")


def _legend(lines: Sequence[Line], height: int) -> Iterator[Markup]:
    del height
    x = WIDTH - 200
    for index, line in enumerate(lines):
        y = _TOP + 12 + 18 * index
        yield Markup('<line class="line {}" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            line.css_class, x, x + 28, y - 4, y - 4
        )
        yield _text(x + 36, y, line.name, "tick")


def _axis_names(height: int, x_name: str, y_name: str) -> Markup:
    middle = _LEFT + (WIDTH - _LEFT - _RIGHT) / 2
    upright = Markup('<text class="tick middle" transform="translate(14 {}) rotate(-90)">{}</text>')
    y_text = upright.format(round((height - _BOTTOM + _TOP) / 2), y_name)
    return _text(middle, height - 6, x_name, "tick middle") + y_text


def _text(x: float, y: float, text: str, css_class: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(
        css_class, f"{x:.1f}", f"{y:.1f}", text
    )


def _svg(parts: Sequence[Markup], height: int, title: str) -> Markup:
    start = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        WIDTH, height, title
    )
    return start + Markup("").join(parts) + Markup("</svg>")
