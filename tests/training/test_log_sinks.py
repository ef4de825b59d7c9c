"""TensorBoard, W&B, MLflow: what is logged can be read by the real libraries; none stops a run."""

import sys
import threading
import time

import pytest
import torch  # noqa: F401 (see conftest.py)
from conftest import needs_extra

from vit21k.errors import UsageError
from vit21k.training.sinks import DetachedSink, LoggedRun, close_sinks, open_sinks, parse_sinks

LINE = {"step": 2, "loss": 0.5, "lr": 1e-3, "num_skipped": 0}
EVALUATION = {"step": 2, "val/prec@1": 0.25}


@pytest.fixture
def run(tmp_path):
    warnings = []
    folder = tmp_path / "runs" / "small"
    folder.mkdir(parents=True)
    recipe = {"seed": 0, "model": {"name": "vit", "betas": [0.9, 0.999]}}
    logged = LoggedRun(run_dir=folder, recipe=recipe, resumed_step=0, warn=warnings.append)
    return logged, warnings


def log(run, *names):
    sinks = open_sinks(names, run)
    for sink in sinks:
        sink.write(LINE)
        sink.write(EVALUATION)
    close_sinks(sinks)


@pytest.mark.filterwarnings("default")
def test_tensorboard_itself_reads_the_event_files(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import (  # noqa: PLC0415
        EventAccumulator,
    )

    log(run[0], "tensorboard")

    events = EventAccumulator(str(run[0].run_dir / "tensorboard")).Reload()
    assert run[1] == []
    assert set(events.Tags()["scalars"]) == {
        "train/loss",
        "train/lr",
        "train/num_skipped",
        "val/prec_at_1",
    }
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(2, 0.5)]


@pytest.mark.filterwarnings("default")
def test_tensorboard_forgets_what_came_after_the_checkpoint_of_a_resume(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import (  # noqa: PLC0415
        EventAccumulator,
    )

    for resumed_step, steps in ((0, (1, 2, 3, 4)), (2, (3, 4))):
        again = LoggedRun(
            run_dir=run[0].run_dir, recipe={}, resumed_step=resumed_step, warn=run[0].warn
        )
        sinks = open_sinks(("tensorboard",), again)
        for step in steps:
            sinks[0].write({"step": step, "loss": 10.0 * resumed_step + step})
        close_sinks(sinks)
        time.sleep(1.1)  # the files are read in the order of the second in their names

    events = EventAccumulator(str(run[0].run_dir / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 23.0),
        (4, 24.0),
    ]


@pytest.mark.filterwarnings("default")
def test_mlflow_itself_reads_its_files_and_a_resumed_run_appends_to_them(run, monkeypatch):
    needs_extra("mlflow")
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    resumed = LoggedRun(
        run_dir=run[0].run_dir, recipe=run[0].recipe, resumed_step=2, warn=run[0].warn
    )

    log(run[0], "mlflow")
    log(resumed, "mlflow")

    assert run[1] == []
    client = MlflowClient(tracking_uri=(run[0].run_dir.parent / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("vit21k")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.data.metrics["train/loss"] == 0.5
    assert found.data.metrics["val/prec_at_1"] == 0.25
    assert found.data.params["model.name"] == "vit"


@pytest.mark.filterwarnings("default")
def test_wandb_writes_its_offline_files(run, monkeypatch):
    needs_extra("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")

    log(run[0], "wandb")

    assert run[1] == []
    (written,) = (run[0].run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"prec@1" in written.read_bytes()


@pytest.mark.filterwarnings("default")
def test_wandb_logs_to_files_where_nobody_is_logged_in(run, monkeypatch, tmp_path):
    needs_extra("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))

    log(run[0], "wandb")

    assert "W&B cannot be reached" in run[1][0]
    assert list((run[0].run_dir / "wandb").glob("offline-run-*"))


@pytest.mark.filterwarnings("default")
def test_an_mlflow_server_that_is_not_there_is_a_warning(run, monkeypatch):
    needs_extra("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    log(run[0], "mlflow")

    assert len(run[1]) == 1
    assert run[1][0].startswith("not logging to mlflow any more: ")


def test_a_library_that_is_not_installed_is_a_warning_with_the_command(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)

    log(run[0], "wandb")

    assert run[1] == [
        "not logging to wandb any more: wandb is not installed; pip install 'vit21k[wandb]'"
    ]


class Failing:
    def __init__(self, at):
        self.at = at
        self.seen = []

    def write(self, step, values):
        if step == self.at:
            raise RuntimeError("disk on fire\nand more")
        self.seen.append((step, values))

    def close(self):
        if self.at == "close":
            raise SystemExit(1)


@pytest.mark.parametrize("at", [2, "close"])
def test_whatever_a_sink_raises_is_one_warning(at):
    warnings, sink = [], Failing(at)
    detached = DetachedSink("odd", lambda: sink, warnings.append)

    for step in (1, 2, 3):
        detached.write({"step": step, "loss": 1.0})
    detached.close()

    assert sink.seen[0] == (1, {"train/loss": 1.0})
    assert len(warnings) == 1
    assert "not logging to odd any more" in warnings[0]


def test_a_sink_that_hangs_is_not_waited_for():
    warnings, release = [], threading.Event()

    class Hanging(Failing):
        def write(self, step, values):
            release.wait(10)

    detached = DetachedSink(
        "slow", lambda: Hanging(0), warnings.append, max_waiting=2, close_seconds=0.1
    )
    started_at = time.monotonic()
    for step in range(100):
        detached.write({"step": step, "loss": 1.0})
    detached.close()
    took = time.monotonic() - started_at
    release.set()

    assert took < 5
    assert "slow did not answer within 0 s" in warnings[0]


def test_a_sink_with_a_full_queue_is_closed_when_it_has_caught_up():
    warnings, seen, may_write = [], [], threading.Event()

    class Slow:
        def write(self, step, values):
            may_write.wait(30)
            seen.append(step)

        def close(self):
            seen.append("closed")

    sink = DetachedSink("slow", Slow, warnings.append, max_waiting=1, close_seconds=30)
    while not sink._num_dropped:
        sink.write(LINE)
    threading.Timer(0.1, may_write.set).start()
    close_sinks([sink])

    assert seen[-1] == "closed"
    assert warnings == ["slow was too slow: 1 lines are missing there"]


def test_the_names_are_checked_before_the_run():
    assert parse_sinks("wandb, tensorboard,wandb") == ("wandb", "tensorboard")
    assert parse_sinks(None) == ()
    with pytest.raises(UsageError, match="there is no log `tensorbord`") as failure:
        parse_sinks("tensorbord")
    assert failure.value.hint == "known: tensorboard, wandb, mlflow"
