"""Images behind a URL against those on a disk: the loader over a pack, and hashing.

The server is one of ours on loopback, in a process of its own, which waits before each answer.
Epochs of the loader alternate: the pack on a disk, behind the URL with an empty cache, and behind
the URL with a full one.  Ratios are of images a second.

    python tools/bench/bench_remote.py IMAGES [--copies 4] [--latency 0.02] [--num-rounds 5]
        [--work DIR]
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from loader_ours import prepare

from vit21k.data.dataset import CacheOptions, ImageDataset
from vit21k.data.loader import TrainLoader
from vit21k.data.sampler import StepSampler
from vit21k.data.transforms import TrainTransform
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import TRAIN

PACK = "vit21k pack --short-side 256"
SERVER = Path(__file__).parents[2] / "tests" / "object_server.py"
BATCH_SIZE = 128


@contextmanager
def serving(folder: Path, latency_s: float) -> Iterator[str]:
    """Serve *folder* from another process; yield the URL."""
    command = [sys.executable, str(SERVER), str(folder), str(latency_s)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        yield server.stdout.readline().strip()
        server.terminate()


def epoch(pack: Path, url: str | None, cache: Path | None, num_workers: int) -> float:
    """Go through an epoch; return images a second."""
    options: dict[str, Any] = {"cache": CacheOptions(cache, 10**11)} if cache else {}
    images = ImageDataset.from_manifest(open_manifest(pack, TRAIN), url, **options)
    sampler = StepSampler(len(images), global_batch_size=BATCH_SIZE, seed=0)
    with TrainLoader(
        images,
        sampler,
        TrainTransform(224),
        device_batch_size=BATCH_SIZE,
        num_workers=num_workers,
        seed=0,
    ) as loader:
        started = time.perf_counter()
        num_images = sum(
            len(batch.rows_B)
            for step in range(sampler.steps_per_epoch)
            for batch in loader.micro_batches(step)
        )
        return num_images / (time.perf_counter() - started)


def loader_ratios(pack: Path, latency_s: float, num_rounds: int, num_workers: int) -> dict[str, Any]:
    """Return images a second of each way, and the ratios to a disk."""
    rates: dict[str, list[float]] = {"disk": [], "first epoch": [], "later epochs": []}
    with serving(pack, latency_s) as url, tempfile.TemporaryDirectory() as folder:
        for number in range(num_rounds):
            cache = Path(folder, str(number))
            for way in sorted(rates, key=lambda way: (way == "later epochs", number % 2, way)):
                where = (None, None) if way == "disk" else (url, cache)
                rates[way].append(epoch(pack, *where, num_workers))
            shutil.rmtree(cache)
    ratios = {
        way: statistics.median(a / b for a, b in zip(found, rates["disk"], strict=True))
        for way, found in rates.items()
    }
    return {"images_per_second": {w: statistics.median(r) for w, r in rates.items()}, "of_disk": ratios}


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--num-rounds", type=int, default=5)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    prepare(args.images, args.work, args.copies, [PACK])
    pack = next(path for path in args.work.iterdir() if path.name.startswith("pack"))
    print(json.dumps(loader_ratios(pack, args.latency, args.num_rounds, args.num_workers), indent=1))


if __name__ == "__main__":
    main()
