"""Arrays -> tensors under our names: whose layout it is, the names themselves say."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from vit21k.convert import google, paddle, timm, torchvision, transformers
from vit21k.convert.arrays import Arrays
from vit21k.convert.naming import Converted
from vit21k.errors import CheckpointError

# What a model does without once it is trained: a token for masked images, the decoder of MAE and
# SimMIM, the projection of DINO, an optimizer's state, counters.
_DROPPABLE = re.compile(
    r"(.*[./])?mask_token|opt/(?!target/).*|.*position_ids|(.*\.)?decoder(_\w+)?(\..*)?|n_averaged|"
    r"head\.(mlp|last_layer)\..*"
)


# The names of our own models' tensors.
_OURS = re.compile(
    r"cls_token|pos_embed|(norm|fc_norm|head|head_dist|pre_logits\.fc)\.(weight|bias)|"
    r"patch_embed\.(proj|conv)\.(weight|bias)|patch_embed\.backbone\.(stem|stages)\..+|"
    r"(transformers\.\d+\.)?blocks\.\d+\.((norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)|"
    r"ls[12]\.gamma)|transformers\.\d+\.pool\..+"
)


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
        CheckpointError: They are in no layout that vit21k knows, or are no floating numbers.
    """
    spare = [name for name in arrays.tensors if _DROPPABLE.fullmatch(name)]
    tensors = {name: value for name, value in arrays.tensors.items() if name not in set(spare)}
    if arrays.container == "paddle":
        tensors = paddle.turned(tensors)
    name, converted = _convert(tensors, config, is_paddle=arrays.container == "paddle")
    if unknown := [*converted.dropped, *filter(_is_unknown, converted.tensors)]:
        raise CheckpointError(
            f"{len(unknown)} tensors are those of no model that vit21k has, "
            f"`{unknown[0]:.80}` first"
        )
    for key, tensor in converted.tensors.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"`{key}` holds {kind}: quantised weights are not read",
                hint="use the weights from before the quantisation",
            )
    ours = {key: tensor.float().contiguous() for key, tensor in converted.tensors.items()}
    return Ours(name, converted._replace(tensors=ours, dropped=tuple(sorted(spare))))


def _is_unknown(name: str) -> bool:
    return not _OURS.fullmatch(name)


_Converter = Callable[[Mapping[str, Tensor], Mapping[str, Any]], Converted]
_UNMISTAKABLE: tuple[tuple[str, Callable[[Mapping[str, Tensor]], bool], _Converter], ...] = (
    ("google", google.is_google, lambda tensors, _: google.from_google(tensors)),
    (
        "torchvision",
        torchvision.is_torchvision,
        torchvision.from_torchvision,
    ),
    ("transformers", transformers.is_transformers, transformers.from_transformers),
    (
        "paddlevit",
        paddle.is_paddlevit,
        paddle.from_paddlevit,
    ),
)


def _convert(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, is_paddle: bool
) -> tuple[str, Converted]:
    for name, is_it, convert in _UNMISTAKABLE:
        if is_it(tensors):
            return name, convert(tensors, config)
    if timm.is_pit(tensors):
        other = "paddlevit" if is_paddle else "timm" if config else "naver"
        return other, timm.from_pit(tensors, config)
    if timm.is_timm(tensors):
        if is_paddle:
            return "plsc", paddle.from_plsc(tensors, config)
        return "timm", timm.from_timm(tensors, config)
    first = ", ".join(f"`{name}`" for name in sorted(tensors)[:3])
    raise CheckpointError(
        f"the names of these tensors are those of no model that vit21k has: {first} ...",
        hint="`vit21k models --formats` lists what it reads",
    )
