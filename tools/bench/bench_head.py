"""Head and multi-label loss together: dense, sparse, and in chunks that never hold the logits.

Ways run in turn, round after round.  Memory is the peak of a way without the features,
the head, and the gradients of both, which every way returns; each in a fresh process (Linux).

    python tools/bench/bench_head.py [--batch-size 4096] [--dtype bfloat16] [--json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from bench_loss import dense_loss
from torch import Tensor, nn

from vit21k.losses.sparse import chunked_multi_label_loss, multi_label_loss

Way = Callable[[Tensor, nn.Linear, Tensor, Tensor], Tensor]

WAYS: dict[str, Way] = {
    "dense": lambda x, head, rows, ids: dense_loss(head(x), rows, ids),
    "sparse": lambda x, head, rows, ids: multi_label_loss(head(x), rows, ids),
    "chunked": chunked_multi_label_loss,
}


class Case:
    """Features, a head, and 1.2 labels an image."""

    def __init__(self, options: argparse.Namespace, batch_size: int) -> None:
        torch.manual_seed(0)
        self.features = torch.randn(batch_size, options.width, requires_grad=True)
        self.head = nn.Linear(options.width, options.num_classes)
        nn.init.constant_(self.head.bias, -8.0)
        rows = torch.arange(batch_size)
        self.rows = torch.cat([rows, rows[::5]])
        self.ids = torch.arange(len(self.rows)) * 7919 % options.num_classes
        self.in_bfloat16 = options.dtype == "bfloat16"

    def run(self, way: Way) -> float:
        """Form the gradients anew; return the time of CPU."""
        self.features.grad = self.head.weight.grad = self.head.bias.grad = None
        started_at = time.process_time()
        with torch.autocast("cpu", dtype=torch.bfloat16) if self.in_bfloat16 else nullcontext():
            loss = way(self.features, self.head, self.rows, self.ids)
        loss.backward()  # type: ignore[no-untyped-call]
        return time.process_time() - started_at

    def gradients(self) -> list[Tensor]:
        """Return those of the last run."""
        leaves = (self.features, self.head.weight, self.head.bias)
        return [leaf.grad for leaf in leaves if leaf.grad is not None]


def peak_bytes(options: argparse.Namespace, way: str) -> int:
    """Return the peak in addition to the result; to be called in a fresh process."""
    Case(options, 2).run(WAYS[way])  # libraries that load at the first use
    case = Case(options, options.batch_size)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    case.run(WAYS[way])
    returned = sum(gradient.nbytes for gradient in case.gradients())
    return resident("VmHWM") - before - returned


def resident(field: str) -> int:
    """Return what the process holds, or the most it has held, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Return times of all ways over interleaved rounds, and the largest difference of gradients."""
    case = Case(options, options.time_batch_size)
    gradients = {}
    for name, way in WAYS.items():
        case.run(way)
        gradients[name] = case.gradients()
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(options.num_rounds):
        for name, way in WAYS.items():
            times[name].append(case.run(way))
    return {
        "cpu_seconds": {name: statistics.median(values) for name, values in times.items()},
        "gradient_difference": {
            name: max(
                float((mine - theirs).abs().max() / theirs.abs().max())
                for mine, theirs in zip(found, gradients["sparse"], strict=True)
            )
            for name, found in gradients.items()
        },
    }


def parse_args(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=4096, help="for memory")
    parser.add_argument("--time-batch-size", type=int, default=512, help="for time")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--num-classes", type=int, default=21_841)
    parser.add_argument("--num-rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak-of", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: list[str]) -> None:
    """Measure and print."""
    options = parse_args(words)
    torch.set_num_threads(1)
    if options.peak_of:
        print(peak_bytes(options, options.peak_of))
        return
    result = {"torch": torch.__version__, "options": vars(options), **compare(options)}
    result["peak_bytes"] = {
        way: int(
            subprocess.run(
                [sys.executable, __file__, *words, "--peak-of", way],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for way in WAYS
    }
    print(json.dumps(result, indent=2) if options.json else table(result))


def table(result: dict[str, Any]) -> str:
    """Format the result for reading."""
    dense_seconds, dense_bytes = result["cpu_seconds"]["dense"], result["peak_bytes"]["dense"]
    lines = [f"{'head and loss':14} {'ms of CPU':>10} {'of dense':>9} {'MB':>8} {'of dense':>9}"]
    for way, seconds in result["cpu_seconds"].items():
        peak = result["peak_bytes"][way]
        lines.append(
            f"{way:14} {1e3 * seconds:10.0f} {seconds / dense_seconds:9.2f} "
            f"{peak / 1e6:8.1f} {'1/' + format(dense_bytes / max(peak, 1), '.1f'):>9}"
        )
    difference = result["gradient_difference"]["chunked"]
    lines.append(f"gradients in chunks differ by {difference:.1e} of the largest")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
