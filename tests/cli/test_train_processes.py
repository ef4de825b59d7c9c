"""`vit21k train` in 1, 2 and 4 processes (gloo), with whole and with shared weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import train_layouts  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from training_children import losses, order_of  # noqa: E402

from vit21k.checkpoint.store import find_latest  # noqa: E402

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "tools"), str(REPOSITORY / "tests")]),
}


def train_group(home, group):
    subprocess.run(
        [sys.executable, train_layouts.__file__, home, group],
        check=True,
        env=ENVIRONMENT,
        timeout=300,
    )
    return home


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    return train_group(tmp_path_factory.mktemp("layouts"), "layouts")


def last_tensors(run_dir, name):
    return load_file(find_latest(run_dir).checkpoint.path / name)


def evaluations(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if "val" in key}
        for line in lines
        if "dummy_val/loss" in line
    ]


@pytest.mark.parametrize("name", ["two", "four", "sharded"])
def test_every_layout_learns_the_same(layouts, name):
    assert losses(layouts / name) == pytest.approx(losses(layouts / "one"), rel=1e-5)
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        ours, theirs = (last_tensors(layouts / run, file) for run in (name, "one"))
        assert ours.keys() == theirs.keys()
        for key in ours:
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=2e-5, msg=key)


@pytest.mark.parametrize("name", ["two", "four", "sharded"])
def test_every_layout_sees_the_same_pictures_in_the_same_order(layouts, name):
    order = order_of(layouts / name)

    assert order == order_of(layouts / "one")
    assert [len(pictures) for pictures in order.values()][:6] == [20, 1] * 3


@pytest.mark.parametrize("name", ["two", "four", "sharded"])
def test_metrics_are_exact_over_uneven_shares(layouts, name):
    for ours, theirs in zip(evaluations(layouts / name), evaluations(layouts / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
        assert ours["dummy_val/num_images"] == ours["dummy_val_ema/num_images"] == 6


def test_one_process_writes(layouts):
    for name in ("two", "four", "sharded"):
        log = (layouts / f"{name}.log").read_text()
        assert log.count("step 6/6 | loss") == log.count("train: finished") == 1
        assert len((layouts / name / "metrics.jsonl").read_text().splitlines()) == 8


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    home = train_group(tmp_path, "elastic")

    assert losses(home / "elastic") == pytest.approx(losses(home / "whole"), rel=1e-4)
    assert order_of(home / "elastic") == order_of(home / "whole")
    ours, theirs = (last_tensors(home / name, "ema.safetensors") for name in ("elastic", "whole"))
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.slow
def test_a_signal_to_any_process_stops_all_after_the_same_step(tmp_path):
    home = train_group(tmp_path, "signals")

    for codes in home.glob("*.codes"):
        assert codes.read_text() == "143 143", codes.with_suffix(".log").read_text()
        checkpoint, warnings = find_latest(codes.with_suffix(""))
        assert warnings == []
        assert 4 <= checkpoint.step < 60
        assert checkpoint.step == len(losses(codes.with_suffix("")))
    assert len(list(home.glob("*.codes"))) == 4


@pytest.mark.slow
def test_torchrun_passes_a_signal_on_and_the_same_command_goes_on(tmp_path):
    subprocess.run(
        [sys.executable, train_layouts.__file__, tmp_path], check=True, env=ENVIRONMENT, timeout=100
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "vit21k", "train", *train_layouts.SMALL, *train_layouts.LONG]
    command += ["--set=total_steps=400", f"--manifests={tmp_path / 'manifests'}"]
    command += [f"--run-dir={tmp_path / 'run'}"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    train_layouts.wait_for_step(tmp_path / "run", 4)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)

    assert process.returncode != 0
    assert "the state is saved" in err
    checkpoint, warnings = find_latest(tmp_path / "run")
    assert 4 <= checkpoint.step < 400
    assert warnings == []
