"""`vit21k train --init`: weights of other programs, and heads mapped by wnid, in one process."""

import json

import numpy as np
import pytest
import torch
from file_server import serving
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from vit21k.cli.app import app
from vit21k.convert.google import to_google
from vit21k.errors import CheckpointError, UsageError
from vit21k.models.registry import get_model
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val

WNIDS = ("n01440764", "n02084071", "n03001627")
MODEL = {"img_size": 16, "patch_size": 8, "embed_dim": 128, "depth": 1, "num_heads": 2}
SETTINGS = [
    *(f"model.{name}={value}" for name, value in {**MODEL, "img_size": 32}.items()),
    "total_steps=1",
    "optim.lr=1e-30",
    "schedule.end_lr=0",
    "schedule.warmup_steps=0",
    "data.eval_resize=32",
    "data.global_batch_size=8",
]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    folder = tmp_path_factory.mktemp("init")
    generator = np.random.default_rng(0)
    for wnid in WNIDS:
        (folder / "tree" / wnid).mkdir(parents=True)
        for number in range(5):
            pixels = generator.integers(0, 255, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "tree" / wnid / f"{wnid}_{number}.JPEG")
    hash_tree(folder / "tree", folder / "manifests")
    relabel(folder / "manifests")
    make_val(folder / "manifests", per_class=1)
    return folder / "manifests"


@pytest.fixture
def weights(tmp_path):
    """Weights of timm's spelling, with a head for three classes of which two are ours."""
    torch.manual_seed(0)
    model = get_model("vit_tiny_patch16_224", num_classes=3, **MODEL)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    (tmp_path / "classes.txt").write_text(f"n99999999\n{WNIDS[2]}\n{WNIDS[0]}\n")
    return tmp_path / "weights.pth"


def train(manifests, run_dir, *extra):
    arguments = ["train", "--recipe", "tiny", "--manifests", str(manifests), "--num-workers", "1"]
    changes = [argument for setting in SETTINGS for argument in ("--set", setting)]
    return CliRunner().invoke(app, [*arguments, *changes, "--run-dir", str(run_dir), *extra])


def test_rows_of_the_head_are_taken_by_wnid(manifests, weights, tmp_path):
    classes = str(tmp_path / "classes.txt")
    options = ["--init", str(weights), "--head", "from-wnids", "--init-classes", classes]

    result = train(manifests, tmp_path / "run", *options)

    assert result.exit_code == 0, result.exception
    said = " ".join(result.stderr.split())
    assert "(timm)" in said
    assert "resized: pos_embed" in said
    assert "2 of 3 classes keep their row of the head" in said
    latest = (tmp_path / "run" / "checkpoints" / "latest").read_text().strip()
    after = load_file(tmp_path / "run" / "checkpoints" / latest / "model.safetensors")
    before = torch.load(weights, weights_only=True)
    rows = {WNIDS.index(WNIDS[2]): 1, WNIDS.index(WNIDS[0]): 2}
    for ours, theirs in rows.items():
        assert torch.equal(after["head.weight"][ours], before["head.weight"][theirs])
    name = "blocks.0.mlp.fc1.weight"
    assert torch.allclose(after[name], before[name])


def test_google_s_mean_pooled_weights_can_be_fine_tuned(manifests, tmp_path):
    shape = {**MODEL, "global_pool": "avg", "class_token": False, "fc_norm": False}
    theirs = get_model("vit_tiny_patch16_224", num_classes=5, mlp_ratio=2.0, **shape)
    arrays = to_google(theirs.state_dict(), num_heads=2)
    np.savez(tmp_path / "w.npz", **{name: array.detach().numpy() for name, array in arrays.items()})
    changes = ["global_pool=avg", "class_token=false", "fc_norm=false", "act_layer=gelu_tanh",
               "mlp_ratio=2.0"]  # fmt: skip
    options = [argument for change in changes for argument in ("--set", f"model.{change}")]

    result = train(manifests, tmp_path / "run", "--init", str(tmp_path / "w.npz"), *options)

    assert result.exit_code == 0, result.exception
    assert "(google)" in " ".join(result.stderr.split())


def test_what_the_outputs_mean_must_be_known(manifests, weights, tmp_path):
    result = train(manifests, tmp_path / "run", "--init", str(weights), "--head", "from-wnids")

    assert isinstance(result.exception, UsageError)
    assert "--init-classes" in result.exception.hint


def test_another_width_is_refused_with_both(manifests, weights, tmp_path):
    options = ["--init", str(weights), "--set", "model.embed_dim=64"]

    result = train(manifests, tmp_path / "run", *options)

    assert isinstance(result.exception, CheckpointError)
    assert "embed_dim 128; the recipe asks for embed_dim 64" in result.exception.message


def test_options_of_init_without_it_are_refused(manifests, tmp_path):
    result = train(manifests, tmp_path / "run", "--head", "from-wnids")

    assert isinstance(result.exception, UsageError)


def test_export_says_what_it_wrote(weights, tmp_path):
    arguments = ["export", str(weights), "--to", "timm", "--out", str(tmp_path / "out"), "--json"]
    arguments += ["--set", "model.num_heads=2"]

    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 0, result.exception
    written = json.loads(result.stdout)
    assert set(written["files"]) == {"README.md", "config.json", "model.safetensors"}
    assert written["to"] == "timm"
    assert "3 files" in result.stderr


def test_an_address_is_fetched_first(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("VIT21K_CACHE", str(tmp_path / "cache"))
    with serving() as server:
        server.files["/w/weights.pth"] = weights.read_bytes()
        address = f"{server.url}/w/weights.pth"
        arguments = ["export", address, "--to", "safetensors", "--out", str(tmp_path / "out")]
        arguments += ["--set", "model.num_heads=2"]

        result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 0, result.exception
    assert f"`{address}` is stored in" in result.stderr
    before = torch.load(weights, weights_only=True)
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
