"""timm's folders and files, whose names are ours, and the three layouts of a PiT.

timm's ``config.json`` says what the arrays do not show.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vit21k.convert.architecture import known_architecture
from vit21k.convert.naming import Converted
from vit21k.errors import CheckpointError

# Arguments of timm's constructor that are ours as well, and those that change no logits.
_SHARED = frozenset(
    {"img_size", "global_pool", "class_token", "fc_norm", "num_heads", "heads", "act_layer",
     "in_chans", "patch_size", "embed_dim", "depth", "mlp_ratio", "qkv_bias", "base_dims",
     "stride", "distilled", "init_values"}
)  # fmt: skip
_HARMLESS = frozenset(
    {"num_classes", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate",
     "attn_drop_rate", "drop_path_rate", "weight_init", "fix_init", "strict_img_size"}
)  # fmt: skip
_SHOWN = frozenset({"in_chans", "patch_size", "embed_dim", "depth", "mlp_ratio", "qkv_bias",
                    "base_dims", "stride", "distilled"})  # fmt: skip
_POOLS = re.compile(r"pools\.(\d+)\.")
_STAGE_POOL = re.compile(r"transformers\.(\d+)\.pool\.")


def is_timm(names: Mapping[str, object]) -> bool:
    """Return whether *names* are those of timm's Vision Transformer, which PLSC has as well."""
    return "patch_embed.proj.weight" in names and "blocks.0.norm1.weight" in names


def is_pit(names: Mapping[str, object]) -> bool:
    """Return whether *names* are a PiT's, in any layout."""
    return "patch_embed.conv.weight" in names and "transformers.0.blocks.0.norm1.weight" in names


def from_timm(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Converted:
    """Return *tensors* under our names.

    Args:
        tensors: Of a ViT or a hybrid.
        config: Content of its ``config.json``; empty if there is none.

    Raises:
        CheckpointError: timm builds it with something that no model of ours has.
    """
    known, unknown = _known(config, tensors)
    if any(name.startswith("patch_embed.backbone.") for name in tensors):
        known["stem_eps"] = "timm"
    return Converted(dict(tensors), known, unknown=unknown)


def from_pit(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Converted:
    """Return *tensors* under our names, which are today's timm's.

    naver-ai keeps poolings apart (``pools.0``); timm had them at the end of the stage before them,
    and has them now at the beginning of the stage after them.
    """
    renamed = {_POOLS.sub(_into_next_stage, name): tensor for name, tensor in tensors.items()}
    if any(name.startswith("transformers.0.pool.") for name in renamed):
        renamed = {_STAGE_POOL.sub(_into_next_stage, name): t for name, t in renamed.items()}
    known, unknown = _known(config, renamed)
    # Every implementation has the exact GELU only.
    return Converted(renamed, {"act_layer": "gelu", **known}, unknown=unknown)


def _into_next_stage(match: re.Match[str]) -> str:
    return f"transformers.{int(match[1]) + 1}.pool."


def _known(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], str | None]:
    """Return the arguments that timm's *config* tells, and an architecture that is not ours."""
    known, unknown = known_architecture(config, tensors)
    args = config.get("model_args") or {}
    if not isinstance(args, Mapping):
        raise CheckpointError(f"`model_args` is a {type(args).__name__}, not a table")
    if config.get("global_pool"):
        args = {"global_pool": config["global_pool"], **args}
    for key, value in args.items():
        if key == "img_size" and isinstance(value, list | tuple) and value:
            known[key] = value[0]  # [height, width]; the grid is checked to be square
        elif key in _SHARED:
            known[key] = value
        elif key not in _HARMLESS and value not in (None, False, 0):
            raise CheckpointError(
                f"timm builds this model with `{key!s:.40}` {value!r:.60}, "
                "which no model of ours has"
            )
    return {key: value for key, value in known.items() if key not in _SHOWN}, unknown
