"""`vit21k train --dry-run` says what would be done, and does none of it."""

import json
import shutil

import pytest
import torch  # noqa: F401 (see conftest.py)

from vit21k.cli.train import sparkline
from vit21k.models.registry import get_model

SMALL = [
    "train",
    "--recipe=tiny",
    "--device=cpu",
    "--set=model.img_size=16",
    "--set=model.embed_dim=16",
    "--set=model.depth=2",
    "--set=data.eval_resize=16",
    "--set=data.global_batch_size=4",
    "--set=total_steps=40",
    "--dry-run",
]


def files_of(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def test_it_prints_the_run_and_writes_nothing(vit21k, images, tmp_path):
    before = files_of(tmp_path)

    result = vit21k(*SMALL)

    assert result.code == 0, result.stderr
    assert files_of(tmp_path) == before
    assert "total_steps: 40" in result.stdout
    assert "learning rate ▁" in result.stdout
    assert "nothing written; 40 of 40 steps to do, about" in result.stderr
    assert "measured here" in result.stderr


def test_the_figures_are_those_of_the_model_and_the_data(vit21k, images):
    found = json.loads(vit21k(*SMALL, "--rate", "8", "--json").stdout)

    model = get_model(
        "vit_tiny_patch16_224",
        num_classes=3,
        img_size=16,
        patch_size=8,
        embed_dim=16,
        depth=2,
        num_heads=2,
    )
    sizes = [param.numel() for param in model.parameters()]
    matrices = [
        param.numel()
        for name, param in model.named_parameters()
        if param.ndim > 1 and name.endswith("weight")
    ]
    assert found["data"]["num_train_images"] == 6
    assert found["data"]["num_with_several_labels"] == 1
    assert found["model"]["num_params"] == sum(sizes)
    assert [group["num_params"] for group in found["groups"]] == [
        sum(matrices),
        sum(sizes) - sum(matrices),
    ]
    assert [group["weight_decay"] for group in found["groups"]] == [0.05, 0.0]
    assert found["memory"]["optimizer"] == 8 * sum(sizes)
    assert found["memory"]["total"] == sum(
        found["memory"][name]
        for name in ("weights", "gradients", "optimizer", "average", "activations")
    )
    assert found["steps"]["steps_per_epoch"] == 1
    assert found["time"] == {"images_per_second": 8.0, "measured": False, "seconds": 20.0}
    assert found["recipe"]["total_steps"] == 40


def test_the_schedule_is_the_loops(vit21k, images):
    found = json.loads(vit21k(*SMALL, "--rate", "1", "--json").stdout)
    schedule = dict(map(tuple, found["schedule"]))

    assert list(schedule) == list(range(40))
    assert schedule[0] == 0
    assert schedule[10] == pytest.approx(2e-3)
    assert schedule[39] < 1e-4


def test_the_schedule_is_drawn_where_it_is_asked_for(vit21k, images, tmp_path):
    result = vit21k(*SMALL, "--rate", "1", "--plot-schedule", "lr.html")

    assert result.code == 0, result.stderr
    page = (tmp_path / "lr.html").read_text()
    assert "learning rate of tiny" in page
    assert "<polyline" in page
    assert not (tmp_path / "runs").exists()


def test_it_says_where_a_run_that_is_there_would_be_resumed_or_refused(vit21k, images, tmp_path):
    settings = ["total_steps=4", "schedule.warmup_steps=0", "run.save_every_steps=3"]
    command = [*SMALL[:-1], *(f"--set={field}" for field in settings)]
    assert vit21k(*command).code == 0
    shutil.rmtree(tmp_path / "runs/tiny/checkpoints/step-00000004")
    dry = [*command, "--dry-run", "--rate", "1", "--json"]

    found = json.loads(vit21k(*dry).stdout)
    fresh = json.loads(vit21k(*dry, "--fresh").stdout)
    other = vit21k(*dry, "--set=optim.lr=0.5")
    fork = vit21k(
        *dry, "--set=total_steps=9", "--resume-from", "runs/tiny:3", "--run-dir", "runs/b"
    )

    assert found["steps"]["resumes_at"] == 3
    assert found["time"]["seconds"] == 1 * 4
    assert fresh["steps"]["resumes_at"] == 0
    assert other.code == 3
    assert "optim.lr is 0.002, not 0.5" in other.stderr
    assert json.loads(fork.stdout)["steps"]["resumes_at"] == 3
    assert not (tmp_path / "runs/b").exists()


@pytest.mark.parametrize("option", ["--rate=3", "--json", "--plot-schedule=a.html"])
def test_its_options_are_refused_elsewhere(vit21k, images, tmp_path, option):
    result = vit21k(*SMALL[:-1], option)

    assert result.code == 2
    assert f"{option.partition('=')[0]} is for --dry-run" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_sparkline_goes_from_nothing_to_the_highest():
    assert sparkline([0, 1, 2, 4]) == "▁▃▅█"
    assert sparkline([0.0]) == "▁"
    assert len(sparkline(range(1000))) == 60
