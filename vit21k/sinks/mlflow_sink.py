"""A run's lines in MLflow: a server, or files in ``mlruns`` beside the run.

``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME`` are honoured.  A resumed run goes on in its
MLflow run; points of steps that were trained again are there twice.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from time import time

from vit21k.errors import MissingExtraError
from vit21k.sinks.sink import LoggedRun, flat, plain_name

_ID_FILE = "mlflow-run.txt"
_DEFAULT_EXPERIMENT = "vit21k"
_MAX_LETTERS = 500  # of a parameter's value


class MlflowSink:
    """Goes on with the run's MLflow run, or begins one; its client keeps no state here."""

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
        self._run_id = run.known_id(_ID_FILE) or self._new_run(run)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log all values in one request."""
        now = round(time() * 1000)
        metrics = [self._metric(plain_name(k), value, now, step) for k, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        """Mark the run as finished; going on with it is possible all the same."""
        self._client.set_terminated(self._run_id)

    def _new_run(self, run: LoggedRun) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _DEFAULT_EXPERIMENT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        run_id = str(self._client.create_run(experiment, run_name=run.run_dir.name).info.run_id)
        for key, value in flat(run.recipe).items():
            self._client.log_param(run_id, key, str(value)[:_MAX_LETTERS])
        return run.keep_id(_ID_FILE, run_id)


open_sink = MlflowSink


def _tracking_uri(run_dir: Path) -> str:
    """Return where MLflow keeps its runs; files beside ours, unless the user says otherwise."""
    if "MLFLOW_TRACKING_URI" in os.environ:
        return os.environ["MLFLOW_TRACKING_URI"]
    # MLflow 3 wants a database or this; its small package, mlflow-skinny, has no database.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return (run_dir.absolute().parent / "mlruns").as_uri()
