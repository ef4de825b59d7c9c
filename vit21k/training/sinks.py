"""Logs of a run besides metrics.jsonl: TensorBoard, W&B, MLflow."""

import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from vit21k.atomic import write_atomic
from vit21k.errors import MissingExtraError, UsageError, Vit21kError
from vit21k.runs.history import flat

SINKS = ("tensorboard", "wandb", "mlflow")
"""Names for `--log`."""

_MAX_WAITING = 10_000  # lines; more are dropped and counted
_CLOSE_SECONDS = 20.0
_NOT_VALUES = ("step",)


class Sink(Protocol):
    """A log; used by one thread.  The constructor may raise `MissingExtraError`."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log values by name, such as ``train/loss``."""

    def close(self) -> None:
        """Write what is buffered."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """The facts of a run for sinks.

    Attributes:
        run_dir: The run's folder; its name is the run's.
        recipe: The resolved recipe, as JSON values.
        resumed_step: Updates made before this process; logged values of later steps are void.
        warn: Reports a problem; from any thread.
    """

    run_dir: Path
    recipe: Mapping[str, Any]
    resumed_step: int
    warn: Callable[[str], None]

    def known_id(self, file_name: str) -> str | None:
        """Return the id that `keep_id` stored in a run that is resumed; None: there is none."""
        path = self.run_dir / file_name
        return path.read_text().strip() if self.resumed_step and path.exists() else None

    def keep_id(self, file_name: str, id_: str) -> str:
        """Store *id_*, the run's id in a sink, in a file of the run; return it."""
        write_atomic(self.run_dir / file_name, f"{id_}\n".encode())
        return id_


def parse_sinks(text: str | None) -> tuple[str, ...]:
    """Return the sinks that a comma-separated list names, each once.

    Raises:
        UsageError: There is no such sink.
    """
    names = dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip())
    if unknown := [name for name in names if name not in SINKS]:
        raise UsageError(f"there is no log `{unknown[0]}`", hint=f"known: {', '.join(SINKS)}")
    return tuple(names)


def open_sinks(names: Sequence[str], run: LoggedRun) -> "list[DetachedSink]":
    """Return a sink for each of *names*; their threads open them."""
    return [DetachedSink(name, partial(_OPENERS[name], run), run.warn) for name in names]


def close_sinks(sinks: "Sequence[DetachedSink]") -> None:
    """Close all of them, waiting for them together."""
    for sink in sinks:
        sink.end()
    for sink in sinks:
        sink.close()


class DetachedSink:
    """A sink in a separate thread, so that a failing or hanging sink does not stop the run."""

    def __init__(
        self,
        name: str,
        open_sink: Callable[[], Sink],
        warn: Callable[[str], None],
        *,
        max_waiting: int = _MAX_WAITING,
        close_seconds: float = _CLOSE_SECONDS,
    ) -> None:
        """Start the thread; it opens the sink.

        Args:
            name: For warnings.
            open_sink: Opens the sink.
            warn: Called once if the sink fails; from the thread.
            max_waiting: Lines that may wait for a slow sink.
            close_seconds: The longest time that `close` waits for them.
        """
        self._name = name
        self._open = open_sink
        self._warn = warn
        self._close_seconds = close_seconds
        self._num_dropped = 0
        self._is_broken = False
        self._is_ended = False
        self._lines: queue.Queue[tuple[int, dict[str, float]] | None] = queue.Queue(max_waiting)
        self._thread = threading.Thread(target=self._work, name=f"log-{name}", daemon=True)
        self._thread.start()

    def write(self, line: Mapping[str, Any]) -> None:
        """Log a line of ``metrics.jsonl``; never wait."""
        if self._is_broken:
            return
        values = {_long_name(key): float(line[key]) for key in line if key not in _NOT_VALUES}
        try:
            self._lines.put_nowait((int(line["step"]), values))
        except queue.Full:
            self._num_dropped += 1

    def end(self) -> None:
        """End the log without waiting."""
        self._end(0.0)

    def close(self) -> None:
        """Wait a while for lines that are not written."""
        deadline = time.monotonic() + self._close_seconds
        self._end(self._close_seconds)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._warn(
                f"{self._name} did not answer within {self._close_seconds:.0f} s; not all was "
                "logged there (metrics.jsonl has it)"
            )
        elif self._num_dropped:
            self._warn(f"{self._name} was too slow: {self._num_dropped:,} lines are missing there")

    def _end(self, seconds: float) -> None:
        if not self._is_ended and self._thread.is_alive():
            with suppress(queue.Full):
                self._lines.put(None, timeout=seconds)
                self._is_ended = True

    def _work(self) -> None:
        sink: Sink | None = None
        try:
            sink = self._open()
            while (entry := self._lines.get()) is not None:
                sink.write(*entry)
            sink.close()
        except (Exception, SystemExit) as error:
            self._warn(f"not logging to {self._name} any more: {_describe(error)}")
            self._is_broken = True


