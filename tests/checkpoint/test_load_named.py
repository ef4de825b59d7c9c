"""Which weights a path means: those of a run, its best ones, their averages."""

import pytest
import torch
from small_run import CLASSES, NAME, SMALL

from vit21k.checkpoint.load import load_model
from vit21k.checkpoint.model_folder import EvalSettings, model_config
from vit21k.checkpoint.store import save_checkpoint
from vit21k.errors import CheckpointError
from vit21k.models.registry import get_model, model_args

SETTINGS = EvalSettings(
    img_size=16,
    mode="squash",
    resize=None,
    interpolation="bilinear",
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
)


@pytest.fixture
def run(tmp_path):
    """Three checkpoints; the head's bias says which weights they are: step, or step / 10."""
    model = get_model(NAME, num_classes=len(CLASSES), **SMALL)
    config = model_config(NAME, model_args(NAME, **SMALL), CLASSES, SETTINGS, "softmax")
    for step, best in ((1, ["best"]), (2, ["best-ema"]), (3, [])):
        states = [
            {**model.state_dict(), "head.bias": torch.full((3,), value)}
            for value in (float(step), step / 10)
        ]
        save_checkpoint(
            tmp_path / "run",
            step,
            model_state=states[0],
            model_config=config,
            optimizer_state={},
            state={},
            keep_last=3,
            ema_state=states[1],
            best=best,
        )
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("", 3),
        ("checkpoints/latest", 3),
        ("checkpoints/best", 1),
        ("checkpoints/best-ema", 0.2),
        ("checkpoints/step-00000003", 3),
        ("checkpoints/step-00000003/model.safetensors", 3),
        ("checkpoints/step-00000003/ema.safetensors", 0.3),
    ],
)
def test_a_path_says_which_weights(run, path, value):
    model, card = load_model(run / path)

    assert model.head.bias[0].item() == pytest.approx(value)
    assert card.classes == CLASSES


def test_averaged_weights_that_are_damaged_are_refused(run):
    path = run / "checkpoints" / "step-00000002" / "ema.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"ema\.safetensors"):
        load_model(run / "checkpoints" / "best-ema")
    load_model(path.parent)


@pytest.mark.parametrize("content", ["", "step-00000009\n", "../../etc/passwd\n"])
def test_a_file_that_names_nothing_is_refused(run, content):
    (run / "checkpoints" / "best").write_text(content)

    with pytest.raises(CheckpointError, match="names no checkpoint"):
        load_model(run / "checkpoints" / "best")
