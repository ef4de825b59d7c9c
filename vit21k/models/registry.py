"""The published sizes of the models; needs no torch.

The names of the models, and the arguments behind each name; needs no torch.

Names are timm's, for timm's arguments.  `variants.py` holds the published sizes.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from vit21k.errors import UsageError
from vit21k.models.cost import grid_side, is_pit

if TYPE_CHECKING:
    from vit21k.models.vit import ImageClassifier

SIZES: Mapping[str, Mapping[str, float]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "giant": {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11},
    "gigantic": {"embed_dim": 1664, "depth": 48, "num_heads": 16, "mlp_ratio": 64 / 13},
}

_PATCH_SIZES = {
    "tiny": (16,),
    "small": (32, 16, 8),
    "base": (32, 16, 8),
    "large": (32, 16, 14),
    "huge": (14,),
    "giant": (14,),
    "gigantic": (14,),
}

# Name of the ResNet and stride of the whole -> size, and blocks in each of its stages.
_HYBRIDS = {
    "small_r26_s32": ("small", [2, 2, 2, 2]),
    "base_r26_s32": ("base", [2, 2, 2, 2]),
    "base_r50_s16": ("base", [3, 4, 9]),
    "large_r50_s32": ("large", [3, 4, 6, 3]),
}

_IMG_SIZES = (224, 384)

_PITS: Mapping[str, Mapping[str, Any]] = {
    "ti": {"base_dims": [32, 32, 32], "depth": [2, 6, 4], "heads": [2, 4, 8]},
    "xs": {"base_dims": [48, 48, 48], "depth": [2, 6, 4], "heads": [2, 4, 8]},
    "s": {"base_dims": [48, 48, 48], "depth": [2, 6, 4], "heads": [3, 6, 12]},
    "b": {
        "base_dims": [64, 64, 64],
        "depth": [3, 6, 4],
        "heads": [4, 8, 16],
        "patch_size": 14,
        "stride": 7,
    },
}

_SOURCES = {
    "tiny": "arXiv:2106.10270",
    "small": "arXiv:2106.10270",
    "giant": "arXiv:2106.04560",
    "gigantic": "arXiv:2106.04560",
}

FORMATS: Mapping[str, str] = {
    "vit21k": "run, checkpoint or model folder of vit21k",
    "timm": "timm: folder, .safetensors or .pth, hybrids and PiT included",
    "torchvision": "torchvision `vit_*`: .pth or .safetensors",
    "transformers": "transformers ViT: folder, in the names of version 4 or 5",
    "google": "Google's .npz, published or Linen names, hybrids and mean pooling included",
    "plsc": "PLSC .pdparams",
    "paddlevit": "PaddleViT .pdparams, and paddle_pit's",
    "naver": "naver-ai PiT .pth",
}
"""Formats that are read, and what each is."""


def source_of(name: str) -> str:
    """Return the paper that the *name* model comes from."""
    family, size, *rest = name.split("_")
    if family == "pit":
        return "arXiv:2103.16302"
    if rest[0].startswith("r") and size != "base":
        return "arXiv:2106.10270"
    return _SOURCES.get(size, "arXiv:2010.11929")


def formats_of(name: str) -> list[str]:
    """Return the formats, of `FORMATS`, in which weights of the *name* model are read."""
    if name.startswith("pit"):
        return ["vit21k", "timm", "naver", "paddlevit"]
    if VARIANTS[name].get("resnet_layers"):
        return ["vit21k", "timm", "google"]
    return [format_ for format_ in FORMATS if format_ != "naver"]


def _variants() -> dict[str, dict[str, Any]]:
    """Return the arguments that make a name what it is, from small to large."""
    plain = {
        f"vit_{size}_patch{patch_size}_{img_size}": {
            **widths,
            "patch_size": patch_size,
            "img_size": img_size,
        }
        for size, widths in SIZES.items()
        for patch_size in _PATCH_SIZES[size]
        for img_size in _IMG_SIZES
    }
    hybrids = {
        f"vit_{name}_{img_size}": {
            **SIZES[size],
            "patch_size": 1,
            "img_size": img_size,
            "resnet_layers": layers,
        }
        for name, (size, layers) in _HYBRIDS.items()
        for img_size in _IMG_SIZES
    }
    pits = {
        f"pit_{size}{'_distilled' * distilled}_224": {**args, "distilled": distilled}
        for size, args in _PITS.items()
        for distilled in (False, True)
    }
    return {**plain, **hybrids, **pits}


VARIANTS: Mapping[str, Mapping[str, Any]] = _variants()
"""Name -> the arguments that make it what it is, from small to large."""


_DROP_RATES = {
    "pos_drop_rate": 0.0,
    "proj_drop_rate": 0.0,
    "attn_drop_rate": 0.0,
    "drop_path_rate": 0.0,
    "drop_path_shape": "linear",
    "head_drop_rate": 0.0,
}

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
    "norm_eps": 1e-6,
    "init_values": None,
    "resnet_layers": None,
    "stem_eps": "google",
    **_DROP_RATES,
}

_PIT_DEFAULTS: Mapping[str, Any] = {
    "img_size": 224,
    "patch_size": 16,
    "stride": 8,
    "in_chans": 3,
    "num_classes": 1000,
    "global_pool": "token",
    "base_dims": [48, 48, 48],
    "depth": [2, 6, 4],
    "heads": [2, 4, 8],
    "mlp_ratio": 4.0,
    "distilled": False,
    "act_layer": "gelu",
    **_DROP_RATES,
}

_CHOICES: Mapping[str, tuple[str, ...]] = {
    "global_pool": ("token", "avg"),
    "act_layer": ("gelu", "gelu_tanh"),
    "drop_path_shape": ("linear", "linear_exclusive", "constant"),
    "stem_eps": ("google", "timm"),
}

_STAGES = ("base_dims", "depth", "heads")
# No model comes near, and a larger number would take memory or time before anything fails.
_MOST: Mapping[str, int] = {
    "img_size": 8192,
    "patch_size": 1024,
    "stride": 1024,
    "in_chans": 1024,
    "num_classes": 10_000_000,
    "embed_dim": 32_768,
    "depth": 256,
    "num_heads": 1024,
    "representation_size": 65_536,
}
_MOST_IN_STAGE, _MOST_STAGES, _MOST_RATE = 4096, 8, 10_000
_MAY_BE_NONE = ("fc_norm", "representation_size", "init_values", "resnet_layers")
_RATES = (
    *(name for name in _DROP_RATES if name.endswith("_rate")),
    "mlp_ratio",
    "norm_eps",
    "init_values",
)
_FLAGS = ("class_token", "fc_norm", "qkv_bias", "distilled")


def list_models() -> list[str]:
    """Return the names that `get_model` knows, from small to large."""
    return list(VARIANTS)


def model_args(name: str, **overrides: Any) -> dict[str, Any]:
    """Return every argument of the *name* model's constructor: plain values, fit for JSON.

    Args:
        name: One of `list_models()`.
        **overrides: Arguments of the constructor to use instead of the named model's.

    Raises:
        UsageError: Unknown name, unknown argument, or values that make no model.
    """
    if name not in VARIANTS:
        raise UsageError(
            f"no model is called `{name}`",
            hint=_did_you_mean(name, list(VARIANTS)) or "`vit21k models` lists them",
        )
    defaults = _PIT_DEFAULTS if is_pit(VARIANTS[name]) else _DEFAULTS
    for argument in overrides:
        if argument not in defaults:
            raise UsageError(
                f"a model has no argument `{argument}`",
                hint=_did_you_mean(argument, list(defaults)) or f"arguments: {', '.join(defaults)}",
            )
    args = {**defaults, **VARIANTS[name], **overrides}
    _check_kinds(args)
    _check_pit(args) if is_pit(args) else _check(args)
    return args


def name_of(args: Mapping[str, Any]) -> str:
    """Return the name of the model that *args* describe, or else of the nearest one.

    The nearest is of the same family, and its own arguments do not matter where all of *args* are
    given beside the name.
    """
    family = [name for name, own in VARIANTS.items() if is_pit(own) == is_pit(args)]

    def likeness(name: str) -> tuple[bool, int, float]:
        own = model_args(name)
        same = sum(own[key] == args[key] for key in own if key in args)
        width = 0 if is_pit(args) else -abs(own["embed_dim"] - args["embed_dim"])
        return (is_pit(own) or own["resnet_layers"] == args["resnet_layers"], width, same)

    return max(family, key=likeness)


def get_model(name: str, *, num_classes: int = 1000, **overrides: Any) -> "ImageClassifier":
    """Build the *name* model.

    Args:
        name: One of `list_models()`.
        num_classes: Outputs of the head.
        **overrides: Arguments of the constructor to use instead of the named model's.

    Raises:
        UsageError: Unknown name, unknown argument, or values that make no model.
    """
    args = model_args(name, num_classes=num_classes, **overrides)
    return build_model(args)


def build_model(args: Mapping[str, Any]) -> "ImageClassifier":
    """Build the model of *args*, as `model_args` returns them."""
    from vit21k.models.pit import PoolingTransformer  # noqa: PLC0415 (the names need no torch)
    from vit21k.models.vit import VisionTransformer  # noqa: PLC0415

    return PoolingTransformer(**args) if is_pit(args) else VisionTransformer(**args)


def _check_kinds(args: Mapping[str, Any]) -> None:
    """Raise a `UsageError` if an argument is of another kind than the constructor's, or immense."""
    for argument, value in args.items():
        if value is None and argument in _MAY_BE_NONE:
            continue
        if argument in (*_STAGES, "resnet_layers") and (argument != "depth" or is_pit(args)):
            good = _is_stages(value)
            wanted = f"a list of up to {_MOST_STAGES} numbers from 1 to {_MOST_IN_STAGE:,}"
        elif argument in _MOST:
            good = type(value) is int and (argument != "num_classes") <= value <= _MOST[argument]
            wanted = f"a whole number from {int(argument != 'num_classes')} to {_MOST[argument]:,}"
        elif argument in _RATES:
            good = type(value) in (int, float) and 0 <= value <= _MOST_RATE
            wanted = f"a number from 0 to {_MOST_RATE:,}"
        else:
            good, wanted = argument not in _FLAGS or isinstance(value, bool), "true or false"
        if not good:
            raise UsageError(f"`{argument}` is {value!r:.60}; it must be {wanted}")


