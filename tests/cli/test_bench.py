"""`vit21k bench`, in this process, on a model that takes no time."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch  # noqa: F401 (see conftest.py)
from PIL import Image
from typer.testing import CliRunner

from vit21k.cli import bench_measure as bench_module
from vit21k.cli.app import app
from vit21k.errors import ManifestError, UsageError
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val

SMALL = ["--recipe", "tiny", "--num-workers", "1", "--seconds", "1"]


def bench(*extra):
    return CliRunner().invoke(app, ["bench", *SMALL, *extra])


def test_it_measures_plans_and_says_what_holds_the_run_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there are no manifests

    result = bench()

    assert result.exit_code == 0, result.output
    for words in (
        "decoding",
        "loading",
        "matrix products, bf16",
        "forward and backward",
        "update",
        "bottleneck",
    ):
        assert words in result.stdout
    assert "generated images" in result.stdout
    assert "assumed: images are decoded by the cores that train" in result.stderr
    assert (
        "assumed: 14,197,122 training images and 21,841 classes (ImageNet-21K's)" in result.stderr
    )
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("bench: tiny would take")
    assert last.endswith("next: `vit21k train --recipe tiny`")


def test_rented_gpus_are_planned_from_published_numbers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    result = bench("--gpu", "a100", "--gpus", "16", "--mfu", "0.5", "--json")

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["cluster"]["flops"] == 0.5 * 312e12
    assert found["cluster"]["num_devices"] == 16
    assert found["plan"]["num_images"] == 150 * 64
    assert set(found["plan"]["limits"]) == {
        "arithmetic",
        "arithmetic and sums",
        "loading images",
        "copying to devices",
    }
    for assumed in (
        "2 nodes of 8 devices",
        "12 cores per GPU",
        "of images to each node",
        "the optimizer's update takes no time",
        "20 GB/s from a host to each of its devices",
        "90% of a device's memory",
    ):
        assert any(assumed in words for words in found["plan"]["assumptions"]), assumed
    assert "(calculated)" in result.stderr


def test_the_data_set_that_is_planned_for_is_said(manifests_of_images):
    options = ["--manifests", str(manifests_of_images), "--set", "data.global_batch_size=2"]

    result, told = bench(*options), bench(*options, "--num-images", "5000")

    name = manifests_of_images / "train.parquet"
    assert f"assumed: 6 training images and 2 classes ({name});" in result.stderr
    assert "assumed: 5,000 training images, as given, and 2 classes" in told.stderr


def test_a_share_of_a_peak_needs_a_published_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    result = bench("--mfu", "0.5")

    assert isinstance(result.exception, UsageError)


def test_a_folder_without_manifests_is_an_error_only_if_it_was_named(tmp_path):
    with pytest.raises(ManifestError):
        bench_module.bench_images(tmp_path, None)


def test_manifests_say_how_many_images_and_classes_there_are(manifests_of_images):
    source = bench_module.bench_images(manifests_of_images, None)

    assert (source.num_images, source.num_classes) == (6, 2)
    assert "train.parquet" in source.name


def test_small_manifests_of_the_default_folder_do_not_shrink_the_dataset_of_a_recipe(
    manifests_of_images, monkeypatch, capsys
):
    monkeypatch.chdir(manifests_of_images.parent)
    manifests_of_images.rename("data_manifests")

    source = bench_module.bench_images(Path("data_manifests"), None, "finetune_l16_384_in1k")

    assert (source.num_images, source.num_classes) == (1_281_167, 1_000)
    assert "`--num-images 6` plans for those" in capsys.readouterr().err


@pytest.fixture
def manifests_of_images(tmp_path):
    generator = np.random.default_rng(0)
    for wnid in ("n01440764", "n02084071"):
        (tmp_path / "tree" / wnid).mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(0, 255, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "tree" / wnid / f"{wnid}_{number}.JPEG")
    hash_tree(tmp_path / "tree", tmp_path / "manifests")
    relabel(tmp_path / "manifests")
    make_val(tmp_path / "manifests", per_class=1)
    return tmp_path / "manifests"
