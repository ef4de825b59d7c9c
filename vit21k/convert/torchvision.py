"""torchvision's `vit_*`: its names of the same tensors.

Source: torchvision/models/vision_transformer.py; files written by its first versions call the
layers of the MLP `linear_1` and `linear_2`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vit21k.convert.architecture import known_architecture
from vit21k.convert.naming import Converted, Names, renamed
from vit21k.errors import CheckpointError

_NAMES = Names(
    block="encoder.layers.encoder_layer_{}.",
    outside={
        "class_token": "cls_token",
        "conv_proj.": "patch_embed.proj.",
        "encoder.pos_embedding": "pos_embed",
        "encoder.ln.": "norm.",
        "heads.pre_logits.": "pre_logits.fc.",
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
_OWN = {"act_layer": "gelu", "global_pool": "token", "norm_eps": 1e-6}
_OLD = {".mlp.linear_1.": ".mlp.0.", ".mlp.linear_2.": ".mlp.3."}


def is_torchvision(names: Mapping[str, object]) -> bool:
    """Return whether *names* are torchvision's."""
    return "conv_proj.weight" in names and "encoder.pos_embedding" in names


def from_torchvision(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Converted:
    """Return *tensors* under our names.

    Its class has one activation, one pooling and one epsilon; the heads are in the name of the
    model, if *config* tells that.
    """
    converted, dropped = renamed(tensors, _to_ours)
    known = {**known_architecture(config, converted)[0], **_OWN}
    return Converted(converted, known, dropped)


def _to_ours(name: str) -> str | None:
    for old, new in _OLD.items():
        name = name.replace(old, new)
    return _NAMES.to_ours(name)


def to_torchvision(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return *tensors* under torchvision's names."""
    converted = {}
    for name, tensor in tensors.items():
        theirs = _NAMES.to_theirs(name)
        if theirs is None:
            raise CheckpointError(f"torchvision's model has no place for `{name}`")
        converted[theirs] = tensor
    return converted
