"""The folder of a run -> what it is, how far it came, what it measured."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from vit21k.errors import UsageError
from vit21k.history.facts import FILE_NAME as FACTS
from vit21k.history.facts import read_facts
from vit21k.lock import is_locked
from vit21k.sinks.sink import flat

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
    """A run as it lies on disk.

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
        """Time in training, over all processes that went on with it; None: nobody counted."""
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
    """Yield the folders of runs at or below *folder*, by path; hidden ones are left out.

    Raises:
        UsageError: There is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"no folder at `{folder}`", hint="`vit21k train` makes `runs/<recipe>`")
    for where, folders, files in os.walk(folder):
        if FACTS in files or METRICS in files:
            folders.clear()
            yield Path(where)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def read_run(path: Path) -> Run:
    """Return the run in the folder *path*.

    Raises:
        UsageError: There is none.
    """
    if not (path / METRICS).is_file() and not (path / FACTS).is_file():
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
    """Yield the whole lines; a run that goes on may be writing the last one."""
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
