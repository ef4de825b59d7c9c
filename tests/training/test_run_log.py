"""metrics.jsonl: a step has one line, however often the run was killed."""

import json

import pytest
import torch  # noqa: F401 (see conftest.py)

from vit21k.training.context import Progress
from vit21k.training.log import RunLog
from vit21k.training.reporter import Reporter


class Lines(Reporter):
    """Keeps the lines in a list."""

    def __init__(self, lines):
        self.lines = lines

    def line(self, line):
        self.lines.append(line)


def open_log(tmp_path, told, *, step=0):
    return RunLog(
        tmp_path,
        progress=Progress(step=step, images_seen=8 * step),
        total_steps=6,
        every_steps=2,
        peak_lr=0.5,
        reporter=Lines(told),
    )


def log_steps(log, first, last):
    for step in range(first, last + 1):
        metrics = {
            "loss": float(step),
            "lr_factor": 0.1 * step,
            "grad_norm": 1.0,
            "num_skipped": 0,
            "num_replaced": 0,
        }
        log.log_step(Progress(step=step, images_seen=8 * step), metrics)
    log.close()


def test_the_seconds_of_all_processes_of_a_run_add_up(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 2, "seconds": 1000.0}\n{"step": 4, "seconds": 2000.0}\n'
    )

    log_steps(open_log(tmp_path, [], step=2), 3, 4)

    assert [line["seconds"] >= 1000 for line in lines(tmp_path)] == [True, True]
    assert lines(tmp_path)[-1]["seconds"] < 1900


def test_sinks_hear_the_lines_and_are_closed_with_the_log(tmp_path):
    heard = []

    class Sink:
        write = end = close = None

    sink = Sink()
    sink.write = heard.append
    sink.end, sink.close = lambda: heard.append("end"), lambda: heard.append("close")
    log = RunLog(
        tmp_path,
        progress=Progress(),
        total_steps=2,
        every_steps=2,
        peak_lr=1.0,
        reporter=Reporter(),
        sinks=[sink],
    )

    log_steps(log, 1, 2)

    assert heard == [lines(tmp_path)[0], "end", "close"]


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_what_json_has_no_number_for_is_null_in_the_file(tmp_path):
    told = []
    log = open_log(tmp_path, told)
    metrics = {
        "loss": 1.0,
        "lr_factor": 1.0,
        "grad_norm": float("inf"),
        "num_skipped": 0,
        "num_replaced": 0,
    }

    log.log_step(Progress(step=1), metrics)
    log.log_step(Progress(step=2), metrics)
    log.close()

    assert lines(tmp_path)[0]["grad_norm"] is None
    assert told[0]["grad_norm"] == float("inf")


def test_a_line_holds_the_mean_loss_since_the_last_one(tmp_path):
    told = []

    log_steps(open_log(tmp_path, told), 1, 6)

    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (2, 1.5),
        (4, 3.5),
        (6, 5.5),
    ]
    assert [line["lr"] for line in lines(tmp_path)] == pytest.approx([0.1, 0.2, 0.3])
    assert [line["eta_seconds"] >= 0 for line in told] == [True] * 3


def test_a_resumed_run_takes_back_what_was_written_after_its_checkpoint(tmp_path):
    log_steps(open_log(tmp_path, []), 1, 4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing

    log_steps(open_log(tmp_path, [], step=2), 3, 6)

    assert [line["step"] for line in lines(tmp_path)] == [2, 4, 6]


def test_processes_but_the_first_write_nothing(tmp_path):
    log = RunLog(
        tmp_path,
        progress=Progress(),
        total_steps=2,
        every_steps=1,
        peak_lr=1.0,
        reporter=None,
    )

    log_steps(log, 1, 2)

    assert not (tmp_path / "metrics.jsonl").exists()