def _long_name(name: str) -> str:
    return name if "/" in name else f"train/{name}"


def sink_name(name: str) -> str:
    """Return *name* with the characters that TensorBoard and MLflow allow."""
    return name.replace("@", "_at_")


def _describe(error: BaseException) -> str:
    if isinstance(error, Vit21kError):
        return f"{error.message}; {error.hint}" if error.hint else error.message
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


FOLDER = "tensorboard"


class TensorBoardSink:
    """Writes event files, a new one for every process of the run.

    Values after the checkpoint that a run resumes from are purged by a mark in the new file.
    """

    def __init__(self, run: LoggedRun) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtraError(
                "TensorBoard is not installed", hint="pip install 'vit21k[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(run.run_dir / FOLDER, purge_step=run.resumed_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write each value."""
        for name, value in values.items():
            self._writer.add_scalar(sink_name(name), value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


_ID_FILE = "wandb-run.txt"
_DEFAULT_PROJECT = "vit21k"
_SECONDS = 15.0


class WandbSink:
    """Resumes or starts a W&B run; logs through wandb's own process."""

    def __init__(self, run: LoggedRun) -> None:
        try:
            import wandb  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtraError(
                "wandb is not installed", hint="pip install 'vit21k[wandb]'"
            ) from error
        self._wandb = wandb
        asked = os.environ.get("WANDB_MODE")
        try:
            self._run = self._begin(run, asked or "online")
        except (wandb.Error, TimeoutError) as error:
            if asked in ("offline", "disabled"):
                raise
            first = str(error).partition("\n")[0]
            run.warn(f"W&B cannot be reached ({first}); it logs to files, for `wandb sync`")
            self._run = self._begin(run, "offline")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log all values; wandb sends them later."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """End W&B's run; wandb waits for its server up to the limit in its settings."""
        self._run.finish()

    def _begin(self, run: LoggedRun, mode: str) -> Any:
        settings = self._wandb.Settings(
            init_timeout=_SECONDS,
            login_timeout=1,
            finish_timeout=_SECONDS,
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
        )
        return self._wandb.init(
            mode=cast("Any", mode),
            project=os.environ.get("WANDB_PROJECT", _DEFAULT_PROJECT),
            id=run.known_id(_ID_FILE) or run.keep_id(_ID_FILE, secrets.token_hex(4)),
            resume="allow",
            name=run.run_dir.name,
            dir=run.run_dir,
            config=dict(run.recipe),
            settings=settings,
        )


_MLFLOW_SINK_ID_FILE = "mlflow-run.txt"
_DEFAULT_EXPERIMENT = "vit21k"
_MAX_CHARACTERS = 500  # of a parameter's value


class MlflowSink:
    """Resumes or starts an MLflow run; its client has no state."""

    def __init__(self, run: LoggedRun) -> None:
        try:
            from mlflow.entities import Metric  # noqa: PLC0415
            from mlflow.tracking import MlflowClient  # noqa: PLC0415
        except ImportError as error:
            raise MissingExtraError(
                "MLflow is not installed", hint="pip install 'vit21k[mlflow]'"
            ) from error
        self._metric = Metric
        self._client = MlflowClient(tracking_uri=_tracking_uri(run.run_dir))
        self._run_id = run.known_id(_MLFLOW_SINK_ID_FILE) or self._new_run(run)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log all values in one request."""
        now = round(time.time() * 1000)
        metrics = [self._metric(sink_name(k), value, now, step) for k, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        """Mark the run as finished; it can be resumed nevertheless."""
        self._client.set_terminated(self._run_id)

    def _new_run(self, run: LoggedRun) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _DEFAULT_EXPERIMENT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        run_id = str(self._client.create_run(experiment, run_name=run.run_dir.name).info.run_id)
        for key, value in flat(run.recipe).items():
            self._client.log_param(run_id, key, str(value)[:_MAX_CHARACTERS])
        return run.keep_id(_MLFLOW_SINK_ID_FILE, run_id)


def _tracking_uri(run_dir: Path) -> str:
    """Return the URI of MLflow's runs: the user's, or a folder next to ours."""
    if "MLFLOW_TRACKING_URI" in os.environ:
        return os.environ["MLFLOW_TRACKING_URI"]
    # MLflow 3 requires a database or this; its small package, mlflow-skinny, has no database.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return (run_dir.absolute().parent / "mlruns").as_uri()


_OPENERS: dict[str, Callable[[LoggedRun], Sink]] = {
    "tensorboard": TensorBoardSink,
    "wandb": WandbSink,
    "mlflow": MlflowSink,
}
