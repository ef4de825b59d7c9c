"""`runs list | compare | plot`: training runs."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vit21k.cli import console
from vit21k.cli.next_steps import print_next
from vit21k.cli.options import AsJson
from vit21k.errors import UsageError

if TYPE_CHECKING:
    from vit21k.runs.history import Run

DEFAULT_RUNS = Path("runs")

Folders = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[RUN|FOLDER]...", help="Runs, or folders of runs; default: `runs`."),
]


def list_runs(folders: Folders = None, as_json: AsJson = False) -> None:
    """Print the runs: state, step, loss, best metric.

    [bold]Examples[/bold]

      vit21k runs list

      vit21k runs list runs old_runs --json
    """
    found = _read(folders)
    if as_json:
        console.print_json([_as_json(run) for run in found])
    else:
        columns = ["run", "recipe", "state", "step", "loss", "best", "of", "at", "time"]
        console.print_table(columns, [_as_row(run) for run in found])
    states = [run.state for run in found]
    counts = [f"{states.count(s)} {s}" for s in ("running", "finished", "stopped") if s in states]
    console.done(f"runs list: {len(found)} runs: {', '.join(counts)}")
    word = "compare" if len(found) > 1 else "plot"
    print_next(shlex.join(["vit21k", "runs", word, *map(str, folders or ())]))


def compare_command(folders: Folders = None, as_json: AsJson = False) -> None:
    """Print the differences between recipes of runs, and the metrics of each run.

    [bold]Examples[/bold]

      vit21k runs compare runs/a runs/b

      vit21k runs compare runs --json
    """
    from vit21k.runs.history import metric_table, recipe_differences, run_names

    found = _read(folders)
    if len(found) < 2:
        raise UsageError("only one run to compare", hint="name two runs, or a folder of several")
    names, differences, metrics = run_names(found), recipe_differences(found), metric_table(found)
    if as_json:
        console.print_json({"runs": names, "recipe": differences, "metrics": metrics})
    else:
        without = [name for name, run in zip(names, found, strict=True) if not run.recipe]
        if without:
            console.warn(f"no recipe yet, before the first checkpoint: {console.some(without)}")
        rows = [[field, *map(_shown, values)] for field, values in differences.items()]
        if rows:
            console.print_table(["recipe", *names], rows)
            console.print_lines("")
        table = [[name, *map(_reached, values)] for name, values in metrics.items()]
        console.print_table(["metric", *names], table)
    console.done(
        f"runs compare: {len(found)} runs, {len(differences)} fields of the recipe differ, "
        f"{len(metrics)} metrics"
    )
    print_next(shlex.join(["vit21k", "runs", "plot", *map(str, folders or ())]))


def plot_command(
    folders: Folders = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Ends in .html or .png.")] = Path(
        "curves.html"
    ),
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="Plot only this metric; repeatable."),
    ] = None,
    x: Annotated[
        Literal["step", "images", "time"], typer.Option("--x", help="The horizontal axis.")
    ] = "step",
    theme: Annotated[
        Literal["light", "dark"], typer.Option(help="Theme of a PNG; a page follows the browser.")
    ] = "light",
    as_json: AsJson = False,
) -> None:
    """Plot the curves of runs on one page or image: loss, metrics, learning rate ...

    [bold]Examples[/bold]

      vit21k runs plot

      vit21k runs plot runs/a runs/b --out curves.png --x time

      vit21k runs plot runs/a --metric loss --metric val/prec@1
    """
    from vit21k.runs.curves import plot_of, write_plot

    found = _read(folders)
    plot = plot_of(found, metrics=metrics or (), x=x)
    title = found[0].name if len(found) == 1 else f"{len(found)} runs"
    write_plot(plot, out, title=title, theme=theme)
    if as_json:
        console.print_json(
            {
                "path": str(out),
                "runs": [run.name for run in plot.runs],
                "metrics": [p.metric for p in plot.panels],
            }
        )
    console.done(f"runs plot: {len(found)} runs, {len(plot.panels)} charts in `{out}`")


def _read(folders: list[Path] | None) -> "list[Run]":
    """Return the runs at or below *folders*, each once."""
    from vit21k.runs.history import find_runs, read_run

    where = folders or [DEFAULT_RUNS]
    paths = dict.fromkeys(path for folder in where for path in find_runs(folder))
    if not paths:
        raise UsageError(
            f"no run below {console.some([str(folder) for folder in where])}",
            hint="`vit21k train` creates one",
        )
    return [read_run(path) for path in paths]


def _as_json(run: "Run") -> dict[str, Any]:
    metric = run.main_metric()
    best = run.best(metric) if metric else None
    loss = run.last("loss")
    return {
        "path": str(run.path),
        "name": run.name,
        "recipe": run.facts.get("recipe"),
        "state": run.state,
        "step": run.step,
        "total_steps": run.total_steps,
        "loss": loss.value if loss else None,
        "metric": metric,
        "best": best.value if best else None,
        "best_step": best.step if best else None,
        "seconds": run.seconds,
    }


def _as_row(run: "Run") -> list[str]:
    facts = _as_json(run)
    total = f"{facts['total_steps']:,}" if facts["total_steps"] else "?"
    return [
        facts["path"],
        facts["recipe"] or "-",
        facts["state"],
        f"{facts['step']:,}/{total}",
        console.number(facts["loss"]),
        console.number(facts["best"]),
        facts["metric"] or "-",
        "-" if facts["best_step"] is None else f"{facts['best_step']:,}",
        "-" if facts["seconds"] is None else console.duration(facts["seconds"]),
    ]


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _reached(values: "dict[str, float] | None") -> str:
    if values is None:
        return "-"
    last = f"{values['last']:.5g}"
    if "best" not in values or values["best"] == values["last"]:
        return last
    return f"{last} (best {values['best']:.5g} at {values['best_step']:,})"
