"""`predict` and `features` against timm's and transformers' ways, on the same weights and images.

Each chunk of images goes through all of them in turn, in another order each time, so that a noisy
machine disturbs all alike.  What counts is the time of CPU (user and system, all threads) from file
names to probabilities or pooled features; the results are compared, so that nobody leaves anything
out.  Weights are random: speed does not depend on them.

    python tools/bench/bench_predict.py IMAGES [--model vit_small_patch16_224] [--json]
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vit21k.checkpoint.load import load_model
from vit21k.checkpoint.model_folder import EvalSettings, model_config, write_model_folder
from vit21k.export.model import export_model
from vit21k.inference.features import FeatureOptions, compute_features
from vit21k.inference.files import Files, find_images
from vit21k.inference.predict import image_loader, predict
from vit21k.manifest.classes import ClassList
from vit21k.models.registry import get_model, model_args

Values = NDArray[np.float32]
Way = Callable[[list[Path]], Values]

NUM_CLASSES = 1000
BATCH_SIZE = 32


def save_model(folder: Path, name: str) -> None:
    """Write a model with random weights that timm reads as it is."""
    torch.manual_seed(0)
    model = get_model(name, num_classes=NUM_CLASSES)
    settings = EvalSettings(
        img_size=model.img_size,
        mode="squash",
        resize=None,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    classes = ClassList(tuple(f"n{number:08d}" for number in range(NUM_CLASSES)))
    folder.mkdir()
    config = model_config(name, model_args(name), classes, settings, "softmax")
    write_model_folder(folder, model.state_dict(), config)


def ours(folder: Path) -> dict[str, Way]:
    """Return vit21k's ways."""
    model, card = load_model(folder)
    plan = FeatureOptions(device_batch_size=BATCH_SIZE)

    def predicted(paths: list[Path]) -> Values:
        found = predict(model, card, paths, device_batch_size=BATCH_SIZE, num_workers=1)
        return np.array([[score.probability for score in p.top] for p in found], np.float32)

    def features(paths: list[Path]) -> Values:
        with image_loader(card, Files(paths), BATCH_SIZE, num_workers=1) as loader:
            parts = [compute_features(model, card, batch.images_BCHW, plan) for batch in loader]
        return torch.cat(parts).numpy()

    return {"predict": predicted, "features": features}


def timms(folder: Path) -> dict[str, Way]:
    """Return the ways of timm's inference script: its loader and its transform."""
    timm, data = import_module("timm"), import_module("timm.data")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = data.resolve_data_config(model=model)

    class Listed:
        """A list of files, as timm's data sets read them."""

        def __init__(self, paths: list[Path]) -> None:
            self.paths = paths

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return self.paths[index].open("rb"), 0

        def __len__(self) -> int:
            return len(self.paths)

    def batches(paths: list[Path]) -> Any:
        return data.create_loader(
            data.ImageDataset(root="", reader=Listed(paths)),
            config["input_size"],
            BATCH_SIZE,
            use_prefetcher=False,
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
            num_workers=0,
            device=torch.device("cpu"),
        )

    @torch.inference_mode()
    def predicted(paths: list[Path]) -> Values:
        parts = [model(images).softmax(1).topk(5).values for images, _ in batches(paths)]
        return torch.cat(parts).numpy()

    @torch.inference_mode()
    def features(paths: list[Path]) -> Values:
        parts = [
            model.forward_head(model.forward_features(images), pre_logits=True)
            for images, _ in batches(paths)
        ]
        return torch.cat(parts).numpy()

    return {"predict": predicted, "features": features}


def transformers_ways(folder: Path) -> dict[str, Way]:
    """Return transformers' pipelines."""
    pipeline = import_module("transformers").pipeline
    place = {"model": str(folder), "image_processor": str(folder), "device": -1}
    classify = pipeline("image-classification", **place, batch_size=BATCH_SIZE)
    extract = pipeline("image-feature-extraction", **place, batch_size=BATCH_SIZE)

    def predicted(paths: list[Path]) -> Values:
        found = classify([str(path) for path in paths], top_k=5)
        return np.array([[score["score"] for score in top] for top in found], np.float32)

    def features(paths: list[Path]) -> Values:
        found = extract([str(path) for path in paths], return_tensors=True)
        return torch.cat([tokens[:, 0] for tokens in found]).numpy()

    return {"predict": predicted, "features": features}


def measure(
    ways: Mapping[str, Mapping[str, Way]], task: str, paths: list[Path], chunk_size: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return each library's seconds of CPU for every chunk, and its difference from ours."""
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    differences = dict.fromkeys(names, 0.0)
    for number, chunk in enumerate(_chunks(paths, chunk_size)):
        shift = number % len(names)
        found = {}
        for name in names[shift:] + names[:shift]:
            start = time.process_time()
            found[name] = ways[name][task](chunk)
            seconds[name].append(time.process_time() - start)
        for name in names:
            difference = float(np.abs(found[name] - found[names[0]]).max())
            differences[name] = max(differences[name], difference)
    return seconds, differences


def _chunks(paths: list[Path], size: int) -> list[list[Path]]:
    waiting = iter(paths)
    return list(iter(lambda: list(islice(waiting, size)), []))


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--chunk-size", type=int, default=2 * BATCH_SIZE)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = parse_args()
    torch.set_num_threads(1)
    paths = find_images([args.images])
    with tempfile.TemporaryDirectory() as temporary:
        folder, exported = Path(temporary, "model"), Path(temporary, "transformers")
        save_model(folder, args.model)
        export_model(folder, exported, to="transformers")
        ways = {
            "vit21k": ours(folder),
            "timm": timms(folder),
            "transformers": transformers_ways(exported),
        }
        results = {}
        for task in ("predict", "features"):
            for name in ways:  # what happens only once
                ways[name][task](paths[:2])
            seconds, differences = measure(ways, task, paths, args.chunk_size)
            results[task] = {
                name: {
                    "images_per_cpu_second": len(paths) / sum(values),
                    "median_ratio_of_chunks": statistics.median(
                        theirs / own for theirs, own in zip(values, seconds["vit21k"], strict=True)
                    ),
                    "largest_difference": differences[name],
                }
                for name, values in seconds.items()
            }
    about = {"model": args.model, "num_images": len(paths), "torch": torch.__version__}
    print(json.dumps({**about, **results}, indent=2) if args.json else table(results))


def table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Format the result for reading."""
    lines = [f"{'':10} {'':14} images/s of CPU   CPU of ours   differs from ours by"]
    for task, ways in results.items():
        for name, found in ways.items():
            lines.append(
                f"{task:10} {name:14} {found['images_per_cpu_second']:15.2f}"
                f" {found['median_ratio_of_chunks']:11.2f} x   {found['largest_difference']:.1e}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
