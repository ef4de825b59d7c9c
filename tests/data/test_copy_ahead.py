import pytest
import torch

from vit21k.data.loader import (
    Batch,
    copied_ahead,
    started_ahead,
)


def test_two_items_are_started_besides_the_one_in_use():
    log = []

    def start(item):
        log.append(f"start {item}")
        return item

    def finish(item):
        log.append(f"use {item}")
        return item

    assert list(started_ahead(iter(range(5)), start, finish)) == [0, 1, 2, 3, 4]
    assert log == [
        "start 0",
        "start 1",
        "start 2",
        "use 0",
        "start 3",
        "use 1",
        "start 4",
        "use 2",
        "use 3",
        "use 4",
    ]


def test_on_a_cpu_batches_pass_through():
    batches = iter([])

    assert copied_ahead(batches, torch.device("cpu")) is batches


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_images_are_copied_and_the_rest_stays():
    none = torch.empty(0, dtype=torch.int64)
    images = [torch.full((2, 3, 8, 8), k, dtype=torch.uint8).pin_memory() for k in range(6)]
    batches = iter([Batch(image, none, none, none) for image in images])

    copied = list(copied_ahead(batches, torch.device("cuda")))

    for k, batch in enumerate(copied):
        assert batch.images_BCHW.is_cuda
        assert (batch.images_BCHW == k).all()
        assert not batch.rows_B.is_cuda
