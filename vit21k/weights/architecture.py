"""Tensors under our names -> the arguments of the model that they are the weights of."""

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any, NamedTuple

from torch import Tensor

from vit21k.errors import CheckpointError, UsageError
from vit21k.models.registry import model_args, name_of
from vit21k.models.variants import VARIANTS

# Width of a head where the arrays do not say, and no published model is as wide.
_HEAD_WIDTH = 64


class Architecture(NamedTuple):
    """What a set of tensors is."""

    name: str
    """The model of this shape, or the nearest one; see `name_of`."""
    args: dict[str, Any]
    """Every argument of its constructor."""
    guesses: tuple[str, ...]
    """What nothing told, each in a sentence."""


def infer_architecture(tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> Architecture:
    """Return the model that *tensors* are the weights of.

    Width, depth, patches, image size, pooling, pre-logits and head are read from shapes; what no
    shape shows is taken from *known*, or guessed from published models and said.

    Raises:
        CheckpointError: They are the weights of no model that vit21k has.
    """
    guesses: list[str] = []
    try:
        is_pit = "transformers.0.blocks.0.norm1.weight" in tensors
        found = (_pit if is_pit else _vit)(tensors, known, guesses)
        name = name_of(found)
        return Architecture(name, model_args(name, **found), tuple(guesses))
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"the weights lack what every model has: {error}") from error
    except UsageError as error:
        raise CheckpointError(f"no model has these weights: {error.message}") from error


def _vit(
    tensors: Mapping[str, Tensor], known: Mapping[str, Any], guesses: list[str]
) -> dict[str, Any]:
    patch = tensors["patch_embed.proj.weight"]
    width, side = int(patch.shape[0]), int(patch.shape[2])
    layers = _resnet_layers(tensors)
    stem = tensors.get("patch_embed.backbone.stem.conv.weight", patch)
    hidden = int(tensors["blocks.0.mlp.fc1.weight"].shape[0])
    head = tensors.get("head.weight")
    representation = tensors.get("pre_logits.fc.weight")
    pool_norm = "fc_norm.weight" in tensors
    class_token = "cls_token" in tensors
    args = {
        "patch_size": side,
        "in_chans": int(stem.shape[1]),
        "num_classes": 0 if head is None else int(head.shape[0]),
        "global_pool": "token" if class_token and not pool_norm else "avg",
        "class_token": class_token,
        "fc_norm": None if class_token or pool_norm else False,
        "embed_dim": width,
        "depth": _count(tensors, r"blocks\.(\d+)\."),
        "mlp_ratio": _ratio(hidden, width),
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        # Its first value, which the trained factors do not show; DeiT III's.
        "init_values": 1e-4 if "blocks.0.ls1.gamma" in tensors else None,
        "representation_size": None if representation is None else int(representation.shape[0]),
        "resnet_layers": layers,
        **{key: value for key, value in known.items() if key not in ("img_size", "num_heads")},
    }
    num_patches = int(tensors["pos_embed"].shape[1]) - int(args["class_token"])
    stride = side if layers is None else side * 2 ** (1 + len(layers))
    args["img_size"] = _img_size(isqrt(num_patches), stride, known)
    args["num_heads"] = known.get("num_heads") or _guess_heads(width, guesses)
    return args


def _pit(
    tensors: Mapping[str, Tensor], known: Mapping[str, Any], guesses: list[str]
) -> dict[str, Any]:
    patch, head = tensors["patch_embed.conv.weight"], tensors.get("head.weight")
    num_stages = _count(tensors, r"transformers\.(\d+)\.")
    stages = [f"transformers.{stage}.blocks" for stage in range(num_stages)]
    widths = [int(tensors[f"{stage}.0.norm1.weight"].shape[0]) for stage in stages]
    hidden = int(tensors[f"{stages[0]}.0.mlp.fc1.weight"].shape[0])
    heads = known.get("heads") or _guess_pit_heads(widths, guesses)
    side, stride = int(patch.shape[2]), int(patch.shape[2]) // 2
    grid = int(tensors["pos_embed"].shape[2])
    return {
        "patch_size": side,
        "stride": stride,
        "in_chans": int(patch.shape[1]),
        "num_classes": 0 if head is None else int(head.shape[0]),
        "base_dims": [width // num for width, num in zip(widths, heads, strict=True)],
        "depth": [_count(tensors, re.escape(stage) + r"\.(\d+)\.") for stage in stages],
        "heads": list(heads),
        "mlp_ratio": _ratio(hidden, widths[0]),
        "distilled": tensors["cls_token"].shape[1] > 1,
        "img_size": known.get("img_size") or (grid - 1) * stride + side,
        "act_layer": known.get("act_layer", "gelu"),
    }


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Return one more than the largest number that *pattern* finds in the names."""
    numbers = [int(match[1]) for name in tensors if (match := re.match(pattern, name))]
    return max(numbers) + 1 if numbers else 0


def _ratio(hidden: int, width: int) -> float:
    """Return a ratio r with ``int(width * r) == hidden``."""
    for ratio in (hidden / width, (hidden + 0.5) / width):
        if int(width * ratio) == hidden:
            return ratio
    raise CheckpointError(f"an MLP of {hidden} values for a width of {width}")


def _img_size(grid: int, stride: int, known: Mapping[str, Any]) -> int:
    """Return the told size if it gives this grid, else the least that does."""
    told = known.get("img_size")
    return int(told) if told and -(-int(told) // stride) in (grid, grid + 1) else grid * stride


def _resnet_layers(tensors: Mapping[str, Tensor]) -> list[int] | None:
    prefix = r"patch_embed\.backbone\.stages\."
    num_stages = _count(tensors, prefix + r"(\d+)\.")
    if not num_stages:
        return None
    return [_count(tensors, rf"{prefix}{stage}\.blocks\.(\d+)\.") for stage in range(num_stages)]


def _guess_heads(width: int, guesses: list[str]) -> int:
    for own in VARIANTS.values():
        if own.get("embed_dim") == width:
            return int(own["num_heads"])
    heads = max(1, width // _HEAD_WIDTH)
    guesses.append(
        f"no array shows the number of attention heads: {heads} assumed, {width // heads} wide each"
    )
    return heads


def _guess_pit_heads(widths: list[int], guesses: list[str]) -> list[int]:
    for own in VARIANTS.values():
        heads: list[int] = own.get("heads", [])
        if heads and [b * h for b, h in zip(own["base_dims"], heads, strict=True)] == widths:
            return heads
    guesses.append("no array shows the number of attention heads: 32 values a head assumed")
    return [max(1, width // 32) for width in widths]
