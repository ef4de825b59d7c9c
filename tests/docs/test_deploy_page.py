"""What docs/deploy.md shows runs, and gives what `predict` gives."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch  # noqa: F401 (see conftest.py)
from PIL import Image

for _name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(_name)

from small_run import save_run

from vit21k.checkpoint.load import load_model
from vit21k.export.model import export_model
from vit21k.inference.predict import predict

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
EXAMPLE = r"<!-- example: {} -->\n```python\n(.*?)```"


def example(name):
    return re.search(EXAMPLE.format(name), PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]


@pytest.mark.parametrize(
    ("loss_kind", "size", "eval_settings"),
    [
        ("sigmoid", (37, 50), {}),
        ("softmax", (37, 50), {"mode": "center_crop", "resize": 20}),
        ("softmax", (50, 37), {"mode": "center_crop", "resize": 20}),
    ],
)
def test_the_examples_give_what_predict_gives(
    tmp_path, monkeypatch, capsys, loss_kind, size, eval_settings
):
    run = save_run(tmp_path / "run", loss_kind=loss_kind, **eval_settings)
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("cat.jpg", quality=95)
    export_model(run, Path("model_onnx"), to="onnx")
    export_model(run, Path("model_torch"), to="torch-export")
    (wanted,) = predict(*load_model(run), ["cat.jpg"])

    names = {}
    exec(example("onnx"), names)
    exec(example("torch-export"), names)

    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in printed] == [score.wnid for score in wanted.top]
    assert [float(value) for _, value in printed] == pytest.approx(
        [score.probability for score in wanted.top], abs=1e-5
    )
    (onnx_logits,) = names["session"].run(None, {"pixel_values": names["images"]})
    assert np.allclose(names["logits"].detach(), onnx_logits, atol=1e-5)
