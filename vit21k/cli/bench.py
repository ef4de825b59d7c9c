"""`bench`: measure this machine, and plan a run."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vit21k.cli import console
from vit21k.cli.options import (
    DEFAULT_MANIFESTS,
    AsJson,
    Device,
    ImageRoot,
    Manifests,
    NumWorkers,
    Overrides,
    device_or_best,
    require_torch,
    workers_or_cores,
)
from vit21k.errors import UsageError

if TYPE_CHECKING:
    from vit21k.bench.plan import Cluster, Plan, PlannedRun
    from vit21k.cli.bench_measure import Measured

_DEFAULT_RECIPE = "pretrain_l16_in21k"
GpuKind = Literal["a100", "h100", "h200"]


def bench_command(
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Recipe to plan.")
    ] = _DEFAULT_RECIPE,
    overrides: Overrides = None,
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
        typer.Option(help="Plan for these GPUs, from published numbers, instead of this machine."),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Number of devices; default: those of this machine.")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Devices per node.")] = 8,
    cores_per_gpu: Annotated[
        int, typer.Option(min=1, help="With --gpu: decoding cores per GPU.")
    ] = 12,
    network_gbit: Annotated[
        float, typer.Option(min=0.001, help="Network bandwidth of a node in Gbit/s.")
    ] = 400.0,
    peak_share: Annotated[
        float | None,
        typer.Option(
            "--mfu",
            min=0.01,
            max=1.0,
            help="With --gpu: fraction of the published peak that training reaches.",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="Approximate time to measure.")] = 24.0,
    device: Device = None,
    num_workers: NumWorkers = None,
    as_json: AsJson = False,
) -> None:
    """Measure this machine, and plan a run: hours, memory, bottleneck.

    Rates are measured in under a minute: decoding, loading, copying, matrix products, a training
    step.  Other hardware is calculated from them, and the assumptions are printed.  Without
    manifests, generated images of ImageNet's size are read.

    [bold]Examples[/bold]

        vit21k bench

        vit21k bench --recipe finetune_l16_384_in1k --num-images 1281167

        vit21k bench --gpu h100 --gpus 32

        vit21k bench --manifests data_manifests --json > bench.json
    """
    require_torch("bench")
    from vit21k.cli import bench_measure
    from vit21k.recipe.load import load_recipe

    if gpu is None and peak_share is not None:
        raise UsageError("--mfu needs a published peak", hint="add --gpu a100|h100|h200")
    loaded = load_recipe(recipe, overrides or [])
    source = bench_measure.bench_images(manifests, root, recipe)
    found = bench_measure.measure(
        loaded,
        source,
        device=device_or_best(device),
        num_workers=workers_or_cores(num_workers),
        seconds=seconds,
    )
    run = bench_measure.run_of(loaded, num_images or source.num_images, found.args)
    assumed = [bench_measure.assumed_dataset(source, num_images, found)]
    if gpu is None:
        cluster = bench_measure.this_cluster(found, gpus, gpus_per_node, network_gbit)
    else:
        rented = (gpu, gpus or 1, gpus_per_node, cores_per_gpu, network_gbit, peak_share)
        cluster = bench_measure.rented_cluster(found, *rented)
        assumed.append(f"{cores_per_gpu} cores per GPU, as fast as those of this machine")
        assumed.append("the fraction of the peak that large models reach; small ones do not")
    _report(recipe, found, run, cluster, assumed, as_json=as_json)


def _report(
    recipe: str,
    found: "Measured",
    run: "PlannedRun",
    cluster: "Cluster",
    assumed: list[str],
    *,
    as_json: bool,
) -> None:
    """Plan *run* on *cluster*, and print the plan."""
    from vit21k.bench.plan import plan_run

    plan = plan_run(run, cluster)
    read = plan.node_read_images * found.images.mean_bytes
    assumed.append(f"storage delivers {read / 1e6:,.3g} MB/s of images to each node")
    plan = replace(plan, assumptions=[*assumed, *plan.assumptions])
    where = f"{cluster.num_devices} x {cluster.device}"
    if as_json:
        parts = {"run": asdict(run), "cluster": asdict(cluster), "plan": asdict(plan)}
        console.print_json({"recipe": recipe, "measured": found.as_json(), **parts})
    else:
        _show(found, plan, where)
    is_here = cluster.device == found.device.name and cluster.num_devices <= found.num_devices
    console.done(
        f"bench: {recipe} would take {console.duration(3600 * plan.hours)} on {where} "
        f"({'measured' if is_here else 'calculated'}), limited by {plan.bottleneck}; "
        f"next: `vit21k train --recipe {recipe}`"
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
            f"{plan.needed_bytes / 1e9:,.1f} GB per device do not fit: lower "
            "data.device_batch_size, or set step.recompute=cheap or parallel.kind=fsdp"
        )


def _plan_rows(plan: "Plan", mean_bytes: float) -> list[list[str]]:
    fits = {None: "", True: " (fits)", False: " (does not fit)"}[plan.fits]
    megabytes = _rate(plan.node_read_images * mean_bytes / 1e6)
    to_load = f"{_rate(plan.node_read_images)} images/s, {megabytes} MB/s"
    rows: list[tuple[str, Any]] = [
        ("time", console.duration(3600 * plan.hours)),
        ("total images", f"{plan.num_images:,}"),
        ("total FLOP", f"{plan.flops:.3g}"),
        ("images/s", _rate(plan.images_per_second)),
        *((f"  limit by {name}", _rate(rate)) for name, rate in plan.limits.items()),
        ("bottleneck", plan.bottleneck),
        (
            "micro-batches of a device",
            f"{plan.num_micro_batches} x {plan.device_batch_size} images",
        ),
        ("memory of a device", f"{plan.needed_bytes / 1e9:,.1f} GB{fits}"),
        (
            "gradient all-reduce per step",
            f"{1e3 * plan.sum_seconds:,.1f} ms, {1e3 * plan.exposed_seconds:,.1f} of them exposed",
        ),
        ("load of a node", to_load),
    ]
    return [list(row) for row in rows]


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"
