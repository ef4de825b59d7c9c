"""PLSC's, PaddleViT's and paddle_pit's ``.pdparams``: their names, and transposed matrices.

paddle stores the weight of a linear layer as [in, out].

Source: plsc/models/vision_transformer.py; PaddleViT/image_classification/ViT/transformer.py.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vit21k.convert.architecture import known_architecture
from vit21k.convert.naming import Converted, Names, renamed

_PADDLEVIT = Names(
    block="encoder.layers.{}.",
    outside={
        "position_embedding": "pos_embed",
        "cls_token": "cls_token",
        "patch_embedding.patch_embedding.": "patch_embed.proj.",
        "patch_embedding.position_embeddings": "pos_embed",
        "patch_embedding.cls_token": "cls_token",
        "encoder.encoder_norm.": "norm.",
        "encoder.norm.": "norm.",
        "classifier.": "head.",
    },
    inside={
        "attn_norm.": "norm1.",
        "attn.qkv.": "attn.qkv.",
        "attn.out.": "attn.proj.",
        "attn.proj.": "attn.proj.",
        "mlp_norm.": "norm2.",
        "mlp.fc1.": "mlp.fc1.",
        "mlp.fc2.": "mlp.fc2.",
    },
)
# Their classes have one activation, one pooling and one epsilon.
_KNOWN = {"act_layer": "gelu", "global_pool": "token", "norm_eps": 1e-6}


def transposed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return *tensors* with the weights of linear layers as [out, in]."""
    return {
        name: tensor.T if tensor.ndim == 2 and name.endswith("weight") else tensor  # noqa: PLR2004
        for name, tensor in tensors.items()
    }


def from_paddlevit(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Converted:
    """Return *tensors*, already transposed, under our names: those of both releases."""
    converted, dropped = renamed(tensors, _PADDLEVIT.to_ours)
    known = {**known_architecture(config, converted)[0], **_KNOWN}
    return Converted(converted, known, dropped)


def from_plsc(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Converted:
    """Return *tensors*, already transposed, under our names: timm's, except for the tanh layer.

    Only PLSC's H/14 has no bias on queries, keys and values, and paddle's own layer norm.
    """
    ours = {
        f"pre_logits.fc.{name.removeprefix('head0.')}" if name.startswith("head0.") else name: value
        for name, value in tensors.items()
    }
    is_h14 = "blocks.0.attn.qkv.bias" not in ours
    known = {**known_architecture(config, ours)[0], **_KNOWN}
    return Converted(ours, {**known, "norm_eps": 1e-5 if is_h14 else 1e-6})
