"""Sums of gradients: what every process ends with, whatever came late, early or not at all."""

import torch
from run_processes import run_processes

from vit21k.distributed import World
from vit21k.training import gradients
from vit21k.training.gradients import GradientSums


class Twice(World):
    """Two processes that have the same gradients; notes what is sent, and when."""

    sent: list

    def begin_sum(self, tensor):
        self.sent.append((len(tensor), self.in_backward()))
        tensor.mul_(2)
        return lambda: None


def world_of(model):
    world = Twice(world_size=2)
    object.__setattr__(world, "sent", [])
    object.__setattr__(world, "in_backward", lambda: model[0].weight.grad is None)
    return world


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))


def test_alone_gradients_are_those_of_torch():
    model, other = network(), network()
    sums = GradientSums(model, World())

    sums.backward(model(torch.ones(2, 3)).sum(), is_last=True)
    sums.finish()
    other(torch.ones(2, 3)).sum().backward()

    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_only_the_last_pass_sends_and_it_begins_before_it_ends(monkeypatch):
    monkeypatch.setattr(gradients, "_BUCKET_VALUES", 12)
    model = network()
    world = world_of(model)
    sums = GradientSums(model, world)

    sums.backward(model(torch.ones(1, 3)).sum(), is_last=False)
    assert world.sent == []
    model.zero_grad()
    sums.backward(model(torch.ones(1, 3)).sum(), is_last=True)

    # Of three layers, two travel while the gradient of the first one is still computed.
    assert world.sent == [(12, True), (12, True), (12, False)]
    sums.finish()
    assert len(world.sent) == 3


def test_a_parameter_that_gets_no_gradient_holds_up_only_until_the_end(monkeypatch):
    monkeypatch.setattr(gradients, "_BUCKET_VALUES", 12)
    model = network()
    world = world_of(model)
    sums = GradientSums(model, world)

    sums.backward(model[1](model[0](torch.ones(1, 3))).sum(), is_last=True)
    assert world.sent == []
    sums.finish()

    assert [size for size, _ in world.sent] == [12, 12, 12]
    assert torch.equal(model[2].weight.grad, torch.zeros(3, 3))
    assert torch.equal(model[1].bias.grad, torch.full((3,), 2.0))


def test_frozen_parameters_do_not_travel():
    model = network()
    model[0].requires_grad_(False)
    world = world_of(model)
    sums = GradientSums(model, world)

    sums.backward(model(torch.ones(1, 3)).sum(), is_last=True)
    sums.finish()

    assert [size for size, _ in world.sent] == [24]
    assert model[0].weight.grad is None


_PROGRAM = """
import torch
from vit21k.distributed import init_world
from vit21k.training import gradients
from vit21k.training.gradients import GradientSums

gradients._BUCKET_VALUES = 5
world = init_world("cpu")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
model[1].bias.requires_grad_(False)
images = torch.arange(12.0).view(6, 2)
sums = GradientSums(model, world)
for step in range(3):
    # Step 0: uneven passes; step 1: this process has none; step 2: it leaves before its last one.
    cut = {0: 4, 1: 6, 2: 2}[step]
    share = [images[:cut], images[cut:]]
    passes = share[world.rank].split(2)
    for number, part in enumerate(passes):
        is_last = number == len(passes) - 1
        if step == 2 and world.rank == 1 and is_last:
            break
        if len(part):
            sums.backward(model(part).sum(), is_last=is_last)
    sums.finish()
    found = [p.grad for p in model.parameters() if p.requires_grad]
    whole = model(images[:4] if step == 2 else images).sum()
    wanted = torch.autograd.grad(whole, [p for p in model.parameters() if p.requires_grad])
    for ours, theirs in zip(found, wanted):
        torch.testing.assert_close(ours, theirs)
    model.zero_grad()
world.barrier()
world.close()
print("well")
"""


def test_two_processes_end_with_the_same_sums():
    assert run_processes(_PROGRAM, 2) == ["well", "well"]
