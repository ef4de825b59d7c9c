"""What `vit21k train` lets one see of a run, and what it says when the loss is no number."""

import json

import pytest
import torch  # noqa: F401 (see conftest.py)

from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import VAL
from vit21k.manifest.writer import write_manifest

SMALL = [
    "train",
    "--recipe=tiny",
    "--device=cpu",
    "--num-workers=1",
    *(
        f"--set={field}"
        for field in (
            "total_steps=4",
            "model.img_size=16",
            "model.embed_dim=16",
            "model.depth=1",
            "data.eval_resize=16",
            "data.global_batch_size=4",
            "data.device_batch_size=2",
            "schedule.warmup_steps=0",
            "run.log_every_steps=2",
        )
    ),
]


def test_a_line_says_how_fast_how_large_and_how_long(vit21k, images, tmp_path):
    result = vit21k(*SMALL)

    assert result.code == 0, result.stderr
    run_dir = tmp_path / "runs" / "tiny"
    line = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[0])
    facts = json.loads((run_dir / "run.json").read_text())
    assert line["step"] == 2
    assert 0 < line["mfu"] < 1.5
    assert line["mfu"] == pytest.approx(
        line["images_per_second"] * facts["flops_per_image"] / facts["peak_flops"], rel=0.01
    )
    assert line["weight_norm"] > 0
    assert 0 <= line["data_wait"] <= 1
    assert line["memory_bytes"] > 10e6
    assert {name: facts[name] for name in ("recipe", "total_steps", "num_train_images")} == {
        "recipe": "tiny",
        "total_steps": 4,
        "num_train_images": 6,
    }
    assert "MFU is against" in result.stderr
    assert " | MFU " in result.stderr
    assert " | waits " in result.stderr


def test_the_peak_can_be_given(vit21k, images, tmp_path):
    result = vit21k(*SMALL, "--peak-tflops", "0.5")

    assert result.code == 0, result.stderr
    assert json.loads((tmp_path / "runs/tiny/run.json").read_text())["peak_flops"] == 0.5e12
    assert "MFU is against" not in result.stderr


@pytest.mark.filterwarnings("default")
def test_the_same_goes_to_tensorboard(vit21k, images, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import (  # noqa: PLC0415
        EventAccumulator,
    )

    result = vit21k(*SMALL, "--log", "tensorboard")

    assert result.code == 0, result.stderr
    lines = [
        json.loads(line) for line in (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines()
    ]
    events = EventAccumulator(str(tmp_path / "runs/tiny/tensorboard")).Reload()
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert losses == pytest.approx({line["step"]: line["loss"] for line in lines if "lr" in line})
    assert [event.step for event in events.Scalars("dummy_val/prec_at_1")] == [4]


def test_a_sink_that_does_not_exist_is_refused_before_anything_is_written(vit21k, images, tmp_path):
    result = vit21k(*SMALL, "--log", "tensorbord")

    assert result.code == 2
    assert "known: tensorboard, wandb, mlflow" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_no_number_ends_the_run_and_lists_the_images(vit21k, images, tmp_path):
    result = vit21k(*SMALL, "--set=optim.lr=1e30", "--set=optim.grad_clip_norm=null")

    (listed,) = (tmp_path / "runs/tiny").glob("non-finite-step-*-rank-0.txt")
    known = {row["path"] for row in images}
    assert result.code == 1
    assert set(listed.read_text().split()) <= known
    assert len(listed.read_text().split()) == 4
    assert "their 4 images are listed in" in result.stderr
    assert "rather the weights than an image" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_val_without_images_is_refused_before_the_run_not_after_it(vit21k, images, tmp_path):
    folder = tmp_path / "data_manifests"
    val = open_manifest(folder, VAL)
    write_manifest(val.read().slice(0, 0), VAL, folder, val.header, val.classes())

    result = vit21k(*SMALL)

    assert result.code == 3
    assert "val.parquet` holds no images" in result.stderr
    assert not list((tmp_path / "runs").rglob("metrics.jsonl"))
