"""Fifty steps of two ViT-B recipes, against timm's model trained by a plain script.

Here the model is narrower and has three blocks; `tools/check/oracle_training.py` takes it whole.
"""

import numpy as np
import pytest
import torch  # noqa: F401 (see conftest.py)
from PIL import Image

pytest.importorskip("timm")

from oracle_training import Size, compare, largest_difference

SMALL = Size(steps=50, pixels=32, batch=8, depth=3, width=128)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Twenty classes of twenty images, each read once in fifty steps; one is in two classes."""
    root = tmp_path_factory.mktemp("oracle") / "tree"
    generator = np.random.default_rng(0)
    for number in range(20):
        folder = root / f"n{number:08}"
        folder.mkdir(parents=True)
        for image in range(20):
            pixels = generator.integers(0, 256, (24, 20, 3), dtype=np.uint8)
            pixels[:number] //= 2
            Image.fromarray(pixels).save(folder / f"{image}.png")
    copy = root / "n00000001" / "copy.png"
    copy.write_bytes((root / "n00000000" / "0.png").read_bytes())
    return root


@pytest.mark.parametrize("kind", ["plsc", "mae"])
def test_the_loss_of_every_step_is_that_of_a_plain_script(kind, tree, tmp_path):
    losses = compare(tree, tmp_path, kind, SMALL)

    assert len(losses) == 50
    assert losses[-1][0] < 0.99 * losses[0][0]
    assert largest_difference(losses) < 1e-5
