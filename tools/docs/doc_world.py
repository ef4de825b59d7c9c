"""A folder with everything that the commands of the pages take: images, manifests, runs, weights."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vit21k.demo_tree import make_demo_tree
from vit21k.manifest.class_lists import read_classes

CHECKOUT = Path(__file__).parents[2]
_DEIT = """
import torch
from timm.models.vision_transformer import VisionTransformer
model = VisionTransformer(img_size=32, patch_size=16, embed_dim=192, depth=1, num_heads=3)
torch.save({"model": model.state_dict()}, "deit.pth")
"""
SMALL_RUN = "--set total_steps=4 --set schedule.warmup_steps=1 --set data.global_batch_size=16"
SMALL_RUN += " --set data.device_batch_size=16 --set run.save_every_steps=2"


def environment(scratch: Path) -> dict[str, str]:
    """Return the environment of the commands: this checkout's `vit21k`, and no settings."""
    programs = scratch / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    calls = {"vit21k": "-m vit21k", "torchrun": "-m torch.distributed.run", "python": ""}
    for name, call in calls.items():
        (programs / name).write_text(
            f'#!/bin/sh\nexec {sys.executable} {call} "$@"\n', encoding="utf-8"
        )
        (programs / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VIT21K_")}
    return kept | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
        "HOME": str(scratch),
        "HF_HUB_OFFLINE": "1",
    }


def make(scratch: Path, env: dict[str, str], images: Path | None) -> Path:
    """Make the folder below *scratch*, of generated images or of those in *images*."""
    world = scratch / "world"
    data = scratch / "data"
    shutil.rmtree(world, ignore_errors=True)
    shutil.rmtree(data, ignore_errors=True)
    world.mkdir(parents=True)
    tree = _make_trees(scratch, world, data, images)
    _make_inputs(world, data, tree)
    _make_sources(world, data, tree)
    _make_manifests(world, env)
    _make_runs(world, env)
    return world


def _run(command: str, folder: Path, env: dict[str, str]) -> None:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=env, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"`{command}` of the scratch folder failed: {done.stdout}{done.stderr}")


def _make_trees(scratch: Path, world: Path, data: Path, images: Path | None) -> Path:
    """Make `ImageNet21K`, with faults, and `data/ImageNet21K`, without; return the latter."""
    demo = make_demo_tree(scratch / "data" / "demo")
    (world / "ImageNet21K").symlink_to(demo.root)
    tree = data / "ImageNet21K"
    shutil.copytree(images or demo.root / "images", tree)
    for fault in (demo.empty, demo.cut_off):
        (tree / fault.relative_to("images")).unlink(missing_ok=True)
    return tree


def _make_inputs(world: Path, data: Path, tree: Path) -> None:
    """Make the images that pages predict, and folders of a user's own images."""
    folders = sorted(tree.iterdir())[:2]
    first = sorted(folders[0].iterdir())
    for name in ("cat.jpg", "new.jpg"):
        shutil.copy(first[0], world / name)
    (world / "holiday").mkdir()
    shutil.copy(first[-1], world / "holiday" / "beach.jpg")
    with tarfile.open(world / "own_images.tar", "w") as tar:
        tar.add(first[0], "a.jpg")
    for folder, name in zip(folders, ("cat", "dog"), strict=True):
        shutil.copytree(folder, world / "own_images" / name)
    shutil.copytree(tree, data / "imagenet1k" / "val")
    for folder in folders:
        for number, path in enumerate(sorted(folder.iterdir())):
            target = data / "split" / ("val" if number < 5 else "train") / folder.name
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    with zipfile.ZipFile(world / "cifar.zip", "w") as archive:
        for folder in folders:
            for number, path in enumerate(sorted(folder.iterdir())[:40]):
                split = "train" if number < 30 else "test"
                archive.write(path, f"{split}/{folder.name}/{path.name}")


