"""`vit21k eval | predict | models`."""

import json
import os
import signal
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from vit21k.cli.app import main
from vit21k.manifest.classes import ClassList
from vit21k.manifest.header import Header
from vit21k.manifest.io import write_manifest
from vit21k.manifest.schema import IMAGES, TRAIN, VAL
from vit21k.models.registry import get_model, model_args

CLASSES = ClassList(("ant", "bee", "cat"), ("an ant", None, "a cat"))
SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


class Result(NamedTuple):
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def vit21k(monkeypatch, capsys, tmp_path):
    """Run a command in this process, in *tmp_path*; torch is imported once for all of them."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["vit21k", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return Result(code, *capsys.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def pictures(tmp_path):
    """Six pictures in `tree`, and all of them in the manifests of `data_manifests`."""
    rows = []
    for number in range(6):
        wnid = CLASSES.wnids[number % 3]
        path = tmp_path / "tree" / wnid / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        labels = [number % 3] if number else [0, 2]
        rows.append(
            {
                "digest": bytes([number]) * 16,
                "path": f"{wnid}/{number}.png",
                "num_bytes": path.stat().st_size,
                "label_ids": labels,
                "num_files": 1,
            }
        )
    write(tmp_path / "data_manifests", rows, CLASSES)
    return rows


def write(folder, rows, classes, *, options=None):
    table = pa.Table.from_pylist(rows, schema=IMAGES.schema)
    for kind in (IMAGES, TRAIN, VAL):
        header = Header(
            algorithm="md5",
            root=str(folder.parent / "tree"),
            classes=classes.fingerprint,
            options=(options or {"split": "dummy"}) if kind is not IMAGES else {},
        )
        write_manifest(table, kind, folder, header, classes)


@pytest.fixture
def run_dir(tmp_path):
    """A run with one checkpoint of a small model for `CLASSES`."""
    torch = pytest.importorskip("torch")
    from vit21k.checkpoint.model_folder import EvalSettings, model_config  # noqa: PLC0415 (torch)
    from vit21k.checkpoint.store import save_checkpoint  # noqa: PLC0415

    name = "vit_tiny_patch16_224"
    torch.manual_seed(0)
    model = get_model(name, num_classes=len(CLASSES), **SMALL)
    settings = EvalSettings(
        img_size=16,
        mode="squash",
        resize=None,
        interpolation="bilinear",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    save_checkpoint(
        tmp_path / "runs" / "small",
        5,
        model_state=model.state_dict(),
        model_config=model_config(name, model_args(name, **SMALL), CLASSES, settings, "sigmoid"),
        optimizer_state={},
        state={},
        keep_last=1,
    )
    return tmp_path / "runs" / "small"


def test_eval_measures_every_image_of_a_dummy_split_under_its_name(vit21k, pictures, run_dir):
    result = vit21k("eval", run_dir, "--json", "--device", "cpu", "--device-batch-size", 4)

    metrics = json.loads(result.stdout)
    assert result.code == 0
    assert metrics["dummy_val/num_images"] == len(pictures)
    assert metrics["dummy_val/top5"] == 1.0
    assert 0 < metrics["dummy_val/loss"] < 10
    assert metrics["model"].endswith("step-00000005")
    assert "6 images" in result.stderr.splitlines()[-1]


def test_eval_agrees_with_predict(vit21k, pictures, run_dir):
    metrics = json.loads(vit21k("eval", run_dir, "--json").stdout)
    found = json.loads(vit21k("predict", run_dir, "tree", "--top-k", 1, "--json").stdout)

    labels = {f"tree/{row['path']}": row["label_ids"] for row in pictures}
    hits = [row["top"][0]["class_index"] in labels[row["path"]] for row in found]
    assert len(hits) == len(pictures)
    assert metrics["dummy_val/prec@1"] == pytest.approx(np.mean(hits))


@pytest.mark.parametrize(
    ("arguments", "prefix"),
    [
        (["--split", "train"], "train"),
        (["--split", "images"], "images"),
        (["--manifest", "data_manifests/images.parquet"], "images"),
    ],
)
def test_eval_takes_other_manifests_and_names_them(vit21k, pictures, run_dir, arguments, prefix):
    metrics = json.loads(vit21k("eval", run_dir, *arguments, "--json").stdout)

    assert metrics[f"{prefix}/num_images"] == len(pictures)


def test_a_held_out_split_is_called_val(vit21k, pictures, run_dir, tmp_path):
    write(tmp_path / "held_out", pictures, CLASSES, options={"split": "holdout"})

    result = vit21k("eval", run_dir, "--manifests", "held_out")

    assert "val/prec@1" in result.stdout
    assert "dummy" not in result.stdout


def test_eval_refuses_labels_of_another_class_list(vit21k, pictures, run_dir, tmp_path):
    other = ClassList(("ant", "bee", "dog"))
    write(tmp_path / "other", pictures, other)

    result = vit21k("eval", run_dir, "--manifests", "other")

    assert result.code == 3
    assert result.stdout == ""
    assert CLASSES.fingerprint[:16] in result.stderr
    assert other.fingerprint[:16] in result.stderr
    assert "hint: " in result.stderr


def test_eval_finds_a_tree_that_has_moved(vit21k, pictures, run_dir, tmp_path):
    (tmp_path / "tree").rename(tmp_path / "moved")

    lost = vit21k("eval", run_dir)
    found = vit21k("eval", run_dir, "--root", "moved")

    assert lost.code == 3
    assert "--root" in lost.stderr
    assert found.code == 0


def test_eval_stops_at_a_picture_that_cannot_be_decoded(vit21k, pictures, run_dir, tmp_path):
    (tmp_path / "tree" / pictures[3]["path"]).write_bytes(b"no picture")

    result = vit21k("eval", run_dir)

    assert result.code == 3
    assert pictures[3]["path"] in result.stderr


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


def test_predict_prints_index_folder_name_and_probability(vit21k, pictures, run_dir):
    result = vit21k("predict", run_dir, "tree/ant/0.png", "--top-k", 3)

    path, *lines = result.stdout.splitlines()
    words = [line.split(maxsplit=3) for line in lines]
    assert result.code == 0
    assert path == "tree/ant/0.png"
    assert sorted(row[1:3] for row in words) == [["0", "ant"], ["1", "bee"], ["2", "cat"]]
    assert [row[3:] for row in sorted(words, key=lambda row: row[1])] == [["an ant"], [], ["a cat"]]
    assert [float(row[0]) for row in words] == sorted(
        (float(row[0]) for row in words), reverse=True
    )
    assert result.stderr.splitlines()[-1] == (
        "predict: 1 pictures: 1 predicted, 0 could not be read"
    )


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_predict_names_bad_pictures_does_the_rest_and_ends_with_3(
    vit21k, pictures, run_dir, tmp_path, as_json
):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")

    result = vit21k("predict", run_dir, "cut.jpg", "tree/ant", "gone.jpg", *as_json)

    assert result.code == 3
    assert "`cut.jpg`: " in result.stderr
    assert "`gone.jpg`: No such file or directory" in result.stderr
    assert "4 pictures: 2 predicted, 2 could not be read" in result.stderr
    assert "tree/ant/3.png" in result.stdout


def test_predict_prints_names_that_are_not_utf_8(vit21k, pictures, run_dir, tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "tree" / pictures[0]["path"]).rename(tmp_path / name)
    (tmp_path / os.fsdecode(b"bad\xe9.png")).touch()

    for as_json in ([], ["--json"]):
        result = vit21k("predict", run_dir, name, os.fsdecode(b"bad\xe9.png"), *as_json)

        assert result.code == 3
        assert "caf\\xe9.png" in result.stdout.replace("\\\\", "\\")
        assert "bad\\xe9.png" in result.stderr


def test_models_lists_parameters_and_macs(vit21k):
    rows = {row["name"]: row for row in json.loads(vit21k("models", "--json").stdout)}

    assert rows["vit_large_patch16_224"]["num_params"] == 304_326_632
    assert rows["vit_base_patch16_384"]["num_params"] == 86_859_496
    assert vit21k("models").stdout.splitlines()[0].split() == [
        "name",
        "M",
        "params",
        "GMACs",
        "pixels",
        "patch",
    ]


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
