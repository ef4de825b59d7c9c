"""The scale of the loss: torch's rules, one decision for everybody."""

import math

import pytest
import torch

from vit21k.errors import NonFiniteLossError
from vit21k.optim import optimizers
from vit21k.optim.optimizers import LossScaler, loss_scaler_of


def test_the_scale_goes_where_torchs_goes(monkeypatch):
    monkeypatch.setattr(optimizers, "_STEPS_TO_GROWTH", 3)
    ours = loss_scaler_of("fp16")
    theirs = torch.amp.GradScaler("cpu", growth_interval=3)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)

    for step, value in enumerate(
        [1, math.inf, 1, 1, 1, 1, math.nan, math.inf, 1, 1, 1, 1, 1, 1, 1]
    ):
        theirs.scale(weight.sum()).backward()
        weight.grad = torch.tensor([float(value)])
        theirs.step(optimizer)
        theirs.update()
        assert ours.accepts(float(value), step=step) == math.isfinite(value)
        assert ours.scale == theirs.get_scale()


def test_its_state_comes_back():
    scaler, other = loss_scaler_of("fp16"), loss_scaler_of("fp16")
    for value in (1.0, math.inf, 1.0, 1.0):
        scaler.accepts(value, step=1)

    other.load_state(scaler.state())

    assert other == scaler
    assert (other.scale, other.good_steps) == (2.0**15, 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_scaling_a_gradient_that_is_not_finite_ends_the_run(precision):
    scaler = loss_scaler_of(precision)

    assert scaler.accepts(1.0, step=1)
    assert scaler.scale == 1
    with pytest.raises(NonFiniteLossError, match="nan at step 7"):
        scaler.accepts(math.nan, step=7)


def test_a_gradient_that_is_never_finite_ends_the_run_after_all():
    scaler = LossScaler(scale=2.0**-13, is_fixed=False)

    assert not scaler.accepts(math.inf, step=1)
    with pytest.raises(NonFiniteLossError, match="with the smallest loss scale"):
        scaler.accepts(math.inf, step=2)
