"""Several runs -> what is different about them, and what came of it."""

from collections.abc import Sequence
from typing import Any

from vit21k.history.runs import Run

_NO_DIFFERENCE = ("source",)


def names_of(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run: that of its folder, or its path where two would be the same."""
    names = [run.name for run in runs]
    return [
        str(run.path) if names.count(name) > 1 else name
        for run, name in zip(runs, names, strict=True)
    ]


def recipe_differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the fields of the recipes that differ, each with its value in every run.

    A run without a recipe yet, or with one of another version, has None where a field is missing.
    """
    fields = dict.fromkeys(name for run in runs for name in run.recipe)
    values = {name: [run.recipe.get(name) for run in runs] for name in fields}
    return {
        name: row
        for name, row in values.items()
        if name not in _NO_DIFFERENCE and any(value != row[0] for value in row)
    }


def metric_table(runs: Sequence[Run]) -> dict[str, list[dict[str, float] | None]]:
    """Return, for every metric that an evaluation or the log gave, what each run reached.

    Returns:
        By metric, for each run: ``last``, ``best`` and ``best_step``; None if it was not measured.
        Of what is neither better high nor low, such as a learning rate, there is only ``last``.
    """
    metrics = dict.fromkeys(name for run in runs for name in run.metric_names)
    return {name: [_reached(run, name) for run in runs] for name in metrics}


def _reached(run: Run, metric: str) -> dict[str, float] | None:
    last, best = run.last(metric), run.best(metric)
    if last is None or best is None:
        return None
    reached = {"last": last.value}
    if metric == "loss" or ("/" in metric and not metric.endswith("/num_images")):
        reached |= {"best": best.value, "best_step": best.step}
    return reached
