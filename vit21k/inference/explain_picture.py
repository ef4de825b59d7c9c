"""Attention and positions -> one picture to look at."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vit21k.one_line import one_line

Floats = NDArray[np.floating]
Pixels = NDArray[np.uint8]

_PANEL = 384
_GAP = 16
_TITLE = 28
_OVERLAY = 0.6
# Viridis at 9 places, dark to bright; between them colours are mixed.
_COLOURS = np.array(
    [
        (68, 1, 84),
        (71, 44, 122),
        (59, 81, 139),
        (44, 113, 142),
        (33, 144, 141),
        (39, 173, 129),
        (92, 200, 99),
        (170, 220, 50),
        (253, 231, 37),
    ],
    dtype=np.float64,
)


def draw_explanation(image_CHW: Pixels, rollout: Floats, similarity: Floats, title: str) -> bytes:
    """Return a PNG of three panels: what the model saw, where it looked, its positions.

    Args:
        image_CHW: What the model saw, uint8, RGB.
        rollout: (rows, columns) from `attention_rollout`.
        similarity: (patches, rows, columns) from `position_similarity`.
        title: Written above the picture.
    """
    image = Image.fromarray(image_CHW.transpose(1, 2, 0))
    image = image.resize((_PANEL, _PANEL), Image.Resampling.BICUBIC)
    panels = {
        title: image,
        "attention rollout": _overlay(image, _stretched(rollout)),
        "similarity of positions": _grid_of_maps(similarity),
    }
    width = len(panels) * (_PANEL + _GAP) + _GAP
    page = Image.new("RGB", (width, _TITLE + _PANEL + _GAP), "white")
    draw = ImageDraw.Draw(page)
    for number, (heading, panel) in enumerate(panels.items()):
        left = _GAP + number * (_PANEL + _GAP)
        draw.text((left, 6), _cut(draw, heading), fill="black")
        page.paste(panel, (left, _TITLE))
    content = io.BytesIO()
    page.save(content, "PNG")
    return content.getvalue()


def coloured(values: Floats) -> Pixels:
    """Return (height, width, 3) colours of values between 0 and 1: viridis, dark to bright."""
    place = np.clip(values, 0, 1)[..., None] * (len(_COLOURS) - 1)
    low = np.minimum(place.astype(int), len(_COLOURS) - 2)
    share = place - low
    mixed = _COLOURS[low[..., 0]] * (1 - share) + _COLOURS[low[..., 0] + 1] * share
    return mixed.round().astype(np.uint8)


def _stretched(values: Floats) -> Floats:
    """Return *values* from 0, the least, to 1, the most; 0 if they are all the same."""
    low, high = values.min(), values.max()
    return (values - low) / max(high - low, 1e-12)


def _overlay(image: Image.Image, attention: Floats) -> Image.Image:
    """Lay the attention over the picture: where there is little, the picture is dark."""
    smooth = Image.fromarray(attention.astype(np.float32)).resize(
        image.size, Image.Resampling.BICUBIC
    )
    values = np.clip(np.asarray(smooth), 0, 1)
    mixed = (1 - _OVERLAY) * np.asarray(image) + _OVERLAY * coloured(values)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _grid_of_maps(similarity: Floats) -> Image.Image:
    """Draw a small map for each patch, at its place: bright where positions are like its own."""
    _, rows, columns = similarity.shape
    framed = np.pad(_stretched(similarity), ((0, 0), (1, 1), (1, 1)))
    colours = coloured(framed)
    colours[:, [0, -1]] = 255
    colours[:, :, [0, -1]] = 255
    tiles = colours.reshape(rows, columns, rows + 2, columns + 2, 3)
    page = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * (rows + 2), columns * (columns + 2), 3)
    return Image.fromarray(page).resize((_PANEL, _PANEL), Image.Resampling.BOX)


def _cut(draw: ImageDraw.ImageDraw, text: str) -> str:
    """Return *text*, shortened to the width of a panel."""
    text = one_line(text)
    if draw.textlength(text) <= _PANEL:
        return text
    while text and draw.textlength(text + "...") > _PANEL:
        text = text[:-1]
    return text + "..."
