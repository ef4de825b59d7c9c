"""What augmentation costs a thread that decodes, next to timm's and torchvision's, in one run.

    python tools/bench/bench_augment.py DIR [--images 300] [--rounds 3]

DIR holds JPEGs, in folders or not.  Times are of the CPU, in one thread; rounds are interleaved,
and the median counts.  All end with bytes in a (3, H, W) array, as batches are made of; ours begin
with one too, timm's with a Pillow image, torchvision's with a tensor.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import auto_augment_transform, rand_augment_transform
from torchvision.transforms import v2

from vit21k.data.augment import Policy, PolicyName, augment_in_place, policy_named
from vit21k.data.decode import decode_rgb
from vit21k.data.rng import uniform_values
from vit21k.data.transforms import TrainTransform

MEAN = (0.485, 0.456, 0.406)
SIDE = 224
TIMM = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}


def policy(name: PolicyName, magnitude: float) -> Policy:
    """Return a policy as the recipes have it."""
    return policy_named(
        name,
        num_ops=2,
        magnitude=magnitude,
        magnitude_std=0.5,
        color_jitter=0.3,
        mean=MEAN,
        interpolation="bicubic",
    )


def ways(contents: list[bytes]) -> dict[str, Callable[[int], object]]:
    """Return what is timed: each does one round over all images, given its number."""
    crop = TrainTransform(SIDE)
    uniforms = uniform_values(0, np.arange(len(contents)), crop.num_uniforms)
    crops = np.stack([crop(decode_rgb(c), uniforms[i]) for i, c in enumerate(contents)])
    images = [Image.fromarray(np.ascontiguousarray(c.transpose(1, 2, 0))) for c in crops]
    tensors = [torch.from_numpy(c) for c in crops]

    def ours(applied: Policy, number: int) -> None:
        numbers = uniform_values(number, np.arange(len(crops)), applied.num_uniforms).tolist()
        for pixels, row in zip(crops.copy(), numbers, strict=True):
            augment_in_place(pixels, applied, row)

    def of_timm(applied: Callable[[Image.Image], Image.Image]) -> None:
        for image in images:
            with contextlib.suppress(ValueError):  # it posterises to 0 bits, Pillow 13 does not
                np.ascontiguousarray(np.asarray(applied(image)).transpose(2, 0, 1))

    def of_torchvision(applied: Callable[[torch.Tensor], torch.Tensor]) -> None:
        for tensor in tensors:
            applied(tensor).numpy()

    timm_rand = rand_augment_transform("rand-m9-mstd0.5-inc1", dict(TIMM))
    timm_auto = auto_augment_transform("original", dict(TIMM))
    tv_rand = v2.RandAugment(2, 9, interpolation="bilinear")
    tv_auto = v2.AutoAugment(interpolation="bilinear")
    return {
        "decode, crop and resize": lambda _: [
            crop(decode_rgb(c), uniforms[i]) for i, c in enumerate(contents)
        ],
        "rand_increasing, m9": lambda n: ours(policy("rand_increasing", 9), n),
        "timm rand-m9-mstd0.5-inc1": lambda _: of_timm(timm_rand),
        "torchvision v2.RandAugment, tensors": lambda _: of_torchvision(tv_rand),
        "rand, m7": lambda n: ours(policy("rand", 7), n),
        "rand_big_vision, m10": lambda n: ours(policy("rand_big_vision", 10), n),
        "auto": lambda n: ours(policy("auto", 0), n),
        "timm original": lambda _: of_timm(timm_auto),
        "torchvision v2.AutoAugment, tensors": lambda _: of_torchvision(tv_auto),
        "three_augment": lambda n: ours(policy("three_augment", 0), n),
    }


def main() -> None:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(p for p in arguments.folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg"})
    contents = [path.read_bytes() for path in paths[: arguments.images]]
    timed = ways(contents)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for number in range(arguments.rounds):
        for name, way in timed.items():
            began = time.process_time()
            way(number)
            seconds[name].append(time.process_time() - began)
    print("| | ms an image | images a CPU-second |")
    print("|---|---|---|")
    for name, values in seconds.items():
        one = statistics.median(values) / len(contents)
        print(f"| {name} | {1000 * one:.2f} | {1 / one:,.0f} |")


if __name__ == "__main__":
    main()
