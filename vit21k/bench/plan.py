"""What makers and users of GPUs have published about them: for plans, not for claims.

Sources: NVIDIA's data sheets "A100 Tensor Core GPU" (80 GB SXM), "H100 Tensor Core GPU" (SXM) and
"H200 Tensor Core GPU": dense bfloat16 peak without sparsity, memory, NVLink in both directions
together.  Share of the peak in training: A100, NeMo's ViT-g/14, 44.5 % (NeMo documentation, ViT
performance); H100, torchtitan's Llama 3 8B in bfloat16, 33 to 39 % (benchmarks/llama3_h100_202412).
None of these numbers was measured here.


From rates to hours: what a run takes on so many devices, and what holds it up.

Pure arithmetic.  What is assumed is said in `Plan.assumptions`, in words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vit21k.models.cost import num_params, train_flops_per_image

ASSUMED_COPY_BYTES = 20e9
"""A second, from host memory to a GPU: PCIe 4.0 x16 has 32 GB/s."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        name: What it is called.
        peak_flops: Dense bfloat16 operations a second, published.
        memory_bytes: Published.
        nvlink_bytes: A second, of one GPU to others of its node, one way: half of what is
            published.
        assumed_share: Of the peak, that a training step reaches.
    """

    name: str
    peak_flops: float
    memory_bytes: float
    nvlink_bytes: float
    assumed_share: float


GPUS = {
    "a100": Gpu(
        name="A100 80 GB SXM",
        peak_flops=312e12,
        memory_bytes=80e9,
        nvlink_bytes=300e9,
        assumed_share=0.40,
    ),
    "h100": Gpu(
        name="H100 80 GB SXM",
        peak_flops=989e12,
        memory_bytes=80e9,
        nvlink_bytes=450e9,
        assumed_share=0.35,
    ),
    "h200": Gpu(
        name="H200 141 GB SXM",
        peak_flops=989e12,
        memory_bytes=141e9,
        nvlink_bytes=450e9,
        assumed_share=0.35,
    ),
}
"""By the names that `vit21k bench --gpu` takes."""


_GRADIENT_BYTES = 4  # sums are in float32
_COMM_SHARE = 0.7  # of a link's published rate, that sums over all devices reach
_BACKWARD_SHARE = 2 / 3  # of a step; sums run during the backward pass of the last micro-batch
_FREE_SHARE = 0.9  # of the memory; the rest is the context's and lost between allocations


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """What is to be trained.

    Attributes:
        args: Of the model, as `model_args` returns them.
        total_steps: Updates.
        global_batch_size: Images of an update.
        device_batch_size: The most images one device takes at a time.
        activation_bytes: What a step keeps of one image until the backward pass.
        bytes_per_param: Weights, gradients, moments and averages, together.
        shards_weights: Whether the devices share them out (FSDP).
    """

    args: Mapping[str, Any]
    total_steps: int
    global_batch_size: int
    device_batch_size: int
    activation_bytes: int
    bytes_per_param: int
    shards_weights: bool = False


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where it is to be trained.

    Attributes:
        device: What one of them is called.
        num_devices: How many.
        devices_per_node: How many share a host.
        flops: Operations a second that one device reaches in training.
        memory_bytes: Of one device; None: not known.
        link_bytes: A second, from a device to others of its node.
        network_bytes: A second, from a node to others.
        loaded_images: A second, by the threads of one node.
        copied_bytes: A second, from host to device.
        update_seconds: Of the optimizer, in each step.
        loads_on_device: Whether images are decoded by the cores that train (a CPU).
    """

    device: str
    num_devices: int
    devices_per_node: int
    flops: float
    memory_bytes: float | None
    link_bytes: float
    network_bytes: float
    loaded_images: float
    copied_bytes: float
    update_seconds: float = 0.0
    loads_on_device: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What comes of it.

    Attributes:
        hours: Of the whole run, without evaluations and checkpoints.
        images_per_second: Over all devices.
        limits: Images a second over all devices that each part could do, were it alone.
        bottleneck: The part with the lowest limit.
        num_images: In the whole run.
        flops: In the whole run.
        device_batch_size: Images of a micro-batch.
        num_micro_batches: Of a step, on each device.
        needed_bytes: Memory of one device.
        fits: Whether that fits; None: not known.
        sum_seconds: That summing gradients takes in each step, of which `exposed_seconds` wait.
        exposed_seconds: As above.
        node_read_images: Images a second that a node must read to keep up with its devices.
        assumptions: What all this rests on, in words.
    """

    hours: float
    images_per_second: float
    limits: dict[str, float]
    bottleneck: str
    num_images: int
    flops: float
    device_batch_size: int
    num_micro_batches: int
    needed_bytes: float
    fits: bool | None
    sum_seconds: float
    exposed_seconds: float
    node_read_images: float
    assumptions: list[str]


def plan_run(run: PlannedRun, cluster: Cluster) -> Plan:
    """Return what *run* takes on *cluster*."""
    share = -(-run.global_batch_size // cluster.num_devices)
    micro_batch = min(run.device_batch_size, share)
    num_micro_batches = -(-share // micro_batch)
    flops_per_image = train_flops_per_image(run.args)
    compute_seconds = share * flops_per_image / cluster.flops
    sum_seconds = _sum_seconds(num_params(run.args) * _GRADIENT_BYTES, cluster)
    hidden = _BACKWARD_SHARE * compute_seconds / num_micro_batches
    exposed_seconds = max(0.0, sum_seconds - hidden)
    num_nodes = -(-cluster.num_devices // cluster.devices_per_node)
    image_bytes = 3 * run.args["img_size"] ** 2
    compute_seconds += cluster.update_seconds
    limits = {
        "arithmetic": run.global_batch_size / compute_seconds,
        "arithmetic and sums": run.global_batch_size / (compute_seconds + exposed_seconds),
        "loading images": cluster.loaded_images * num_nodes,
        "copying to devices": cluster.copied_bytes / image_bytes * cluster.num_devices,
    }
    images_per_second = min(limits.values())
    if cluster.loads_on_device:
        both = (limits["arithmetic"], limits["loading images"])
        images_per_second = 1 / sum(1 / limit for limit in both)
    needed = _needed_bytes(run, micro_batch, cluster.num_devices)
    num_images = run.total_steps * run.global_batch_size
    return Plan(
        hours=num_images / images_per_second / 3600,
        images_per_second=images_per_second,
        limits=limits,
        bottleneck=_bottleneck(limits),
        num_images=num_images,
        flops=float(num_images * flops_per_image),
        device_batch_size=micro_batch,
        num_micro_batches=num_micro_batches,
        needed_bytes=needed,
        fits=None if cluster.memory_bytes is None else needed < _FREE_SHARE * cluster.memory_bytes,
        sum_seconds=sum_seconds,
        exposed_seconds=exposed_seconds,
        node_read_images=limits["arithmetic and sums"] / num_nodes,
        assumptions=_assumptions(run, cluster, num_nodes),
    )


def _sum_seconds(num_bytes: float, cluster: Cluster) -> float:
    """Return how long it takes to sum gradients over all devices, rings within and over nodes."""
    local = min(cluster.num_devices, cluster.devices_per_node)
    num_nodes = -(-cluster.num_devices // cluster.devices_per_node)
    within = 2 * (local - 1) / local * num_bytes / (_COMM_SHARE * cluster.link_bytes)
    between = 2 * (num_nodes - 1) / num_nodes * num_bytes / (_COMM_SHARE * cluster.network_bytes)
    return within + between


def _needed_bytes(run: PlannedRun, micro_batch: int, num_devices: int) -> float:
    weights = (
        run.bytes_per_param * num_params(run.args) / (num_devices if run.shards_weights else 1)
    )
    return weights + micro_batch * run.activation_bytes


def _bottleneck(limits: Mapping[str, float]) -> str:
    """Return the part that holds the run up; sums only if they add to the arithmetic's time."""
    name = min(limits, key=lambda part: limits[part])
    if name == "arithmetic and sums" and limits["arithmetic"] < 1.05 * limits[name]:
        return "arithmetic"
    return "summing gradients" if name == "arithmetic and sums" else name


