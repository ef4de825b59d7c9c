"""Metrics of a line besides the loss, against known figures."""

import mmap
import resource

import pytest
import torch

from vit21k.device import matmul_flops
from vit21k.training.log import Meters, norm_of, used_memory_bytes

CPU = torch.device("cpu")


def meters(**facts):
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 3.0]]))
        model.bias.fill_(6.0)
    return Meters(model=model, device=CPU, **{"flops_per_image": 5.0, "peak_flops": 100.0, **facts})


def peak_flops(device, precision):
    return matmul_flops(device, precision, shape=(512, 512, 512), seconds=0.05)


def test_mfu_is_the_share_of_the_peak_that_the_models_operations_took():
    read = meters().read(num_images=20, seconds=2.0)

    assert read["mfu"] == pytest.approx(20 * 5 / 2 / 100)


def test_the_norm_is_that_of_all_parameters_together():
    assert norm_of(meters().model) == pytest.approx(7.0)  # 4 + 9 + 36


def test_only_the_time_in_which_the_step_waits_counts(monkeypatch):
    watched = meters()
    clock = [0.0]
    monkeypatch.setattr("vit21k.training.log.time.perf_counter", lambda: clock[0])

    def slow():
        for _ in range(2):
            clock[0] += 0.05
            yield "batch"

    for _ in watched.waiting(slow()):
        clock[0] += 0.1
    first = watched.read(num_images=1, seconds=1.0)["data_wait"]
    second = watched.read(num_images=1, seconds=1.0)["data_wait"]

    assert first == pytest.approx(0.1)
    assert second == 0


def test_the_memory_of_the_process_grows_with_what_it_holds():
    before = used_memory_bytes(CPU)
    # From the system itself: malloc might hand out what a test before has given back.
    with mmap.mmap(-1, 64 << 20) as held:
        held.write(bytes(64 << 20))
        grown = used_memory_bytes(CPU) - before

    assert 60e6 < grown < 200e6


def test_memory_is_counted_in_the_pages_of_the_system(monkeypatch):
    monkeypatch.setattr(resource, "getpagesize", lambda: 1 << 40)  # no process has half of one

    assert used_memory_bytes(CPU) >= 1 << 40


def test_a_matrix_product_reaches_something_a_cpu_can_do():
    assert 1e8 < peak_flops(CPU, "fp32") < 1e14


@pytest.mark.gpu
def test_a_gpu_reaches_more_than_a_cpu_and_counts_what_is_allocated():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    before = used_memory_bytes(device)
    held = torch.ones(16_000_000, device=device)

    assert used_memory_bytes(device) - before >= held.numel() * 4
    assert peak_flops(device, "bf16") > peak_flops(CPU, "fp32")
