"""The names of the models, and the arguments behind each name; needs no torch.

Names and arguments are timm's.  An argument of a model is declared once, in `VIT_ARGUMENTS` or
`PIT_ARGUMENTS`: its default, and which values it takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal

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
    "timm": "timm: folder, .safetensors or .pth, hybrids and PiT included; in the same names DeiT, "
    "DeiT III, DINO, MAE and DINOv2 (`.pth` of their authors)",
    "torchvision": "torchvision `vit_*`: .pth or .safetensors",
    "transformers": "transformers: folder of a ViT, DeiT, ViT-MAE, ViT-MSN, DINOv2, DINOv3, or the "
    "image tower of CLIP or SigLIP, in the names of version 4 or 5",
    "google": "Google's .npz: vision_transformer (published or Linen names, hybrids and mean "
    "pooling) and big_vision (MAP pooling, SigLIP's image tower)",
    "clip": "image tower of OpenAI's CLIP or open_clip: state dict as .pt, .bin or .safetensors",
    "mmpretrain": "MMPretrain and MMClassification ViT and DeiT: .pth",
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


_MOST_IN_STAGE, _MOST_STAGES, _MOST_RATE = 4096, 8, 10_000


@dataclass(frozen=True)
class Argument:
    """An argument of a model's constructor.

    Attributes:
        default: Where neither the name of the model nor the caller says otherwise.
        kind: "count": a whole number; "rate": a number; "stages": a list of whole numbers.
        least: Of a count.
        most: Of a count.  No model comes near, and a larger number would take memory or time before
            anything fails.
        choices: Of a choice.
        may_be_none: Whether None is a value.
        decides: With another value, the weights have another meaning ("features"), the head reads
            something else ("pooling"), or neither: positions are resized, heads are treated
            separately, dropout has no weights, epsilons change the last digits.
        in_timm: Whether it is an argument of timm's constructor too.
    """

    default: Any
    kind: Literal["count", "rate", "flag", "choice", "stages"]
    least: int = 1
    most: int = 0
    choices: tuple[str, ...] = ()
    may_be_none: bool = False
    decides: Literal["features", "pooling", "neither"] = "features"
    in_timm: bool = True

    def problem(self, value: Any) -> str | None:
        """Return what *value* must be if it is of another kind or immense; None: it is good.

        Choices are checked with the whole model: what fits depends on its family.
        """
        if (value is None and self.may_be_none) or self.kind == "choice":
            return None
        if self.kind == "stages":
            good = _is_stages(value)
            wanted = f"a list of up to {_MOST_STAGES} numbers from 1 to {_MOST_IN_STAGE:,}"
        elif self.kind == "count":
            good = type(value) is int and self.least <= value <= self.most
            wanted = f"a whole number from {self.least} to {self.most:,}"
        elif self.kind == "rate":
            good = type(value) in (int, float) and 0 <= value <= _MOST_RATE
            wanted = f"a number from 0 to {_MOST_RATE:,}"
        else:
            good, wanted = isinstance(value, bool), "true or false"
        return None if good else wanted


_DROP_PATH_SHAPES = ("linear", "linear_exclusive", "constant")
_DROP_RATE = Argument(0.0, "rate", decides="neither", in_timm=False)
_DROP_RATES = {
    "pos_drop_rate": _DROP_RATE,
    "proj_drop_rate": _DROP_RATE,
    "attn_drop_rate": _DROP_RATE,
    "drop_path_rate": _DROP_RATE,
    "drop_path_shape": Argument(
        "linear", "choice", choices=_DROP_PATH_SHAPES, decides="neither", in_timm=False
    ),
    "head_drop_rate": _DROP_RATE,
}

VIT_ARGUMENTS: Mapping[str, Argument] = {
    "img_size": Argument(224, "count", most=8192, decides="neither"),
    "patch_size": Argument(16, "count", most=1024),
    "in_chans": Argument(3, "count", most=1024),
    "num_classes": Argument(
        1000, "count", least=0, most=10_000_000, decides="neither", in_timm=False
    ),
    "global_pool": Argument(
        "token", "choice", choices=("token", "avg", "map", "token_avg"), decides="pooling"
    ),
    "class_token": Argument(True, "flag"),
    "reg_tokens": Argument(0, "count", least=0, most=1024),
    "no_embed_class": Argument(False, "flag"),
    "distilled": Argument(False, "flag", in_timm=False),
    "pre_norm": Argument(False, "flag"),
    "fc_norm": Argument(None, "flag", may_be_none=True, decides="pooling"),
    "embed_dim": Argument(768, "count", most=32_768),
    "depth": Argument(12, "count", most=256),
    "num_heads": Argument(12, "count", most=1024),
    "mlp_ratio": Argument(4.0, "rate"),
    "qkv_bias": Argument(True, "flag"),
    "representation_size": Argument(
        None, "count", most=65_536, may_be_none=True, decides="neither", in_timm=False
    ),
    "pos_embed": Argument("learn", "choice", choices=("learn", "none")),
    "rope": Argument("none", "choice", choices=("none", "axial", "dinov3"), in_timm=False),
    "rope_temperature": Argument(100.0, "rate", in_timm=False),
    "qk_norm": Argument(False, "flag"),
    "mlp_layer": Argument("mlp", "choice", choices=("mlp", "swiglu"), in_timm=False),
    "act_layer": Argument("gelu", "choice", choices=("gelu", "gelu_tanh", "quick_gelu")),
    "norm_layer": Argument("layernorm", "choice", choices=("layernorm", "rmsnorm")),
    "norm_eps": Argument(1e-6, "rate", decides="neither", in_timm=False),
    "init_values": Argument(None, "rate", may_be_none=True, decides="neither"),
    "resnet_layers": Argument(None, "stages", may_be_none=True, in_timm=False),
    "stem_eps": Argument(
        "google", "choice", choices=("google", "timm"), decides="neither", in_timm=False
    ),
    **_DROP_RATES,
}
"""Arguments of `VisionTransformer`, in the order of its constructor."""

PIT_ARGUMENTS: Mapping[str, Argument] = {
    "img_size": VIT_ARGUMENTS["img_size"],
    "patch_size": VIT_ARGUMENTS["patch_size"],
    "stride": Argument(8, "count", most=1024),
    "in_chans": VIT_ARGUMENTS["in_chans"],
    "num_classes": VIT_ARGUMENTS["num_classes"],
    "global_pool": Argument("token", "choice", choices=("token",), decides="pooling"),
    "base_dims": Argument([48, 48, 48], "stages"),
    "depth": Argument([2, 6, 4], "stages"),
    "heads": Argument([2, 4, 8], "stages"),
    "mlp_ratio": VIT_ARGUMENTS["mlp_ratio"],
    "distilled": Argument(False, "flag"),
    "act_layer": Argument("gelu", "choice", choices=("gelu", "gelu_tanh")),
    **_DROP_RATES,
}
"""Arguments of `PoolingTransformer`, in the order of its constructor."""

_STAGES = ("base_dims", "depth", "heads")


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
    known = PIT_ARGUMENTS if is_pit(VARIANTS[name]) else VIT_ARGUMENTS
    for argument in overrides:
        if argument not in known:
            raise UsageError(
                f"a model has no argument `{argument}`",
                hint=_did_you_mean(argument, list(known)) or f"arguments: {', '.join(known)}",
            )
    defaults = {argument: known[argument].default for argument in known}
    args = {**defaults, **VARIANTS[name], **overrides}
    for argument, value in args.items():
        if wanted := known[argument].problem(value):
            raise UsageError(f"`{argument}` is {value!r:.60}; it must be {wanted}")
    _check_pit(args) if is_pit(args) else _check(args)
    return args


def name_of(args: Mapping[str, Any]) -> str:
    """Return the name of the model that *args* describe, or else of the nearest one.

    The nearest is of the same family, and its own arguments do not matter where all of *args* are
    given in addition to the name.
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


