"""`vit21k train` in 1, 2 and 4 processes (gloo), with whole and with shared weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rank_scenarios
import torch
import train_layouts
from run_processes import free_port, start_processes
from safetensors.torch import load_file
from training_children import _make_images, losses, order_of
from typer.testing import CliRunner

from vit21k.checkpoint.store import find_latest
from vit21k.cli.app import app
from vit21k.lock import locked

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(
        [
            str(REPOSITORY),
            str(REPOSITORY / "tests"),
            *map(str, (REPOSITORY / "tools").glob("[!_.]*/")),
        ]
    ),
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
def test_every_layout_sees_the_same_images_in_the_same_order(layouts, name):
    order = order_of(layouts / name)

    assert order == order_of(layouts / "one")
    assert [len(images) for images in order.values()][:6] == [20, 1] * 3


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
def test_a_run_resumes_with_another_number_of_processes(tmp_path):
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
def test_torchrun_passes_a_signal_on_and_the_same_command_resumes(tmp_path):
    _make_images(tmp_path, num_classes=3, per_class=7)
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


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory):
    """What two processes say in each of `rank_scenarios`: by name, (exit code, stderr) of each."""
    home = tmp_path_factory.mktemp("ranks")
    _make_images(home, num_classes=3, per_class=7)
    begun = [f"--run-dir={home / 'runs/begun'}", f"--manifests={home / 'manifests'}"]
    assert CliRunner().invoke(app, [*rank_scenarios.SMALL, *begun]).exit_code == 0
    ports = [str(free_port()) for _ in rank_scenarios.NAMES]
    with locked(home / "runs/locked", command="train"):
        processes = start_processes([rank_scenarios.__file__, str(home), *ports], 2)
        outputs = [process.communicate(timeout=200) for process in processes]
    said = {name: [None, None] for name in rank_scenarios.NAMES}
    for rank, (stdout, stderr) in enumerate(outputs):
        assert "Traceback" not in stderr, stderr
        for line in stdout.splitlines():
            name, code, text = json.loads(line)
            said[name][rank] = (code, text)
    return home, said


def test_processes_with_run_folders_of_their_own_are_refused_with_both_steps(scenarios):
    home, said = scenarios

    for code, text in said["local_folders"]:
        assert code == 2
        assert "process 0 (step 6, " in text
        assert f"run folder `{home}/runs/begun`" in text
        assert "process 1 (step 0, " in text
        assert f"run folder `{home}/runs/not_begun`" in text
        assert "share" in text


def test_processes_with_recipes_of_their_own_are_refused(scenarios):
    for code, text in scenarios[1]["other_recipe"]:
        assert code == 2
        assert "do not begin with the same state: process 0 (recipe " in text


def test_a_locked_folder_ends_every_process_with_its_exit_code(scenarios):
    for rank, (code, text) in enumerate(scenarios[1]["locked"]):
        assert code == 75
        assert f"process {os.getpid()}" in text
        assert ("error: process 0: " in text) == (rank == 1)


def test_what_one_process_lacks_ends_all_with_one_message(scenarios):
    (code, text), (other_code, other_text) = scenarios[1]["no_manifests"]

    assert code == other_code == 3
    assert "error: process 1: " in text
    assert other_text.replace("error: ", "error: process 1: ") in text


def test_an_image_that_one_process_cannot_read_ends_all_after_a_save(scenarios):
    home, said = scenarios
    (code, text), (other_code, other_text) = said["bad_image"]

    assert (code, other_code) == (1, 3)
    assert "stopped because of process 1: " in text
    assert "Input/output error" in text
    assert "Input/output error" in other_text
    assert "the state of the run is saved" in other_text
    checkpoint, warnings = find_latest(home / "runs/bad_image")
    assert warnings == []
    assert checkpoint.step == 4  # two images of each step, and the ninth is the bad one


def test_a_process_whose_peer_has_ended_says_so_in_one_message(scenarios):
    (code, text), other = scenarios[1]["killed"]

    assert other is None
    assert code == 1
    assert "another process of this run has ended" in text
    assert "Traceback" not in text
