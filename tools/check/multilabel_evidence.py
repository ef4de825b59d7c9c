"""Multi-label training on real images, compared with plain torch and a dense target.

    python tools/check/multilabel_evidence.py CIFAR --work DIR [--steps 300] [--classes 21841] [--json]

CIFAR has ``train/<class>/`` and ``test/<class>/``.  Four of its images make a mosaic of 64 x 64
pixels, which is filed under the class of each: the copies are found by `vit21k hash`, and merged to
one image with one to four labels by `vit21k relabel`.  The ten classes are among 21,841, as many
as ImageNet-21K has, so that the head and the loss have the size they have there.

Ours is a run of a recipe, from the manifests on.  The other is a plain script: timm's model, a
dense target, `binary_cross_entropy_with_logits`, torch's AdamW, clipping and schedule; it starts
from the same weights and is fed by the same loader, with the same crops.  Runs alternate; the time
of a step is the median over all rounds, but for the first steps of each.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional as F

from vit21k.checkpoint.load import load_model
from vit21k.data.dataset import ImageDataset
from vit21k.data.loader import EvalLoader, TrainLoader
from vit21k.distributed import World
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import open_manifest
from vit21k.manifest.schema import IMAGES
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val
from vit21k.recipe.load import load_recipe
from vit21k.recipe.schema import Recipe
from vit21k.training.builders import (
    build_schedule,
    eval_transform_of,
    sampler_of,
    train_transform_of,
)
from vit21k.training.context import RunOptions, new_model, open_split_data
from vit21k.training.reporter import Reporter
from vit21k.training.run import train_run

_SIDE, _PER_MOSAIC = 32, 4
_WARM_STEPS = 5
_EVERY_SINGLE = 10
_SETTINGS = (
    "epochs=null",
    "model.img_size=64",
    "model.patch_size=16",
    "model.embed_dim=96",
    "model.depth=3",
    "model.num_heads=3",
    "model.head_bias_init=-7.0",
    "data.eval_resize=64",
    "data.crop_scale=[0.6, 1.0]",
    "data.global_batch_size=64",
    "data.device_batch_size=64",
    "optim.lr=2e-3",
    "run.log_every_steps=1",
    "run.save_every_steps=0",
)


@dataclass(frozen=True)
class Result:
    """What one side gave: the loss of every step, its seconds, and the model."""

    losses: list[float]
    seconds: list[float]
    model: nn.Module


def make_mosaics(cifar: Path, root: Path, *, count: int, split: str, seed: int) -> None:
    """Write *count* mosaics below *root*, each under the class of each of its images."""
    files = sorted((cifar / split).glob("*/*"))
    by_class = [sorted(folder.iterdir()) for folder in sorted((cifar / split).iterdir())]
    draws = np.random.default_rng(seed)
    for number in range(count):
        # Every tenth shows one class alone: there must be images with a single label for val.
        several = number % _EVERY_SINGLE
        of = files if several else by_class[number // _EVERY_SINGLE % len(by_class)]
        chosen = [of[index] for index in draws.integers(0, len(of), _PER_MOSAIC)]
        mosaic = Image.new("RGB", (2 * _SIDE, 2 * _SIDE))
        for place, file in enumerate(chosen):
            with Image.open(file) as image:
                mosaic.paste(image.convert("RGB"), (place % 2 * _SIDE, place // 2 * _SIDE))
        for name in {file.parent.name for file in chosen}:
            path = root / name / f"{number:06}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            mosaic.save(path, quality=95)


def padded_classes(cifar: Path, num_classes: int) -> ClassList:
    """Return the ten classes, spread over a list of *num_classes*."""
    names = sorted(folder.name for folder in (cifar / "train").iterdir())
    step = num_classes // len(names)
    spread = {step * index: name for index, name in enumerate(names)}
    return ClassList(tuple(spread.get(i, f"none-{i:05}") for i in range(num_classes)))


def prepare(cifar: Path, work: Path, *, num_classes: int, counts: Mapping[str, int]) -> None:
    """Make trees and manifests for train and test; what is there is kept."""
    classes = padded_classes(cifar, num_classes)
    for seed, (split, count) in enumerate(counts.items()):
        root, manifests = work / f"{split}-{count}", work / f"{split}-{count}-{num_classes}"
        if not root.exists():
            make_mosaics(cifar, root, count=count, split=split, seed=seed)
        hash_tree(root, manifests)
        relabel(manifests, classes=classes)
        make_val(manifests, per_class=1)


def train_ours(recipe: Recipe, options: RunOptions) -> Result:
    """Run *recipe* from the manifests on."""
    losses: list[float] = []
    at: list[float] = []

    class Losses(Reporter):
        def line(self, line: Mapping[str, Any]) -> None:
            if "lr" in line:
                losses.append(line["loss"])
                at.append(time.perf_counter())

    train_run(recipe, options, Losses(), init=None, fresh=True)
    seconds = [after - before for before, after in pairwise(at)]
    return Result(losses, seconds, load_model(options.run_dir)[0].eval())


def train_by_hand(recipe: Recipe, options: RunOptions, *, exact: bool = False) -> Result:
    """Train timm's model with a dense target, on the same batches.

    Args:
        recipe: The numbers.
        options: Where the images are.
        exact: Report the loss of the same logits in double precision, untimed.  Of a class that is
            far from its threshold torch's own loss takes the small difference of two numbers near
            the logit, so that in float32 its value, not its gradient, is off by 1e-4 here.
    """
    data = open_split_data(options.manifests, None)
    sampler = sampler_of(recipe, data.train, World(), in_pairs=recipe.augment.mixes)
    schedule = build_schedule(recipe, sampler.steps_per_epoch)
    model = timm_model(recipe, len(data.classes))
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and n.endswith("weight")]
    spared = [p for n, p in model.named_parameters() if not (p.ndim > 1 and n.endswith("weight"))]
    optim = recipe.optim
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": optim.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ],
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        fused=True,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    losses, at = [], []
    loader = TrainLoader(
        data.train,
        sampler,
        train_transform_of(recipe.data, recipe.model.img_size),
        device_batch_size=recipe.data.device_batch_size,
        num_workers=options.num_workers,
        seed=recipe.seed,
    )
    with loader:
        for step in range(schedule.total_steps):
            for batch in loader.micro_batches(step):
                target = torch.zeros(len(batch.rows_B), len(data.classes))
                target[batch.label_rows_L, batch.label_ids_L] = 1.0
                logits = model((batch.images_BCHW.float() / 255 - 0.5) / 0.5)
                loss = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
                loss = loss / len(logits)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(model.parameters(), optim.grad_clip_norm or 1e9)
                optimizer.step()
                scheduler.step()
                losses.append(dense_loss(logits.double(), target) if exact else loss.item())
                at.append(time.perf_counter())
    seconds = [after - before for before, after in pairwise(at)]
    return Result(losses, seconds, model.eval())


def dense_loss(logits_BK: Tensor, target_BK: Tensor) -> float:
    """Return the mean over images of the cross-entropy, summed over classes."""
    sums = F.binary_cross_entropy_with_logits(logits_BK, target_BK.to(logits_BK), reduction="sum")
    return sums.item() / len(logits_BK)


def timm_model(recipe: Recipe, num_classes: int) -> nn.Module:
    """Return timm's model with the first weights that ours has."""
    fields = recipe.model
    model: nn.Module = timm.create_model(
        fields.name,
        img_size=fields.img_size,
        patch_size=fields.patch_size,
        embed_dim=fields.embed_dim,
        depth=fields.depth,
        num_heads=fields.num_heads,
        num_classes=num_classes,
    )
    model.load_state_dict(new_model(recipe, num_classes=num_classes).state_dict())
    return model.train()


