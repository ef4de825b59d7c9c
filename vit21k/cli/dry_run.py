"""`train --dry-run`: what would be done, on stdout."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vit21k.cli import console
from vit21k.cli.train_lines import listener
from vit21k.errors import UsageError

if TYPE_CHECKING:
    from vit21k.checkpoint.initialise import InitSource
    from vit21k.config.schema import Recipe
    from vit21k.training.dry_run import DryRun
    from vit21k.training.setup import Fork, Place

DryRunFlag = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what would be done, and how long it takes; write none."),
]
PlotSchedule = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="With --dry-run: draw the learning rate; ends in .html or .png."
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        min=1e-6, help="With --dry-run: images a second to reckon with; default: measured."
    ),
]
DryRunJson = Annotated[bool, typer.Option("--json", help="With --dry-run: print it as JSON.")]

_BARS = "▁▂▃▄▅▆▇█"
_NUM_BARS = 60


def check_options(
    is_dry: bool, plot_schedule: Path | None, rate: float | None, as_json: bool
) -> None:
    """Refuse what is only for a dry run.

    Raises:
        UsageError: There is such an option, and it is none.
    """
    given = {"--plot-schedule": plot_schedule, "--rate": rate, "--json": as_json or None}
    if not is_dry and (odd := [name for name, value in given.items() if value is not None]):
        raise UsageError(f"{odd[0]} is for --dry-run")


def reckon(
    recipe: "Recipe",
    place: "Place",
    init: "InitSource | None",
    rate: float | None,
    *,
    fork: "Fork | None" = None,
    fresh: bool = False,
) -> "DryRun":
    """Find out what the run would be; the terminal hears of what is found on the way."""
    from vit21k.training.dry_run import dry_run

    return dry_run(
        recipe, place, listener(), init=init, fork=fork, fresh=fresh, images_per_second=rate
    )


def report(
    recipe: "Recipe", name: str, found: "DryRun", *, plot_schedule: Path | None, as_json: bool
) -> None:
    """Print *found*, and draw the schedule where it is asked for."""
    if as_json:
        facts = asdict(found)
        console.print_json({"recipe": recipe.model_dump(mode="json"), **facts})
    else:
        _print(recipe, found)
    if plot_schedule:
        _plot(found, name, plot_schedule)
        console.note(f"the schedule is drawn in `{plot_schedule}`")
    steps, time = found.steps, found.time
    left = steps["total_steps"] - steps["resumes_at"]
    console.done(
        f"train --dry-run: nothing written; {left:,} of {steps['total_steps']:,} steps to do, "
        f"about {console.duration(time['seconds'])} at {time['images_per_second']:,.4g} images/s "
        f"({'measured here, without reading images' if time['measured'] else 'as given'})"
    )
    console.note("next: the same command without --dry-run")


def _print(recipe: "Recipe", found: "DryRun") -> None:
    from vit21k.config.recipe import dump_recipe

    console.print_lines(dump_recipe(recipe))
    memory = {
        name: value if name == "device_batch_size" else f"{value / 1e9:,.3f} GB"
        for name, value in found.memory.items()
    }
    facts = {"data": found.data, "model": found.model, "steps": found.steps}
    console.print_facts({**facts, "memory_of_a_process_(estimate)": memory})
    console.print_lines("")
    columns = ["optimizer", "tensors", "parameters", "weight decay", "lr multiplier"]
    console.print_table(columns, [_row(group) for group in found.groups])
    if found.frozen:
        console.print_lines(f"frozen: {found.frozen:,} parameters")
    rates = [lr for _, lr in found.schedule]
    console.print_lines(f"\nlearning rate {sparkline(rates)}")
    console.print_lines(f"{rates[0]:.3g} at first, {max(rates):.3g} at most, {rates[-1]:.3g} last")


def _row(group: Mapping[str, Any]) -> list[str]:
    return [
        group["optimizer"],
        f"{group['num_tensors']:,}",
        f"{group['num_params']:,}",
        f"{group['weight_decay']:g}",
        f"{group['lr_multiplier']:g}",
    ]


def sparkline(values: Sequence[float]) -> str:
    """Return *values* as a row of bars, from 0 to the highest."""
    top = max(values) or 1.0
    count = min(_NUM_BARS, len(values))
    last = len(values) - 1
    chosen = [values[round(index * last / max(1, count - 1))] for index in range(count)]
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in chosen)


def _plot(found: "DryRun", name: str, out: Path) -> None:
    from vit21k.history.curves import Curve, Panel, Plot
    from vit21k.history.page import write_plot

    steps, rates = zip(*found.schedule, strict=True)
    curve = Curve(run=0, x=[float(step) for step in steps], y=rates)
    panel = Panel(metric="learning rate", curves=[curve], is_log=False)
    write_plot(
        Plot(run_names=[name], x_name="step", panels=[panel]),
        out,
        title=f"learning rate of {name}",
    )