def _is_stages(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and 1 <= len(value) <= _MOST_STAGES
        and all(type(number) is int and 1 <= number <= _MOST_IN_STAGE for number in value)
    )


def _check_pit(args: Mapping[str, Any]) -> None:
    """Raise a `UsageError` if no PiT can be built from *args*."""
    stages = [args[argument] for argument in _STAGES]
    if len({len(values) for values in stages}) != 1:
        raise UsageError(f"{', '.join(_STAGES)} must be lists of the same length")
    if args["global_pool"] != "token":
        raise UsageError("a PiT pools the class token only", hint="set global_pool=token")
    for argument in ("act_layer", "drop_path_shape"):
        _check_choice(args, argument)
    if args["img_size"] < args["patch_size"]:
        raise UsageError(
            f"`img_size` {args['img_size']} is smaller than `patch_size` {args['patch_size']}"
        )


def _check(args: Mapping[str, Any]) -> None:
    """Raise a `UsageError` if no model can be built from *args*."""
    if grid_side(args) < 1:
        raise UsageError(
            f"`img_size` {args['img_size']} is smaller than `patch_size` {args['patch_size']}"
        )
    if args["embed_dim"] % args["num_heads"]:
        raise UsageError(
            f"`embed_dim` {args['embed_dim']} is not a multiple of `num_heads` {args['num_heads']}"
        )
    for argument in _CHOICES:
        _check_choice(args, argument)
    if args["global_pool"] == "token" and not args["class_token"]:
        raise UsageError("without a class token there is none to pool", hint="set global_pool=avg")


def _did_you_mean(word: str, known: list[str]) -> str | None:
    close = get_close_matches(word, known, n=1)
    return f"did you mean `{close[0]}`?" if close else None


def _check_choice(args: Mapping[str, Any], argument: str) -> None:
    if args[argument] not in _CHOICES[argument]:
        choices = " or ".join(_CHOICES[argument])
        raise UsageError(f"`{argument}` is `{args[argument]!s:.60}`; it must be {choices}")