def _make_sources(world: Path, data: Path, tree: Path) -> None:
    """Make the same images as tars of class tars, WebDataset shards, Parquet, flat folders."""
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    for folder in sorted(path for path in tree.iterdir() if path.is_dir()):
        _write_tar(data / "ILSVRC2012_train" / f"{folder.name}.tar", folder.iterdir())
    class_tars = sorted((data / "ILSVRC2012_train").iterdir())
    _write_tar(data / "fall11_whole.tar", class_tars)
    _write_tar(data / "winter21_whole.tar.gz", class_tars, mode="w:gz")
    shutil.copy(data / "winter21_whole.tar.gz", world)
    content = (data / "fall11_whole.tar").read_bytes()
    (data / "fall11_whole.tar.aa").write_bytes(content[: len(content) // 2])
    (data / "fall11_whole.tar.ab").write_bytes(content[len(content) // 2 :])
    _write_swin_zips(data / "ImageNet-Zip", files)
    _write_shard(data / "imagenet-22k-wds" / "imagenet22k-train-0000.tar", files[:50])
    _write_parquet(data / "imagenet-1k" / "data" / "train-00000-of-00001.parquet", files[:50])
    (data / "flat").mkdir()
    for number, path in enumerate(files[:20], start=1):
        shutil.copy(path, data / "flat" / f"{number}.jpg")
    rows = [f"{number}.jpg,{path.parent.name}" for number, path in enumerate(files[:20], start=1)]
    (world / "labels.csv").write_text("file,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 21)]
    with tarfile.open(world / "ILSVRC2012_img_val.tar", "w") as tar:
        for name, path in zip(names, files, strict=False):
            tar.add(path, name)
    wnids = read_classes("in1k").wnids[:20]
    (world / "ILSVRC2012_validation_ground_truth.txt").write_text(
        "\n".join(wnids) + "\n", encoding="utf-8"
    )


def _write_tar(path: Path, members: Iterable[Path], *, mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for member in sorted(members):
            tar.add(member, member.name)


def _write_swin_zips(folder: Path, files: list[Path]) -> None:
    """Write train.zip and val.zip with their lists, as Swin Transformer reads them."""
    folder.mkdir()
    indices = {name: i for i, name in enumerate(sorted({file.parent.name for file in files}))}
    for split, chosen in (("train", files[::2]), ("val", files[1::2])):
        names = {f"{file.parent.name}/{file.name}": file for file in chosen}
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            for name, file in names.items():
                archive.write(file, name)
        lines = [f"{name}\t{indices[file.parent.name]}\n" for name, file in names.items()]
        (folder / f"{split}_map.txt").write_text("".join(lines), encoding="utf-8")


def _write_shard(path: Path, files: list[Path]) -> None:
    """Write a WebDataset shard, with the class in the .json, as timm's has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, file in enumerate(files):
            side = path.parent / "side.json"
            side.write_text(f'{{"class_name": "{file.parent.name}"}}', encoding="utf-8")
            tar.add(file, f"{number:06d}.jpg")
            tar.add(side, f"{number:06d}.json")
        side.unlink()


def _write_parquet(path: Path, files: list[Path]) -> None:
    """Write a Parquet file as `datasets` does, with the class names in its metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = sorted({file.parent.name for file in files})
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files]
    labels = [names.index(file.parent.name) for file in files]
    features = {
        "image": {"_type": "Image"},
        "label": {"names": names, "_type": "ClassLabel"},
    }
    info = {"info": {"features": features}}
    table = pa.table({"image": images, "label": labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path)


def _make_manifests(world: Path, env: dict[str, str]) -> None:
    """Make `data_manifests` as `vit21k demo` does, and the other manifests that pages name."""
    _run("vit21k hash ImageNet21K || [ $? = 3 ]", world, env)  # an empty file is planted
    _run("vit21k relabel && vit21k make-val --per-class 10 --holdout", world, env)
    _run("vit21k labels conflicts", world, env)
    for name in ("old", "new", "in1k"):
        shutil.copytree(world / "data_manifests", world / f"{name}_manifests")
    option = "--manifests split_manifests"
    _run(f"vit21k hash ../data/split {option} && vit21k relabel {option}", world, env)


def _make_runs(world: Path, env: dict[str, str]) -> None:
    """Train the runs that the pages use, a very small model for a few steps; and save weights."""
    _run(f"python -c '{_DEIT}'", world, env)
    _run(f"vit21k train --recipe tiny {SMALL_RUN}", world, env)
    shutil.copytree(world / "runs" / "tiny", world / "runs" / "finetune_l16_384_in1k")
    averaged = "--set ema.decay=0.9 --set run.eval_every_steps=2 --set run.best_metric=prec@1"
    _run(f"vit21k train --recipe tiny {SMALL_RUN} {averaged} --run-dir runs/l16", world, env)
    shutil.copytree(world / "runs" / "l16", world / "runs" / "open")
