"""MMPretrain's (and MMClassification's) ViT: its names of the same tensors.

`arrays` removes the prefix ``backbone.``.

Source: mmpretrain/models/backbones/vision_transformer.py, heads/vision_transformer_head.py.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vit21k.convert.naming import Converted, Names, renamed

_NAMES = Names(
    block="layers.{}.",
    outside={
        "cls_token": "cls_token",
        "dist_token": "dist_token",
        "pos_embed": "pos_embed",
        "patch_embed.projection.": "patch_embed.proj.",
        "pre_norm.": "norm_pre.",
        "ln1.": "norm.",
        "ln2.": "fc_norm.",
        "head.layers.pre_logits.": "pre_logits.fc.",
        "head.layers.head_dist.": "head_dist.",
        "head.layers.head.": "head.",
        "head.fc.": "head.",
    },
    inside={
        "ln1.": "norm1.",
        "attn.qkv.": "attn.qkv.",
        "attn.proj.": "attn.proj.",
        "attn.gamma1.weight": "ls1.gamma",
        "ln2.": "norm2.",
        "ffn.layers.0.0.": "mlp.fc1.",
        "ffn.layers.1.": "mlp.fc2.",
        "ffn.w12.": "mlp.fc1.",
        "ffn.w3.": "mlp.fc2.",
        "ffn.gamma2.weight": "ls2.gamma",
    },
)


def from_mmpretrain(tensors: Mapping[str, Tensor], _config: Mapping[str, Any]) -> Converted:
    """Return *tensors* under our names."""
    spare = tuple(name for name in tensors if name.startswith("data_preprocessor."))
    converted, dropped = renamed(
        {name: tensor for name, tensor in tensors.items() if name not in spare}, _NAMES.to_ours
    )
    return Converted(converted, {}, dropped, spare)