def mean_average_precision(recipe: Recipe, model: nn.Module, manifests: Path) -> float:
    """Return scikit-learn's mAP over the classes that have images, on all mosaics of a tree."""
    images = ImageDataset.from_manifest(open_manifest(manifests, IMAGES))
    scores, targets = [], []
    with (
        EvalLoader(
            images,
            eval_transform_of(recipe.data, recipe.model.img_size),
            device_batch_size=100,
            num_workers=1,
        ) as loader,
        torch.inference_mode(),
    ):
        for batch in loader:
            logits: Tensor = model((batch.images_BCHW.float() / 255 - 0.5) / 0.5)
            target = torch.zeros(logits.shape, dtype=torch.bool)
            target[batch.label_rows_L, batch.label_ids_L] = True
            scores.append(logits)
            targets.append(target)
    score_NK, target_NK = torch.cat(scores).numpy(), torch.cat(targets).numpy()
    present_K = target_NK.any(0)
    return float(average_precision_score(target_NK[:, present_K], score_NK[:, present_K]))


def relative(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the relative difference of each pair."""
    return [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)]


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Train both, in turn, and return all figures."""
    counts = {"train": args.images, "test": args.test_images}
    prepare(args.cifar, args.work, num_classes=args.classes, counts=counts)
    recipe = load_recipe("tiny", [*_SETTINGS, f"total_steps={args.steps}"])
    options = RunOptions(
        manifests=args.work / f"train-{args.images}-{args.classes}",
        root=None,
        run_dir=args.work / "run",
        device="cpu",
        num_workers=1,
        device_batch_size=None,
        peak_flops=1e12,
    )
    rounds = [
        (train_ours(recipe, options), train_by_hand(recipe, options)) for _ in range(args.rounds)
    ]
    ours, in_float32 = rounds[0]
    theirs = train_by_hand(recipe, options, exact=True)
    test = args.work / f"test-{args.test_images}-{args.classes}"
    apart = relative(ours.losses, theirs.losses)
    step = [
        statistics.median(s for pair in rounds for s in pair[side].seconds[_WARM_STEPS:])
        for side in (0, 1)
    ]
    return {
        "steps": args.steps,
        "classes": args.classes,
        "first_loss": ours.losses[0],
        "last_loss": ours.losses[-1],
        "largest_relative_difference_of_a_loss": max(apart),
        "of_the_first_50": max(apart[:50]),
        "the_same_if_torch_sums_it_in_float32": max(relative(ours.losses, in_float32.losses)),
        "mAP_ours": mean_average_precision(recipe, ours.model, test),
        "mAP_by_hand": mean_average_precision(recipe, theirs.model, test),
        "seconds_a_step_ours": step[0],
        "seconds_a_step_by_hand": step[1],
        "times_faster": step[1] / step[0],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("cifar", type=Path, metavar="CIFAR")
    parser.add_argument("--work", type=Path, required=True, help="where images and runs go")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--classes", type=int, default=21_841)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--test-images", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures = compare(args)
    lines = json.dumps(figures, indent=2) if args.json else "\n".join(_lines(figures))
    print(lines)


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    for name, value in figures.items():
        yield (
            f"{name.replace('_', ' '):<44}{value:.6g}"
            if isinstance(value, float)
            else (f"{name.replace('_', ' '):<44}{value}")
        )


class _Formatter(argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    main()
