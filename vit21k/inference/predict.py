"""Model and pictures -> the most probable classes of each.

Dimensions: B images, C colours, H W pixels, K classes, T top classes.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vit21k.checkpoint.model_folder import EvalSettings, ModelCard, check_head
from vit21k.data.loader import EvalLoader
from vit21k.data.rows import PictureRows
from vit21k.data.transforms import EvalTransform
from vit21k.inference.evaluate import normalise
from vit21k.inference.files import Files
from vit21k.inference.scores import probabilities
from vit21k.machine import num_threads
from vit21k.models.base import ImageClassifier
from vit21k.models.precision import Precision, autocast

ImagePath = str | os.PathLike[str]


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


class Selection(NamedTuple):
    """Which classes a picture gets."""

    top_k: int | None = 5
    """The most of them; None: as many as there are."""
    threshold: float = 0.0
    """Only those that are as probable as this, or more."""


def predict(
    model: ImageClassifier,
    card: ModelCard,
    paths: Iterable[ImagePath] | PictureRows,
    *,
    top_k: int | None = 5,
    threshold: float = 0.0,
    device_batch_size: int = 32,
    num_workers: int | None = None,
    precision: Precision = "fp32",
) -> Iterator[Prediction]:
    """Yield a prediction for each picture, in order.

    A picture that cannot be read is reported in its place; it ends nothing.

    Args:
        model: From `load_model`, on the device it is to compute on.
        card: From `load_model`.
        paths: Picture files, or the rows of a manifest (`Pictures`).
        top_k: The most classes a picture gets; None: as many as there are.
        threshold: Only classes that are as probable as this, or more.
        device_batch_size: The most pictures in one forward pass.
        num_workers: Threads that decode; None: one for each core.
        precision: Of the matrix products.
    """
    check_head(card)
    pictures = rows_of(paths)
    next_row = 0
    with picture_loader(card, pictures, device_batch_size, num_workers) as loader:
        for batch in loader:
            scores = _scores(model, card, batch.images_BCHW, Selection(top_k, threshold), precision)
            for row, top in zip(batch.rows_B.tolist(), scores, strict=True):
                yield from _problems(pictures, loader, range(next_row, row))
                yield Prediction(Path(pictures.path(row)), top)
                next_row = row + 1
        yield from _problems(pictures, loader, range(next_row, len(pictures)))


def rows_of(paths: Iterable[ImagePath] | PictureRows) -> PictureRows:
    """Return *paths* as the rows that a loader reads."""
    return paths if isinstance(paths, PictureRows) else Files(paths)


def picture_loader(
    card: ModelCard, pictures: PictureRows, device_batch_size: int, num_workers: int | None
) -> EvalLoader:
    """Return a loader that makes *pictures* ready for a model, and leaves out those it cannot."""
    return EvalLoader(
        pictures,
        eval_transform(card.eval_settings),
        device_batch_size=device_batch_size,
        num_workers=num_threads() if num_workers is None else num_workers,
        on_bad_image="skip",
    )


def eval_transform(settings: EvalSettings) -> EvalTransform:
    """Return the transform that makes a picture ready for a model."""
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
    """Return probabilities_BK of uint8 images that are ready for the model."""
    settings, device = card.eval_settings, model.pos_embed.device
    with autocast(device, precision):
        logits_BK = model(normalise(images_BCHW.to(device), settings.mean, settings.std))
    return probabilities(logits_BK, card.activation)


def select(
    probabilities_BK: Tensor, card: ModelCard, selection: Selection
) -> list[tuple[ClassScore, ...]]:
    """Return the classes that each picture gets, best first."""
    most = selection.top_k or len(card.classes)
    if selection.threshold > 0:
        most = min(most, int((probabilities_BK >= selection.threshold).sum(1).max()))
    top = probabilities_BK.topk(min(most, len(card.classes)))
    wnids, names = card.classes.wnids, card.classes.names
    return [
        tuple(
            ClassScore(index, wnids[index], names[index], score)
            for score, index in zip(scores, ids, strict=True)
            if score >= selection.threshold
        )
        for scores, ids in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ]


def _scores(
    model: ImageClassifier,
    card: ModelCard,
    images_BCHW: Tensor,
    selection: Selection,
    precision: Precision,
) -> list[tuple[ClassScore, ...]]:
    return select(class_scores(model, card, images_BCHW, precision), card, selection)


def _problems(
    pictures: PictureRows, loader: EvalLoader, rows: Iterable[int]
) -> Iterator[Prediction]:
    """Yield what is wrong with the pictures that the loader left out."""
    for row in rows:
        path = pictures.path(row)
        yield Prediction(Path(path), (), loader.skipped[path])
