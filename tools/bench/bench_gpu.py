"""Everything about a GPU in one call of less than nine minutes, written down as it comes.

    python tools/bench/bench_gpu.py [--out docs/internals/benchmarks-h200.json] [--limit-s 530]
    python tools/bench/bench_gpu.py --device cpu --tiny --out tiny.json       the same code, for a test

Parts, in the order of their importance: whether compiled blocks, attention backends, recomputation
and the last block for the class token alone compute what the plain model computes; what the device
does in matrix products; attention; training in bfloat16 with compiled blocks; inference; timm,
transformers and torchvision under the same; float8; and real decoding against synthetic images.
A part that fails or finds no time left is written down as such, and the next one runs.
"""

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from gpu_cases import Bench, sizes_of
from gpu_parts import (
    attention,
    ceiling,
    float8,
    inference,
    parity,
    peers,
    real_images,
    training,
)

PACKAGES = ("torch", "torchvision", "timm", "transformers", "torchao", "triton")
Part = Callable[[Bench], dict[str, Any]]


def parts_of(names: list[str]) -> dict[str, tuple[Part, float]]:
    """Return each part and the seconds that it needs at least, so that it is worth a start."""
    return {
        "parity": (parity, 20),
        "ceiling": (ceiling, 5),
        "attention": (attention, 10),
        **{f"training {name}": (_training_of(name), 25) for name in names},
        "inference": (inference, 20),
        "peer timm": (_peer("timm"), 30),
        "float8": (float8, 30),
        "real images": (real_images, 30),
        "peer transformers": (_peer("transformers"), 30),
        "peer torchvision": (_peer("torchvision"), 30),
    }


def _training_of(name: str) -> Part:
    return lambda bench: training(bench, name)


def _peer(name: str) -> Part:
    return lambda bench: peers(bench, name)


def facts(device: torch.device) -> dict[str, Any]:
    """Return what the numbers were measured on."""
    found: dict[str, Any] = {"python": platform.python_version(), "device": device.type}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
    return found


@contextmanager
def free_afterwards(device: torch.device) -> Iterator[None]:
    """Give back the memory of the block, and forget what was compiled in it."""
    try:
        yield
    finally:
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def run_part(part: Part, bench: Bench) -> dict[str, Any]:
    """Return what a part found, or what went wrong in it, and how long it took."""
    started_at = time.perf_counter()
    try:
        with free_afterwards(bench.device):
            found = part(bench)
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {error}"[:500]}
        traceback.print_exc()
    return {**found, "seconds": round(time.perf_counter() - started_at, 1)}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run every part that there is time for; the file is written after each one."""
    device = torch.device(options.device)
    ends_at = time.perf_counter() + options.limit_s
    bench = Bench(device=device, tiny=options.tiny, ends_at=ends_at)
    parts = parts_of(list(sizes_of(tiny=options.tiny)))
    result: dict[str, Any] = {"facts": facts(device), "tiny": options.tiny, "parts": {}}
    for name, (part, least) in parts.items():
        if options.only and name not in options.only:
            continue
        if not options.tiny and bench.seconds_left < least:
            result["parts"][name] = {"failed": "no time left"}
        else:
            result["parts"][name] = run_part(part, bench)
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(name, json.dumps(result["parts"][name]), flush=True)
    return result


def parse_args(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", "--dry-run", action="store_true", help="tiny models; no figures")
    parser.add_argument("--limit-s", type=float, default=530.0)
    parser.add_argument("--only", nargs="*", help="parts to run")
    parser.add_argument("--out", type=Path, default=Path("docs/internals/benchmarks-h200.json"))
    options = parser.parse_args(words)
    if options.device != "cuda" and not options.tiny:
        parser.error("without a GPU only --tiny makes sense")
    return options


def main(words: list[str]) -> int:
    """Run; return 1 if a part failed or the results differ."""
    result = run(parse_args(words))
    failed = [name for name, found in result["parts"].items() if "failed" in found]
    print(f"bench_gpu: {len(result['parts'])} parts, {len(failed)} of them failed: {failed}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
