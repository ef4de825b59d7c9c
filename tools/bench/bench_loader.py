"""The training loader against the field: files -> batches of random crops, on two cores.

Each loader lives in a process of its own and goes through an epoch whenever it is its turn, round
after round in another order, so that a noisy machine disturbs all alike.  Counted are wall time
and the CPU time of the process, its threads and its workers.  Images are repeated under bytes of
their own, so that no cache of a file helps.

Besides the speed, every crop of ours is compared with Pillow's: the same crop of the same file,
resized bilinearly by `Image.resize`.

    python tools/bench/bench_loader.py IMAGES [--copies 6] [--img-size 224] [--num-rounds 5]
        [--only NAME,NAME] [--work DIR] [--out PAGE [--block NAME] | --json | --prepare]
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from loader_ours import OURS, PACKS, differences, ours, prepare
from loader_peers import BATCH_SIZE, NUM_WORKERS, PEERS, Data

sys.path.append(str(Path(__file__).parents[1] / "docs"))

from generated_block import write_or_check

BASE = "ImageFolder"
DALI = "DALI (CPU)"
PACKAGES = ("torch", "torchvision", "pillow")
PACKAGES_OF = {
    "timm create_loader": "timm",
    "webdataset": "webdataset",
    "Hugging Face datasets": "datasets",
    DALI: "nvidia-dali-cuda120",
}
"""What a loader needs besides `PACKAGES`."""


def serve(name: str, data: Data) -> None:
    """Go through an epoch for every line of stdin, and report what it took."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)
    epoch = ours(data, OURS[name]) if name in OURS else PEERS[name](data)
    for line in sys.stdin:
        if line.strip() == "compare":
            print(json.dumps(differences(data, OURS[name]) if name in OURS else None), flush=True)
            continue
        cpu, wall = _cpu_seconds(), time.perf_counter()
        num_images = epoch()
        wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
        print(json.dumps({"images": num_images, "wall": wall, "cpu": cpu}), flush=True)


def _cpu_seconds() -> float:
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, kinds))


class Server:
    """A loader in a process of its own."""

    def __init__(self, name: str, data: Data) -> None:
        size, number = str(data.img_size), str(data.num_images)
        command = [sys.executable, __file__, str(data.work), "--serve", name]
        self._process = subprocess.Popen(
            [*command, "--img-size", size, "--num-images", number],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: str) -> Any:
        """Send a line; return the answer."""
        assert self._process.stdin  # noqa: S101 (for the type checker)
        assert self._process.stdout  # noqa: S101
        print(what, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def measure(names: Sequence[str], data: Data, num_rounds: int) -> dict[str, Any]:
    """Return the rounds of every loader, after one that warms up, and the error of pixels."""
    servers = {name: Server(name, data) for name in names}
    rounds: list[dict[str, Any]] = []
    order = list(names)
    for _ in range(num_rounds + 1):
        rounds.append({name: servers[name].ask("epoch") for name in order})
        random.shuffle(order)
    pixels = {name: servers[name].ask("compare") for name in names}
    for server in servers.values():
        server.close()
    for name in names:
        # timm leaves the last, incomplete batch out; rates are of the images that came.
        if any(one[name]["images"] <= data.num_images - BATCH_SIZE for one in rounds):
            raise RuntimeError(f"{name} skipped images")
    return {"rounds": rounds[1:], "pixels": pixels}


def medians(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return rates, and the medians of each round's own ratios to `BASE`."""
    rounds = result["rounds"]
    summary = {}
    for name in rounds[0]:
        rates = {
            kind: [one[name]["images"] / one[name][kind] for one in rounds]
            for kind in ("wall", "cpu")
        }
        summary[name] = {kind: statistics.median(values) for kind, values in rates.items()}
        for kind, values in rates.items():
            for other in {BASE, DALI} & set(rounds[0]):
                theirs = [one[other]["images"] / one[other][kind] for one in rounds]
                ratios = [rate / their for rate, their in zip(values, theirs, strict=True)]
                summary[name][f"{kind} of {other}"] = statistics.median(ratios)
    return summary


def table(result: dict[str, Any], data: Data, num_bytes: int) -> str:
    """Return the result as Markdown."""
    summary = medians(result)
    packages = [*PACKAGES, *(PACKAGES_OF[name] for name in PACKAGES_OF if name in summary)]
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    others = [other for other in (BASE, DALI) if other in summary]
    heads = [f"{kind} of {other}" for other in others for kind in ("wall", "cpu")]
    shown = [head.replace("cpu", "CPU").replace("wall", "x") for head in heads]
    about = (
        f"{data.num_images:,} images, {num_bytes / 1e6:,.0f} MB, crops of {data.img_size}, "
        f"batches of {BATCH_SIZE}, {NUM_WORKERS} workers or threads; {len(result['rounds'])} "
        f"rounds, medians, ratios of the rounds' own; {versions}."
    )
    columns = ["loader", "images/s", *shown, "images/CPU s", "mean (largest) off Pillow's, of 255"]
    lines = [about, "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, row in sorted(summary.items(), key=lambda item: item[1]["wall"]):
        pixels = result["pixels"][name]
        off = f"{pixels['mean']:.3f} ({pixels['largest']})" if pixels else ""
        ratios = " | ".join(f"{row[head]:.2f}" for head in heads)
        lines.append(f"| {name} | {row['wall']:,.0f} | {ratios} | {row['cpu']:,.0f} | {off} |")
    return "\n".join(lines)


def chosen(only: str | None) -> list[str]:
    """Return the loaders to measure: those asked for, or all whose packages are installed."""
    names = only.split(",") if only else [*PEERS, *OURS]
    if unknown := sorted(set(names) - {*PEERS, *OURS}):
        sys.exit(f"no loader is called {unknown}; there are {[*PEERS, *OURS]}")
    missing = {name: PACKAGES_OF[name] for name in names if not is_installed(name)}
    if missing and only:
        sys.exit(f"not installed: {', '.join(missing.values())}")
    for name, package in missing.items():
        print(f"{name} is skipped: {package} is not installed", file=sys.stderr)
    return [name for name in names if name not in missing]


def is_installed(name: str) -> bool:
    """Return whether the package that a loader needs is there."""
    try:
        return name not in PACKAGES_OF or bool(version(PACKAGES_OF[name]))
    except PackageNotFoundError:
        return False


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--copies", type=int, default=6)
    parser.add_argument("--img-size", type=int, default=224)
    parser.add_argument("--num-rounds", type=int, default=5)
    parser.add_argument("--only", help="default: all loaders whose packages are installed")
    parser.add_argument("--work", type=Path, help="keep what is made here")
    parser.add_argument("--out", type=Path, help="page with the block")
    parser.add_argument("--block", default="bench_loader")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--prepare", action="store_true", help="make the input, measure nothing")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--num-images", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, Data(args.images, args.img_size, args.num_images))
        return 0
    names = chosen(args.only)
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        num_bytes = prepare(
            args.images, work, args.copies, [name for name in names if name in PACKS]
        )
        if args.prepare:
            return 0
        data = Data(work, args.img_size, sum(1 for _ in (work / "tree").rglob("*.JPEG")))
        result = measure(names, data, args.num_rounds)
    if args.out:
        return write_or_check(args.out, {args.block: table(result, data, num_bytes)}, check=False)
    print(json.dumps(medians(result), indent=2) if args.json else table(result, data, num_bytes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