def _assumptions(run: PlannedRun, cluster: Cluster, num_nodes: int) -> list[str]:
    reached = f"{cluster.flops / 1e12:,.4g} TFLOP/s in training"
    found = [
        f"a device reaches {reached}, 6 operations for each multiplication of the forward pass",
        f"a node loads {cluster.loaded_images:,.0f} images a second",
        "evaluations, checkpoints and restarts take no time",
        f"{_FREE_SHARE:.0%} of a device's memory holds weights, gradients, moments and activations",
    ]
    if not cluster.update_seconds:
        found.append("the optimizer's update takes no time")
    if cluster.loads_on_device:
        found.append("images are decoded by the cores that train: the times of both add up")
    else:
        found.append(f"{cluster.copied_bytes / 1e9:,.3g} GB/s from a host to each of its devices")
    if cluster.num_devices > 1:
        link = f"{_COMM_SHARE:.0%} of {cluster.link_bytes / 1e9:,.0f} GB/s"
        found.append(
            f"gradients are summed in float32 at {link} between the devices of a node, during the "
            "backward pass of a step's last micro-batch"
        )
    if num_nodes > 1:
        found.append(
            f"{num_nodes} nodes of {cluster.devices_per_node} devices, each with "
            f"{8 * cluster.network_bytes / 1e9:,.0f} Gbit/s to the others"
        )
    if run.global_batch_size % cluster.num_devices:
        found.append(
            f"{run.global_batch_size:,} images do not share out evenly over {cluster.num_devices} "
            "devices: `vit21k train` would refuse, the plan rounds up"
        )
    return found
