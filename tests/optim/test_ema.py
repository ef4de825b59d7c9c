"""The average of the weights, against timm's and MindCV's formulas."""

import copy
import math

import pytest
import torch

from vit21k.optim.schedule import Ema


def changed(model, step):
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=torch.Generator().manual_seed(step)))


def test_it_is_timms(monkeypatch):
    timm_utils = pytest.importorskip("timm.utils")
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    ours, theirs = Ema(model, decay=0.99), timm_utils.ModelEmaV3(model, decay=0.99)

    for step in range(5):
        changed(model, step)
        ours.update(step + 1)
        theirs.update(model)

    for name, tensor in theirs.module.state_dict().items():
        torch.testing.assert_close(ours.tensors()[name], tensor, rtol=1e-6, atol=1e-6)


def test_the_warm_up_is_mindcvs():
    model = torch.nn.Linear(2, 1, bias=False)
    ema = Ema(model, decay=0.9999, warmup_steps=2000)
    wanted = model.weight.detach().double()

    for step in range(1, 6):
        changed(model, step)
        ema.update(step)
        decay = 0.9999 * (1 - math.exp(-step / 2000))
        wanted = decay * wanted + (1 - decay) * model.weight.detach().double()

    torch.testing.assert_close(ema.tensors()["weight"].double(), wanted, rtol=1e-6, atol=1e-6)


def test_buffers_are_the_models_own_and_the_weights_are_left_alone():
    model = torch.nn.BatchNorm1d(2)
    ema = Ema(model, decay=0.5)
    before = copy.deepcopy(model.state_dict())
    model.running_mean.fill_(7)

    ema.update(1)

    assert ema.tensors()["running_mean"].tolist() == [7, 7]
    assert torch.equal(model.weight, before["weight"])


def test_what_was_saved_comes_back():
    model = torch.nn.Linear(2, 2)
    ema, other = Ema(model, decay=0.5), Ema(copy.deepcopy(model), decay=0.5)
    changed(model, 1)
    ema.update(1)

    other.load({name: tensor.clone() for name, tensor in ema.tensors().items()})

    assert torch.equal(other.tensors()["weight"], ema.tensors()["weight"])
    assert not torch.equal(other.tensors()["weight"], model.weight)
