"""What is saved is the state of the moment, however long the writing takes."""

import json
import threading

import pytest
import torch
from small_run import CLASSES, NAME, SMALL

from vit21k.checkpoint.model_folder import EvalSettings, model_config
from vit21k.checkpoint.store import BackgroundWriter, find_latest, save_checkpoint
from vit21k.distributed import World
from vit21k.errors import NonFiniteLossError
from vit21k.models.registry import get_model, model_args
from vit21k.optim.optimizers import LossScaler
from vit21k.optim.schedule import Ema
from vit21k.training import checkpoints
from vit21k.training.checkpoints import Saver, restore
from vit21k.training.context import Progress, TrainState


def new_state():
    torch.manual_seed(0)
    model = get_model(NAME, num_classes=len(CLASSES), **SMALL)
    return TrainState(
        model=model,
        optimizers=[torch.optim.AdamW(model.parameters(), lr=0.1)],
        ema=Ema(model, decay=0.5),
        scaler=LossScaler(scale=8.0, good_steps=3, is_fixed=False),
    )


def update(state):
    state.model(torch.ones(2, 3, 16, 16)).sum().backward()
    state.optimizers[0].step()
    state.ema.update(1)


def saver_of(state, run_dir, writer, **changes):
    settings = EvalSettings(
        img_size=16,
        mode="squash",
        resize=None,
        interpolation="bilinear",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    config = model_config(NAME, model_args(NAME, **SMALL), CLASSES, settings, "softmax")
    fields = {
        "run_dir": run_dir,
        "state": state,
        "identity": {"recipe": {}},
        "model_config": config,
        "keep_last": 2,
        "total_steps": 9,
        "world": World(),
        "writer": writer,
    }
    return Saver(**{**fields, **changes})


def test_an_update_during_the_writing_does_not_reach_the_checkpoint(tmp_path, monkeypatch):
    may_write = threading.Event()

    def slow(*args, **kwargs):
        assert may_write.wait(20)
        return save_checkpoint(*args, **kwargs)

    monkeypatch.setattr(checkpoints, "save_checkpoint", slow)
    state, progress = new_state(), Progress(step=1, images_seen=2, best={"best": 0.5})
    update(state)
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    average = state.ema.tensors()["head.weight"].clone()
    with BackgroundWriter() as writer:
        saver_of(state, tmp_path, writer).save(progress, ["best"])
        update(state)
        progress.step = 2
        may_write.set()

    checkpoint = find_latest(tmp_path).checkpoint
    assert checkpoint.step == 1
    assert not torch.equal(state.model.head.weight, before["head.weight"])
    for name, tensor in checkpoint.model_tensors().items():
        assert torch.equal(tensor, before[name])
    assert torch.equal(checkpoint.ema_tensors()["head.weight"], average)
    assert (tmp_path / "checkpoints" / "best").read_text() == "step-00000001\n"


def test_a_train_state_that_is_restored_resumes_bit_identically(tmp_path):
    state, other = new_state(), new_state()
    update(state)
    with BackgroundWriter() as writer:
        saver_of(state, tmp_path, writer).save(Progress(step=1, skipped_updates=4), [])
    checkpoint = find_latest(tmp_path).checkpoint

    other.model.load_state_dict(checkpoint.model_tensors())
    other.scaler.scale = 1.0
    progress = restore(checkpoint, other)
    for one in (state, other):
        one.optimizers[0].zero_grad()
        update(one)

    assert progress.weight_norm > 0
    assert progress == Progress(step=1, skipped_updates=4, weight_norm=progress.weight_norm)
    assert other.scaler == state.scaler
    for name, tensor in state.ema.tensors().items():
        assert torch.equal(tensor, other.ema.tensors()[name])


def test_only_the_first_process_copies_and_writes(tmp_path):
    with BackgroundWriter() as writer:
        second = World(rank=1, world_size=2)
        saver_of(new_state(), tmp_path, writer, world=second).save(Progress(step=1), [])

    assert list(tmp_path.iterdir()) == []


def test_the_state_is_plain_json(tmp_path):
    with BackgroundWriter() as writer:
        saver_of(new_state(), tmp_path, writer).save(Progress(step=3), [])

    path = find_latest(tmp_path).checkpoint.path / "state.json"
    state = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert state["scaler"] == {"scale": 8.0, "good_steps": 3}
    assert state["progress"]["step"] == 3


@pytest.mark.parametrize(("bad", "message"), [
    (float("nan"), "not finite"), (float("-inf"), "not finite"), (None, ""),
])  # fmt: skip
def test_an_optimizers_state_that_is_not_finite_is_not_saved(tmp_path, bad, message):
    state, progress = new_state(), Progress(step=1)
    update(state)
    if bad is not None:
        slots = next(iter(state.optimizers[0].state.values()))
        slots["exp_avg_sq"].view(-1)[-1] = bad

    with BackgroundWriter() as writer:
        saver = saver_of(state, tmp_path, writer)
        if bad is None:
            saver.save(progress, [])
        else:
            with pytest.raises(NonFiniteLossError, match=message):
                saver.save(progress, [])

    assert (find_latest(tmp_path).checkpoint is None) == (bad is not None)
    assert (progress.weight_norm is None) == (bad is not None)
