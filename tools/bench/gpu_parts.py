"""The parts of `bench_gpu.py`: each measures one thing and returns plain values."""

import os
import time
from functools import partial
from typing import Any

import torch
from gpu_cases import (
    Bench,
    Size,
    first_size,
    images_a_second,
    loss_of,
    make_fast,
    sizes_of,
    synthetic_batch,
    trainer,
    with_shares,
)
from peer_models import make_models
from torch import Tensor, nn

from vit21k.bench.rates import MadeImages
from vit21k.data.loader import Batch, TrainLoader
from vit21k.data.sampler import StepSampler
from vit21k.data.transforms import TrainTransform, normalise
from vit21k.device import Precision, autocast, matmul_flops, wait_for
from vit21k.models.attention import AttentionShape, fastest, try_backends, use_backend
from vit21k.models.registry import build_model
from vit21k.training.step import compile_blocks, use_float8_mlps

_TOLERANCE = 0.03  # of the largest gradient, in bfloat16


def built(bench: Bench, args: dict[str, Any]) -> nn.Module:
    """Return a model whose first weights were drawn on the device: on a CPU that takes seconds."""
    with bench.device:
        return build_model(args)


def parity(bench: Bench) -> dict[str, Any]:
    """Compare loss and gradients of every fast way with those of the baseline."""
    size = first_size(bench)
    args = {**size.args, "depth": 2}
    batch = synthetic_batch(size, 4, bench.device)
    wanted = _loss_and_gradients(bench, _plain(bench, args), batch, size)
    found: dict[str, Any] = {}
    for way in ("flash", "cudnn", "efficient", "math", "recompute", "compile", "compile+recompute"):
        model = _plain(bench, args, recompute="recompute" in way)
        if way in {"flash", "cudnn", "efficient", "math"}:
            use_backend(model, way)  # type: ignore[arg-type]
        if "compile" in way:
            compile_blocks(model, backend=bench.compiler)
        found[way] = _difference(_loss_and_gradients(bench, model, batch, size), wanted)
    model = _plain(bench, args)
    whole = _AllTokens(model)
    found["last block whole"] = _difference(_loss_and_gradients(bench, whole, batch, size), wanted)
    worst = max(found.values())
    failed = {} if worst <= _TOLERANCE else {"failed": f"gradients differ by {worst:.3g}"}
    return {"largest_difference": found, **failed}


class _AllTokens(nn.Module):
    """The model whose last block computes every token."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model.forward_head(self.model.forward_features(images))
        return logits


def _plain(bench: Bench, args: dict[str, Any], *, recompute: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = build_model(args, recompute=recompute).to(bench.device).train()
    head: Any = model.get_submodule("head")
    torch.nn.init.normal_(head.weight, std=0.02)
    return model


def _loss_and_gradients(bench: Bench, model: nn.Module, batch: Batch, size: Size) -> list[Tensor]:
    loss = loss_of(model, batch, size)
    loss.backward()  # type: ignore[no-untyped-call]
    wait_for(bench.device)
    grads = [param.grad.float() for param in model.parameters() if param.grad is not None]
    return [loss.detach().float(), *grads]


def _difference(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest relative difference: of the loss, or of a gradient to the largest one."""
    largest = max(float(grad.abs().max()) for grad in wanted[1:])
    of_loss = float((found[0] - wanted[0]).abs() / wanted[0].abs())
    pairs = zip(found[1:], wanted[1:], strict=True)
    return max(of_loss, *(float((mine - theirs).abs().max()) / largest for mine, theirs in pairs))


def ceiling(bench: Bench) -> dict[str, Any]:
    """Measure matrix products by precision; bfloat16's is the measure of all that follows."""
    seconds = 0.05 if bench.tiny else 1.0

    def tflops(precision: Precision, shape: tuple[int, int, int]) -> float:
        return matmul_flops(bench.device, precision, shape=shape, seconds=seconds) / 1e12

    rows = 16_384 if bench.device.type == "cuda" else 1024
    rates: dict[str, float] = {
        "fp32": tflops("fp32", (rows, 1024, 4096)),
        "bf16": tflops("bf16", (rows, 1024, 4096)),
    }
    if bench.device.type == "cuda":
        rates["bf16, 8192 cubed"] = tflops("bf16", (8192, 8192, 8192))
    bench.matmul_flops = 1e12 * max(rate for name, rate in rates.items() if "bf16" in name)
    return {"tflops": rates}


