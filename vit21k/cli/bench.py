"""`bench`: what this machine can do, and what a recipe would take."""

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
    device_or_best,
    require_torch,
    workers_or_cores,
)
from vit21k.errors import UsageError

if TYPE_CHECKING:
    from vit21k.bench.plan import Plan
    from vit21k.cli.bench_measure import Measured

_DEFAULT_RECIPE = "pretrain_l16_in21k"
GpuKind = Literal["a100", "h100", "h200"]


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
    from vit21k.cli import bench_measure
    from vit21k.recipe.load import load_recipe

    if gpu is None and peak_share is not None:
        raise UsageError("--mfu is a share of a published peak", hint="add --gpu a100|h100|h200")
    plan_for = load_recipe(recipe, overrides or [])
    source = bench_measure.open_dataset(manifests, root)
    found = bench_measure.measure(
        plan_for,
        source,
        device=device_or_best(device),
        num_workers=workers_or_cores(num_workers),
        seconds=seconds,
    )
    run = bench_measure.run_of(plan_for, num_images or source.num_images, found.args)
    assumed = [bench_measure.what_is_trained_on(source, num_images, found)]
    if gpu is None:
        cluster = bench_measure.this_cluster(found, gpus, gpus_per_node, network_gbit)
    else:
        rented = (gpu, gpus or 1, gpus_per_node, cores_per_gpu, network_gbit, peak_share)
        cluster = bench_measure.rented_cluster(found, *rented)
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
