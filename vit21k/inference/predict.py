"""Model and picture files -> the most probable classes of each.

Dimensions: B images, C colours, H W pixels, K classes, T top classes.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vit21k.checkpoint.model_folder import EvalSettings, ModelCard
from vit21k.data.decode import decode_rgb
from vit21k.data.transforms import EvalTransform
from vit21k.errors import ImageError
from vit21k.inference.evaluate import normalise
from vit21k.models.vit import VisionTransformer

Pixels = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
"""What counts as a picture in a folder, in lower case."""


class ClassScore(NamedTuple):
    """One class and its probability."""

    class_index: int
    wnid: str
    name: str | None
    probability: float


class Prediction(NamedTuple):
    """What the model says of one picture."""

    path: Path
    top: tuple[ClassScore, ...]
    """The most probable classes, best first; empty if there is a problem."""
    problem: str | None = None
    """Why there is no prediction."""


@torch.inference_mode()
def predict(
    model: VisionTransformer,
    card: ModelCard,
    paths: Iterable[str | os.PathLike[str]],
    *,
    top_k: int = 5,
    device_batch_size: int = 32,
    num_workers: int | None = None,
) -> Iterator[Prediction]:
    """Yield a prediction for each picture, in order.

    A picture that cannot be read is reported in its place; it ends nothing.

    Args:
        model: From `load_model`, on the device it is to compute on.
        card: From `load_model`.
        paths: Picture files.
        top_k: How many classes a picture gets; all of them if there are fewer.
        device_batch_size: The most pictures in one forward pass.
        num_workers: Threads that decode; None: one for each core.
    """
    transform = eval_transform(card.eval_settings)
    with ThreadPoolExecutor(num_workers or os.cpu_count()) as pool:
        for chunk in _chunks(map(Path, paths), device_batch_size):
            opened = list(pool.map(lambda path: _open(path, transform), chunk))
            pictures = [pixels for pixels in opened if not isinstance(pixels, str)]
            scores = iter(_top_scores(model, card, pictures, top_k))
            for path, pixels in zip(chunk, opened, strict=True):
                if isinstance(pixels, str):
                    yield Prediction(path, (), pixels)
                else:
                    yield Prediction(path, next(scores))


def find_pictures(paths: Iterable[Path]) -> list[Path]:
    """Return the picture files that *paths* mean: files as they are, folders in depth.

    In a folder, files with a suffix of `IMAGE_SUFFIXES` count, ordered by path.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            found += sorted(file for file in inside if file.is_file())
        else:
            found.append(path)
    return found


def eval_transform(settings: EvalSettings) -> EvalTransform:
    """Return the transform that makes a picture ready for a model."""
    return EvalTransform(
        settings.img_size,
        settings.resize,
        mode=settings.mode,
        interpolation=settings.interpolation,
    )


def _chunks(paths: Iterator[Path], size: int) -> Iterator[list[Path]]:
    while chunk := list(islice(paths, size)):
        yield chunk


def _open(path: Path, transform: EvalTransform) -> Pixels | str:
    """Return the pixels of a picture, or what is wrong with it."""
    try:
        return transform(decode_rgb(path.read_bytes()))
    except ImageError as error:
        return error.message
    except OSError as error:
        return error.strerror or str(error)


def _top_scores(
    model: VisionTransformer,
    card: ModelCard,
    pictures: list[Pixels],
    top_k: int,
) -> Iterator[tuple[ClassScore, ...]]:
    if not pictures:
        return
    settings = card.eval_settings
    images_BCHW = torch.from_numpy(np.stack(pictures)).to(model.pos_embed.device)
    logits_BK = model(normalise(images_BCHW, settings.mean, settings.std))
    top = probabilities(logits_BK, card).topk(min(top_k, len(card.classes)))
    for scores, ids in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        yield tuple(
            ClassScore(index, card.classes.wnids[index], card.classes.names[index], score)
            for score, index in zip(scores, ids, strict=True)
        )


def probabilities(logits_BK: Tensor, card: ModelCard) -> Tensor:
    """Return the probabilities that *logits_BK* mean, float32: sigmoid or softmax."""
    logits_BK = logits_BK.float()
    return logits_BK.sigmoid() if card.activation == "sigmoid" else logits_BK.softmax(dim=1)
