"""Sums of gradients: every process ends with the same, whatever number of passes it makes."""

import torch
from run_processes import run_processes

from vit21k.data.loader import Batch
from vit21k.distributed import World
from vit21k.training.gradients import GradientSums


def test_gradients_of_one_process_are_those_of_torch():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    images = torch.ones(2, 3)
    sums = GradientSums(model, lambda net, batch, _: net(batch.images_BCHW).sum(), World(), 1)
    batch = Batch(images, *(torch.zeros(2, dtype=torch.int64) for _ in range(3)))

    sums.add(batch, weight=1.0, is_last=False)
    loss = sums.add(batch, weight=2.0, is_last=True)
    found = [param.grad.clone() for param in model.parameters()]
    model.zero_grad()
    wanted = model(images).sum()
    (3 * wanted).backward()

    assert torch.equal(loss, wanted)
    for ours, theirs in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad)


_UNEVEN = """
import torch
from vit21k.data.loader import Batch
from vit21k.distributed import init_world
from vit21k.training.gradients import GradientSums, with_dummies

world = init_world("cpu")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3), torch.nn.Linear(3, 1))
model[2].bias.requires_grad_(False)
images = torch.arange(72.0).view(6, 3, 2, 2)
sums = GradientSums(model, lambda net, batch, _: net(batch.images_BCHW.float()).sum(), world, 2)
assert all(param.grad is None for param in model.parameters())
for step, cut in enumerate((4, 6, 3)):  # in step 1, one process has no images
    share = (images[:cut], images[cut:])[world.rank]
    passes = (Batch(part, *(torch.arange(len(part)) for _ in range(3)))
              for part in (share.split(2) if len(share) else ()))
    passes = list(with_dummies(passes, 1, 2, step))
    for number, batch in enumerate(passes):
        sums.add(batch, weight=float(len(batch.rows_B) > 0), is_last=number == len(passes) - 1)
    wanted = torch.autograd.grad(model(images).sum(), sums.params)
    for param, theirs in zip(sums.params, wanted):
        torch.testing.assert_close(param.grad, theirs)
    assert model[2].bias.grad is None
    model.zero_grad()
world.barrier()
world.close()
print("well")
"""


def test_processes_with_unequal_shares_end_with_the_same_sums():
    assert run_processes(_UNEVEN, 2) == ["well", "well"]


_RESUMED = """
import torch
from vit21k.data.loader import Batch
from vit21k.distributed import init_world
from vit21k.training.gradients import GradientSums

world = init_world("cpu")

def loss_of(model, batch, _):
    return model(batch.images_BCHW.float()).square().mean()

def train(model, first, last):
    sums = GradientSums(model, loss_of, world, 8)
    for step in range(first, last):
        generator = torch.Generator().manual_seed(10 * step + world.rank)
        images = torch.randn(2, 3, 8, 8, generator=generator)
        sums.add(Batch(images, *(torch.arange(2) for _ in range(3))), weight=1.0, is_last=True)
        for param in sums.params:
            param.data.add_(param.grad, alpha=-0.1)
        model.zero_grad()

def network():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(192, 192) for _ in range(12)]  # more than the first bucket of DDP
    return torch.nn.Sequential(torch.nn.Flatten(), *layers)

straight, resumed = network(), network()
train(straight, 0, 4)
train(resumed, 0, 2)
train(resumed, 2, 4)
pairs = zip(straight.parameters(), resumed.parameters())
print(all(torch.equal(*pair) for pair in pairs))
world.barrier()
world.close()
"""


def test_a_resumed_run_of_three_processes_is_bit_identical():
    assert run_processes(_RESUMED, 3) == ["True"] * 3
