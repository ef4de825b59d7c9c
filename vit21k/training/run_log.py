"""What a run says: ``metrics.jsonl``, and the same lines to whoever listens."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from vit21k.atomic import write_atomic
from vit21k.training.loop import Progress
from vit21k.training.schedule import is_due

FILE_NAME = "metrics.jsonl"


class RunLog:
    """Averages the losses between two lines, writes the lines, and passes them on.

    A step has one line in ``metrics.jsonl``, however often the run was killed: on a resume, what
    was written after the checkpoint is taken back.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        resumed_step: int,
        resumed_images: int,
        total_steps: int,
        every_steps: int,
        peak_lr: float,
        tell: Callable[[Mapping[str, Any]], None] | None,
    ) -> None:
        """Open the log.

        Args:
            run_dir: Where ``metrics.jsonl`` lies.
            resumed_step: Updates made by earlier processes of this run.
            resumed_images: Pictures they trained on.
            total_steps: Of the whole run.
            every_steps: How often a line is due.
            peak_lr: Learning rate at a factor of 1.
            tell: Receives every line, with ``total_steps`` and ``eta_seconds``; None on all
                processes but the first, which then write nothing.
        """
        self._total_steps = total_steps
        self._every_steps = every_steps
        self._peak_lr = peak_lr
        self._tell = tell
        self._started_step = resumed_step
        self._started_at = time.monotonic()
        self._losses: list[float] = []
        self._window_at = self._started_at
        self._window_images = resumed_images
        self._file: IO[str] | None = None
        if tell is not None:
            path = run_dir / FILE_NAME
            _take_back(path, after_step=resumed_step)
            self._file = path.open("a", encoding="utf-8")

    def log_step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Take ``loss``, ``lr_factor``, ``grad_norm`` and ``num_skipped`` of one update."""
        step, images_seen = progress.step, progress.images_seen
        self._losses.append(metrics["loss"])
        if not is_due(step, every_steps=self._every_steps, total_steps=self._total_steps):
            return
        now = time.monotonic()
        rate = (images_seen - self._window_images) / max(now - self._window_at, 1e-9)
        line = {
            "step": step,
            "images_seen": images_seen,
            "loss": sum(self._losses) / len(self._losses),
            "lr": self._peak_lr * metrics["lr_factor"],
            "grad_norm": metrics["grad_norm"],
            "images_per_second": round(rate, 2),
            "num_skipped": metrics["num_skipped"],
        }
        self._losses, self._window_at, self._window_images = [], now, images_seen
        self._write(line, self._seconds_left(step, now))

    def log_evaluation(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Take the metrics of an evaluation; their names tell the split."""
        seconds_left = self._seconds_left(progress.step, time.monotonic())
        self._write({"step": progress.step, **metrics}, seconds_left)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, line: Mapping[str, Any], eta_seconds: float) -> None:
        if self._file is None or self._tell is None:
            return
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._tell({**line, "total_steps": self._total_steps, "eta_seconds": eta_seconds})

    def _seconds_left(self, step: int, now: float) -> float:
        seconds_a_step = (now - self._started_at) / max(step - self._started_step, 1)
        return (self._total_steps - step) * seconds_a_step


def _take_back(path: Path, *, after_step: int) -> None:
    """Remove the lines of steps after *after_step*, and a last line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            step = json.loads(line)["step"]
        except ValueError:
            continue
        if step <= after_step and line.endswith(b"\n"):
            kept.append(line)
    write_atomic(path, b"".join(kept))
