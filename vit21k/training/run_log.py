"""What a run says: ``metrics.jsonl``, and the same lines to whoever listens.

A line of training holds ``step``, ``images_seen``, ``loss`` (mean since the line before), ``lr``,
``grad_norm`` (before clipping), ``images_per_second``, what `Meters` reads (``weight_norm``,
``mfu``, ``data_wait``, ``memory_bytes``), ``num_skipped``, ``num_replaced``, ``seconds`` (of
training so far, over all processes that resumed the run) and ``eta_seconds``; one of an evaluation
``step``, ``seconds`` and the metrics, by the name of the split.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from vit21k.atomic import write_atomic
from vit21k.optim.schedule import is_due
from vit21k.sinks.sink import DetachedSink, close_sinks
from vit21k.training.loop import Progress
from vit21k.training.meters import Meters

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
        progress: Progress,
        total_steps: int,
        every_steps: int,
        peak_lr: float,
        tell: Callable[[Mapping[str, Any]], None] | None,
        meters: Meters | None = None,
        sinks: Sequence[DetachedSink] = (),
    ) -> None:
        """Open the log.

        Args:
            run_dir: Where ``metrics.jsonl`` lies.
            progress: What earlier processes of this run did.
            total_steps: Of the whole run.
            every_steps: How often a line is due.
            peak_lr: Learning rate at a factor of 1.
            tell: Receives every line, with ``total_steps`` and ``eta_seconds``; None on all
                processes but the first, which then write nothing.
            meters: What else is measured for a line, in every process.
            sinks: Receive every line of the first process; closed with the log.
        """
        self._total_steps = total_steps
        self._every_steps = every_steps
        self._peak_lr = peak_lr
        self._tell = tell
        self._meters = meters
        self._sinks = sinks
        self._seconds_before = 0.0
        self._started_step = progress.step
        self._started_at = time.monotonic()
        self._loss_sum, self._num_losses = progress.loss_sum, progress.num_losses
        self._window_at = self._started_at
        self._window_images = progress.images_seen
        self._file: IO[str] | None = None
        if tell is not None:
            path = run_dir / FILE_NAME
            self._seconds_before = _take_back(path, after_step=progress.step)
            self._file = path.open("a", encoding="utf-8")

    def log_step(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Take ``loss``, ``lr_factor``, ``grad_norm``, ``num_skipped`` and ``num_replaced``.

        What the next line needs of it is noted in *progress*: a resumed run has the same mean.
        """
        step, images_seen = progress.step, progress.images_seen
        is_line = is_due(step, every_steps=self._every_steps, total_steps=self._total_steps)
        if math.isfinite(metrics["loss"]):  # an update without any image has none
            self._loss_sum += metrics["loss"]
            self._num_losses += 1
        mean_loss = self._loss_sum / self._num_losses if self._num_losses else math.nan
        if is_line:
            self._loss_sum, self._num_losses = 0.0, 0
        progress.loss_sum, progress.num_losses = self._loss_sum, self._num_losses
        if not is_line:
            return
        now = time.monotonic()
        seconds = max(now - self._window_at, 1e-9)
        num_images = images_seen - self._window_images
        line = {
            "step": step,
            "images_seen": images_seen,
            "loss": mean_loss,
            "lr": self._peak_lr * metrics["lr_factor"],
            "grad_norm": metrics["grad_norm"],
            "images_per_second": round(num_images / seconds, 2),
            **(self._meters.read(num_images=num_images, seconds=seconds) if self._meters else {}),
            "num_skipped": metrics["num_skipped"],
            "num_replaced": metrics["num_replaced"],
        }
        self._window_at, self._window_images = now, images_seen
        self._write(line, self._seconds_left(step, now))

    def log_evaluation(self, progress: Progress, metrics: Mapping[str, float]) -> None:
        """Take the metrics of an evaluation; their names tell the split."""
        seconds_left = self._seconds_left(progress.step, time.monotonic())
        self._write({"step": progress.step, **metrics}, seconds_left)

    def close(self) -> None:
        """Close the file and the sinks."""
        if self._file is not None:
            self._file.close()
        close_sinks(self._sinks)

    def _write(self, line: Mapping[str, Any], eta_seconds: float) -> None:
        if self._file is None or self._tell is None:
            return
        seconds = self._seconds_before + time.monotonic() - self._started_at
        line = {**line, "seconds": round(seconds, 2), "eta_seconds": round(eta_seconds, 1)}
        self._file.write(json.dumps({name: _finite(line[name]) for name in line}) + "\n")
        self._file.flush()
        self._tell({**line, "total_steps": self._total_steps})
        for sink in self._sinks:
            sink.write(line)

    def _seconds_left(self, step: int, now: float) -> float:
        seconds_a_step = (now - self._started_at) / max(step - self._started_step, 1)
        return (self._total_steps - step) * seconds_a_step


def _finite(value: Any) -> Any:
    """Return *value*, or None for what JSON has no number for: the norm of a skipped update."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _take_back(path: Path, *, after_step: int) -> float:
    """Remove the lines of steps after *after_step*, and a last line that was cut off.

    Returns:
        The seconds that training had taken by then.
    """
    if not path.exists():
        return 0.0
    kept, seconds = [], 0.0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            fields = json.loads(line)
        except ValueError:
            continue
        if fields["step"] <= after_step and line.endswith(b"\n"):
            kept.append(line)
            seconds = fields.get("seconds", seconds)
    write_atomic(path, b"".join(kept))
    return seconds
