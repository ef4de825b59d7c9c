"""`vit21k train` with augmentation, mixing and bad images, in one process and in two (gloo)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import train_augmented
from training_children import losses, order_of

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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("augmented")
    subprocess.run(
        [sys.executable, train_augmented.__file__, home], check=True, env=ENVIRONMENT, timeout=300
    )
    return home


def num_skipped(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["num_skipped"] for line in lines if "num_skipped" in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "whole"),
    [("two", "one"), ("stopped", "one"), ("balanced-two", "balanced-one")],
)
def test_what_is_mixed_erased_and_skipped_does_not_depend_on_the_processes(runs, name, whole):
    assert losses(runs / name) == pytest.approx(losses(runs / whole), rel=1e-5)
    assert order_of(runs / name) == order_of(runs / whole)
    assert len(losses(runs / name)) == 14


@pytest.mark.slow
def test_a_bad_image_is_counted_over_all_processes_and_after_a_resume(runs):
    counts = num_skipped(runs / "one")

    assert counts[-1] > 2
    assert counts == sorted(counts)
    assert num_skipped(runs / "two") == num_skipped(runs / "stopped") == counts
    assert "could not be decoded and were skipped" in (runs / "two.log").read_text()


@pytest.mark.slow
def test_classes_are_balanced_or_not(runs):
    assert order_of(runs / "balanced-one") != order_of(runs / "one")


SMALL = [
    "train",
    "--recipe=tiny",
    "--device=cpu",
    "--num-workers=1",
    *(
        f"--set={field}"
        for field in (
            "total_steps=2",
            "model.img_size=16",
            "model.embed_dim=16",
            "model.depth=1",
            "data.eval_resize=16",
            "data.global_batch_size=4",
            "data.device_batch_size=4",
            "schedule.warmup_steps=0",
        )
    ),
]


def test_too_many_bad_images_end_a_run_and_are_listed(vit21k, images, tmp_path):
    for row in images:
        (tmp_path / "tree" / row["path"]).write_bytes(b"no image")

    result = vit21k(
        *SMALL, "--set=data.on_bad_image=skip", "--set=data.max_bad_rate=0.0", "--set=seed=1"
    )

    assert result.code == 3
    assert "4 of 4 images could not be decoded, more than 0.00%" in result.stderr
    assert sum(row["path"] in result.stderr for row in images) == 4
    assert "vit21k verify --decode" in result.stderr


def test_a_run_that_a_bad_image_stopped_resumes_without_it(vit21k, images, tmp_path):
    (tmp_path / "tree" / images[5]["path"]).write_bytes(b"no image")
    long = [*SMALL, "--set=total_steps=6", "--set=run.save_every_steps=1", "--set=seed=5"]

    stopped = vit21k(*long, "--set=data.on_bad_image=fail")
    gone_on = vit21k(*long, "--set=data.on_bad_image=skip")

    assert stopped.code == 3
    assert images[5]["path"] in stopped.stderr
    assert "--set data.on_bad_image=skip" in stopped.stderr
    assert gone_on.code == 0, gone_on.stderr
    assert "resuming from step" in gone_on.stderr
    assert "images could not be decoded and were skipped" in gone_on.stderr
    folder = tmp_path / "runs" / "tiny" / "checkpoints"
    assert (folder / "latest").read_text().strip() == "step-00000006"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["augment.mixup_alpha=0.8", "data.global_batch_size=3"], "must be even"),
        (["augment.color_jitter=0.3"], "is for augment.policy `three_augment`"),
        (["augment.policy=auto", "augment.magnitude_std=0.5"], "is for augment.policy `rand` or"),
        (["augment.mixup_alpha=2.0"], "augment.mixup_alpha"),
    ],
)
def test_contradictions_of_augmentation_are_refused(vit21k, changes, message):
    result = vit21k("recipes", "check", "tiny", *(f"--set={change}" for change in changes))

    assert result.code == 2
    assert message in result.stderr


def test_pairs_must_fit_the_processes():
    from vit21k.distributed import World  # noqa: PLC0415
    from vit21k.errors import UsageError  # noqa: PLC0415
    from vit21k.recipe.load import load_recipe  # noqa: PLC0415
    from vit21k.training.builders import complete_pairs, sampler_of  # noqa: PLC0415

    recipe = load_recipe("tiny", ["augment.cutmix_alpha=1.0", "data.global_batch_size=6"])

    with pytest.raises(UsageError, match="not a multiple of pairs for each of the 2 processes"):
        sampler_of(recipe, range(100), World(rank=0, world_size=2), in_pairs=True)
    assert [complete_pairs(recipe.augment, size) for size in (1, 2, 5, 8)] == [2, 2, 4, 8]
    assert complete_pairs(load_recipe("tiny", []).augment, 5) == 5


def test_a_contact_sheet_shows_images_draws_and_weights(vit21k, images, tmp_path):
    from PIL import Image  # noqa: PLC0415

    result = vit21k(
        "recipes",
        "sheet",
        "tiny",
        "--images=3",
        "--draws=2",
        "--set=augment.mixup_alpha=0.8",
        "-o",
        "sheet.png",
        "--json",
    )

    assert result.code == 0, result.stderr
    assert json.loads(result.stdout) == {"file": "sheet.png", "images": 4, "draws": 2}
    assert "4 images, 2 variants each" in result.stderr
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 3 * 160
        assert sheet.height > 4 * 160
        assert len(sheet.getcolors(1 << 20)) > 100


def test_a_sheets_images_are_those_of_a_training_step(images, tmp_path):
    import numpy as np  # noqa: PLC0415

    from vit21k.recipe.load import load_recipe  # noqa: PLC0415
    from vit21k.training.contact_sheet import augmented  # noqa: PLC0415
    from vit21k.training.context import open_split_data  # noqa: PLC0415

    recipe = load_recipe("tiny", ["augment.cutmix_alpha=1.0", "model.img_size=16"])
    data = open_split_data(tmp_path / "data_manifests", None)
    (tmp_path / "tree" / images[3]["path"]).write_bytes(b"no image")

    (cells,) = augmented(recipe, data.train, np.arange(6), 1)

    assert [cell.row for cell in cells] == [0, 1, 2, 4, 5]
    assert {cell.pixels.shape for cell in cells} == {(3, 16, 16)}
    sums = [sum(weight for _, weight in cell.labels) for cell in cells]
    assert sums[2] == 1  # its partner is bad
    assert sums[0] + sums[1] == pytest.approx(3)  # two labels and one, shared
    assert cells[2].labels == [(2, 1.0)]
