"""A training step of ours, timm, torchvision and transformers: time, and equality, on the CPU.

All have the same weights and see the same images; a step is a forward pass, a backward pass and an
update by torch's fused AdamW.  Each round runs all of them in turn, in another order each time, so
that a noisy machine disturbs all alike.  What counts is the time of CPU of all threads; ratios are
medians of the rounds' own.

    python tools/bench/bench_step.py [--model vit_tiny_patch16_224 --img-size 128] [--json]
    python tools/bench/bench_step.py --memory      what step.recompute=cheap saves, and costs
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from peer_models import NAMES, make_models
from torch import Tensor, nn

from vit21k.device import Precision, autocast
from vit21k.losses.sparse import multi_label_loss
from vit21k.models.registry import build_model, model_args

WAYS: dict[str, tuple[str, Precision]] = {
    **{name: (name, "fp32") for name in NAMES},
    "vit21k, bf16": ("vit21k", "bf16"),
    "timm, bf16": ("timm", "bf16"),
}


class Step:
    """One library's step in one precision."""

    def __init__(self, model: nn.Module, precision: Precision) -> None:
        self.model = model
        self.precision: Precision = precision
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def gradients(self, images: Tensor, ids: Tensor) -> float:
        """Form the gradients, and return the loss."""
        with autocast("cpu", self.precision):
            logits = self.model(images)
        loss = multi_label_loss(logits, torch.arange(len(ids)), ids)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def seconds(self, images: Tensor, ids: Tensor) -> float:
        """Return the time of CPU of a whole step; with a learning rate of 0, it changes nothing."""
        started_at = time.process_time()
        self.gradients(images, ids)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.process_time() - started_at


def equality(args: dict[str, Any], batch: tuple[Tensor, Tensor]) -> dict[str, dict[str, float]]:
    """Return the differences of loss, and those of timm's gradients, which have our names.

    Gradients are compared by the largest difference over the largest gradient.
    """
    models = make_models(args)
    losses = {name: Step(model, "fp32").gradients(*batch) for name, model in models.items()}
    theirs = dict(models["timm"].named_parameters())
    ours = dict(models["vit21k"].named_parameters())
    largest = max(float(p.grad.abs().max()) for p in ours.values() if p.grad is not None)
    difference = max(
        float((p.grad - theirs[name].grad).abs().max())  # type: ignore[operator]
        for name, p in ours.items()
        if p.grad is not None
    )
    return {
        "loss": {name: abs(loss - losses["vit21k"]) for name, loss in losses.items()},
        "gradients": {"timm": difference / largest},
    }


def measure(args: dict[str, Any], batch: tuple[Tensor, Tensor], seconds: float) -> dict[str, Any]:
    """Return the median CPU seconds of each way, and timm's in float32 over it."""
    models = make_models(args)
    steps = {way: Step(models[name], precision) for way, (name, precision) in WAYS.items()}
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for step in steps.values():
        step.seconds(*batch)
    names, number, ends_at = list(WAYS), 0, time.perf_counter() + seconds
    while time.perf_counter() < ends_at or number < 3:
        shift = number % len(names)
        for way in names[shift:] + names[:shift]:
            times[way].append(steps[way].seconds(*batch))
        number += 1

    def ratio(slow: str, fast: str) -> float:
        return statistics.median(s / f for s, f in zip(times[slow], times[fast], strict=True))

    return {
        "rounds": number,
        "cpu_seconds": {way: statistics.median(values) for way, values in times.items()},
        "timm over it": {way: ratio("timm", way) for way in WAYS},
        "timm, bf16 over vit21k, bf16": ratio("timm, bf16", "vit21k, bf16"),
    }


def memory_and_time(args: dict[str, Any], batch: tuple[Tensor, Tensor], way: str) -> dict[str, Any]:
    """Return growth of the process and CPU time of a step; to be called in a fresh process."""
    torch.manual_seed(0)
    model = build_model(args, recompute=way == "cheap").train()
    step = Step(model, "bf16")
    step.gradients(batch[0][:1], batch[1][:1])
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    loss = step.gradients(*batch)
    peak = resident("VmHWM") - before
    step.optimizer.zero_grad(set_to_none=True)
    seconds = min(step.seconds(*batch) for _ in range(3))
    return {"way": way, "loss": loss, "peak_bytes": peak, "cpu_seconds": seconds}


def resident(field: str) -> int:
    """Return what the process holds, or the most it has held, in bytes (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])


def make_batch(args: dict[str, Any], num_images: int) -> tuple[Tensor, Tensor]:
    """Return normalised images and a label for each."""
    drawn = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, 3, args["img_size"], args["img_size"], generator=drawn)
    return images, torch.arange(num_images) % args["num_classes"]


def parse_args(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--img-size", type=int, default=128)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--num-classes", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the rounds")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", choices=["none", "cheap"], help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    """Measure and print."""
    options = parse_args(words)
    torch.set_num_threads(options.num_threads)
    args = model_args(
        options.model,
        img_size=options.img_size,
        depth=options.depth,
        num_classes=options.num_classes,
    )
    batch = make_batch(args, options.batch_size)
    if options.memory_of:
        print(json.dumps(memory_and_time(args, batch, options.memory_of)))
        return
    result: dict[str, Any] = {"torch": torch.__version__, "options": vars(options)}
    if options.memory:
        result["recompute"] = [_in_its_own_process(words, way) for way in ("none", "cheap")]
    else:
        result["differences"] = equality(args, batch)
        result.update(measure(args, batch, options.seconds))
    print(json.dumps(result, indent=2) if options.json else table(result))


def _in_its_own_process(words: list[str], way: str) -> Any:
    command = [sys.executable, __file__, *words, "--memory-of", way]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(result: dict[str, Any]) -> str:
    """Format the result for reading."""
    if "recompute" in result:
        return "\n".join(
            f"recompute {found['way']:6} {found['peak_bytes'] / 1e6:8.1f} MB "
            f"{1e3 * found['cpu_seconds']:8.0f} ms of CPU, loss {found['loss']:.6f}"
            for found in result["recompute"]
        )
    lines = [f"{'step':16} {'ms of CPU':>10} {'x timm fp32':>12} {'loss differs by':>16}"]
    for way, seconds in result["cpu_seconds"].items():
        difference = result["differences"]["loss"].get(way)
        shown = "" if difference is None else f"{difference:.1e}"
        lines.append(
            f"{way:16} {1e3 * seconds:10.0f} {result['timm over it'][way]:12.3f} {shown:>16}"
        )
    lines.append(f"bf16, timm over vit21k: {result['timm, bf16 over vit21k, bf16']:.3f}")
    lines.append(
        f"gradients differ from timm's by {result['differences']['gradients']['timm']:.1e}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
