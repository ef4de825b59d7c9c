"""Arrays -> tensors under our names: whose layout it is, the names themselves say."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from vit21k.errors import CheckpointError
from vit21k.weights import google, paddle_vit, timm_vit, torchvision_vit, transformers_vit
from vit21k.weights.arrays import Arrays
from vit21k.weights.layout import Converted

# What a model does without once it is trained: a token for masked images, an optimizer's state.
_DROPPABLE = re.compile(r".*mask_token|opt/.*|.*position_ids")


class Ours(NamedTuple):
    """Weights under our names."""

    format: str
    """A key of `models.variants.FORMATS`."""
    converted: Converted


def to_ours(arrays: Arrays, config: Mapping[str, Any]) -> Ours:
    """Return *arrays* under our names, as float32.

    Args:
        arrays: As read from a file.
        config: Content of the ``config.json`` beside it; empty if there is none.

    Raises:
        CheckpointError: They are in no layout that vit21k knows.
    """
    tensors = arrays.tensors
    if arrays.container == "paddle":
        tensors = paddle_vit.turned(tensors)
    name, converted = _convert(tensors, config, is_paddle=arrays.container == "paddle")
    if unknown := [name for name in converted.dropped if not _DROPPABLE.fullmatch(name)]:
        raise CheckpointError(
            f"{len(unknown)} tensors are those of no model that vit21k has, `{unknown[0]}` first"
        )
    ours = {key: tensor.float().contiguous() for key, tensor in converted.tensors.items()}
    return Ours(name, converted._replace(tensors=ours))


_Converter = Callable[[Mapping[str, Tensor], Mapping[str, Any]], Converted]
_UNMISTAKABLE: tuple[tuple[str, Callable[[Mapping[str, Tensor]], bool], _Converter], ...] = (
    ("google", google.is_google, lambda tensors, _: google.from_google(tensors)),
    (
        "torchvision",
        torchvision_vit.is_torchvision,
        lambda tensors, _: torchvision_vit.from_torchvision(tensors),
    ),
    ("transformers", transformers_vit.is_transformers, transformers_vit.from_transformers),
    (
        "paddlevit",
        paddle_vit.is_paddlevit,
        lambda tensors, _: paddle_vit.from_paddlevit(tensors),
    ),
)


def _convert(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, is_paddle: bool
) -> tuple[str, Converted]:
    for name, is_it, convert in _UNMISTAKABLE:
        if is_it(tensors):
            return name, convert(tensors, config)
    if timm_vit.is_pit(tensors):
        other = "paddlevit" if is_paddle else "timm" if config else "naver"
        return other, timm_vit.from_pit(tensors, config)
    if timm_vit.is_timm(tensors):
        if is_paddle:
            return "plsc", paddle_vit.from_plsc(tensors)
        return "timm", timm_vit.from_timm(tensors, config)
    first = ", ".join(f"`{name}`" for name in sorted(tensors)[:3])
    raise CheckpointError(
        f"the names of these tensors are those of no model that vit21k has: {first} ...",
        hint="`vit21k models --formats` lists what it reads",
    )
