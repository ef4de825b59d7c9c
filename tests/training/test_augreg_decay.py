"""big_vision's weight decay is not multiplied by the learning rate, AdamW's is: the conversion.

Oracle: its update, ``-schedule(t) (lr adam(g) + wd p)`` (big_vision/optax.py), written out.
"""

import torch

from vit21k.optim.optimizers import build_optimizers, set_lr
from vit21k.recipe.load import load_recipe

LR, WD = 1e-3, 1e-4  # big_vision/configs/vit_i21k.py
BETAS, EPS = (0.9, 0.999), 1e-8  # optax's defaults
SCHEDULE = [0.0, 0.5, *(1 - step / 20 for step in range(18))]


def gradients():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 6, dtype=torch.float64, generator=generator) for _ in SCHEDULE]


def first_weights():
    return torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def big_vision():
    """Return the weight after an update by each gradient."""
    param = first_weights()
    mean, square = torch.zeros_like(param), torch.zeros_like(param)
    for step, (gradient, factor) in enumerate(zip(gradients(), SCHEDULE, strict=True), start=1):
        mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
        square = BETAS[1] * square + (1 - BETAS[1]) * gradient**2
        corrected = square / (1 - BETAS[1] ** step)
        adam = mean / (1 - BETAS[0] ** step) / (corrected.sqrt() + EPS)
        param = param - factor * (LR * adam + WD * param)
    return param


def ours(*changes):
    """Return the weight after the same updates by the recipe's optimizer."""
    # Its first moment in bfloat16 is another matter: tests/optim/test_optim.py.
    recipe = load_recipe("pretrain_augreg_b16_in21k", ["optim.momentum_dtype=fp32", *changes])
    model = torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False, dtype=torch.float64))
    model[0].weight.data = first_weights()
    optimizers = build_optimizers(model, recipe.optim)
    for gradient, factor in zip(gradients(), SCHEDULE, strict=True):
        set_lr(optimizers, factor)
        model[0].weight.grad = gradient
        for optimizer in optimizers:
            optimizer.step()
    return model[0].weight.detach()


def test_the_recipes_weight_decay_gives_big_visions_updates():
    torch.testing.assert_close(ours(), big_vision(), rtol=1e-9, atol=1e-9)


def test_big_visions_number_as_it_stands_would_not():
    difference = (ours(f"optim.weight_decay={WD}") - big_vision()).abs().max()

    assert difference > 1e-3
