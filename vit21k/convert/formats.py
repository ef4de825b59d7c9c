"""Arrays of any library -> tensors under our names.  The names of the arrays show their format."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from vit21k.convert import google, paddle, timm, torchvision, transformers
from vit21k.convert.arrays import Arrays
from vit21k.convert.naming import Converted
from vit21k.errors import CheckpointError

# What a trained model does not need: a token for masked images, the decoder of MAE and SimMIM, the
# projection of DINO, an optimizer's state, counters.
_DROPPABLE = re.compile(
    r"(.*[./])?mask_token|opt/(?!target/).*|.*position_ids|(.*\.)?decoder(_\w+)?(\..*)?|n_averaged|"
    r"head\.(mlp|last_layer)\..*"
)
_OURS = re.compile(
    r"cls_token|pos_embed|(norm|fc_norm|head|head_dist|pre_logits\.fc)\.(weight|bias)|"
    r"patch_embed\.(proj|conv)\.(weight|bias)|patch_embed\.backbone\.(stem|stages)\..+|"
    r"(transformers\.\d+\.)?blocks\.\d+\.((norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)|"
    r"ls[12]\.gamma)|transformers\.\d+\.pool\..+"
)
_Converter = Callable[[Mapping[str, Tensor], Mapping[str, Any]], Converted]
_PROJECTION = "embeddings.patch_embeddings.projection.weight"
# Format, tensors that only this format has, converter.  PLSC has timm's names.
_FORMATS: tuple[tuple[str, tuple[str, ...], _Converter], ...] = (
    *(("google", (f"{prefix}embedding/kernel",), google.from_google) for prefix in google.PREFIXES),
    ("torchvision", ("conv_proj.weight", "encoder.pos_embedding"), torchvision.from_torchvision),
    ("transformers", (_PROJECTION,), transformers.from_transformers),
    ("transformers", (f"vit.{_PROJECTION}",), transformers.from_transformers),
    ("paddlevit", ("patch_embedding.patch_embedding.weight",), paddle.from_paddlevit),
    ("pit", ("patch_embed.conv.weight", "transformers.0.blocks.0.norm1.weight"), timm.from_pit),
    ("timm", ("patch_embed.proj.weight", "blocks.0.norm1.weight"), timm.from_timm),
)


class Ours(NamedTuple):
    """Weights under our names."""

    format: str
    """A key of `models.registry.FORMATS`."""
    converted: Converted


def to_ours(arrays: Arrays, config: Mapping[str, Any]) -> Ours:
    """Return *arrays* under our names, as float32.

    Args:
        arrays: As read from a file.
        config: Content of the ``config.json`` next to it; empty if there is none.

    Raises:
        CheckpointError: They have no known layout, or are no floating-point numbers.
    """
    spare = {name for name in arrays.tensors if _DROPPABLE.fullmatch(name)}
    tensors = {name: value for name, value in arrays.tensors.items() if name not in spare}
    is_paddle = arrays.container == "paddle"
    if is_paddle:
        tensors = paddle.transposed(tensors)
    name, converted = _convert(tensors, config, is_paddle=is_paddle)
    unknown = [*converted.dropped, *(n for n in converted.tensors if not _OURS.fullmatch(n))]
    if unknown:
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


def _convert(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, is_paddle: bool
) -> tuple[str, Converted]:
    found = next((row for row in _FORMATS if tensors.keys() >= set(row[1])), None)
    if found is None:
        first = ", ".join(f"`{name}`" for name in sorted(tensors)[:3])
        raise CheckpointError(
            f"the names of these tensors are those of no model that vit21k has: {first} ...",
            hint="`vit21k models --formats` lists what it reads",
        )
    name, _, convert = found
    if name == "timm" and is_paddle:
        name, convert = "plsc", paddle.from_plsc
    if name == "pit":
        name = "paddlevit" if is_paddle else "timm" if config else "naver"
    return name, convert(tensors, config)
