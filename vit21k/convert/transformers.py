"""transformers' ViT: its names of the same tensors, and its ``config.json``.

Names of version 4 and of version 5 are read; those of version 4, which both read, are written.

Source: transformers/models/vit/modeling_vit.py and conversion_mapping.py.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vit21k.convert.naming import (
    Converted,
    Names,
    fuse_qkv,
    renamed,
    split_qkv,
    under_their_names,
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
_NORMS = {"layernorm_before.": "norm1.", "layernorm_after.": "norm2."}
_V4 = Names(
    block="encoder.layer.{}.",
    outside=_OUTSIDE,
    inside={
        **_NORMS,
        "attention.attention.query.": "attn.q.",
        "attention.attention.key.": "attn.k.",
        "attention.attention.value.": "attn.v.",
        "attention.output.dense.": "attn.proj.",
        "intermediate.dense.": "mlp.fc1.",
        "output.dense.": "mlp.fc2.",
    },
)
_V5 = Names(
    block="layers.{}.",
    outside=_OUTSIDE,
    inside={
        **_NORMS,
        "attention.q_proj.": "attn.q.",
        "attention.k_proj.": "attn.k.",
        "attention.v_proj.": "attn.v.",
        "attention.o_proj.": "attn.proj.",
        "mlp.fc1.": "mlp.fc1.",
        "mlp.fc2.": "mlp.fc2.",
    },
)
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


def from_transformers(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Converted:
    """Return *tensors* under our names.

    Args:
        tensors: Of `ViTModel` or `ViTForImageClassification`.
        config: Content of its ``config.json``; empty if there is none.

    Raises:
        CheckpointError: It is another architecture, or computes with another activation.
    """
    converted, dropped = renamed(tensors, _to_ours)
    return Converted(fuse_qkv(converted), _known(config), dropped, {"norm_eps": 1e-12})


def _to_ours(name: str) -> str | None:
    bare = name.removeprefix("vit.")
    return _V4.to_ours(bare) or _V5.to_ours(bare)


def to_transformers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return *tensors* under the names of `ViTForImageClassification`, version 4."""
    return under_their_names(split_qkv(tensors), _to_theirs, "transformers' ViT")


def _to_theirs(name: str) -> str | None:
    theirs = _V4.to_theirs(name)
    return f"vit.{theirs}" if theirs and not theirs.startswith("classifier.") else theirs


def transformers_config(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of ``config.json`` that describes the network of *args*."""
    tanh = args["act_layer"] == "gelu_tanh"
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
        "hidden_act": "gelu_pytorch_tanh" if tanh else "gelu",
        "layer_norm_eps": args["norm_eps"],
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    if "model_type" not in config:
        return {}
    if config["model_type"] != "vit":
        raise CheckpointError(
            f"the model is a `{config['model_type']!s:.40}` of transformers; only `vit` is read"
        )
    if config.get("quantization_config"):
        raise CheckpointError("the model is quantised (`quantization_config`), which is not read")
    activation, pooler = config.get("hidden_act", "gelu"), config.get("pooler_act", "tanh")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise CheckpointError(f"the model computes with `{activation!s:.40}`, which is not GELU")
    if pooler != "tanh":
        raise CheckpointError(f"the model's pooler computes with `{pooler!s:.40}`, not tanh")
    return {
        "num_heads": config.get("num_attention_heads", 12),
        "act_layer": _ACTIVATIONS[activation],
        "norm_eps": config.get("layer_norm_eps", 1e-12),
        "img_size": _side(config.get("image_size", 224)),
        "global_pool": "token",
    }


def _side(size: object) -> object:
    """Return the side of a square size; the grid of positions is checked to be square."""
    return size[0] if isinstance(size, list) and len(size) == 2 else size  # noqa: PLR2004
