"""Training on a pack behind a URL against the same pack on a disk.

The server is one of ours on loopback, in a process of its own, which waits before each answer.
Epochs alternate in one process: from a disk; from the URL with an empty cache; from the URL with
the cache that the epoch before has filled.  An epoch is the loader alone, or with a training step
of the recipe `tiny` for each batch.  Wall time depends on what else the machine does; the CPU time
of the process does not, and the same work on a machine of its own takes as long.

    python tools/bench/bench_remote.py IMAGES --work DIR [--copies 4] [--latency 0.02]
        [--num-rounds 5] [--num-workers 2] [--loader-alone]
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from loader_ours import prepare
from torch import nn

from vit21k.data.dataset import CacheOptions, ImageDataset
from vit21k.data.loader import Batch, TrainLoader
from vit21k.data.sampler import StepSampler
from vit21k.data.transforms import TrainTransform
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import TRAIN
from vit21k.models.registry import get_model
from vit21k.recipe.load import load_recipe

PACK = "vit21k pack --short-side 256"
SERVER = Path(__file__).parents[2] / "tests" / "object_server.py"
DISK, FIRST, LATER = "disk", "URL, first epoch", "URL, later epochs"


class Spent(NamedTuple):
    """Seconds of an epoch: of the clock, and of the processors."""

    wall_s: float
    cpu_s: float


@contextmanager
def serving(folder: Path, latency_s: float) -> Iterator[str]:
    """Serve *folder* from another process; yield the URL."""
    command = [sys.executable, str(SERVER), str(folder), str(latency_s)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        yield server.stdout.readline().strip() if server.stdout else ""
        server.terminate()


def training_step(num_classes: int) -> Callable[[Batch], None]:
    """Return a step of the recipe `tiny`."""
    section = load_recipe("tiny").model
    sizes = {"img_size", "patch_size", "embed_dim", "depth", "num_heads"}
    model = get_model(section.name, num_classes=num_classes, **section.model_dump(include=sizes))
    optimizer = torch.optim.AdamW(model.parameters())

    def step(batch: Batch) -> None:
        targets = torch.zeros(len(batch.rows_B), num_classes)
        targets[batch.label_rows_L, batch.label_ids_L] = 1
        logits = model(batch.images_BCHW.float() / 255)
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits, targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def epoch(
    images: ImageDataset,
    batch_size: int,
    img_size: int,
    workers: int,
    step: Callable[[Batch], None],
) -> Spent:
    """Go through an epoch."""
    sampler = StepSampler(len(images), global_batch_size=batch_size, seed=0)
    transform = TrainTransform(img_size)
    with TrainLoader(
        images, sampler, transform, device_batch_size=batch_size, num_workers=workers, seed=0
    ) as loader:
        started = Spent(time.perf_counter(), time.process_time())
        for number in range(sampler.steps_per_epoch):
            for batch in loader.micro_batches(number):
                step(batch)
        return Spent(time.perf_counter() - started.wall_s, time.process_time() - started.cpu_s)


def measure(args: argparse.Namespace, pack: Path) -> dict[str, list[Spent]]:
    """Return what each way took, round by round."""
    manifest = open_manifest(pack, TRAIN)
    spent: dict[str, list[Spent]] = {DISK: [], FIRST: [], LATER: []}
    step = training_step(len(manifest.classes()))
    sizes = (128, 224) if args.loader_alone else (64, 32)
    with serving(pack, args.latency) as url, tempfile.TemporaryDirectory() as folder:
        for number in range(args.num_rounds):
            cache = CacheOptions(Path(folder, str(number)), 10**11)
            for way in (DISK, FIRST, LATER) if number % 2 else (FIRST, LATER, DISK):
                where: dict[str, Any] = {} if way is DISK else {"root": url, "cache": cache}
                images = ImageDataset.from_manifest(manifest, **where)
                does = (lambda _batch: None) if args.loader_alone else step
                spent[way].append(epoch(images, *sizes, args.num_workers, does))
            shutil.rmtree(cache.folder)
    return spent


def ratios(spent: dict[str, list[Spent]], index: int) -> dict[str, float]:
    """Return the speed of each way as a share of the disk's: the median of the rounds."""
    return {
        way: round(
            statistics.median(a[index] / b[index] for a, b in zip(spent[DISK], found, strict=True)),
            3,
        )
        for way, found in spent.items()
    }


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--num-rounds", type=int, default=5)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--loader-alone", action="store_true")
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    prepare(args.images, args.work, args.copies, [PACK])
    pack = next(path for path in args.work.iterdir() if path.name.startswith("pack"))
    spent = measure(args, pack)
    found = {"by wall time": ratios(spent, 0), "by CPU time": ratios(spent, 1), "spent": spent}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
