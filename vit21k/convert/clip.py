"""The image tower of OpenAI's CLIP and of open_clip: its names of the same tensors.

The projection to the space of texts is no classifier: it is skipped.

Source: clip/model.py (`VisionTransformer`); open_clip/transformer.py.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vit21k.convert.naming import Converted, Names, renamed

_NAMES = Names(
    block="transformer.resblocks.{}.",
    outside={
        "class_embedding": "cls_token",
        "positional_embedding": "pos_embed",
        "conv1.": "patch_embed.proj.",
        "ln_pre.": "norm_pre.",
        "ln_post.": "norm.",
    },
    inside={
        "ln_1.": "norm1.",
        "attn.in_proj_": "attn.qkv.",
        "attn.out_proj.": "attn.proj.",
        "ls_1.": "ls1.",
        "ln_2.": "norm2.",
        "mlp.c_fc.": "mlp.fc1.",
        "mlp.c_proj.": "mlp.fc2.",
        "ls_2.": "ls2.",
    },
)


# Numbers that only OpenAI's programs hold, next to their weights.
_OPENAIS = frozenset({"input_resolution", "context_length", "vocab_size"})
_OPENAI_HEAD_WIDTH = 64  # `build_model` computes the heads from the width


def from_clip(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Converted:
    """Return *tensors* under our names.

    Both programs write the same names; one computes with the quick GELU, the other mostly not.

    Args:
        tensors: Of the image tower.
        config: ``outside``: the names of all other tensors of the file.
    """
    known: dict[str, Any] = {"norm_eps": 1e-5, "global_pool": "token"}
    if set(config.get("outside", ())) >= _OPENAIS:
        num_heads = len(tensors["class_embedding"]) // _OPENAI_HEAD_WIDTH
        known |= {"act_layer": "quick_gelu", "num_heads": num_heads}
    spare = tuple(name for name in tensors if name == "proj")
    converted, dropped = renamed(
        {name: tensor for name, tensor in tensors.items() if name not in spare}, _NAMES.to_ours
    )
    return Converted(
        with_batch(converted),
        known,
        dropped,
        spare,
        {"act_layer": None},
    )


def with_batch(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return *tensors* with tokens and positions as (1, N, D)."""
    shapes = {"cls_token": (1, 1, -1), "pos_embed": (1, -1, tensors["pos_embed"].shape[-1])}
    return {
        name: tensor.reshape(shapes[name]) if name in shapes else tensor
        for name, tensor in tensors.items()
    }
