import pytest
import torch
from run_processes import run_processes

from vit21k.distributed import World, init_world
from vit21k.errors import UsageError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_without_torchrun_a_process_is_alone():
    world = init_world("cpu")

    assert world == World(rank=0, world_size=1, local_rank=0)
    world.barrier()
    world.close()


def test_alone_a_sum_is_a_copy():
    values = torch.arange(3.0)

    total = World().all_reduce_sum(values)
    total += 1

    assert values.tolist() == [0, 1, 2]


def test_one_process_under_torchrun_needs_no_group(monkeypatch):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")

    assert init_world("cpu") == World()


def test_half_of_torchruns_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    with pytest.raises(UsageError, match="RANK or MASTER_ADDR is not set") as caught:
        init_world("cpu")

    assert "torchrun" in caught.value.hint


def test_an_environment_that_is_not_torchruns_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "first")

    with pytest.raises(UsageError, match="RANK is `first`"):
        init_world("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_process_without_a_gpu_is_refused():
    with pytest.raises(UsageError, match="has no GPU: there are 0"):
        init_world("cuda")


_PROGRAM = """
import torch
from vit21k.distributed import init_world

world = init_world("cpu")
values = torch.tensor([1.0, 10.0]) * (world.rank + 1)
assert world.all_reduce_sum(values).tolist() == [3.0, 30.0]
assert values.tolist() == [1.0 * (world.rank + 1), 10.0 * (world.rank + 1)]
world.barrier()
world.close()
world.close()
print("well", world.rank, world.world_size)
"""


@pytest.mark.slow
def test_two_processes_add_up_numbers():
    assert run_processes(_PROGRAM, 2) == ["well 0 2", "well 1 2"]
