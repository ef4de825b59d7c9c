"""Dropout is drawn from a seed of the step and the process, without asking every kind of device."""

import torch

from vit21k.training.gradients import dropout_seed, seed_dropout


def test_every_step_and_process_has_a_seed_of_its_own():
    seeds = {
        dropout_seed(seed, step, rank) for seed in (0, 1) for step in range(99) for rank in (0, 1)
    }

    assert len(seeds) == 2 * 99 * 2
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_it_draws_what_torch_draws_and_asks_no_device_that_is_not_there(monkeypatch):
    torch.manual_seed(5)
    wanted = torch.rand(9)
    monkeypatch.setattr(torch, "manual_seed", None)

    seed_dropout(5, torch.device("cpu"))

    assert torch.equal(torch.rand(9), wanted)
