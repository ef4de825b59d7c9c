"""Folders of runs: what they are, their progress, how they compare."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from vit21k.atomic import write_atomic
from vit21k.errors import UsageError
from vit21k.lock import is_locked

FILE_NAME = "run.json"


def write_facts(run_dir: Path, facts: Mapping[str, Any]) -> None:
    """Write ``run.json``; *facts* are JSON values.

    ``recipe``: its name; ``total_steps``; ``global_batch_size``; ``num_params``;
    ``flops_per_image``; ``peak_flops``; ``device``; ``world_size``; ``num_train_images``;
    ``origin``: the first weights, if not from scratch; ``vit21k`` and ``torch``: versions.
    """
    write_atomic(run_dir / FILE_NAME, json.dumps(facts, indent=2).encode() + b"\n")


def read_facts(run_dir: Path) -> dict[str, Any]:
    """Return what ``run.json`` says; nothing if it is not there or cannot be read."""
    try:
        facts = json.loads((run_dir / FILE_NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


METRICS = "metrics.jsonl"
RECIPE = "recipe.yaml"
LATEST = "checkpoints/latest"
_CHECKPOINT = re.compile(r"step-(\d{8,})(\.\d+)?")

State = Literal["running", "finished", "stopped"]
_LOWER_IS_BETTER = ("loss",)
_PREFERRED = ("mAP", "prec@1", "top5", "loss")


class Point(NamedTuple):
    """A value of a metric, and when it was measured."""

    step: int
    value: float


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        path: Its folder.
        facts: What ``run.json`` says.
        recipe: The resolved recipe by dotted field; empty before the first checkpoint.
        lines: The lines of ``metrics.jsonl``, oldest first.
        is_running: Whether a process holds its lock.
    """

    path: Path
    facts: Mapping[str, Any]
    recipe: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    is_running: bool

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.absolute().name

    @property
    def step(self) -> int:
        """Updates made, as far as they were logged."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def total_steps(self) -> int | None:
        """Updates of the whole run, if that is known."""
        return self.facts.get("total_steps") or self.recipe.get("total_steps")

    @property
    def state(self) -> State:
        """Whether it runs, came to its end, or did not."""
        if self.is_running:
            return "running"
        saved = _last_saved_step(self.path)
        return "finished" if saved and saved == self.total_steps else "stopped"

    @property
    def seconds(self) -> float | None:
        """Time in training, over all processes that resumed it; None: not recorded."""
        return next((line["seconds"] for line in reversed(self.lines) if "seconds" in line), None)

    @cached_property
    def metric_names(self) -> list[str]:
        """What it measured, in the order in which it appeared."""
        untold = {"step", "eta_seconds", "seconds"}
        return list(dict.fromkeys(key for line in self.lines for key in line if key not in untold))

    def points(self, metric: str) -> list[Point]:
        """Return the values of *metric*, oldest first."""
        return [Point(line["step"], line[metric]) for line in self.lines if metric in line]

    def last(self, metric: str) -> Point | None:
        """Return the newest value of *metric*."""
        points = self.points(metric)
        return points[-1] if points else None

    def best(self, metric: str) -> Point | None:
        """Return the best value of *metric*: of a loss the least, of all else the most."""
        points = self.points(metric)
        if not points:
            return None
        lower = metric.rpartition("/")[2] in _LOWER_IS_BETTER
        return (min if lower else max)(points, key=lambda point: point.value)

    def main_metric(self) -> str | None:
        """Return the metric of an evaluation by which the run is judged, if there was any."""
        evaluated = [name for name in self.metric_names if "/" in name]
        for wanted in _PREFERRED:
            for name in evaluated:
                if name.rpartition("/")[2] == wanted:
                    return name
        return None


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs at or below *folder*, by path; hidden ones are skipped.

    Raises:
        UsageError: There is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"no folder at `{folder}`", hint="`vit21k train` makes `runs/<recipe>`")
    for where, folders, files in os.walk(folder):
        if FILE_NAME in files or METRICS in files:
            folders.clear()
            yield Path(where)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def read_run(path: Path) -> Run:
    """Return the run in the folder *path*.

    Raises:
        UsageError: There is none.
    """
    if not (path / METRICS).is_file() and not (path / FILE_NAME).is_file():
        raise UsageError(
            f"`{path}` is not the folder of a run", hint="`vit21k runs list` shows those there are"
        )
    return Run(
        path=path,
        facts=read_facts(path),
        recipe=_read_recipe(path / RECIPE),
        lines=list(_read_lines(path / METRICS)),
        is_running=is_locked(path),
    )


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete lines; a run in progress may be writing the last one."""
    if not path.is_file():
        return
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield {name: value for name, value in line.items() if value is not None}


def _last_saved_step(path: Path) -> int:
    """Return the step of the checkpoint that is the latest; 0 if there is none."""
    try:
        name = (path / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return 0
    step = _CHECKPOINT.fullmatch(name)
    is_there = step is not None and (path / LATEST).with_name(name).is_dir()
    return int(step[1]) if step and is_there else 0


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return flat(values) if isinstance(values, dict) else {}


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


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested *values* by their dotted names."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        inside = isinstance(value, Mapping)
        result |= flat(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return result
