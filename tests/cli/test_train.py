"""`vit21k train` in processes of its own: resume after kills, signals, wrong input."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from run_processes import run_command
from safetensors.torch import load_file

from vit21k.lock import locked
from vit21k.manifest.classes import ClassList
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL = [
    "--recipe",
    "tiny",
    "--num-workers",
    "1",
    *(
        f"--set={field}"
        for field in (
            "total_steps=16",
            "model.img_size=16",
            "model.embed_dim=16",
            "model.depth=2",
            "model.proj_drop_rate=0.1",
            "data.eval_resize=16",
            "data.global_batch_size=8",
            "data.device_batch_size=5",
            "schedule.warmup_steps=2",
            "run.log_every_steps=1",
            "run.save_every_steps=2",
            "run.eval_every_steps=8",
        )
    ),
]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    generator = np.random.default_rng(0)
    for wnid in ("n01440764", "n02084071", "n03001627"):
        (folder / "tree" / wnid).mkdir(parents=True)
        for number in range(8):
            pixels = generator.integers(0, 255, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "tree" / wnid / f"{wnid}_{number}.JPEG")
    hash_tree(folder / "tree", folder / "manifests")
    relabel(folder / "manifests")
    make_val(folder / "manifests", per_class=2)
    return folder / "manifests"


def start(manifests, run_dir, *extra):
    command = [sys.executable, "-m", "vit21k", "train", *SMALL, "--manifests", str(manifests)]
    return subprocess.Popen(
        [*command, "--run-dir", str(run_dir), *extra],
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(manifests, run_dir, *extra):
    process = start(manifests, run_dir, *extra)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def finish_here(manifests, run_dir, *extra):
    """Do the same in this process, which spares an import of torch."""
    options = [*SMALL, "--manifests", manifests, "--run-dir", run_dir, *extra]
    result = run_command("train", *options, cwd=run_dir.parent)
    return result.returncode, result.stderr


def wait_for_step(run_dir, step):
    log = run_dir / "metrics.jsonl"
    for _ in range(1200):
        if log.exists() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} never came")


def last_checkpoint(run_dir):
    return run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text().strip()


@pytest.fixture(scope="module")
def uninterrupted(manifests, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("uninterrupted") / "run"
    code, out, err = finish(manifests, run_dir)
    assert code == 0, err
    assert out == ""
    return run_dir


def test_a_run_leaves_a_recipe_a_log_and_checkpoints(uninterrupted):
    lines = [
        json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()
    ]

    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 17))
    assert [line["step"] for line in lines if "dummy_val/prec@1" in line] == [8, 16]
    assert "total_steps: 16" in (uninterrupted / "recipe.yaml").read_text()
    assert last_checkpoint(uninterrupted).name == "step-00000016"


@pytest.mark.slow
def test_killed_runs_end_with_bit_identical_weights(manifests, uninterrupted, tmp_path):
    chance = random.Random(0)
    run_dir = tmp_path / "run"
    for step in (3, 7, 12):
        process = start(manifests, run_dir)
        wait_for_step(run_dir, step)
        time.sleep(chance.random() * 0.05)
        process.kill()
        process.communicate()

    code, _, err = finish(manifests, run_dir)

    assert code == 0, err
    assert "resuming from step" in err
    for name in ("model.safetensors", "optimizer.safetensors", "config.json"):
        ours, theirs = last_checkpoint(run_dir) / name, last_checkpoint(uninterrupted) / name
        assert ours.read_bytes() == theirs.read_bytes(), name
    logs = [
        [
            json.loads(line)["loss"]
            for line in (folder / "metrics.jsonl").read_text().splitlines()
            if '"loss"' in line
        ]
        for folder in (run_dir, uninterrupted)
    ]
    assert logs[0] == logs[1]


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_resumes(
    manifests, uninterrupted, tmp_path, signum, code
):
    process = start(manifests, tmp_path / "run")
    wait_for_step(tmp_path / "run", 3)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)

    assert process.returncode == code, err
    assert "the state is saved" in err
    assert "Traceback" not in err
    assert finish(manifests, tmp_path / "run")[0] == 0
    ours = last_checkpoint(tmp_path / "run") / "model.safetensors"
    assert ours.read_bytes() == (last_checkpoint(uninterrupted) / "model.safetensors").read_bytes()


def test_two_runs_in_one_folder_are_one_too_many(manifests, tmp_path):
    with locked(tmp_path / "run", command="train"):
        code, err = finish_here(manifests, tmp_path / "run")

    assert code == 75
    assert f"process {os.getpid()}" in err


def test_a_checkpoint_of_another_recipe_is_refused_by_the_fields_that_differ(
    manifests, uninterrupted
):
    code, err = finish_here(manifests, uninterrupted, "--set", "optim.lr=0.5")

    assert code == 3
    assert "optim.lr is 0.002, not 0.5" in err
    assert "--fresh" in err


def test_fine_tuning_needs_something_to_start_from(manifests, tmp_path):
    code, err = finish_here(manifests, tmp_path / "run", "--set", "stage=finetune")

    assert code == 2
    assert "--init" in err


def test_fine_tuning_replaces_the_head_and_resizes_the_positions(
    manifests, uninterrupted, tmp_path
):
    code, err = finish_here(
        manifests,
        tmp_path / "run",
        "--set=stage=finetune",
        "--set=model.img_size=32",
        "--set=data.eval_resize=32",
        "--set=loss.kind=softmax",
        "--set=total_steps=3",
        "--init",
        str(uninterrupted),
    )

    assert code == 0, err
    assert "resized: pos_embed" in err


def test_a_class_list_that_is_not_the_checkpoints_is_refused_by_eval(
    manifests, uninterrupted, tmp_path
):
    hash_tree(manifests.parent / "tree", tmp_path / "other")
    relabel(
        tmp_path / "other",
        classes=ClassList(("n02084071", "n01440764", "n03001627")),
    )
    make_val(tmp_path / "other", per_class=2)

    result = run_command("eval", uninterrupted, "--manifests", tmp_path / "other", cwd=tmp_path)

    assert result.returncode == 3
    assert "has other classes" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_two_processes_learn_what_one_does(manifests, tmp_path):
    plain = ["--set=model.proj_drop_rate=0.0", "--set=total_steps=4"]
    assert finish(manifests, tmp_path / "one", *plain)[0] == 0

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    folders = ["--manifests", manifests, "--run-dir", tmp_path / "two"]
    result = subprocess.run(
        [*launcher, "-m", "vit21k", "train", *SMALL, *plain, *folders],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert result.stderr.count("step 4/4 | loss") == 1
    one, two = (
        load_file(last_checkpoint(tmp_path / name) / "model.safetensors") for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--recipe", "nosuch"], 2, "no recipe is called `nosuch`"),
        (["--recipe", "tiny", "--set", "optim.learning_rate=1"], 2, "no such field"),
        (["--recipe", "tiny", "--stage", "finetune"], 2, "is for --stage pretrain"),
        (["--recipe", "tiny"], 3, "no train manifest at"),
        (["--recipe", "tiny", "--device", "nosuch"], 2, "cannot compute on `nosuch`"),
    ],
)
def test_wrong_input_is_one_message_and_an_exit_code(tmp_path, args, code, message):
    result = run_command("train", *args, cwd=tmp_path)

    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
