"""Plans: arithmetic checked against known results."""

import pytest
import torch

from vit21k.bench.plan import GPUS, Cluster, PlannedRun, plan_run
from vit21k.bench.rates import MadeImages, measure_device, measure_images, measure_step
from vit21k.models.cost import activation_bytes_per_image, macs_per_image, num_params
from vit21k.models.registry import model_args

CPU = torch.device("cpu")
LARGE = model_args("vit_large_patch16_224", num_classes=21_841)
SMALL = model_args(
    "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, num_heads=2, depth=5
)


def run(**changes):
    fields = {
        "args": LARGE,
        "total_steps": 1000,
        "global_batch_size": 4096,
        "device_batch_size": 128,
        "activation_bytes": activation_bytes_per_image(LARGE, 2),
        "bytes_per_param": 16,
    }
    return PlannedRun(**{**fields, **changes})


def cluster(**changes):
    fields = {
        "device": "a device",
        "num_devices": 32,
        "devices_per_node": 8,
        "flops": 100e12,
        "memory_bytes": 80e9,
        "link_bytes": 300e9,
        "network_bytes": 50e9,
        "loaded_images": 1e6,
        "copied_bytes": 20e9,
    }
    return Cluster(**{**fields, **changes})


def test_time_is_operations_by_what_all_devices_do():
    plan = plan_run(run(), cluster())

    seconds = 6 * macs_per_image(LARGE) * 4096 * 1000 / (32 * 100e12)
    assert plan.hours * 3600 == pytest.approx(seconds)
    assert plan.images_per_second == pytest.approx(4096 * 1000 / seconds)
    assert (plan.num_micro_batches, plan.device_batch_size) == (1, 128)
    assert plan.bottleneck == "arithmetic"
    assert plan.fits


def test_gradients_are_summed_in_rings_and_wait_only_for_what_is_not_hidden():
    slow = plan_run(run(), cluster(network_bytes=1e9))
    fast = plan_run(run(), cluster())
    alone = plan_run(run(), cluster(num_devices=1))

    gradient = 4 * num_params(LARGE)
    within = 2 * 7 / 8 * gradient / (0.7 * 300e9)
    assert fast.sum_seconds == pytest.approx(within + 2 * 3 / 4 * gradient / (0.7 * 50e9))
    assert slow.sum_seconds == pytest.approx(within + 2 * 3 / 4 * gradient / (0.7 * 1e9))
    backward = 2 / 3 * 128 * 6 * macs_per_image(LARGE) / 100e12
    assert fast.exposed_seconds == 0
    assert slow.exposed_seconds == pytest.approx(slow.sum_seconds - backward)
    assert slow.bottleneck == "summing gradients"
    assert alone.sum_seconds == 0
    assert alone.num_micro_batches == 32


def test_an_update_comes_on_top_of_every_step():
    plan = plan_run(run(), cluster(update_seconds=0.5))
    without = plan_run(run(), cluster())

    assert plan.hours * 3600 == pytest.approx(without.hours * 3600 + 1000 * 0.5)


def test_the_slowest_part_holds_the_run_up():
    loading = plan_run(run(), cluster(loaded_images=500))
    copying = plan_run(run(), cluster(copied_bytes=1e6))

    assert loading.bottleneck == "loading images"
    assert loading.images_per_second == 500 * 4  # nodes
    assert copying.bottleneck == "copying to devices"
    assert copying.images_per_second == pytest.approx(32 * 1e6 / (3 * 224**2))


def test_cores_that_train_and_decode_do_one_after_the_other():
    shared = cluster(num_devices=1, devices_per_node=1, loaded_images=100, flops=3.7e13)
    apart = plan_run(run(), shared)
    both = plan_run(run(), Cluster(**{**vars(shared), "loads_on_device": True}))

    limits = apart.limits["arithmetic"], apart.limits["loading images"]
    assert both.images_per_second == pytest.approx(1 / (1 / limits[0] + 1 / limits[1]))
    assert any("cores that train" in words for words in both.assumptions)


def test_memory_is_weights_and_what_a_micro_batch_keeps():
    whole = plan_run(run(device_batch_size=1), cluster(memory_bytes=1e9))
    shared = plan_run(run(device_batch_size=1, shards_weights=True), cluster())

    weights = 16 * num_params(LARGE)
    assert whole.needed_bytes > weights
    assert not whole.fits
    assert whole.needed_bytes - shared.needed_bytes == pytest.approx(weights * 31 / 32)
    assert plan_run(run(), cluster(memory_bytes=None)).fits is None


def test_a_batch_that_does_not_share_out_is_said():
    plan = plan_run(run(), cluster(num_devices=24))

    assert any("do not share out evenly" in words for words in plan.assumptions)
    assert plan.num_micro_batches == 2


@pytest.mark.parametrize("kind", GPUS)
def test_published_numbers_are_possible(kind):
    gpu = GPUS[kind]

    assert 1e14 < gpu.peak_flops < 1e16
    assert 0.1 < gpu.assumed_share < 0.6


def test_rates_of_this_machine_are_rates():
    rates = measure_device(CPU, seconds=0.1)

    assert set(rates.matmul_flops) == {"fp32", "bf16"}
    assert all(1e8 < flops < 1e16 for flops in rates.matmul_flops.values())
    assert 1e7 < rates.copied_bytes < 1e13


def test_made_up_images_are_as_large_as_imagenets_and_load():
    rates = measure_images(MadeImages(), "made-up", img_size=32, num_workers=1, seconds=0.2)

    assert 90_000 < rates.mean_bytes < 160_000
    assert 0 < rates.loaded < 1e6
    assert 0 < rates.decoded < 1e5


def test_a_deep_model_is_timed_by_shallow_ones_and_a_small_one_whole():
    options = {"device": CPU, "precision": "fp32", "loss_kind": "softmax", "num_images": 2}

    whole = measure_step(SMALL, **options, matmul_flops=1e15, seconds=0.2)
    parts = measure_step(SMALL, **options, matmul_flops=1e3, seconds=0.2)

    assert whole.measured == "the whole model"
    assert parts.measured == "models of 1 and 3 of 5 blocks"
    assert whole.update_seconds > 0
    assert parts.update_seconds > 0
    assert whole.flops == pytest.approx(whole.images * 6 * macs_per_image(SMALL))
