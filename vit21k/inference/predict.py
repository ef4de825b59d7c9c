"""Predict the most probable classes of images, and write predictions to a Parquet file.

Dimensions: B images, C colours, H W pixels, K classes, T top classes.
"""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from vit21k.atomic import atomic_file
from vit21k.checkpoint.model_folder import EvalSettings, ModelCard, check_head
from vit21k.data.dataset import ImageRows
from vit21k.data.loader import EvalLoader
from vit21k.data.transforms import EvalTransform, normalise
from vit21k.device import Precision, autocast
from vit21k.errors import printable
from vit21k.inference.files import Files
from vit21k.machine import num_threads
from vit21k.models.vit import ImageClassifier, probabilities

ImagePath = str | os.PathLike[str]


class ClassScore(NamedTuple):
    """One class and its probability."""

    class_index: int
    wnid: str
    name: str | None
    probability: float


class Prediction(NamedTuple):
    """The predicted classes of one image."""

    path: Path
    top: tuple[ClassScore, ...]
    """The most probable classes, best first; empty if there is a problem."""
    problem: str | None = None
    """Why there is no prediction."""


def predict(
    model: ImageClassifier,
    card: ModelCard,
    paths: Iterable[ImagePath] | ImageRows,
    *,
    top_k: int | None = 5,
    threshold: float = 0.0,
    device_batch_size: int = 32,
    num_workers: int | None = None,
    precision: Precision = "fp32",
) -> Iterator[Prediction]:
    """Yield a prediction for each image, in order.

    An image that cannot be read yields a prediction with a problem.

    Args:
        model: From `load_model`, on the device to compute on.
        card: From `load_model`.
        paths: Image files, or the rows of a manifest (`ImageDataset`).
        top_k: Maximum number of classes per image; None: all.
        threshold: Only classes with at least this probability.
        device_batch_size: Maximum number of images in one forward pass.
        num_workers: Decoding threads; None: one per core.
        precision: Precision of the matrix products.
    """
    check_head(card)
    images = paths if isinstance(paths, ImageRows) else Files(paths)
    next_row = 0
    with image_loader(card, images, device_batch_size, num_workers) as loader:
        for batch in loader:
            scores_BK = class_scores(model, card, batch.images_BCHW, precision)
            tops = select_classes(scores_BK, card, top_k=top_k, threshold=threshold)
            for row, top in zip(batch.rows_B.tolist(), tops, strict=True):
                yield from _problems(images, loader, range(next_row, row))
                yield Prediction(Path(images.path(row)), top)
                next_row = row + 1
        yield from _problems(images, loader, range(next_row, len(images)))


def image_loader(
    card: ModelCard, images: ImageRows, device_batch_size: int, num_workers: int | None
) -> EvalLoader:
    """Return a loader that decodes and preprocesses *images*, and skips bad ones."""
    return EvalLoader(
        images,
        eval_transform(card.eval_settings),
        device_batch_size=device_batch_size,
        num_workers=num_threads() if num_workers is None else num_workers,
        on_bad_image="skip",
    )


def eval_transform(settings: EvalSettings) -> EvalTransform:
    """Return the transform that preprocesses an image for a model."""
    return EvalTransform(
        settings.img_size,
        settings.resize,
        mode=settings.mode,
        interpolation=settings.interpolation,
        margin=settings.margin,
    )


@torch.inference_mode()
def class_scores(
    model: ImageClassifier,
    card: ModelCard,
    images_BCHW: Tensor,
    precision: Precision = "fp32",
) -> Tensor:
    """Return probabilities_BK of resized uint8 images."""
    settings, device = card.eval_settings, model.device
    with autocast(device, precision):
        logits_BK = model(normalise(images_BCHW.to(device), settings.mean, settings.std))
    return probabilities(logits_BK, card.activation)


def select_classes(
    probabilities_BK: Tensor, card: ModelCard, *, top_k: int | None, threshold: float = 0.0
) -> list[tuple[ClassScore, ...]]:
    """Return the *top_k* (None: all) classes of each image with *threshold* or more, best first."""
    most = top_k or len(card.classes)
    if threshold > 0:
        most = min(most, int((probabilities_BK >= threshold).sum(1).max()))
    top = probabilities_BK.topk(min(most, len(card.classes)))
    wnids, names = card.classes.wnids, card.classes.names
    return [
        tuple(
            ClassScore(index, wnids[index], names[index], score)
            for score, index in zip(scores, ids, strict=True)
            if score >= threshold
        )
        for scores, ids in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ]


def _problems(images: ImageRows, loader: EvalLoader, rows: Iterable[int]) -> Iterator[Prediction]:
    """Yield the images that the loader skipped, with the reason."""
    for row in rows:
        path = images.path(row)
        yield Prediction(Path(path), (), loader.skipped[path])


ROW_GROUP_ROWS = 8192

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("class_indices", pa.list_(pa.int64())),
        ("wnids", pa.list_(pa.string())),
        ("names", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float32())),
        ("problem", pa.string()),
    ]
)
"""One row per image, in order; the lists begin with the best class.  An image that could not be
read has empty lists, and a problem."""


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write *predictions* to *path*, atomically, with one row group at a time in memory.

    Raises:
        OSError: The disk is full or failing; *path* is unchanged.
    """
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(file, SCHEMA, compression="zstd") as parquet,
    ):
        waiting = (_row(prediction) for prediction in predictions)
        while rows := list(islice(waiting, ROW_GROUP_ROWS)):
            parquet.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))


def _row(prediction: Prediction) -> dict[str, object]:
    top = prediction.top
    return {
        "path": printable(prediction.path),
        "class_indices": [score.class_index for score in top],
        "wnids": [score.wnid for score in top],
        "names": [score.name for score in top],
        "probabilities": [score.probability for score in top],
        "problem": prediction.problem,
    }
