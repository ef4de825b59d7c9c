"""Attention rollout and similarity of position embeddings of a Vision Transformer, and a drawing.

Dimensions: B images, A heads, N tokens, P patches, D width, E width of a head.
"""

import io
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from vit21k.checkpoint.model_folder import ModelCard, check_head
from vit21k.data.decode import decode_rgb
from vit21k.data.transforms import normalise
from vit21k.errors import UsageError, one_line
from vit21k.inference.predict import ClassScore, class_scores, eval_transform, select_classes
from vit21k.models.layers import Attention
from vit21k.models.vit import ImageClassifier, VisionTransformer


class Explanation(NamedTuple):
    """Explanation of the prediction for one image.

    Attributes:
        image_CHW: The resized image, uint8.
        rollout: From `attention_rollout`, (rows, columns).
        similarity: From `position_similarity`, (patches, rows, columns).
        best: The top class.
    """

    image_CHW: NDArray[np.uint8]
    rollout: NDArray[np.float32]
    similarity: NDArray[np.float32]
    best: ClassScore


def explain(model: ImageClassifier, card: ModelCard, content: bytes) -> Explanation:
    """Explain the prediction for the image whose file is *content*.

    Raises:
        ImageError: It cannot be decoded.
        UsageError: The model is not a Vision Transformer, or has no head.
    """
    check_head(card)
    settings = card.eval_settings
    image_CHW = eval_transform(settings)(decode_rgb(content))
    images_BCHW = torch.from_numpy(image_CHW)[None]
    x_BCHW = normalise(images_BCHW.to(model.device), settings.mean, settings.std)
    ((best,),) = select_classes(class_scores(model, card, images_BCHW), card, top_k=1)
    return Explanation(
        image_CHW,
        attention_rollout(model, x_BCHW)[0].cpu().numpy(),
        position_similarity(model).cpu().numpy(),
        best,
    )


@torch.inference_mode()
def attention_rollout(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Return the weight of each patch in the input of the head, (B, rows, columns).

    The attention of each block, averaged over its heads, is averaged with the identity (the
    residual path), and the blocks are multiplied.  The result is the row of the class token; with
    mean pooling, the mean of the rows of all patches.  The values of an image sum to 1, less the
    weight of the class token itself.

    Args:
        model: In eval mode.
        images_BCHW: Normalised.

    Raises:
        UsageError: The model is not a Vision Transformer.

    Source: Abnar & Zuidema, "Quantifying attention flow in transformers", arXiv:2005.00928.
    """
    model = _vision_transformer(model)
    flow_BNN = None
    for attention_BANN in attention_maps(model, images_BCHW):
        mean_BNN = attention_BANN.mean(dim=1)
        mixed_BNN = (mean_BNN + torch.eye(mean_BNN.shape[-1], device=mean_BNN.device)) / 2
        flow_BNN = mixed_BNN if flow_BNN is None else mixed_BNN @ flow_BNN
    if flow_BNN is None:
        raise UsageError("the model has no blocks, hence no attention")
    if model.global_pool not in ("token", "avg"):
        raise UsageError(
            f"attention rollout is not defined for `{model.global_pool}` pooling",
            hint="it is for models that pool the class token or the mean",
        )
    first = model.num_prefix_tokens
    read_BN = flow_BNN[:, 0] if model.global_pool == "token" else flow_BNN[:, first:].mean(dim=1)
    return read_BN[:, first:].unflatten(1, model.grid_size)


@torch.inference_mode()
def attention_maps(model: VisionTransformer, images_BCHW: Tensor) -> list[Tensor]:
    """Return the attention weights (B, A, N, N) of each block, first block first."""
    maps: list[Tensor] = []

    def keep(attention: nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(attention, Attention):
            maps.append(_weights(attention, arguments[0], arguments[2] if arguments[2:] else None))

    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, Attention):
                hooks.callback(module.register_forward_pre_hook(keep).remove)
        model.forward_features(images_BCHW)
    return maps


@torch.inference_mode()
def position_similarity(model: nn.Module) -> Tensor:
    """Return the cosine similarities of all position embeddings, (P, rows, columns).

    Raises:
        UsageError: The model is not a Vision Transformer.
    """
    model = _vision_transformer(model)
    if model.pos_embed is None:
        raise UsageError("the model has no position embedding")
    positions_PD = model.pos_embed[0, model.num_prefix_positions :].float()
    unit_PD = nn.functional.normalize(positions_PD, dim=1)
    return (unit_PD @ unit_PD.T).unflatten(1, model.grid_size)


def _weights(attention: Attention, x_BND: Tensor, angles: Tensor | None) -> Tensor:
    """Return the attention weights (B, A, N, N) of normalised tokens."""
    q_BANE, k_BANE, _ = attention.project(x_BND, angles=angles)
    scale = q_BANE.shape[-1] ** -0.5
    return (q_BANE @ k_BANE.transpose(-1, -2) * scale).softmax(dim=-1)


def _vision_transformer(model: nn.Module) -> VisionTransformer:
    if not isinstance(model, VisionTransformer):
        raise UsageError(
            f"attention rollout is for Vision Transformers, not for {type(model).__name__}",
            hint="its tokens are pooled between blocks, so that they are no longer patches",
        )
    return model


Floats = NDArray[np.floating]
Pixels = NDArray[np.uint8]

_PANEL = 384
_GAP = 16
_TITLE = 28
_OVERLAY = 0.6
# Viridis at 9 points, dark to bright; colours between them are interpolated.
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
    """Return a PNG of three panels: the image, its attention, the position embeddings.

    Args:
        image_CHW: The resized image, uint8, RGB.
        rollout: (rows, columns) from `attention_rollout`.
        similarity: (patches, rows, columns) from `position_similarity`.
        title: Written above the image.
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
    points = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(values, points, channel) for channel in _COLOURS.T]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def _stretched(values: Floats) -> Floats:
    """Return *values* scaled to 0..1; 0 if they are all equal."""
    low, high = values.min(), values.max()
    return (values - low) / max(high - low, 1e-12)


def _overlay(image: Image.Image, attention: Floats) -> Image.Image:
    """Blend the attention with the image: low attention is dark."""
    smooth = Image.fromarray(attention.astype(np.float32)).resize(
        image.size, Image.Resampling.BICUBIC
    )
    values = np.clip(np.asarray(smooth), 0, 1)
    mixed = (1 - _OVERLAY) * np.asarray(image) + _OVERLAY * coloured(values)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _grid_of_maps(similarity: Floats) -> Image.Image:
    """Draw a map for each patch at its position: bright where embeddings are similar to its own."""
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
