"""Next commands, suggested recipes, and hints for options of other tools."""

import shlex

import pytest

from vit21k.cli import hints, next_steps
from vit21k.cli.app import app
from vit21k.cli.hints import unknown_option
from vit21k.recipe.load import load_recipe

TRAIN = ["--set", "--init", "--run-dir", "--num-workers", "--data", "--log", "--device"]
TRAIN += ["--device-batch-size", "--fresh", "--manifests", "--root"]


@pytest.mark.parametrize(
    ("command", "typed", "meant"),
    [
        ("train", "--lr 1e-3 --manifests 'my m'", "--set optim.lr=1e-3 --manifests 'my m'"),
        ("train", "--lr=1e-3", "--set optim.lr=1e-3"),
        ("train", "--batch-size 64 --data x", "--set data.global_batch_size=64 --data x"),
        ("train", "--epochs 3", "--set epochs=3 --set total_steps=null"),
        ("train", "--amp", "--set precision=auto"),
        ("train", "--workers 4 --lr 3", "--num-workers 4 --set optim.lr=3"),
        ("train", "--num_workers 4", "--num-workers 4"),
        ("train", "--output 'a b'", "--run-dir 'a b'"),
        ("train", "--resume --data x", "--data x"),
        ("train", "--wandb", "--log wandb"),
    ],
)
def test_options_of_other_trainers_are_translated_and_the_others_stay(
    command: str, typed: str, meant: str
) -> None:
    arguments = shlex.split(typed)
    option = arguments[0].partition("=")[0]

    error = unknown_option(command, arguments, option, TRAIN)

    assert (error.hint or "").startswith(f"`vit21k {command} {meant}`")
    assert "--fresh" not in (error.hint or "")


def test_a_misspelt_option_names_the_one_that_was_meant() -> None:
    hint = unknown_option("relabel", ["--manifest", "x"], "--manifest", ["--manifests"]).hint

    assert hint == "did you mean --manifests? `vit21k relabel -h` lists its options"


def test_options_that_are_not_alike_are_not_suggested() -> None:
    hint = unknown_option("train", ["--refresh"], "--refresh", TRAIN).hint

    assert hint == "`vit21k train -h` lists its options"


def test_settings_of_hints_are_fields_of_recipes() -> None:
    values = {"optim.kind": "muon", "precision": "fp32", "model.name": "vit_tiny_patch16_224"}
    values |= {
        "data.global_batch_size": "8",
        "model.img_size": "32",
        "total_steps": "99",
        "seed": "1",
    }
    for translation in hints._TRAIN.values():
        words = shlex.split(translation)
        settings = [word for word in words if "=" in word]
        given = [one.format(values.get(one.partition("=")[0], "0.5")) for one in settings]
        given = [
            one.replace("=0.5", "=8") if "size" in one or "steps" in one else one for one in given
        ]
        given = [one.replace("=0.5", "=8") if "seed" in one else one for one in given]
        if given:
            load_recipe("cifar10_cpu", given)


@pytest.mark.parametrize("has_gpu", [False, True])
@pytest.mark.parametrize("num_images", [None, 500, 50_000, 14_000_000])
def test_the_suggested_recipe_exists_and_fits_the_device(
    monkeypatch: pytest.MonkeyPatch, num_images: int | None, has_gpu: bool
) -> None:
    monkeypatch.setattr(next_steps, "has_nvidia_gpu", lambda: has_gpu)

    found = next_steps.suggested_training(num_images)

    recipe = load_recipe(found.recipe)
    assert (recipe.stage == "finetune") == (found.init is not None)
    assert has_gpu or found.recipe == "tiny"
    assert not has_gpu or (found.recipe == "pretrain_l16_in21k") == (num_images == 14_000_000)


def test_the_application_uses_the_hints(vit21k) -> None:
    result = vit21k("predict", "runs/x", "cat.jpg", "--topk", 3)

    assert result.code == 2
    assert "error: `vit21k predict` has no option --topk" in result.stderr
    assert "hint: `vit21k predict runs/x cat.jpg --top-k 3`" in result.stderr
    assert app.info.name == "vit21k"


def test_home_folders_are_expanded_where_shells_do_not(vit21k, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VIT21K_ROOT", "~/tree")
    (tmp_path / "m").mkdir()

    result = vit21k("status", "--manifests=~/m")

    assert f"--manifests {tmp_path}/m" in result.stderr
