"""What timm calls a model of ours, and which of its arguments it takes."""

from collections.abc import Mapping
from typing import Any

from vit21k.models.registry import model_args
from vit21k.models.shapes import is_pit

# Arguments of ours that timm's constructor does not have, or not as arguments.
_NOT_TIMMS = frozenset(
    {"num_classes", "fc_norm", "representation_size", "norm_eps", "resnet_layers", "stem_eps",
     "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate",
     "drop_path_shape", "head_drop_rate"}
)  # fmt: skip

_UNKNOWN_TO_TIMM = (
    "vit_small_patch8_384",
    "vit_base_patch8_384",
    "vit_large_patch14_384",
    "vit_huge_patch14_384",
    "vit_giant_patch14_384",
    "vit_gigantic_patch14_384",
    "vit_base_r26_s32_384",
)


def timm_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of *args* that timm's constructor has as well, under the same names."""
    shared = {key: value for key, value in args.items() if key not in _NOT_TIMMS}
    if is_pit(args):
        shared.pop("act_layer")  # timm's PiT has the exact GELU only; see `timm_name`
    elif args["fc_norm"] is not None:
        shared["fc_norm"] = args["fc_norm"]
    return shared


def timm_name(name: str, args: Mapping[str, Any]) -> str:
    """Return the name under which timm builds this model from its arguments.

    What timm would drop without a word, and give other logits, becomes part of the name: no model
    of timm's is called so, and it stops.
    """
    # The sizes are in the arguments, so a name of the same shape does.
    name = name.replace("_384", "_224") if name in _UNKNOWN_TO_TIMM else name
    if is_pit(args):
        return f"{name}_with_gelu_tanh" if args["act_layer"] != "gelu" else name
    if args["representation_size"] is not None:
        return f"{name}_with_pre_logits"
    if args["resnet_layers"] != model_args(name)["resnet_layers"]:
        return f"{name}_with_another_resnet"
    return name


def first_conv(args: Mapping[str, Any]) -> str:
    """Return timm's name of the first convolution."""
    if is_pit(args):
        return "patch_embed.conv"
    hybrid = args["resnet_layers"] is not None
    return "patch_embed.backbone.stem.conv" if hybrid else "patch_embed.proj"
