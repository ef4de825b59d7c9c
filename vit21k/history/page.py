"""Curves -> a page or a picture: one HTML file without network or script, or a PNG."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Literal

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from vit21k import charts
from vit21k.atomic import atomic_file, write_atomic
from vit21k.charts import Line, short
from vit21k.errors import UsageError
from vit21k.history.curves import Panel, Plot

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
    source = files("vit21k").joinpath("history/curves.html.j2").read_text(encoding="utf-8")
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
