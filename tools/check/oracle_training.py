"""A run of a shipped ViT-B recipe, step by step, compared with the same training as a plain script.

    python tools/check/oracle_training.py TREE [--kind plsc|mae] [--steps 50] [--pixels 64] [--batch 8]
                                    [--depth 12] [--width 768] [--json]

TREE is an image tree with a folder a class.  Its images are scaled to the model's size first;
then both sides read the same files: ours through `vit21k hash` to `vit21k train`, the other with
Pillow.  What draws random numbers (crops, flips, dropout, mixing) is off: two programs do not draw
alike.  All else is the recipe's, but for the image size, the batch and the length of the run.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import plain_training
from PIL import Image
from plain_training import ImageRow, Numbers

from vit21k.distributed import World
from vit21k.prep.hash_tree import hash_tree
from vit21k.prep.relabel import relabel
from vit21k.prep.split import make_val
from vit21k.recipe.load import load_recipe
from vit21k.recipe.schema import Recipe
from vit21k.training.builders import sampler_of
from vit21k.training.context import RunOptions, SplitData, new_model, open_split_data
from vit21k.training.reporter import Reporter
from vit21k.training.run import train_run

_WARMUP_STEPS, _START_FACTOR = 10, 0.01


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A recipe, and the hand-written training that is the same.

    Attributes:
        recipe: A shipped one.
        plain: The other.
        settings: What is switched off in this recipe in addition to those of all.
    """

    recipe: str
    plain: Callable[..., list[float]]
    settings: Sequence[str] = ()


KINDS = {
    "plsc": Kind(recipe="pretrain_b16_in1k", plain=plain_training.train_plsc),
    "mae": Kind(
        recipe="finetune_mm_b16_mae_in1k",
        plain=plain_training.train_after_mae,
        settings=(
            "stage=pretrain",  # from fresh weights
            # 2e-3 by the root of 8 / 1024 images a step.  With 2e-3, unclipped, training
            # on so few at a time is chaos: a difference of 1e-7 is one of 1e-3 after nine steps.
            "optim.lr=1.8e-4",
            "augment.policy=null",
            "augment.magnitude_std=0",
            "augment.mixup_alpha=0",
            "augment.cutmix_alpha=0",
            "augment.erase_rate=0",
            "model.drop_path_rate=0",
            "schedule.warmup_epochs=null",
            "data.mean=[0.5, 0.5, 0.5]",
            "data.std=[0.5, 0.5, 0.5]",
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a comparison is."""

    steps: int = 50
    pixels: int = 64
    batch: int = 8
    depth: int = 12
    width: int = 768


def compare(tree: Path, folder: Path, kind: str, size: Size) -> list[tuple[float, float]]:
    """Return the losses of every step, ours and the other's.

    Args:
        tree: Image tree; read only.
        folder: Where the small images, their manifests and the run go.
        kind: A key of `KINDS`.
        size: Of the comparison.
    """
    manifests = prepare(tree, folder, size.pixels)
    recipe = _recipe(KINDS[kind], size)
    data = open_split_data(manifests, None)
    ours = list(_our_losses(recipe, manifests, folder / "run"))
    weights = new_model(recipe, num_classes=len(data.classes)).state_dict()
    theirs = KINDS[kind].plain(
        _numbers(recipe, size, len(data.classes)),
        weights,
        list(_batches(recipe, data, folder / "tree")),
    )
    return list(zip(ours, theirs, strict=True))


def prepare(tree: Path, folder: Path, pixels: int) -> Path:
    """Scale every image of *tree* to a square, hash and label them; return the manifests."""
    for path in sorted(tree.glob("*/*")):
        small = folder / "tree" / path.parent.name / f"{path.stem}.png"
        small.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.convert("RGB").resize((pixels, pixels)).save(small)
    manifests = folder / "data_manifests"
    hash_tree(folder / "tree", manifests)
    relabel(manifests)
    make_val(manifests, per_class=1)
    return manifests


def _recipe(kind: Kind, size: Size) -> Recipe:
    peak_lr = load_recipe(kind.recipe, kind.settings).optim.lr
    return load_recipe(
        kind.recipe,
        [
            *kind.settings,
            "precision=fp32",
            "epochs=null",
            f"total_steps={size.steps}",
            f"model.img_size={size.pixels}",
            f"model.depth={size.depth}",
            f"model.embed_dim={size.width}",
            f"model.num_heads={size.width // 64}",
            "model.pos_drop_rate=0",
            "model.proj_drop_rate=0",
            *([f"model.representation_size={size.width}"] if kind is KINDS["plsc"] else []),
            f"data.global_batch_size={size.batch}",
            f"data.device_batch_size={size.batch // 2}",
            "data.crop_scale=[1, 1]",
            "data.crop_ratio=[1, 1]",
            "data.hflip_rate=0",
            f"data.eval_resize={size.pixels}",
            "data.drop_last=true",
            f"schedule.warmup_steps={_WARMUP_STEPS}",
            f"schedule.warmup_start_lr={_START_FACTOR * peak_lr!r}",
            "schedule.end_lr=0",
            "run.log_every_steps=1",
            "run.eval_every_steps=0",
            "run.save_every_steps=0",
        ],
    )


def _our_losses(recipe: Recipe, manifests: Path, run_dir: Path) -> Iterator[float]:
    options = RunOptions(
        manifests=manifests,
        root=None,
        run_dir=run_dir,
        device="cpu",
        num_workers=1,
        device_batch_size=None,
    )
    train_run(recipe, options, Reporter(), init=None)
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        if "loss" in values:
            yield values["loss"]


def _batches(recipe: Recipe, data: SplitData, root: Path) -> Iterator[list[ImageRow]]:
    sampler = sampler_of(recipe, data.train, World(), in_pairs=recipe.augment.mixes)
    for step in range(recipe.total_steps or 0):
        rows = sampler.batch(step).rows_B.tolist()
        yield [(root / data.train.path(row), data.train.label_ids(row)) for row in rows]


def _numbers(recipe: Recipe, size: Size, num_classes: int) -> Numbers:
    return Numbers(
        img_size=size.pixels,
        num_classes=num_classes,
        depth=size.depth,
        embed_dim=size.width,
        num_heads=size.width // 64,
        lr=recipe.optim.lr,
        betas=recipe.optim.betas,
        weight_decay=recipe.optim.weight_decay,
        warmup_steps=_WARMUP_STEPS,
        start_factor=_START_FACTOR,
        total_steps=size.steps,
        label_smoothing=recipe.loss.smoothing,
        mean=0.5,
        std=0.5,
        max_norm=recipe.optim.grad_clip_norm or 0.0,
        layer_decay=recipe.optim.layer_decay,
    )


def largest_difference(losses: Sequence[tuple[float, float]]) -> float:
    """Return the largest relative difference of a step."""
    return max(abs(ours - theirs) / abs(theirs) for ours, theirs in losses)


def main() -> None:
    """Compare, and print every step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tree", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="plsc")
    for name, value in vars(Size()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    size = Size(**{name: getattr(options, name) for name in vars(Size())})
    with tempfile.TemporaryDirectory() as folder:
        losses = compare(options.tree, Path(folder), options.kind, size)
    if options.as_json:
        print(json.dumps({"losses": losses, "largest_difference": largest_difference(losses)}))
        return
    for step, (ours, theirs) in enumerate(losses, start=1):
        print(f"{step:4}  {ours:.7f}  {theirs:.7f}  {abs(ours - theirs) / abs(theirs):.1e}")
    print(f"largest relative difference of {len(losses)} steps: {largest_difference(losses):.1e}")


if __name__ == "__main__":
    main()
