"""What a run would take: arithmetic checked against known results."""

import copy

import pytest
import torch

from vit21k.models.registry import model_args
from vit21k.training import forecast as forecast_module
from vit21k.training.forecast import Forecast, fit_device_batch_size, measure_images_per_second

LARGE = model_args("vit_large_patch16_224", num_classes=21_841)


def test_an_epoch_of_vit_l_is_six_operations_for_each_multiplication():
    # Reference: 61.6 GMAC forward, 369 GFLOP a training image.
    run = Forecast(args=LARGE, num_images=14_196_736, images_per_second=1000.0)

    assert run.flops / run.num_images == pytest.approx(369e9, rel=0.01)
    assert run.seconds == pytest.approx(14_196.736)


def test_the_trial_leaves_the_model_as_it_was():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 2))
    before = copy.deepcopy(model.state_dict())
    seen = []

    def loss_of(model, batch):
        seen.append(tuple(batch.images_BCHW.shape[1:]))
        return model(batch.images_BCHW.float()).sum()

    rate = measure_images_per_second(model, loss_of, img_size=8)

    assert rate > 0
    assert seen == [(3, 8, 8)] * 2
    assert all(param.grad is None for param in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_does_not_fit_into_memory_is_made_smaller_on_a_cpu_only():
    much = 1 << 50

    on_cpu = fit_device_batch_size(
        LARGE, 1024, device=torch.device("cpu"), bytes_per_param=16, activation_bytes=much
    )
    on_gpu = fit_device_batch_size(
        LARGE, 1024, device=torch.device("cuda"), bytes_per_param=16, activation_bytes=much
    )

    assert on_cpu == 1
    assert on_gpu == 1024


def test_half_of_the_memory_that_is_free_may_be_used(monkeypatch):
    monkeypatch.setattr(forecast_module, "memory_bytes", lambda: (64 << 30, 20 << 30))
    cpu = torch.device("cpu")

    # 10 GiB, less 326 M parameters of 16 bytes, hold 5 images of a GiB.
    assert (
        fit_device_batch_size(LARGE, 1024, device=cpu, bytes_per_param=16, activation_bytes=1 << 30)
        == 5
    )


def test_a_small_model_takes_what_the_recipe_asks_for():
    tiny = model_args("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=64, num_heads=2)

    assert (
        fit_device_batch_size(
            tiny, 64, device=torch.device("cpu"), bytes_per_param=16, activation_bytes=4096
        )
        == 64
    )
