"""Recipe -> an image of its augmentation, by the code that trains.

A row is an original image, then its augmentation in several steps; under each are its labels, with
their weights where images are mixed.

Dimensions: R images of the sheet, C colours, H W pixels.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vit21k.data.dataset import ImageDataset
from vit21k.data.decode import decode_rgb
from vit21k.data.loader import TrainLoader
from vit21k.data.rng import permute
from vit21k.data.sampler import StepRows
from vit21k.data.transforms import EvalTransform
from vit21k.errors import ImageError, one_line
from vit21k.manifest.classes import ClassList
from vit21k.recipe.schema import Recipe
from vit21k.training.builders import device_transform_of, policy_of, train_transform_of

_SIDE = 160  # pixels of an image on the sheet
_GAP = 6
_TEXT_SIZE = 11
_LINE_HEIGHT = 14
_MOST_LINES = 4
_CELL = (_SIDE + _GAP, _SIDE + _MOST_LINES * _LINE_HEIGHT + 2 * _GAP)
_NUM_WORKERS = 2
_CPU = torch.device("cpu")

Label = tuple[int, float]


class Cell(NamedTuple):
    """An image on the sheet.

    Attributes:
        row: Row of the sheet.
        pixels: uint8, (3, H, W).
        labels: Class index and weight, the largest weight first.
    """

    row: int
    pixels: NDArray[np.uint8]
    labels: list[Label]


def contact_sheet(
    recipe: Recipe, dataset: ImageDataset, classes: ClassList, *, num_images: int, num_draws: int
) -> Image.Image:
    """Return the sheet of some images, chosen by the seed of the recipe.

    The cells of an image that cannot be decoded are empty.

    Args:
        recipe: Defines the augmentation.
        dataset: The training images.
        classes: Their class list.
        num_images: Rows; rounded up to an even number, as images are mixed in pairs.
        num_draws: Columns after the original image.
    """
    num_rows = min(num_images + num_images % 2, len(dataset))
    rows_R = permute(np.arange(num_rows, dtype=np.int64), len(dataset), recipe.seed)
    size = (_CELL[0] * (num_draws + 1) + _GAP, _CELL[1] * num_rows + _GAP)
    sheet = Image.new("RGB", size, "white")
    for cell in _originals(dataset, rows_R):
        _draw(sheet, cell, classes, column=0)
    for column, cells in enumerate(augmented(recipe, dataset, rows_R, num_draws), start=1):
        for cell in cells:
            _draw(sheet, cell, classes, column=column)
    return sheet


def augmented(
    recipe: Recipe, dataset: ImageDataset, rows_R: NDArray[np.int64], num_draws: int
) -> Iterator[list[Cell]]:
    """Yield the images as augmented in each of the first steps of a run."""
    transform = device_transform_of(
        recipe.augment,
        recipe.data,
        sums_to_one=recipe.loss.kind != "sigmoid",
        seed=recipe.seed,
    )
    loader = TrainLoader(
        dataset,
        _SameRows(rows_R),
        train_transform_of(recipe.data, recipe.model.img_size),
        policy=policy_of(recipe.augment, recipe.data),
        device_batch_size=len(rows_R),
        num_workers=_NUM_WORKERS,
        seed=recipe.seed,
        on_bad_image="skip",
    )
    with loader:
        for step in range(num_draws):
            cells = []
            for batch in loader.micro_batches(step):
                images, label_rows, label_ids, weights = transform(batch, _CPU)
                given = [1.0] * len(label_ids) if weights is None else weights.tolist()
                labels = list(zip(label_rows.tolist(), label_ids.tolist(), given, strict=True))
                bytes_BCHW = images.float().round().clamp(0, 255).byte().numpy()
                for index, position in enumerate(batch.positions_B.tolist()):
                    own = [(label, weight) for at, label, weight in labels if at == index]
                    row = position - _SameRows.first(step, len(rows_R))
                    cells.append(Cell(row, bytes_BCHW[index], sorted(own, key=_by_weight)))
            yield cells


class _SameRows:
    """An order that takes the same images in every step."""

    def __init__(self, rows_R: NDArray[np.int64]) -> None:
        self._rows_R = rows_R

    @staticmethod
    def first(step: int, size: int) -> int:
        """Return the first position of a step; it is even, so that pairs are the same."""
        return step * (size + size % 2)

    def num_rows(self, step: int) -> int:
        """Return the number of images of a step."""
        return len(self._rows_R)

    def batch(self, step: int) -> StepRows:
        """Return the images, at positions of this step."""
        size = len(self._rows_R)
        first = self.first(step, size)
        return StepRows(self._rows_R.copy(), np.arange(first, first + size, dtype=np.int64))


def _originals(dataset: ImageDataset, rows_R: NDArray[np.int64]) -> Iterator[Cell]:
    """Yield the middle of each original image."""
    transform = EvalTransform(_SIDE)
    for at, row in enumerate(rows_R.tolist()):
        try:
            pixels_CHW = transform(decode_rgb(dataset.read_bytes(row)))
        except ImageError:
            continue
        yield Cell(at, pixels_CHW, [(label, 1.0) for label in dataset.label_ids(row)])


def _by_weight(label: Label) -> tuple[float, int]:
    return -label[1], label[0]


def _draw(sheet: Image.Image, cell: Cell, classes: ClassList, *, column: int) -> None:
    left, top = _GAP + column * _CELL[0], _GAP + cell.row * _CELL[1]
    image = Image.fromarray(np.ascontiguousarray(cell.pixels.transpose(1, 2, 0)))
    sheet.paste(image.resize((_SIDE, _SIDE)), (left, top))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT_SIZE)
    for number, text in enumerate(_captions(cell.labels, classes)):
        line = one_line(text)
        while draw.textlength(line, font=font) > _SIDE:
            line = line[:-2] + "…"
        position = (left, top + _SIDE + 2 + number * _LINE_HEIGHT)
        draw.text(position, line, fill="black", font=font)


def _captions(labels: list[Label], classes: ClassList) -> list[str]:
    """Return a line for each label, or for the first ones and the number of others."""
    lines = []
    for label, weight in labels:
        name = (classes.names[label] or classes.wnids[label]).split(",")[0]
        lines.append(name if weight == 1 else f"{weight:.2f} {name}")
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], f"and {len(lines) - _MOST_LINES + 1} more"]
    return lines
