"""vit21k's part of `bench_loader`: the input, an epoch, and how near Pillow's its pixels are."""

import itertools
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from loader_peers import BATCH_SIZE, NUM_WORKERS, Data, Epoch, counted, write_tars
from PIL import Image

PACKS = {
    "vit21k pack --lossless": ["--lossless"],
    "vit21k pack --short-side 256": ["--short-side", "256"],
    "vit21k pack --raw --short-side 256": ["--raw", "--short-side", "256"],
}
OURS = {"vit21k": "manifests", **{name: f"pack{number}" for number, name in enumerate(PACKS)}}
SEED = 1


def prepare(images: Path, work: Path, copies: int, packs: Sequence[str]) -> int:
    """Make tree, tars, manifests and *packs*, unless they are there; return the tree's bytes."""
    tree = work / "tree"
    if not tree.exists():
        _write_tree(sorted(images.rglob("*.*")), tree, copies)
    if not (work / "tars").exists():
        write_tars(tree, work / "tars")
    manifests = work / "manifests"
    if not manifests.exists():
        _vit21k("hash", tree, "--manifests", manifests)
        _vit21k("relabel", "--manifests", manifests)
        _vit21k("make-val", "--manifests", manifests, "--per-class", 1)
    for name in packs:
        if not (work / OURS[name]).exists():
            _vit21k("pack", "--manifests", manifests, "--out", work / OURS[name], *PACKS[name])
    return sum(path.stat().st_size for path in tree.rglob("*.JPEG"))


def _write_tree(sources: Sequence[Path], tree: Path, copies: int) -> None:
    for number, source in enumerate(sources):
        content = source.read_bytes()
        for copy in range(copies):
            path = tree / source.parent.name / f"{number}_{copy}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content + b"%8d" % copy)


def _vit21k(*arguments: object) -> None:
    command = [sys.executable, "-m", "vit21k", *map(str, arguments)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)


def our_loader(data: Data, folder: str) -> Any:
    """Return vit21k's loader of the train manifest in *folder*."""
    from vit21k.data.dataset import ImageDataset  # noqa: PLC0415
    from vit21k.data.loader import TrainLoader  # noqa: PLC0415  (not in the parent)
    from vit21k.data.sampler import StepSampler  # noqa: PLC0415
    from vit21k.data.transforms import TrainTransform  # noqa: PLC0415
    from vit21k.manifest.io import open_manifest  # noqa: PLC0415
    from vit21k.manifest.schema import TRAIN  # noqa: PLC0415

    dataset = ImageDataset.from_manifest(open_manifest(data.work / folder, TRAIN))
    sampler = StepSampler(len(dataset), global_batch_size=BATCH_SIZE, seed=SEED, drop_last=False)
    loader = TrainLoader(
        dataset,
        sampler,
        TrainTransform(data.img_size, interpolation="bilinear"),
        device_batch_size=BATCH_SIZE,
        num_workers=NUM_WORKERS,
        seed=SEED,
    )
    return loader, dataset, sampler


def ours(data: Data, folder: str) -> Epoch:
    """Return an epoch of vit21k's loader, each time the next one."""
    loader, _, sampler = our_loader(data, folder)
    epochs = itertools.count()

    def epoch() -> int:
        first = next(epochs) * sampler.steps_per_epoch
        steps = range(first, first + sampler.steps_per_epoch)
        return counted(batch.images_BCHW for step in steps for batch in loader.micro_batches(step))

    return epoch


def differences(data: Data, folder: str, num_steps: int = 16) -> dict[str, float]:
    """Compare crops with Pillow's; return the mean and the largest difference, of 255."""
    from vit21k.data.decode import decode_rgb  # noqa: PLC0415
    from vit21k.data.rng import uniform_values  # noqa: PLC0415
    from vit21k.data.transforms import TrainTransform, crop_box  # noqa: PLC0415

    loader, dataset, _ = our_loader(data, folder)
    size = (data.img_size, data.img_size)
    means, worst = [], 0
    for step in range(num_steps):
        for batch in loader.micro_batches(step):
            uniforms = uniform_values(SEED, batch.positions_B.numpy(), TrainTransform.num_uniforms)
            images = zip(
                batch.rows_B.tolist(), batch.images_BCHW.numpy(), uniforms.tolist(), strict=True
            )
            for row, image_CHW, numbers in images:
                whole = decode_rgb(dataset.read_bytes(row))
                box = crop_box(whole.size, numbers, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
                crop = np.asarray(whole.crop(box).resize(size, Image.Resampling.BILINEAR))
                crop = crop[:, ::-1] if numbers[0] < 0.5 else crop
                difference = np.abs(image_CHW.transpose(1, 2, 0).astype(int) - crop)
                means.append(difference.mean())
                worst = max(worst, int(difference.max()))
    loader.close()
    return {"mean": statistics.fmean(means), "largest": worst, "crops": len(means)}