def build_model(
    args: Mapping[str, Any],
    *,
    recompute: bool = False,
    any_size: bool = False,
    both_heads: bool = False,
) -> "ImageClassifier":
    """Build the model of *args*, as `model_args` returns them.

    The other arguments are for training, and do not apply to every model: see the constructors.
    """
    from vit21k.models.pit import PoolingTransformer  # noqa: PLC0415 (the names need no torch)
    from vit21k.models.vit import VisionTransformer  # noqa: PLC0415

    if is_pit(args):
        return PoolingTransformer(**args, recompute=recompute, both_heads=both_heads)
    return VisionTransformer(**args, recompute=recompute, any_size=any_size, both_heads=both_heads)


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
    _check_choices(args, PIT_ARGUMENTS)
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
    _check_choices(args, VIT_ARGUMENTS)
    if args["global_pool"].startswith("token") and not args["class_token"]:
        raise UsageError("without a class token there is none to pool", hint="set global_pool=avg")
    if args["distilled"] and args["global_pool"] != "token":
        raise UsageError("a distilled model pools its class tokens", hint="set global_pool=token")
    if args["global_pool"] in ("map", "token_avg") and args["representation_size"] is not None:
        raise UsageError(
            f"a model with global_pool={args['global_pool']} has no pre-logits",
            hint="set representation_size=null",
        )
    if args["rope"] != "none" and args["embed_dim"] // args["num_heads"] % 4:
        raise UsageError(
            f"rotary positions need heads of 4, 8, ... values, not {args['embed_dim']} / "
            f"{args['num_heads']}",
            hint="set embed_dim and num_heads so that a head has a multiple of 4 values",
        )
    if args["mlp_layer"] == "swiglu" and int(args["embed_dim"] * args["mlp_ratio"]) % 2:
        raise UsageError(
            "the hidden layer of a SwiGLU has two halves, and its width is not even",
            hint="set mlp_ratio so that embed_dim * mlp_ratio is even",
        )


def _did_you_mean(word: str, known: list[str]) -> str | None:
    close = get_close_matches(word, known, n=1)
    return f"did you mean `{close[0]}`?" if close else None


def _check_choices(args: Mapping[str, Any], known: Mapping[str, Argument]) -> None:
    for argument, declared in known.items():
        if declared.kind == "choice" and args[argument] not in declared.choices:
            wanted = " or ".join(declared.choices)
            raise UsageError(f"`{argument}` is `{args[argument]!s:.60}`; it must be {wanted}")
