"""The input of evaluation, `predict` and `features` against timm's: files -> batches of pixels.

Ours goes with and without its compiled code, and timm's transform in torch's DataLoader; each goes
through all images in turn, round after round in another order, so that a noisy machine disturbs
all alike.  All give bit-identical pixels, which is checked; none normalises them.  Counted
are wall time and the CPU time of all threads and processes.

    python tools/bench/bench_eval.py IMAGES [--num-rounds 5] [--img-size 224 --img-size 384]
        [--out PAGE | --json]
"""

import argparse
import json
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from vit21k.data.loader import EvalLoader
from vit21k.data.transforms import EvalTransform
from vit21k.inference.files import Files, find_images

sys.path.append(str(Path(__file__).parents[1] / "docs"))

from generated_block import write_or_check

BATCH_SIZE = 64
NUM_WORKERS = 2
CROP_SHARE = {224: 0.875, 384: 1.0}  # of the resized image: timm's crop_pct
OURS, PLAIN, TIMM = "vit21k", "vit21k, without its compiled code", "timm's transform, DataLoader"
Batches = Iterable[Any]


def ours(paths: list[Path], img_size: int, *, is_compiled: bool) -> Iterator[torch.Tensor]:
    """Yield the batches of our loader."""
    transform = EvalTransform(img_size, round(img_size / CROP_SHARE[img_size]))
    without = mock.patch("vit21k.data.loader.compiled_crops", return_value=None)
    with nullcontext() if is_compiled else without:
        loader = EvalLoader(
            Files(paths), transform, device_batch_size=BATCH_SIZE, num_workers=NUM_WORKERS
        )
    with loader:
        for batch in loader:
            yield batch.images_BCHW


class ImageFiles(torch.utils.data.Dataset[Any]):
    """Images through a transform, as every example has it."""

    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], Any]) -> None:
        self._paths = paths
        self._transform = transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Any:
        """Return one of them."""
        with Image.open(self._paths[index]) as image:
            return self._transform(image.convert("RGB"))


def timms(paths: list[Path], img_size: int) -> Batches:
    """Return the batches of timm's transform for evaluation, uint8."""
    transform = import_module("timm.data").create_transform(
        (3, img_size, img_size),
        is_training=False,
        use_prefetcher=True,  # uint8: normalised later
        interpolation="bicubic",
        crop_pct=CROP_SHARE[img_size],
    )
    dataset = ImageFiles(paths, transform)
    return torch.utils.data.DataLoader(dataset, BATCH_SIZE, num_workers=NUM_WORKERS)


def ways(paths: list[Path], img_size: int) -> dict[str, Callable[[], Batches]]:
    """Return what is measured."""
    return {
        OURS: lambda: ours(paths, img_size, is_compiled=True),
        PLAIN: lambda: ours(paths, img_size, is_compiled=False),
        TIMM: lambda: timms(paths, img_size),
    }


def check(paths: list[Path], img_size: int) -> None:
    """Raise if one gives other pixels than the others."""
    first, *rest = (
        np.concatenate([np.asarray(batch) for batch in way()])
        for way in ways(paths, img_size).values()
    )
    if not all(np.array_equal(first, other) for other in rest):
        raise RuntimeError(f"pixels differ at {img_size}")


def _cpu_seconds() -> float:
    kinds = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, kinds))


def measure(paths: list[Path], img_size: int, num_rounds: int) -> list[dict[str, Any]]:
    """Return the images per second of each way in each round."""
    rounds: list[dict[str, Any]] = []
    turns = list(ways(paths, img_size).items())
    for _ in range(num_rounds):
        random.shuffle(turns)
        took = {}
        for name, way in turns:
            cpu, wall = _cpu_seconds(), time.perf_counter()
            num = sum(len(batch) for batch in way())
            wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
            took[name] = {"wall": num / wall, "cpu": num / cpu}
        rounds.append(took)
    return rounds


def medians(rounds: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return rates, and the medians of each round's own ratios to timm's."""
    summary = {}
    for name in (TIMM, PLAIN, OURS):
        summary[name] = {
            kind: statistics.median(one[name][kind] for one in rounds) for kind in ("wall", "cpu")
        }
        for kind in ("wall", "cpu"):
            ratios = [one[name][kind] / one[TIMM][kind] for one in rounds]
            summary[name][f"{kind} of timm"] = statistics.median(ratios)
    return summary


def table(result: dict[int, dict[str, dict[str, float]]], num_images: int, rounds: int) -> str:
    """Return the result as Markdown."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "pillow", "timm"))
    about = (
        f"{num_images:,} images, batches of {BATCH_SIZE}, {NUM_WORKERS} threads or workers; "
        f"{rounds} rounds, medians, ratios of the rounds' own; the same pixels; {packages}."
    )
    lines = [
        about,
        "",
        "| resized to, middle | input | images/s | x timm | images/CPU s | x timm |",
    ]
    lines.append("|---" * 6 + "|")
    for img_size, summary in result.items():
        size = f"{round(img_size / CROP_SHARE[img_size])}, {img_size}"
        for name, row in summary.items():
            wall, cpu = (f"{row[k]:,.0f} | {row[f'{k} of timm']:.2f}" for k in ("wall", "cpu"))
            lines.append(f"| {size} | {name} | {wall} | {cpu} |")
    return "\n".join(lines)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("--num-rounds", type=int, default=5)
    parser.add_argument("--img-size", type=int, action="append", choices=sorted(CROP_SHARE))
    parser.add_argument("--out", type=Path, help="page with the block `bench_eval`")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = find_images([args.images])
    result = {}
    for img_size in args.img_size or sorted(CROP_SHARE):
        check(paths, img_size)
        result[img_size] = medians(measure(paths, img_size, args.num_rounds))
    shown = table(result, len(paths), args.num_rounds)
    if args.out:
        return write_or_check(args.out, {"bench_eval": shown}, check=False)
    print(json.dumps(result, indent=2) if args.json else shown)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
