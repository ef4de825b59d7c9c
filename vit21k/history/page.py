"""Curves -> a page or a picture: one HTML file without network or script, or a PNG."""

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, StrictUndefined

from vit21k.atomic import atomic_file, write_atomic
from vit21k.errors import MissingExtraError, UsageError
from vit21k.history.curves import Panel, Plot
from vit21k.history.svg import NUM_COLOURS, draw, short, style_of

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
    source = files("vit21k").joinpath("history/curves.html.j2").read_text(encoding="utf-8")
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
