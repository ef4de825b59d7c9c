"""`bench`: what this machine can do, and what a recipe would take."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import torch
import typer

from vit21k.bench import plan as published
from vit21k.bench.plan import Cluster, Run
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
from vit21k.cli.options import (
    DEFAULT_MANIFESTS,
    AsJson,
    Device,
    ImageRoot,
    Manifests,
    NumWorkers,
    device_or_best,
    require_torch,
    workers_or_cores,
)
from vit21k.cli.train import console_reporter
from vit21k.data.dataset import ImageDataset, ImageRows
from vit21k.device import Precision
from vit21k.distributed import World
from vit21k.errors import UsageError
from vit21k.machine import memory_bytes
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import TRAIN
from vit21k.recipe.schema import Recipe
from vit21k.training import builders, context
from vit21k.training.builders import activation_bytes_of, bytes_per_param_of

if TYPE_CHECKING:
    from vit21k.bench.plan import Plan

_IN21K_IMAGES = 14_197_122  # https://image-net.org, before duplicates are merged
_NUM_CLASSES = {"pretrain": 21_841, "finetune": 1000}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found out about this machine.

    Attributes:
        args: Of the model that was timed.
        precision: Of its matrix products.
        device: Rates of the device.
        images: Rates of the host.
        step: Rate of training.
        num_devices: Of this kind here.
        memory_bytes: Of one.
        on_cpu: Whether the device is the host's cores.
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
        """What training reaches of the measured rate of matrix products."""
        return self.step.flops / self.device.matmul_flops[self.precision]

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**asdict(self), "share_of_ceiling": self.share_of_ceiling}

    def rows(self) -> list[list[str]]:
        """Return what, how fast, and of what, for reading."""
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


class Source(NamedTuple):
    """The images that are read."""

    images: ImageRows
    manifest: Path | None
    """None: they are made up."""
    num_images: int
    """That a run would train on."""
    num_classes: int | None
    """None: not known."""

    @property
    def name(self) -> str:
        """What they are, in words."""
        return f"images of {self.manifest}" if self.manifest else "made-up images"


def open_dataset(manifests: Path, root: Path | None) -> Source:
    """Return the images of train.parquet, or made-up ones.

    Raises:
        ManifestError: A folder was named, and holds no train.parquet.
    """
    if manifests == DEFAULT_MANIFESTS and not (manifests / "train.parquet").is_file():
        return Source(MadeImages(), None, _IN21K_IMAGES, None)
    manifest = open_manifest(manifests, TRAIN)
    images = ImageDataset.from_manifest(manifest, root)
    num_classes = len(manifest.classes())
    return Source(images, manifest.path, len(images), num_classes)


def what_is_trained_on(source: Source, num_images: int | None, found: Measured) -> str:
    """Return what a plan takes for the data set, in words."""
    num_classes = found.args["num_classes"]
    if num_images is not None:
        return f"{num_images:,} training images, as given, and {num_classes:,} classes"
    whose = source.manifest or "ImageNet-21K's"
    return (
        f"{source.num_images:,} training images and {num_classes:,} classes ({whose}); "
        "`--num-images` plans for others"
    )


def measure(
    recipe: Recipe,
    source: Source,
    *,
    device: str,
    num_workers: int,
    seconds: float,
) -> Measured:
    """Return the rates of this machine for *recipe*, in about *seconds*."""
    recipe = context.resolve_precision(
        recipe, device, World(), run_dir=None, reporter=console_reporter()
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


def run_of(recipe: Recipe, num_images: int, args: Mapping[str, Any]) -> Run:
    """Return what *recipe* trains, on *num_images* images."""
    size = recipe.data.global_batch_size
    return Run(
        args=args,
        total_steps=builders.total_steps_of(recipe, max(1, num_images // size)),
        global_batch_size=size,
        device_batch_size=recipe.data.device_batch_size,
        activation_bytes=activation_bytes_of(recipe, args),
        bytes_per_param=bytes_per_param_of(recipe),
        shards_weights=recipe.parallel.kind == "fsdp",
    )


def this_cluster(
    found: Measured, num_devices: int | None, per_node: int, network_gbit: float
) -> Cluster:
    """Return devices like those of this machine: as many as there are, or *num_devices*."""
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
    """Return GPUs that are not here, by what is published of them and what is measured of cores."""
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


_DEFAULT_RECIPE = "pretrain_l16_in21k"
GpuKind = Literal["a100", "h100", "h200"]


def register(app: typer.Typer) -> None:
    """Add `bench` to *app*."""
    app.command("bench", rich_help_panel="Train")(bench_command)


def bench_command(
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="What would be trained.")
    ] = _DEFAULT_RECIPE,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change the recipe; repeatable."),
    ] = None,
    manifests: Manifests = DEFAULT_MANIFESTS,
    root: ImageRoot = None,
    num_images: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training images; default: those of train.parquet, or ImageNet-21K's."
        ),
    ] = None,
    gpu: Annotated[
        GpuKind | None,
        typer.Option(help="Plan for such GPUs, from published numbers, instead of this machine."),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="How many devices; default: those of this machine.")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Of them, behind one host.")] = 8,
    cores_per_gpu: Annotated[
        int, typer.Option(min=1, help="With --gpu: cores that decode, for each GPU.")
    ] = 12,
    network_gbit: Annotated[
        float, typer.Option(min=0.001, help="Gbit/s of a node to the others.")
    ] = 400.0,
    peak_share: Annotated[
        float | None,
        typer.Option(
            "--mfu",
            min=0.01,
            max=1.0,
            help="With --gpu: share of the published peak that training reaches.",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="About how long to measure.")] = 24.0,
    device: Device = None,
    num_workers: NumWorkers = None,
    as_json: AsJson = False,
) -> None:
    """Measure this machine, and plan a run: hours, memory, and what will hold it up.

    Rates are measured in under a minute: decoding, loading, copying, matrix products, a training
    step.  What is beyond this machine is calculated from them, and what it rests on is printed.
    Without manifests, made-up images of ImageNet's size are read.

    [bold]Examples[/bold]

        vit21k bench

        vit21k bench --recipe finetune_l16_384_in1k --num-images 1281167

        vit21k bench --gpu h100 --gpus 32

        vit21k bench --manifests data_manifests --json > bench.json
    """
    require_torch("bench")
    from vit21k.bench.plan import plan_run
    from vit21k.recipe.load import load_recipe

    if gpu is None and peak_share is not None:
        raise UsageError("--mfu is a share of a published peak", hint="add --gpu a100|h100|h200")
    plan_for = load_recipe(recipe, overrides or [])
    source = open_dataset(manifests, root)
    found = measure(
        plan_for,
        source,
        device=device_or_best(device),
        num_workers=workers_or_cores(num_workers),
        seconds=seconds,
    )
    run = run_of(plan_for, num_images or source.num_images, found.args)
    assumed = [what_is_trained_on(source, num_images, found)]
    if gpu is None:
        cluster = this_cluster(found, gpus, gpus_per_node, network_gbit)
    else:
        rented = (gpu, gpus or 1, gpus_per_node, cores_per_gpu, network_gbit, peak_share)
        cluster = rented_cluster(found, *rented)
        assumed.append(f"{cores_per_gpu} cores for each GPU load as those of here do")
        assumed.append("a share of the peak that large models reach; small ones do not")
    plan = _with(assumed, plan_run(run, cluster), found)
    where = f"{cluster.num_devices} x {cluster.device}"
    if as_json:
        parts = {"run": asdict(run), "cluster": asdict(cluster), "plan": asdict(plan)}
        console.print_json({"recipe": recipe, "measured": found.as_json(), **parts})
    else:
        _show(found, plan, where)
    is_here = gpu is None and cluster.num_devices <= found.num_devices
    _tell_last(recipe, plan, f"{where} ({'measured' if is_here else 'calculated'})")


def _with(assumed: list[str], plan: "Plan", found: "Measured") -> "Plan":
    """Return *plan* with what else it rests on."""
    read = plan.node_read_images * found.images.mean_bytes
    stored = f"storage gives each node {read / 1e6:,.3g} MB of images a second"
    return replace(plan, assumptions=[*assumed, stored, *plan.assumptions])


def _tell_last(recipe: str, plan: "Plan", where: str) -> None:
    console.done(
        f"bench: {recipe} would take {console.duration(3600 * plan.hours)} on {where}, held up by "
        f"{plan.bottleneck}; next: `vit21k train --recipe {recipe}`"
    )


def _show(found: "Measured", plan: "Plan", where: str) -> None:
    console.print_table(["measured here", "rate", "of"], found.rows())
    console.print_lines("")
    console.print_table(
        [f"planned for {where}", "value"], _plan_rows(plan, found.images.mean_bytes)
    )
    for assumption in plan.assumptions:
        console.note(f"assumed: {assumption}")
    if plan.fits is False:
        console.warn(
            f"{plan.needed_bytes / 1e9:,.1f} GB a device do not fit: lower data.device_batch_size, "
            "or set step.recompute=cheap or parallel.kind=fsdp"
        )


def _plan_rows(plan: "Plan", mean_bytes: float) -> list[list[str]]:
    fits = {None: "", True: " (fits)", False: " (does not fit)"}[plan.fits]
    megabytes = _rate(plan.node_read_images * mean_bytes / 1e6)
    to_load = f"{_rate(plan.node_read_images)} images, {megabytes} MB a second"
    rows: list[tuple[str, Any]] = [
        ("time", console.duration(3600 * plan.hours)),
        ("images in all", f"{plan.num_images:,}"),
        ("operations in all", f"{plan.flops:.3g}"),
        ("images a second", _rate(plan.images_per_second)),
        *((f"  limit of {name}", _rate(rate)) for name, rate in plan.limits.items()),
        ("held up by", plan.bottleneck),
        (
            "a device's share of a step",
            f"{plan.num_micro_batches} x {plan.device_batch_size} images",
        ),
        ("memory of a device", f"{plan.needed_bytes / 1e9:,.1f} GB{fits}"),
        (
            "summing gradients, a step",
            f"{1e3 * plan.sum_seconds:,.1f} ms, {1e3 * plan.exposed_seconds:,.1f} of them waited",
        ),
        ("a node must load", to_load),
    ]
    return [list(row) for row in rows]


def _rate(a_second: float) -> str:
    return f"{a_second:,.0f}" if a_second >= 100 else f"{a_second:.3g}"
