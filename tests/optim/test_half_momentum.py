"""A first moment in bfloat16: what optax computes, and that a checkpoint keeps it as it is.

Weights are in float64 here: no processor's rounding decides what bfloat16 the moment becomes.
"""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from vit21k.checkpoint.store import optimizers_to_tensors, tensors_to_optimizers
from vit21k.optim.optimizers import build_optimizers, set_lr
from vit21k.recipe.schema import OptimSection

GOLDEN = Path(__file__).parents[1] / "fixtures" / "optax" / "bf16_first_moment.npz"
SECTIONS = {
    "sgd": OptimSection(kind="sgd", lr=0.1, momentum_dtype="bf16"),
    # optax adds 0.02 p whatever the learning rate; torch's decay is times the learning rate.
    "adamw": OptimSection(
        kind="adamw",
        lr=0.1,
        momentum_dtype="bf16",
        weight_decay=0.02 / 0.1,
        decay_params="all",
    ),
}


class Numbers(torch.nn.Module):
    def __init__(self, values):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.from_numpy(values).double())


def optimizer_of(model, kind):
    (optimizer,) = build_optimizers(model, SECTIONS[kind])
    set_lr([optimizer], 1.0)
    return optimizer


def update(model, optimizer, gradients):
    for gradient in gradients:
        model.weight.grad = torch.from_numpy(gradient).double()
        optimizer.step()
        yield model.weight.detach().clone()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_every_update_is_optaxs(kind):
    with np.load(GOLDEN) as golden:
        model = Numbers(golden["start"])
        gradients, expected = golden["gradients"], torch.from_numpy(golden[kind]).double()

    values = torch.stack(list(update(model, optimizer_of(model, kind), gradients)))

    torch.testing.assert_close(values, expected, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_it_resumes_bit_identically_from_a_checkpoint(kind):
    with np.load(GOLDEN) as golden:
        start, gradients = golden["start"], golden["gradients"]
    model = Numbers(start)
    optimizer = optimizer_of(model, kind)
    list(update(model, optimizer, gradients[:3]))
    state = copy.deepcopy(optimizers_to_tensors(model, [optimizer]))
    resumed = copy.deepcopy(model)
    *_, last = update(model, optimizer, gradients[3:])

    its_optimizer = optimizer_of(resumed, kind)
    tensors_to_optimizers(state, resumed, [its_optimizer])
    *_, its_last = update(resumed, its_optimizer, gradients[3:])

    moment = "momentum_buffer/weight" if kind == "sgd" else "exp_avg/weight"
    assert state[moment].dtype == torch.bfloat16
    assert torch.equal(its_last, last)


def test_weight_decay_is_added_to_the_gradient_as_torchs_sgd_adds_it():
    section = OptimSection(
        kind="sgd", lr=0.1, momentum_dtype="bf16", weight_decay=0.5, decay_params="all"
    )
    values = np.array([2.0, -1.0], dtype=np.float32)
    ours, theirs = Numbers(values), Numbers(values)
    (half,) = build_optimizers(ours, section)
    (full,) = build_optimizers(theirs, section.model_copy(update={"momentum_dtype": "fp32"}))
    gradient = np.ones((1, 2), dtype=np.float32)

    (first,) = update(ours, half, gradient)
    (expected,) = update(theirs, full, gradient)

    assert torch.equal(first, expected)
