"""LAMB against timm's."""

import pytest
import torch

timm_optim = pytest.importorskip("timm.optim")

from vit21k.optim.optimizers import Lamb


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_every_update_is_timms(weight_decay):
    torch.manual_seed(0)
    start = [torch.randn(4, 3), torch.zeros(5), torch.randn(2)]
    ours = [torch.nn.Parameter(value.clone()) for value in start]
    theirs = [torch.nn.Parameter(value.clone()) for value in start]
    group = {"weight_decay": weight_decay}
    lamb = Lamb([{"params": ours, **group}], lr=3e-3, betas=(0.9, 0.999), eps=1e-8)
    oracle = timm_optim.Lamb([{"params": theirs, **group}], lr=3e-3, eps=1e-8, max_grad_norm=None)

    for _ in range(5):
        for mine, its in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            its.grad = mine.grad.clone()
        lamb.step()
        oracle.step()

        for mine, its in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-7)


def test_a_closure_is_refused():
    lamb = Lamb([torch.nn.Parameter(torch.ones(1))], lr=0.1, betas=(0.9, 0.999), eps=1e-8)

    with pytest.raises(TypeError, match="does not support a closure"):
        lamb.step(lambda: 0.0)
