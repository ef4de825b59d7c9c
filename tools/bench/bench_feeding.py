"""Does the loader keep a training step fed?  Real images against synthetic images, in turn.

    python tools/bench/bench_feeding.py data_manifests --out docs/internals/benchmarks.md

Both train the same model with the same step (head of 21,841 classes, AdamW, bfloat16).  With real
images a batch is read, decoded, cropped and handed over meanwhile; synthetic images are there
already.  On a CPU both want the same cores, which is the harder case; `bench_gpu.py` asks the same
of a GPU.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from gpu_cases import Size, synthetic_batch, trainer

from vit21k.data.dataset import ImageDataset
from vit21k.data.loader import Batch, TrainLoader
from vit21k.data.sampler import StepSampler
from vit21k.data.transforms import TrainTransform
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import TRAIN
from vit21k.models.registry import get_model, model_args

sys.path.append(str(Path(__file__).parents[1] / "docs"))

from generated_block import write_or_check

NUM_CLASSES = 21_841
CPU = torch.device("cpu")
PREFETCHED = 3  # batches that may have been made while nothing was timed


def batches_of(options: argparse.Namespace, size: Size) -> Generator[Batch]:
    """Yield batches of real images for ever."""
    images = ImageDataset.from_manifest(open_manifest(options.manifests, TRAIN), options.root)
    batch_size = size.batch_sizes[0]
    loader = TrainLoader(
        images,
        StepSampler(len(images), global_batch_size=batch_size, seed=0),
        TrainTransform(size.args["img_size"], interpolation="bicubic"),
        device_batch_size=batch_size,
        num_workers=options.num_workers,
        seed=0,
    )
    with loader:
        step = 0
        while True:
            yield from loader.micro_batches(step)
            step += 1


def rounds(options: argparse.Namespace, size: Size) -> list[dict[str, float]]:
    """Return images a second of both, and the share of its time that a step waits, by round."""
    model = get_model(options.model, num_classes=NUM_CLASSES).train()
    step = trainer(model, size)
    real, synthetic = batches_of(options, size), synthetic_batch(size, options.batch_size, CPU)
    step(synthetic)
    found = []
    for _ in range(options.num_rounds):
        for _ in range(PREFETCHED):
            step(next(real))
        started_at, waited = time.perf_counter(), 0.0
        for _ in range(options.num_steps):
            asked_at = time.perf_counter()
            batch = next(real)
            waited += time.perf_counter() - asked_at
            step(batch)
        of_real = time.perf_counter() - started_at
        started_at = time.perf_counter()
        for _ in range(options.num_steps):
            step(synthetic)
        of_synthetic = time.perf_counter() - started_at
        num_images = options.num_steps * options.batch_size
        found.append(
            {
                "real": num_images / of_real,
                "synthetic": num_images / of_synthetic,
                "share": of_synthetic / of_real,
                "waited": waited / of_real,
            }
        )
        print(found[-1], flush=True)
    real.close()
    return found


def table(options: argparse.Namespace, found: list[dict[str, float]]) -> str:
    """Return the medians as a table, with what they were measured on."""
    middle = {name: statistics.median(row[name] for row in found) for name in found[0]}
    shares = sorted(row["share"] for row in found)
    what = (
        f"{options.model}, {options.batch_size} images a step, {options.num_steps} steps a round, "
        f"{len(found)} rounds in turn, medians; {torch.get_num_threads()} threads compute, "
        f"{options.num_workers} load; torch {torch.__version__}."
    )
    cells = (
        f"{middle['real']:.2f}",
        f"{middle['synthetic']:.2f}",
        f"{middle['share']:.3f} ({shares[0]:.3f} to {shares[-1]:.3f})",
        f"{middle['waited']:.2%}",
    )
    head = "| images/s, real images | images/s, synthetic | share (range) | a step waits |"
    return f"{what}\n\n{head}\n|---|---|---|---|\n| {' | '.join(cells)} |"


def parse_args(words: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("manifests", type=Path)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-steps", type=int, default=4)
    parser.add_argument("--num-rounds", type=int, default=5)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(words)


def main(words: list[str]) -> int:
    """Measure, print, and write the table where it is asked for."""
    options = parse_args(words)
    args: dict[str, Any] = model_args(options.model, num_classes=NUM_CLASSES)
    text = table(options, rounds(options, Size(args, "sigmoid", (options.batch_size,))))
    print(text)
    if options.out:
        return write_or_check(options.out, {"bench_feeding": text}, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
