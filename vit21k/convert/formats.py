"""Arrays of any library -> tensors under our names.  The names of the arrays show their format."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from vit21k.convert import clip, google, mmpretrain, paddle, timm, torchvision, transformers
from vit21k.convert.arrays import Arrays
from vit21k.convert.naming import Converted
from vit21k.errors import CheckpointError

# What a trained image model does not need: a token for masked images, the decoder of MAE and
# SimMIM, the projections of DINO, a text tower and the projections to a space that it shares, an
# optimizer's state, counters.
_DROPPABLE = re.compile(
    r"(.*[./])?mask_token|opt/(?!target/).*|.*position_ids|(.*\.)?decoder(_\w+)?(\..*)?|n_averaged|"
    r"head\.(mlp\.(\d+\.)?(weight|bias)|last_layer\..*)|(dino|ibot)_head\..*|(.*\.)?logit_(scale|bias)|"
    r"(text|text_model|text_projection|visual_projection|visual\.head)\..*"
)
_OURS = re.compile(
    r"cls_token|dist_token|reg_token|pos_embed|patch_embed\.backbone\.(stem|stages)\..+|"
    r"(norm|norm_pre|fc_norm|head|head_dist|pre_logits\.fc)\.(weight|bias)|"
    r"patch_embed\.(proj|conv)\.(weight|bias)|transformers\.\d+\.pool\..+|"
    r"attn_pool\.(latent|(q|kv|proj|norm|mlp\.fc[12])\.(weight|bias))|"
    r"(transformers\.\d+\.)?blocks\.\d+\.(ls[12]\.gamma|"
    r"(norm[12]|attn\.(qkv|proj|q_norm|k_norm)|mlp\.fc[12])\.(weight|bias))"
)
_Converter = Callable[[Mapping[str, Tensor], Mapping[str, Any]], Converted]


class _Format(NamedTuple):
    """Names of tensors in a library."""

    name: str
    """A key of `models.registry.FORMATS`."""
    anchors: tuple[str, ...]
    """Tensors that only this format has; what is before them is a prefix of all names."""
    convert: _Converter
    is_tower: bool = False
    """Whether only the tensors under the prefix of the anchors are the image model."""


_HF_PATCH = "embeddings.patch_embeddings.projection.weight"
_HF_DINOV3_PATCH = "embeddings.patch_embeddings.weight"
_HF_CLIP_PATCH = "embeddings.patch_embedding.weight"
# PLSC has timm's names.
_FORMATS = (
    _Format("google", ("embedding/kernel",), google.from_google, is_tower=True),
    _Format("torchvision", ("conv_proj.weight", "encoder.pos_embedding"),
            torchvision.from_torchvision),
    _Format("clip", ("class_embedding", "conv1.weight"), clip.from_clip, is_tower=True),
    _Format("transformers", (_HF_PATCH,), transformers.from_transformers),
    _Format("transformers", (_HF_CLIP_PATCH,), transformers.from_transformers),
    _Format("transformers", (_HF_DINOV3_PATCH,), transformers.from_transformers),
    _Format("mmpretrain", ("patch_embed.projection.weight", "layers.0.ln1.weight"),
            mmpretrain.from_mmpretrain),
    _Format("paddlevit", ("patch_embedding.patch_embedding.weight",), paddle.from_paddlevit),
    _Format("pit", ("patch_embed.conv.weight", "transformers.0.blocks.0.norm1.weight"),
            timm.from_pit),
    _Format("timm", ("patch_embed.proj.weight", "blocks.0.norm1.weight"), timm.from_timm),
    _Format("timm", ("patch_embed.proj.weight", "blocks.0.0.norm1.weight"), timm.from_timm),
)  # fmt: skip


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
    return Ours(
        name, converted._replace(tensors=ours, dropped=tuple(sorted({*spare, *converted.spare})))
    )


def _convert(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, is_paddle: bool
) -> tuple[str, Converted]:
    found, prefix = _find(tensors, config)
    inner = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    outside: list[str] = []
    if found.is_tower and prefix:
        outside = [name for name in tensors if not name.startswith(prefix)]
        inner = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
    elif len(inner) != len(tensors):
        raise CheckpointError(f"two tensors have the same name without the prefix `{prefix:.40}`")
    name, convert = found.name, found.convert
    if name == "timm" and is_paddle:
        name, convert = "plsc", paddle.from_plsc
    if name == "pit":
        name = "paddlevit" if is_paddle else "timm" if config else "naver"
    converted = convert(inner, {**config, "outside": outside} if outside else config)
    return name, converted._replace(spare=(*converted.spare, *outside))


def _find(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[_Format, str]:
    """Return the format of *tensors*, and the prefix that wrappers added to their names."""
    for row in _FORMATS:
        first = row.anchors[0]
        prefixes = sorted(
            prefix
            for prefix in (name.removesuffix(first) for name in tensors if name.endswith(first))
            if prefix[-1:] in ("", ".", "/")
            and all(prefix + name in tensors for name in row.anchors)
        )
        if len(prefixes) > 1:
            raise CheckpointError(
                f"there are {len(prefixes)} models in it, under "
                + " and ".join(f"`{prefix:.40}`" for prefix in prefixes[:3]),
                hint="save the tensors of one of them",
            )
        if prefixes:
            return row, prefixes[0]
    transformers.check_kind(config)
    first = ", ".join(f"`{name}`" for name in sorted(tensors)[:3])
    raise CheckpointError(
        f"the names of these tensors are those of no model that vit21k has: {first} ...",
        hint="`vit21k models --formats` lists what it reads",
    )
