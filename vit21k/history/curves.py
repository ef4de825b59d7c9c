"""Runs -> curves: the points of every metric of every run, over steps, images or time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from vit21k.errors import UsageError
from vit21k.history.compare import names_of
from vit21k.history.runs import Run

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
