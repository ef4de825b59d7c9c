"""Measure rates for `bench`; imports torch, so the command imports it when it runs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vit21k.bench import plan as published
from vit21k.bench.plan import Cluster, PlannedRun
from vit21k.bench.rates import (
    DeviceRates,
    ImageRates,
    MadeImages,
    StepRate,
    measure_device,
    measure_images,
    measure_step,
)
from vit21k.cli import console
from vit21k.cli.options import DEFAULT_MANIFESTS
from vit21k.cli.train import ConsoleReporter
from vit21k.data.dataset import ImageDataset, ImageRows
from vit21k.device import Precision
from vit21k.distributed import World
from vit21k.machine import memory_bytes
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import TRAIN
from vit21k.recipe.schema import Recipe
from vit21k.training import context
from vit21k.training.builders import activation_bytes_of, build_schedule, bytes_per_param_of

_IN21K_IMAGES = 14_197_122  # https://image-net.org, before duplicates are merged
_DATASETS = {"in21k": (_IN21K_IMAGES, 21_841), "in1k": (1_281_167, 1_000)}
"""Images and classes of the dataset at the end of a recipe's name."""
_NUM_CLASSES = {"pretrain": 21_841, "finetune": 1000}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measured rates of this machine.

    Attributes:
        args: Arguments of the timed model.
        precision: Precision of its matrix products.
        device: Rates of the device.
        images: Rates of the host.
        step: Rate of training.
        num_devices: Number of devices of this kind.
        memory_bytes: Memory of a device.
        on_cpu: Whether the device is the CPU.
    """

    args: Mapping[str, Any]
    precision: Precision
    device: DeviceRates
    images: ImageRates
    step: StepRate
    num_devices: int
    memory_bytes: float
    on_cpu: bool

    @property
    def share_of_ceiling(self) -> float:
        """Rate of training as a fraction of the measured matrix products."""
        return self.step.flops / self.device.matmul_flops[self.precision]

    def as_json(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {**asdict(self), "share_of_ceiling": self.share_of_ceiling}

    def rows(self) -> list[list[str]]:
        """Return a table of what was measured, its rate, and its conditions."""
        images, step = self.images, self.step
        return [
            [
                "decoding",
                f"{images.decoded:,.0f} images/s",
                f"one thread, {images.source} of {images.mean_bytes / 1e3:,.0f} kB",
            ],
            [
                "loading",
                f"{images.loaded:,.0f} images/s",
                f"{images.num_workers} threads, crops to {images.img_size} pixels",
            ],
            [
                "copying",
                f"{self.device.copied_bytes / 1e9:,.1f} GB/s",
                "uint8 images to the device",
            ],
            *(
                [f"matrix products, {name}", f"{flops / 1e12:,.3f} TFLOP/s", self.device.name]
                for name, flops in self.device.matmul_flops.items()
            ),
            [
                "forward and backward",
                f"{step.images:,.2f} images/s",
                f"{self.precision}, {step.num_images} images at a time, {step.measured}",
            ],
            [
                "forward and backward",
                f"{step.flops / 1e12:,.3f} TFLOP/s",
                f"{self.share_of_ceiling:.0%} of the measured matrix products",
            ],
            ["update", f"{1e3 * step.update_seconds:,.1f} ms", "AdamW, all weights"],
        ]


class BenchImages(NamedTuple):
    """The images to read."""

    images: ImageRows
    manifest: Path | None
    """None: generated images."""
    num_images: int
    """Number of training images of a run."""
    num_classes: int | None
    """None: unknown."""

    @property
    def name(self) -> str:
        """Where they come from."""
        return f"images of {self.manifest}" if self.manifest else "generated images"


def bench_images(manifests: Path, root: str | None, recipe: str = "") -> BenchImages:
    """Return the images of train.parquet, or generated ones, and the size of the dataset to plan.

    It is the one that *recipe* is named after, if the default folder has less than half of it.

    Raises:
        ManifestError: A folder was named that has no train.parquet.
    """
    if manifests == DEFAULT_MANIFESTS and not (manifests / "train.parquet").is_file():
        return BenchImages(MadeImages(), None, _IN21K_IMAGES, None)
    manifest = open_manifest(manifests, TRAIN)
    images = ImageDataset.from_manifest(manifest, root)
    dataset = _DATASETS.get(recipe.rpartition("_")[2])
    if manifests == DEFAULT_MANIFESTS and dataset and 2 * len(images) < dataset[0]:
        console.note(
            f"planning for {dataset[0]:,} images, which the recipe is for; `{manifest.path}` has "
            f"{len(images):,}: `--num-images {len(images)}` plans for those"
        )
        return BenchImages(images, None, *dataset)
    return BenchImages(images, manifest.path, len(images), len(manifest.classes()))


def assumed_dataset(source: BenchImages, num_images: int | None, found: Measured) -> str:
    """Return a description of the dataset that a plan assumes."""
    num_classes = found.args["num_classes"]
    if num_images is not None:
        return f"{num_images:,} training images, as given, and {num_classes:,} classes"
    published = "ImageNet-1k's" if source.num_images == _DATASETS["in1k"][0] else "ImageNet-21K's"
    return (
        f"{source.num_images:,} training images and {num_classes:,} classes "
        f"({source.manifest or published}); "
        "`--num-images` plans for others"
    )


def measure(
    recipe: Recipe,
    source: BenchImages,
    *,
    device: str,
    num_workers: int,
    seconds: float,
) -> Measured:
    """Return the rates of this machine for *recipe*, in about *seconds*."""
    recipe = context.resolve_precision(
        recipe, device, World(), run_dir=None, reporter=ConsoleReporter()
    )
    num_classes = source.num_classes or _NUM_CLASSES[recipe.stage]
    args = context.model_args_of(recipe, num_classes=num_classes)
    on = torch.device(device)
    rates = measure_device(
        on, precisions=tuple({"fp32": 0, "bf16": 0, recipe.products_in: 0}), seconds=seconds / 8
    )
    image_rates = measure_images(
        source.images,
        source.name,
        img_size=recipe.model.img_size,
        num_workers=num_workers,
        interpolation=recipe.data.interpolation,
        seconds=seconds / 4,
    )
    step = measure_step(
        args,
        device=on,
        precision=recipe.products_in,
        loss_kind="sigmoid" if recipe.loss.kind == "sigmoid" else "softmax",
        matmul_flops=rates.matmul_flops[recipe.products_in],
        num_images=None if on.type == "cpu" else recipe.data.device_batch_size,
        seconds=seconds / 3,
    )
    on_gpu = on.type == "cuda"
    memory = torch.cuda.get_device_properties(on).total_memory if on_gpu else memory_bytes()[0]
    return Measured(
        args=args,
        precision=recipe.products_in,
        device=rates,
        images=image_rates,
        step=step,
        num_devices=torch.cuda.device_count() if on_gpu else 1,
        memory_bytes=float(memory),
        on_cpu=on.type == "cpu",
    )


def run_of(recipe: Recipe, num_images: int, args: Mapping[str, Any]) -> PlannedRun:
    """Return the run of *recipe* on *num_images* images."""
    size = recipe.data.global_batch_size
    return PlannedRun(
        args=args,
        total_steps=build_schedule(recipe, max(1, num_images // size)).total_steps,
        global_batch_size=size,
        device_batch_size=recipe.data.device_batch_size,
        activation_bytes=activation_bytes_of(args, recipe.products_in, recipe.step),
        bytes_per_param=bytes_per_param_of(recipe.optim, recipe.ema),
        shards_weights=recipe.parallel.kind == "fsdp",
    )


def this_cluster(
    found: Measured, num_devices: int | None, per_node: int, network_gbit: float
) -> Cluster:
    """Return a cluster of this machine's devices: as many as there are, or *num_devices*."""
    nvlink = published.GPUS["a100"].nvlink_bytes
    return Cluster(
        device=found.device.name,
        num_devices=num_devices or found.num_devices,
        devices_per_node=1 if found.on_cpu else min(per_node, num_devices or per_node),
        flops=found.step.flops,
        memory_bytes=found.memory_bytes,
        link_bytes=nvlink,
        network_bytes=network_gbit / 8 * 1e9,
        loaded_images=found.images.loaded,
        copied_bytes=found.device.copied_bytes,
        update_seconds=found.step.update_seconds,
        loads_on_device=found.on_cpu,
    )


def rented_cluster(
    found: Measured,
    kind: str,
    num_devices: int,
    per_node: int,
    cores_per_gpu: int,
    network_gbit: float,
    peak_share: float | None,
) -> Cluster:
    """Return a cluster of other GPUs, from published numbers and measured rates of the cores."""
    gpu = published.GPUS[kind]
    per_node = min(per_node, num_devices)
    share = peak_share or gpu.assumed_share
    a_core = found.images.loaded / found.images.num_workers
    return Cluster(
        device=f"{gpu.name} at {share:.0%} of its published peak",
        num_devices=num_devices,
        devices_per_node=per_node,
        flops=share * gpu.peak_flops,
        memory_bytes=gpu.memory_bytes,
        link_bytes=gpu.nvlink_bytes,
        network_bytes=network_gbit / 8 * 1e9,
        loaded_images=a_core * cores_per_gpu * per_node,
        copied_bytes=published.ASSUMED_COPY_BYTES,
    )