def attention(bench: Bench) -> dict[str, Any]:
    """Time every implementation of attention for each size, and take the best of the first."""
    found: dict[str, Any] = {}
    for name, size in sizes_of(tiny=bench.tiny).items():
        args = size.args
        tokens = (args["img_size"] // args["patch_size"]) ** 2 + 1
        width = args["embed_dim"] // args["num_heads"]
        shape = AttentionShape(size.batch_sizes[0], args["num_heads"], tokens, width)
        trials = try_backends(shape, device=bench.device, dtype=torch.bfloat16)
        found[name] = {
            trial.name: trial.problem or {"ms": 1e3 * trial.seconds, "differs": trial.difference}
            for trial in trials
        } | {"chosen": fastest(trials)}
        bench.backend = bench.backend or fastest(trials)
    return found


def training(bench: Bench, name: str) -> dict[str, Any]:
    """Train on synthetic images with compiled blocks, at each batch size."""
    size = sizes_of(tiny=bench.tiny)[name]
    found = {
        str(num_images): _train_rate(bench, size, num_images) for num_images in size.batch_sizes
    }
    best = max(rate["images_per_second"] for rate in found.values())
    if size == first_size(bench):
        bench.synthetic = best
    return {"by_batch_size": found, "best_images_per_second": best}


def _train_rate(bench: Bench, size: Size, num_images: int) -> dict[str, Any]:
    model = make_fast(bench, "vit21k", built(bench, size.args).train())
    step = trainer(model, size)
    batch = synthetic_batch(size, num_images, bench.device)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rate = images_a_second(bench, lambda: step(batch), num_images)
    found = with_shares(bench, size, rate)
    if bench.device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def inference(bench: Bench) -> dict[str, Any]:
    """Return logits of synthetic images with compiled blocks."""
    size = first_size(bench)
    num_images = size.batch_sizes[-1]
    model = make_fast(bench, "vit21k", built(bench, size.args).eval())
    batch = synthetic_batch(size, num_images, bench.device)

    @torch.inference_mode()
    def predict() -> None:
        with autocast(bench.device, "bf16"):
            model(normalise(batch.images_BCHW, (0.5,) * 3, (0.5,) * 3))

    rate = images_a_second(bench, predict, num_images)
    return with_shares(bench, size, rate, of_training=1 / 3)


def peers(bench: Bench, name: str) -> dict[str, Any]:
    """Train another library's model and ours in turn: same weights, batch, loss, compiler."""
    size = first_size(bench)
    num_images = size.batch_sizes[0]
    with bench.device:
        models = make_models(size.args, ("vit21k", name))
    batch = synthetic_batch(size, num_images, bench.device)
    steps = {key: trainer(make_fast(bench, key, model), size) for key, model in models.items()}
    rates: dict[str, list[float]] = {key: [] for key in steps}
    for _ in range(2):
        for key, step in steps.items():
            rates[key].append(images_a_second(bench, partial(step, batch), num_images))
    best = {key: max(values) for key, values in rates.items()}
    return {"images_per_second": best, "ours_over_theirs": best["vit21k"] / best[name]}


def float8(bench: Bench) -> dict[str, Any]:
    """Train the first size with the MLPs in float8; on a CPU it is emulated, for the test."""
    size = first_size(bench)
    num_images = size.batch_sizes[-1]
    model = built(bench, size.args).train()
    emulate = bench.device.type != "cuda"
    num_layers = use_float8_mlps(model, bench.device, emulate=emulate)
    step = trainer(make_fast(bench, "vit21k", model), size)
    batch = synthetic_batch(size, num_images, bench.device)
    rate = images_a_second(bench, lambda: step(batch), num_images)
    found = with_shares(bench, size, rate)
    if bench.synthetic:
        found["over_bf16"] = rate / bench.synthetic
    return {**found, "num_layers": num_layers}


def real_images(bench: Bench) -> dict[str, Any]:
    """Train on JPEGs decoded meanwhile, and return the share of the synthetic rate."""
    size = first_size(bench)
    num_images = size.batch_sizes[0]
    num_workers = min(16, len(os.sched_getaffinity(0)))
    model = make_fast(bench, "vit21k", built(bench, size.args).train())
    step = trainer(model, size)
    images = MadeImages()
    sampler = StepSampler(len(images), global_batch_size=num_images, seed=0)
    loader = TrainLoader(
        images,
        sampler,
        TrainTransform(size.args["img_size"]),
        device_batch_size=num_images,
        num_workers=num_workers,
        seed=0,
        device=bench.device,
    )
    synthetic = synthetic_batch(size, num_images, bench.device)
    alone = images_a_second(bench, lambda: step(synthetic), num_images)
    num_steps = 4 if bench.tiny else 40
    with loader:
        for number in range(3):
            _train_on(loader, number, step, bench)
        wait_for(bench.device)
        started_at = time.perf_counter()
        for number in range(3, 3 + num_steps):
            _train_on(loader, number, step, bench)
        wait_for(bench.device)
        rate = num_steps * num_images / (time.perf_counter() - started_at)
    return {
        "synthetic_images_per_second": alone,
        "real_images_per_second": rate,
        "share": rate / alone,
        "num_workers": num_workers,
    }


def _train_on(loader: TrainLoader, number: int, step: Any, bench: Bench) -> None:
    for batch in loader.micro_batches(number):
        step(
            batch._replace(
                images_BCHW=batch.images_BCHW.to(bench.device, non_blocking=True),
                label_rows_L=batch.label_rows_L.to(bench.device, non_blocking=True),
                label_ids_L=batch.label_ids_L.to(bench.device, non_blocking=True),
            )
        )
