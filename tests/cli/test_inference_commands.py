"""`vit21k eval | predict | features | models: what they have in common`."""

import json
import subprocess
import sys

import pytest

from vit21k.models.cost import macs_per_image, num_params
from vit21k.models.registry import model_args


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["eval", "nowhere"], 3, "no run or model at `nowhere`"),
        (["eval", "tree"], 3, "no model in `tree`"),
        (["eval", "runs/small", "--manifests", "none"], 3, "no val manifest"),
        (["eval", "runs/small", "--device", "abacus"], 2, "cannot compute on `abacus`"),
        (["predict", "nowhere", "tree"], 3, "no run or model at `nowhere`"),
        (["predict", "runs/small", "runs"], 2, "no pictures in `runs`"),
        (["predict", "runs/small"], 2, "IMAGE"),
    ],
)
def test_errors_are_one_message_and_an_exit_code(
    vit21k, pictures, run_dir, arguments, code, message
):
    result = vit21k(*arguments)

    assert result.code == code
    assert message in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_a_run_that_has_saved_nothing_is_told_from_a_folder_without_a_model(
    vit21k, pictures, tmp_path
):
    (tmp_path / "runs" / "new").mkdir(parents=True)
    (tmp_path / "runs" / "new" / "run.json").write_text("{}")

    result = vit21k("eval", "runs/new")

    assert result.code == 3
    assert "the run in `runs/new` has no checkpoint yet" in result.stderr


def test_models_lists_parameters_and_macs(vit21k):
    rows = {row["name"]: row for row in json.loads(vit21k("models", "--json").stdout)}

    assert rows["vit_large_patch16_224"]["num_params"] == 304_326_632
    assert rows["vit_base_patch16_384"]["num_params"] == 86_859_496
    assert rows["pit_ti_224"]["formats"] == ["vit21k", "timm", "naver", "paddlevit"]
    assert rows["vit_giant_patch14_224"]["source"] == "arXiv:2106.04560"
    columns = "name M params GMACs MB kept pixels patch source formats"
    assert " ".join(vit21k("models").stdout.splitlines()[0].split()) == columns


def test_models_counts_at_another_size(vit21k):
    result = vit21k("models", "--img-size", "448", "--json")

    for row in json.loads(result.stdout):
        args = model_args(row["name"], img_size=448)
        assert row["num_params"] == num_params(args)
        assert row["macs_per_image"] == macs_per_image(args)


def test_models_lists_the_formats_that_are_read(vit21k):
    formats = json.loads(vit21k("models", "--formats", "--json").stdout)

    assert {"timm", "google", "plsc"} <= formats.keys()
    assert vit21k("models", "--formats").stdout.count("\n") == len(formats) + 1


_WITHOUT = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
sys.argv[:] = ["vit21k", *sys.argv[2:]]
from vit21k.cli.app import main
main()
"""


def without(modules, *arguments):
    """Run a command in a process in which *modules* cannot be imported."""
    command = [sys.executable, "-c", _WITHOUT, modules, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", [["eval", "run"], ["predict", "run", "a.jpg"]])
def test_without_torch_the_command_to_install_it_is_given(command):
    result = without("torch,torchvision,safetensors", *command)

    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"error: `vit21k {command[0]}` needs torch, which is not installed",
        "",
        "hint: install it with: pip install 'vit21k[train]'",
    ]


def test_without_safetensors_alone_that_is_named():
    result = without("safetensors", "eval", "run")

    assert result.returncode == 1
    assert "needs safetensors" in result.stderr
    assert "pip install 'vit21k[train]'" in result.stderr


@pytest.mark.parametrize("arguments", [["models"], ["recipes", "check", "pretrain_l16_in21k"]])
def test_models_and_recipes_need_no_torch(arguments):
    assert without("torch,torchvision,safetensors", *arguments).returncode == 0
