"""The names of the models, and the arguments behind each name; needs no torch.

Source of widths, depths and heads: Ti and S from Steiner et al., arXiv:2106.10270; B, L and H from
Dosovitskiy et al., arXiv:2010.11929, table 1.  Names are timm's, for timm's arguments.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from vit21k.errors import UsageError

if TYPE_CHECKING:
    from vit21k.models.vit import VisionTransformer

_SIZES: Mapping[str, Mapping[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}

_PATCH_SIZES = {
    "tiny": (16,),
    "small": (32, 16, 8),
    "base": (32, 16, 8),
    "large": (32, 16, 14),
    "huge": (14,),
}

_IMG_SIZES = (224, 384)

_DEFAULTS: Mapping[str, Any] = {
    "img_size": 224,
    "patch_size": 16,
    "in_chans": 3,
    "num_classes": 1000,
    "global_pool": "token",
    "class_token": True,
    "fc_norm": None,
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "representation_size": None,
    "act_layer": "gelu",
    "pos_drop_rate": 0.0,
    "proj_drop_rate": 0.0,
    "attn_drop_rate": 0.0,
    "drop_path_rate": 0.0,
}

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "global_pool": ("token", "avg"),
    "act_layer": ("gelu", "gelu_tanh"),
}

_COUNTS = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads")


def list_models() -> list[str]:
    """Return the names that `get_model` knows, from small to large."""
    return list(_VARIANTS)


def model_args(name: str, **overrides: Any) -> dict[str, Any]:
    """Return every argument of the *name* model's constructor: plain values, fit for JSON.

    Args:
        name: One of `list_models()`.
        **overrides: Arguments of `VisionTransformer` to use instead of the named model's.

    Raises:
        UsageError: Unknown name, unknown argument, or values that make no model.
    """
    if name not in _VARIANTS:
        raise UsageError(
            f"no model is called `{name}`",
            hint=_did_you_mean(name, list(_VARIANTS)) or "`vit21k models` lists them",
        )
    for argument in overrides:
        if argument not in _DEFAULTS:
            raise UsageError(
                f"a model has no argument `{argument}`",
                hint=_did_you_mean(argument, list(_DEFAULTS))
                or f"arguments: {', '.join(_DEFAULTS)}",
            )
    args = {**_DEFAULTS, **_VARIANTS[name], **overrides}
    _check(args)
    return args


def get_model(name: str, *, num_classes: int = 1000, **overrides: Any) -> "VisionTransformer":
    """Build the *name* model.

    Args:
        name: One of `list_models()`.
        num_classes: Outputs of the head.
        **overrides: Arguments of `VisionTransformer` to use instead of the named model's.

    Raises:
        UsageError: Unknown name, unknown argument, or values that make no model.
    """
    args = model_args(name, num_classes=num_classes, **overrides)
    from vit21k.models.vit import VisionTransformer  # noqa: PLC0415 (the names need no torch)

    return VisionTransformer(**args)


def _check(args: Mapping[str, Any]) -> None:
    """Raise a `UsageError` if no model can be built from *args*."""
    for argument in _COUNTS:
        if args[argument] < 1:
            raise UsageError(f"`{argument}` is {args[argument]}; it must be 1 or more")
    if args["img_size"] < args["patch_size"]:
        raise UsageError(
            f"`img_size` {args['img_size']} is smaller than `patch_size` {args['patch_size']}"
        )
    if args["embed_dim"] % args["num_heads"]:
        raise UsageError(
            f"`embed_dim` {args['embed_dim']} is not a multiple of `num_heads` {args['num_heads']}"
        )
    for argument, choices in _CHOICES.items():
        if args[argument] not in choices:
            raise UsageError(
                f"`{argument}` is `{args[argument]}`; it must be {' or '.join(choices)}"
            )
    if args["global_pool"] == "token" and not args["class_token"]:
        raise UsageError("without a class token there is none to pool", hint="set global_pool=avg")


def _did_you_mean(word: str, known: list[str]) -> str | None:
    close = get_close_matches(word, known, n=1)
    return f"did you mean `{close[0]}`?" if close else None


def _variants() -> dict[str, dict[str, int]]:
    return {
        f"vit_{size}_patch{patch_size}_{img_size}": {
            **widths,
            "patch_size": patch_size,
            "img_size": img_size,
        }
        for size, widths in _SIZES.items()
        for patch_size in _PATCH_SIZES[size]
        for img_size in _IMG_SIZES
    }


_VARIANTS = _variants()
