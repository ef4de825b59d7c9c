"""The tool that asks what float8 does to learning runs through, on a tree of a few images."""

import numpy as np
import pytest
import torch
from conftest import needs_extra
from PIL import Image

needs_extra("torchao")

import float8_effect
from emulated_float8 import PRECISION, mlp_calls, mlp_errors

from vit21k.models.registry import get_model
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val

SMALL = (
    "model.img_size=16",
    "model.patch_size=8",
    "model.embed_dim=16",
    "model.depth=2",
    "model.num_heads=1",
    "data.eval_resize=16",
    "data.global_batch_size=4",
    "data.device_batch_size=4",
)


@pytest.fixture
def manifests(tmp_path):
    noise = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "tree" / f"class-{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    hash_tree(tmp_path / "tree", tmp_path / "manifests")
    relabel(tmp_path / "manifests")
    make_val(tmp_path / "manifests", per_class=1)
    return tmp_path / "manifests"


@pytest.mark.filterwarnings("ignore")  # of torchao
def test_both_tables_are_made_and_written(manifests, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- begin float8_effect -->\n<!-- end float8_effect -->\n")
    settings = [word for setting in SMALL for word in ("--set", setting)]
    lengths = ["--num-steps", "4", "--num-seeds", "2"]

    status = float8_effect.main(
        [str(manifests), str(manifests), *lengths, *settings, "--out", str(page)]
    )

    first_cells = [line.split(" | ")[0] for line in page.read_text().splitlines() if "|" in line]
    ways = ["| float32", "| bfloat16", "| float8"]
    assert status == 0
    assert first_cells == [
        "| ",
        "| ---",
        *ways,
        "| bfloat16 less float32",
        "| float8 less bfloat16",
        "| between seeds of bfloat16",
        "| relative error of",
        "| ---",
        *ways,
    ]


@pytest.mark.filterwarnings("ignore")  # of torchao
def test_each_way_of_computing_is_as_far_off_as_its_numbers_are_short():
    torch.manual_seed(0)
    model = get_model(
        "vit_tiny_patch16_224", num_classes=4, img_size=32, embed_dim=32, depth=2, num_heads=2
    )
    images = torch.randn(4, 3, 32, 32)

    calls = mlp_calls(model, lambda model: model(images).square().sum())
    errors = {way: torch.tensor(mlp_errors(model, calls, way)) for way in PRECISION}

    assert all(found.shape == (2, 4) for found in errors.values())
    assert errors["float32"].max() < 1e-5
    assert errors["bfloat16"].min() > 1e-4
    assert (3 * errors["bfloat16"] < errors["float8"]).all()
    assert errors["float8"].max() < 0.3
