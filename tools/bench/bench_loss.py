"""Sparse against dense multi-label loss: time and memory, forward and backward.

Both are run in turn, round after round, so that a noisy machine disturbs both; medians are
reported.  Memory is the peak of a loss without the logits: on a CPU the growth of the
process, measured in a fresh one for each loss; on a GPU what torch's allocator counts.

    python tools/bench/bench_loss.py [--batch-size 256] [--num-classes 21841] [--device cuda] [--json]
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vit21k.device import wait_for
from vit21k.losses.sparse import multi_label_loss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dense_loss(logits: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """Baseline: a dense 0/1 target, cross-entropy, a sum."""
    target = torch.zeros(logits.shape, device=logits.device)
    target[rows, ids] = 1.0
    loss = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="sum")
    return loss / len(logits)


def dense_smoothed_loss(logits: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """PLSC's way: the target is smoothed, the loss summed over classes, averaged over images."""
    target = torch.zeros(logits.shape, device=logits.device)
    target[rows, ids] = 1.0
    target = target * (1 - 1e-4) + 1e-4
    loss = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
    return loss.sum(dim=1).mean()


def sparse_smoothed_loss(logits: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
    """Return what `dense_smoothed_loss` returns."""
    return multi_label_loss(logits, rows, ids, smoothing=1e-4)


LOSSES: dict[str, Loss] = {
    "dense": dense_loss,
    "sparse": multi_label_loss,
    "dense, smoothed": dense_smoothed_loss,
    "sparse, smoothed": sparse_smoothed_loss,
}


def make_batch(args: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits and 1.2 labels an image; logits are drawn in place, to leave no peak behind."""
    logits = torch.empty(
        args.batch_size, args.num_classes, dtype=DTYPES[args.dtype], device=args.device
    )
    torch.manual_seed(0)
    logits.normal_(-8.0, 2.0).requires_grad_()
    rows = torch.arange(args.batch_size)
    rows = torch.cat([rows, rows[::5]])
    ids = torch.arange(len(rows)) * 7919 % args.num_classes
    return logits, rows.to(args.device), ids.to(args.device)


def run_once(loss: Loss, batch: tuple[Tensor, Tensor, Tensor]) -> float:
    """Return the seconds of one forward and backward pass."""
    batch[0].grad = None
    wait_for(batch[0].device)
    start = time.perf_counter()
    loss(*batch).backward()  # type: ignore[no-untyped-call]
    wait_for(batch[0].device)
    return time.perf_counter() - start


def measure_seconds(args: argparse.Namespace) -> dict[str, float]:
    """Return the median time of each loss over interleaved rounds, the first one skipped."""
    batch = make_batch(args)
    times: dict[str, list[float]] = {name: [] for name in LOSSES}
    for _ in range(args.num_rounds + 1):
        for name, loss in LOSSES.items():
            times[name].append(run_once(loss, batch))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def peak_bytes(args: argparse.Namespace, name: str) -> int:
    """Return the peak memory of a pass without the logits; to be called in a fresh process."""
    tiny = argparse.Namespace(**{**vars(args), "batch_size": 2})
    run_once(LOSSES[name], make_batch(tiny))  # libraries that load at the first use
    batch = make_batch(args)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_once(LOSSES[name], batch)
        return torch.cuda.max_memory_allocated() - before
    before = peak_of_process()
    run_once(LOSSES[name], batch)
    return peak_of_process() - before


def peak_of_process() -> int:
    """Return the most memory this process has held, in bytes (Linux).

    `getrusage` does not do: a child starts with the peak of its parent.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def measure_bytes(name: str) -> int:
    """Return `peak_bytes` of a fresh process with the same arguments."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def check_gradients(args: argparse.Namespace) -> dict[str, float]:
    """Return the largest difference of each sparse gradient to the dense one."""
    batch = make_batch(args)
    differences = {}
    for sparse, dense in (("sparse", "dense"), ("sparse, smoothed", "dense, smoothed")):
        gradients = []
        for name in (sparse, dense):
            run_once(LOSSES[name], batch)
            gradients.append(batch[0].grad)
        difference = (gradients[0].float() - gradients[1].float()).abs().max()  # type: ignore[union-attr]
        differences[sparse] = difference.item()
    return differences


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--num-classes", type=int, default=21_841)
    parser.add_argument("--num-rounds", type=int, default=15)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--num-threads", type=int, help="of torch on the CPU")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak-of", choices=LOSSES, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = parse_args()
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    if args.peak_of:
        print(peak_bytes(args, args.peak_of))
        return
    seconds = measure_seconds(args)
    memory = {name: measure_bytes(name) for name in LOSSES}
    result = {
        "batch_size": args.batch_size,
        "num_classes": args.num_classes,
        "dtype": args.dtype,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": seconds,
        "peak_bytes": memory,
        "gradient_difference": check_gradients(args),
    }
    print(json.dumps(result, indent=2) if args.json else table(result))


def table(result: dict[str, dict[str, float]]) -> str:
    """Format the result for reading."""
    lines = [f"{'loss':18} {'ms':>8} {'MB':>8}"]
    for name, seconds in result["seconds"].items():
        megabytes = result["peak_bytes"][name] / 1e6
        lines.append(f"{name:18} {1e3 * seconds:8.2f} {megabytes:8.1f}")
    for suffix in ("", ", smoothed"):
        speed = result["seconds"]["dense" + suffix] / result["seconds"]["sparse" + suffix]
        memory = result["peak_bytes"]["dense" + suffix] / result["peak_bytes"]["sparse" + suffix]
        lines.append(
            f"sparse{suffix}: {speed:.2f} x as fast, 1/{memory:.1f} of the memory; gradients "
            f"differ by {result['gradient_difference']['sparse' + suffix]:.1e} at most"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
