"""timm's ViT, whose names are ours, its ``config.json``, and the three layouts of a PiT.

DeiT, DeiT III, DINO, MAE and DINOv2 began as copies of timm's file; a table has their other names.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vit21k.convert.architecture import known_architecture
from vit21k.convert.naming import Converted, fuse, without_class_position
from vit21k.errors import CheckpointError
from vit21k.models.registry import PIT_ARGUMENTS, VIT_ARGUMENTS

_SHARED = {name for name, own in {**VIT_ARGUMENTS, **PIT_ARGUMENTS}.items() if own.in_timm}
# Arguments of timm's constructor that change no logits; those that tensors show.
_HARMLESS = frozenset(
    {"num_classes", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate",
     "attn_drop_rate", "drop_path_rate", "weight_init", "fix_init", "strict_img_size",
     "dynamic_img_size"}
)  # fmt: skip
_SHOWN = frozenset({"in_chans", "patch_size", "embed_dim", "depth", "mlp_ratio", "qkv_bias",
                    "reg_tokens", "pre_norm", "qk_norm", "base_dims", "stride",
                    "distilled"})  # fmt: skip
# Arguments of timm's `Eva` -> those of its `VisionTransformer`.
_EVA = {"num_reg_tokens": "reg_tokens", "use_fc_norm": "fc_norm"}
# Pattern in their names -> ours.
_ALIASES = (
    (re.compile(r"\.gamma_([12])$"), r".ls\1.gamma"),  # DeiT III
    (re.compile(r"^register_tokens$"), "reg_token"),  # DINOv2, and the rest
    (re.compile(r"^linear_head\."), "head."),
    (re.compile(r"^blocks\.\d+\.(\d+\.)"), r"blocks.\1"),  # chunks of blocks, for FSDP
    (re.compile(r"\.mlp\.w12\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.w3\."), ".mlp.fc2."),
    (re.compile(r"\.mlp\.fc1_g\."), ".mlp.gate."),  # timm's `SwiGLU`
    (re.compile(r"\.mlp\.fc1_x\."), ".mlp.up."),
)
_POOLS = re.compile(r"pools\.(\d+)\.")
_STAGE_POOL = re.compile(r"transformers\.(\d+)\.pool\.")


def from_timm(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Converted:
    """Return *tensors* under our names.

    Args:
        tensors: Of a ViT or a hybrid.
        config: Content of its ``config.json``; empty if there is none.

    Raises:
        CheckpointError: timm builds it with an argument that none of our models has.
    """
    renamed = {_aliased(name): tensor for name, tensor in tensors.items()}
    if len(renamed) != len(tensors):
        raise CheckpointError("tensors have names of two releases of the same model")
    renamed = fuse(renamed)
    if "register_tokens" in tensors:
        renamed = without_class_position(renamed)
    known, unknown = _known(config, renamed)
    if any(name.startswith("patch_embed.backbone.") for name in tensors):
        known["stem_eps"] = "timm"
    if "register_tokens" in tensors:
        known["no_embed_class"] = True
    if "linear_head.weight" in tensors:
        known["global_pool"] = "token_avg"
    # timm has the norm before the blocks for CLIP only, of which there are two activations.
    is_clip = "norm_pre.weight" in renamed
    customary = {"act_layer": None, "norm_eps": None} if is_clip else {}
    return Converted(renamed, known, customary=customary, unknown=unknown)


def _aliased(name: str) -> str:
    for pattern, ours in _ALIASES:
        name = pattern.sub(ours, name)
    return name


def from_pit(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Converted:
    """Return *tensors* under our names, which are today's timm's.

    naver-ai has separate poolings (``pools.0``); timm had them at the end of the stage before them,
    and now has them at the beginning of the stage after them.
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
    """Return the arguments in timm's *config*, and the architecture if it is not one of ours."""
    known, unknown = known_architecture(config, tensors)
    for key, value in _arguments(config, tensors).items():
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


def _arguments(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of timm's constructor in *config*, by `VisionTransformer`'s names."""
    args = config.get("model_args") or {}
    if not isinstance(args, Mapping):
        raise CheckpointError(f"`model_args` is a {type(args).__name__}, not a table")
    found: dict[str, Any] = {}
    pretrained = config.get("pretrained_cfg")
    if "pos_embed" not in tensors and isinstance(pretrained, Mapping):
        found["img_size"] = (pretrained.get("input_size") or [None])[-1:]
    if config.get("global_pool"):
        found["global_pool"] = config["global_pool"]
    return {**found, **{_EVA.get(str(key), str(key)): value for key, value in args.items()}}
