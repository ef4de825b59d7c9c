"""transformers' ViT, DeiT, ViT-MAE, ViT-MSN, DINOv2, DINOv3, CLIP, SigLIP: names, ``config.json``.

Names of version 4 and of version 5 are read; those of version 4, which both read, are written.

Source: transformers/models/*/modeling_*.py and conversion_mapping.py.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vit21k.convert.clip import with_batch
from vit21k.convert.naming import (
    Converted,
    Names,
    fuse,
    renamed,
    split_qkv,
    under_their_names,
    without_class_position,
)
from vit21k.errors import CheckpointError

_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
    "pooler.dense.": "pre_logits.fc.",
    "classifier.": "head.",
}
_V4 = Names(
    block="encoder.layer.{}.",
    outside={
        **_OUTSIDE,
        "embeddings.distillation_token": "dist_token",
        "embeddings.register_tokens": "reg_token",
        "cls_classifier.": "head.",
        "distillation_classifier.": "head_dist.",
    },
    inside={
        "layernorm_before.": "norm1.",
        "layernorm_after.": "norm2.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
        "attention.attention.query.": "attn.q.",
        "attention.attention.key.": "attn.k.",
        "attention.attention.value.": "attn.v.",
        "attention.output.dense.": "attn.proj.",
        "attention.q_proj.": "attn.q.",
        "attention.k_proj.": "attn.k.",
        "attention.v_proj.": "attn.v.",
        "attention.o_proj.": "attn.proj.",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "mlp.fc1.": "mlp.fc1.",
        "mlp.fc2.": "mlp.fc2.",
        "mlp.weights_in.": "mlp.fc1.",
        "mlp.weights_out.": "mlp.fc2.",
        "mlp.gate_proj.": "mlp.gate.",
        "mlp.up_proj.": "mlp.up.",
        "mlp.down_proj.": "mlp.fc2.",
        "intermediate.dense.": "mlp.fc1.",
        "output.dense.": "mlp.fc2.",
    },
)
_V5 = Names(block="layers.{}.", outside=_V4.outside, inside=_V4.inside)
_DINOV3 = Names(
    block="layer.{}.",
    outside={
        "embeddings.patch_embeddings.": "patch_embed.proj.",
        "norm.": "norm.",
        **_V4.outside,
    },
    inside=_V4.inside,
)
_CLIP = Names(
    block="encoder.layers.{}.",
    outside={
        "embeddings.class_embedding": "cls_token",
        "embeddings.position_embedding.weight": "pos_embed",
        "embeddings.patch_embedding.": "patch_embed.proj.",
        "pre_layrnorm.": "norm_pre.",
        "post_layernorm.": "norm.",
        "head.probe": "attn_pool.latent",
        "head.attention.in_proj_": "attn_pool.qkv.",
        "head.attention.out_proj.": "attn_pool.proj.",
        "head.layernorm.": "attn_pool.norm.",
        "head.mlp.": "attn_pool.mlp.",
        "classifier.": "head.",
    },
    inside={
        "layer_norm1.": "norm1.",
        "self_attn.q_proj.": "attn.q.",
        "self_attn.k_proj.": "attn.k.",
        "self_attn.v_proj.": "attn.v.",
        "self_attn.out_proj.": "attn.proj.",
        "layer_norm2.": "norm2.",
        "mlp.": "mlp.",
    },
)
# What is written: `ViTForImageClassification` of version 4.
_WRITTEN = Names(
    block=_V4.block,
    outside=_OUTSIDE,
    inside={
        theirs: ours
        for theirs, ours in _V4.inside.items()
        if theirs.startswith(("layernorm_", "attention.attention.", "attention.output."))
        or theirs in ("intermediate.dense.", "output.dense.")
    },
)
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}


class _Kind(NamedTuple):
    """Defaults of a configuration of transformers."""

    norm_eps: float
    activation: str = "gelu"


_KINDS = {
    "vit": _Kind(1e-12),
    "deit": _Kind(1e-12),
    "vit_mae": _Kind(1e-12),
    "vit_msn": _Kind(1e-6),
    "dinov2": _Kind(1e-6),
    "dinov2_with_registers": _Kind(1e-6),
    "dinov3_vit": _Kind(1e-5),
    "clip_vision_model": _Kind(1e-5, "quick_gelu"),
    "siglip_vision_model": _Kind(1e-6, "gelu_pytorch_tanh"),
}
"""By `model_type`."""
# Model of an image and a text tower -> the former.
_TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}


def from_transformers(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Converted:
    """Return *tensors* under our names.

    Args:
        tensors: Of a model of one of the kinds, with a classifier or without one.
        config: Content of its ``config.json``; empty if there is none.

    Raises:
        CheckpointError: It is another architecture, or computes with another activation.
    """
    kind, known = _known(config)
    is_clip = "embeddings.patch_embedding.weight" in tensors
    converted, dropped = renamed(tensors, _CLIP.to_ours if is_clip else _to_ours)
    if kind == "dinov3_vit":
        converted = _plain_dinov3(converted)
    converted = fuse(converted)
    if is_clip:
        converted = _split_pool(with_batch(converted))
    elif "dist_token" in converted and "head_dist.weight" not in converted:
        # A DeiT without the second head: the token only takes part in attention.
        converted["reg_token"] = converted.pop("dist_token")
    elif "reg_token" in converted and "pos_embed" in converted:
        converted = without_class_position(converted)
        known["no_embed_class"] = True
    spare = _settle_pool(kind, converted, known)
    customary = {"norm_eps": 1e-12} if not is_clip else {"act_layer": None, "norm_eps": None}
    return Converted(converted, known, dropped, spare, customary)


def _plain_dinov3(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return *tensors* of a DINOv3 with the names of other models, and zeros as biases of keys."""
    gated = any(".mlp.gate." in name for name in tensors)
    plain = {
        name if gated else name.replace(".mlp.up.", ".mlp.fc1."): tensor
        for name, tensor in tensors.items()
        if tensor.numel()  # without registers there is an empty tensor
    }
    queries = [name for name in plain if name.endswith(".attn.q.bias")]
    for name in queries:
        plain.setdefault(name.replace(".q.", ".k."), torch.zeros_like(plain[name]))
    return plain


