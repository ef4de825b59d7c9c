"""Runs on disk: their progress and metrics, and comparisons between them."""

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
    """Return the content of ``run.json``; empty if it is missing or damaged."""
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
_PREFERRED = ("mAP", "prec@1", "top5", "loss")


class MetricValue(NamedTuple):
    """A value of a metric, and the step at which it was measured."""

    step: int
    value: float


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        path: Its folder.
        facts: Content of ``run.json``.
        recipe: The resolved recipe by dotted field; empty before the first checkpoint.
        lines: The lines of ``metrics.jsonl``, oldest first.
        is_running: Whether a process has its lock.
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
        """Number of updates in the log."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def total_steps(self) -> int | None:
        """Number of updates of the complete run, if it is known."""
        return self.facts.get("total_steps") or self.recipe.get("total_steps")

    @property
    def state(self) -> State:
        """Whether it runs, has finished, or was stopped before its end."""
        if self.is_running:
            return "running"
        saved = _last_saved_step(self.path)
        return "finished" if saved and saved == self.total_steps else "stopped"

    @property
    def seconds(self) -> float | None:
        """Training time, over all resumptions; None: not measured."""
        return next((line["seconds"] for line in reversed(self.lines) if "seconds" in line), None)

    @cached_property
    def metric_names(self) -> list[str]:
        """Names of its metrics, in the order of their first values."""
        names = dict.fromkeys(key for line in self.lines for key in line)
        return [name for name in names if name not in ("step", "eta_seconds", "seconds")]

    def points(self, metric: str) -> list[MetricValue]:
        """Return the values of *metric*, oldest first."""
        return [MetricValue(line["step"], line[metric]) for line in self.lines if metric in line]

    def last(self, metric: str) -> MetricValue | None:
        """Return the newest value of *metric*."""
        points = self.points(metric)
        return points[-1] if points else None

    def best(self, metric: str) -> MetricValue | None:
        """Return the best value of *metric*: the minimum of a loss, the maximum of others."""
        best = min if metric.rpartition("/")[2] == "loss" else max
        return best(self.points(metric), key=lambda point: point.value, default=None)

    def main_metric(self) -> str | None:
        """Return the metric that summarizes the evaluations; None: there were none."""
        evaluated = {name.rpartition("/")[2]: name for name in self.metric_names if "/" in name}
        return next((evaluated[name] for name in _PREFERRED if name in evaluated), None)


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield the folders of runs at or below *folder*, by path; hidden ones are skipped.

    Raises:
        UsageError: There is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"no folder at `{folder}`", hint="`vit21k train` creates `runs/<recipe>`")
    for where, folders, files in os.walk(folder):
        if FILE_NAME in files or METRICS in files:
            folders.clear()
            yield Path(where)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def read_run(path: Path) -> Run:
    """Return the run in the folder *path*.

    Raises:
        UsageError: There is no run.
    """
    if not (path / METRICS).is_file() and not (path / FILE_NAME).is_file():
        raise UsageError(
            f"`{path}` is not the folder of a run",
            hint="`vit21k runs list` prints the runs of a folder",
        )
    return Run(
        path=path,
        facts=read_facts(path),
        recipe=_read_recipe(path / RECIPE),
        lines=list(_read_lines(path / METRICS)),
        is_running=is_locked(path),
    )


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the complete lines; the last one may be partial while the run writes it."""
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
    """Return the step of the latest checkpoint; 0: there is none."""
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


def run_names(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run: that of its folder, or its path if two have the same name."""
    names = [run.name for run in runs]
    return [
        str(run.path) if names.count(name) > 1 else name
        for run, name in zip(runs, names, strict=True)
    ]


def recipe_differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the fields of the recipes that differ, each with its value in every run.

    The value is None in a run without a recipe yet, or with a recipe that lacks the field.
    """
    fields = dict.fromkeys(name for run in runs for name in run.recipe)
    values = {name: [run.recipe.get(name) for run in runs] for name in fields}
    return {
        name: row
        for name, row in values.items()
        if name != "source" and any(value != row[0] for value in row)
    }


def metric_table(runs: Sequence[Run]) -> dict[str, list[dict[str, float] | None]]:
    """Return the values of every metric in each run.

    Returns:
        By metric, for each run: ``last``, ``best`` and ``best_step``; None if it was not measured.
        Metrics for which no value is best, such as a learning rate, have only ``last``.
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
    """Return nested *values* by dotted names."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        inside = isinstance(value, Mapping)
        result |= flat(value, f"{prefix}{key}.") if inside else {f"{prefix}{key}": value}
    return result
