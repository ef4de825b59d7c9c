"""torchvision's `vit_*`: its names of the same tensors.

Source: torchvision/models/vision_transformer.py; its first versions called the layers of the MLP
`linear_1` and `linear_2`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vit21k.convert.architecture import known_architecture
from vit21k.convert.naming import Converted, Names, renamed, under_their_names

_NAMES = Names(
    block="encoder.layers.encoder_layer_{}.",
    outside={
        "class_token": "cls_token",
        "conv_proj.": "patch_embed.proj.",
        "encoder.pos_embedding": "pos_embed",
        "encoder.ln.": "norm.",
        "heads.pre_logits.": "pre_logits.fc.",
        "heads.0.": "head.",  # of a user's own `nn.Sequential` or `nn.Linear`
        "heads.weight": "head.weight",
        "heads.bias": "head.bias",
        "heads.head.": "head.",
    },
    inside={
        "ln_1.": "norm1.",
        "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj.": "attn.proj.",
        "ln_2.": "norm2.",
        "mlp.0.": "mlp.fc1.",
        "mlp.3.": "mlp.fc2.",
    },
)
# Its class has one activation, one pooling and one epsilon.
_KNOWN = {"act_layer": "gelu", "global_pool": "token", "norm_eps": 1e-6}


def from_torchvision(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Converted:
    """Return *tensors* under our names; the name of the model, if *config* has it, gives heads."""
    converted, dropped = renamed(tensors, _to_ours)
    return Converted(converted, {**known_architecture(config, converted)[0], **_KNOWN}, dropped)


def _to_ours(name: str) -> str | None:
    name = name.replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3.")
    return _NAMES.to_ours(name)


def to_torchvision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return *tensors* under torchvision's names."""
    return under_their_names(tensors, _NAMES.to_theirs, "torchvision's model")