def _split_pool(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return *tensors* with the query of MAP pooling separate from keys and values."""
    split = {}
    for name, tensor in tensors.items():
        if name.startswith("attn_pool.qkv."):
            query, *others = tensor.chunk(3)
            split[name.replace("qkv", "q")] = query
            split[name.replace("qkv", "kv")] = torch.cat(others)
        else:
            split[name] = tensor
    return split


def _settle_pool(kind: str, tensors: dict[str, Tensor], known: dict[str, Any]) -> tuple[str, ...]:
    """Set the pooling in *known*, and return the names of tensors that it does not need."""
    has_head = "head.weight" in tensors
    if kind == "clip_vision_model" and has_head:
        raise CheckpointError(
            "the classifier of transformers' CLIP reads tokens that are not normalised, "
            "which no model of ours does"
        )
    if kind == "siglip_vision_model":
        if not has_head:
            return ()
        known.update(global_pool="avg", fc_norm=False)
        spare = tuple(name for name in tensors if name.startswith("attn_pool."))
        for name in spare:
            del tensors[name]
        return spare
    if kind:
        both = has_head and kind.startswith("dinov2")
        known["global_pool"] = "token_avg" if both else "token"
    return ()


def _to_ours(name: str) -> str | None:
    return _V4.to_ours(name) or _V5.to_ours(name) or _DINOV3.to_ours(name)


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return *tensors* under the names of `ViTForImageClassification`, version 4."""
    return under_their_names(split_qkv(tensors), _to_theirs, "transformers' ViT")


def _to_theirs(name: str) -> str | None:
    theirs = _WRITTEN.to_theirs(name)
    return f"vit.{theirs}" if theirs and not theirs.startswith("classifier.") else theirs


def transformers_config(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of ``config.json`` that describes the network of *args*."""
    activation = {"gelu_tanh": "gelu_pytorch_tanh"}.get(args["act_layer"], args["act_layer"])
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "image_size": args["img_size"],
        "patch_size": args["patch_size"],
        "num_channels": args["in_chans"],
        "hidden_size": args["embed_dim"],
        "num_hidden_layers": args["depth"],
        "num_attention_heads": args["num_heads"],
        "intermediate_size": int(args["embed_dim"] * args["mlp_ratio"]),
        "qkv_bias": args["qkv_bias"],
        "hidden_act": activation,
        "layer_norm_eps": args["norm_eps"],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _known(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the kind of the model in *config*, and its arguments; "" and none without a kind."""
    kind = config.get("model_type")
    if kind is None:
        return "", {}
    if kind in _TOWERS:
        vision = config.get("vision_config")
        kind, config = _TOWERS[kind], vision if isinstance(vision, Mapping) else {}
    check_kind({"model_type": kind})
    if config.get("quantization_config"):
        raise CheckpointError("the model is quantised (`quantization_config`), which is not read")
    activation = config.get("hidden_act", _KINDS[kind].activation)
    if activation == "silu" and config.get("use_gated_mlp"):
        activation = "gelu"  # of a SwiGLU it says what all have
    pooler = config.get("pooler_act", "tanh")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise CheckpointError(f"the model computes with `{activation!s:.40}`, which is not GELU")
    if pooler != "tanh":
        raise CheckpointError(f"the model's pooler computes with `{pooler!s:.40}`, not tanh")
    rope = {}
    if kind == "dinov3_vit":
        rope = {"rope": "dinov3", "rope_temperature": _theta(config)}
    return kind, {
        **rope,
        "num_heads": config.get("num_attention_heads", 12),
        "act_layer": _ACTIVATIONS[activation],
        "norm_eps": config.get("layer_norm_eps", _KINDS[kind].norm_eps),
        "img_size": _side(config.get("image_size", 224)),
    }


def _theta(config: Mapping[str, Any]) -> float:
    inner = config.get("rope_parameters")
    theta = config.get(
        "rope_theta", inner.get("rope_theta") if isinstance(inner, Mapping) else None
    )
    return float(theta) if isinstance(theta, int | float) else 100.0


def check_kind(config: Mapping[str, Any]) -> None:
    """Raise a `CheckpointError` if *config* is transformers' of a model that is not read."""
    kind = config.get("model_type")
    if kind is not None and kind not in (*_KINDS, *_TOWERS):
        raise CheckpointError(
            f"the model is a `{kind!s:.40}` of transformers; those that are read: "
            + ", ".join([*_KINDS, *_TOWERS])
        )


def _side(size: object) -> object:
    """Return the side of a square size; the grid of positions is checked to be square."""
    return size[0] if isinstance(size, list) and len(size) == 2 else size  # noqa: PLR2004
