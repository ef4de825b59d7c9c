"""Tensors under our names -> the arguments of their model.

Shapes show most of them; the name of an architecture decides others.
"""

import json
import re
from collections.abc import Mapping
from math import isqrt
from typing import Any, NamedTuple

from torch import Tensor

from vit21k.convert.naming import Converted
from vit21k.errors import CheckpointError, UsageError
from vit21k.models.registry import SIZES, VARIANTS, model_args, name_of

# Parts of a name: a pretrained tag; an image size and the pretraining data.
_SUFFIX = re.compile(r"(\.\w[\w.]*)?$")
_SIZE = re.compile(r"(_\d{2,4})?(_in21k|_miil|_miil_in21k)?$")
_TORCHVISION = {"vit_b": "base", "vit_l": "large", "vit_h": "huge"}
_TORCHVISION_NAME = re.compile(r"(vit_[blh])_\d\d(?:_swag)?")
# Names of DINO, MAE, DeiT and timm: a size, and words that change nothing hidden but what follows.
_NAME = re.compile(
    r"(?:mae_)?(?:vit|deit3?|flexivit)_(?P<size>[a-z]+(?:\d+m2?)?)(?:_distilled)?(?:_patch\d+)?"
    r"(?:_dec\d+d\d+b)?(?P<words>(?:_(?:plus|reg\d+|gap|map|clip|quickgelu|siglip|dinov2|tipsv2"
    r"|36x1))*)"
)
# Size -> width and heads.  The width does not decide the heads: 768 has 12 or 16.
_HEADS: Mapping[str, tuple[int, int]] = {
    **{name: (int(size["embed_dim"]), int(size["num_heads"])) for name, size in SIZES.items()},
    "xsmall": (256, 4),
    "wee": (256, 4),
    "little": (320, 5),
    "medium": (512, 8),
    "mediumd": (512, 8),
    "betwixt": (640, 10),
    "so150m": (896, 14),
    "so150m2": (832, 13),
    "so400m": (1152, 16),
    "giantopt": (1536, 16),
}
# Of a size with certain words in its name.
_OTHER_HEADS: Mapping[tuple[str, str], tuple[int, int]] = {
    ("base", "_gap"): (768, 16),
    ("base", "_plus"): (896, 14),
    ("base", "_plus_clip"): (896, 14),
    ("giant", "_dinov2"): (1536, 24),
    ("giant", "_reg4_dinov2"): (1536, 24),
    ("giant", "_reg1_tipsv2"): (1536, 24),
}
# Names of timm's `Eva` with rotary positions -> those; sizes of DINOv3.
_ROPE = re.compile(
    r"vit_(?P<size>small|base|large|small_plus|huge_plus|7b)_patch16_"
    r"(?:(?P<axial>rope|rope_ape)|dinov3(?:_qkvb)?)"
)
_DINOV3_HEADS = {"small_plus": (384, 6), "huge_plus": (1280, 20), "7b": (4096, 32)}
_OTHERS: Mapping[str, tuple[int, int]] = {"eva_large_patch14": (1024, 16), "test_vit": (64, 2)}
_TANH = re.compile(
    r"vit_(?:(?:base_patch32|giantopt_patch16|so400m_patch16)_siglip(?:_gap)?_\d+"
    r"|large_patch16_siglip(?:_gap)?_512)"
)


def known_architecture(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], str | None]:
    """Return the arguments that the ``architecture`` of *config* decides.

    Args:
        config: With the keys of timm's ``config.json``.
        tensors: Under our names.

    Returns:
        The arguments, and the name of the architecture if it is not one of ours.

    Raises:
        CheckpointError: The tensors are those of another architecture.
    """
    name = config.get("architecture")
    if not isinstance(name, str) or name.lower() == "visiontransformer":  # timm's class
        return {}, None
    found = _of_name(name)
    if found is None:
        return {}, name
    width, known = found
    args = config.get("model_args")
    resized = isinstance(args, Mapping) and "embed_dim" in args
    patch = tensors.get("patch_embed.proj.weight")
    if width and not resized and patch is not None and patch.shape[:1] != (width,):
        raise CheckpointError(
            f"the tensors are not those of the architecture `{name:.60}` that their config names: "
            f"{patch.shape[:1][0] if patch.ndim else 0} wide, not {width}"
        )
    if "heads" not in known and "rope" not in known:
        averages = "fc_norm.weight" in tensors or "cls_token" not in tensors
        pooled = "map" if "attn_pool.latent" in tensors else "avg" if averages else "token"
        known = {**known, "global_pool": pooled}
    return known, None


def _of_name(full: str) -> tuple[int | None, dict[str, Any]] | None:
    """Return width and hidden arguments of an architecture; None: it is not one of ours."""
    full = _SUFFIX.sub("", full)
    base = _SIZE.sub("", full)
    for name in VARIANTS:
        if _SIZE.sub("", name) == base and "heads" in VARIANTS[name]:
            return None, {"heads": VARIANTS[name]["heads"], "act_layer": "gelu"}
        if _SIZE.sub("", name) == base:
            return _decided(VARIANTS[name]["embed_dim"], VARIANTS[name]["num_heads"])
    if base in _OTHERS:
        return _decided(*_OTHERS[base])
    if match := _TORCHVISION_NAME.fullmatch(full):
        return _decided(*_HEADS[_TORCHVISION[match[1]]])
    return _of_words(full, base)


def _of_words(full: str, base: str) -> tuple[int | None, dict[str, Any]] | None:
    """Return what the words in the *full* name of timm say; *base* has no size."""
    if match := _ROPE.fullmatch(base):
        axial, sizes = bool(match["axial"]), {**_HEADS, **_DINOV3_HEADS}[match["size"]]
        width, known = _decided(*sizes, norm_eps=1e-6 if axial else 1e-5)
        pooling = {"global_pool": "token" if axial else "avg", "fc_norm": False}
        return width, {**known, **pooling, "rope": "axial" if axial else "dinov3"}
    match = _NAME.fullmatch(base)
    if match is None or match["size"] not in _HEADS:
        return None
    size, words = match["size"], match["words"]
    activation = "quick_gelu" if "_quickgelu" in words else "gelu"
    if _TANH.fullmatch(full):
        activation = "gelu_tanh"
    sizes = _OTHER_HEADS.get((size, words), _HEADS[size])
    return _decided(*sizes, activation, norm_eps=1e-5 if "_clip" in words else 1e-6)


def _decided(
    width: int, num_heads: int, activation: str = "gelu", norm_eps: float = 1e-6
) -> tuple[int, dict[str, Any]]:
    return width, {"num_heads": num_heads, "act_layer": activation, "norm_eps": norm_eps}


# Arguments that no tensor shows -> the default of all constructors; None: they differ.
_HIDDEN: Mapping[str, Any] = {
    "num_heads": None,
    "act_layer": "gelu",
    "norm_eps": 1e-6,
    "global_pool": "token",
    "stem_eps": "timm",
}
# The same, of a model that has no position embedding.
_WITHOUT_POSITIONS: Mapping[str, Any] = {"rope": None, "img_size": None}
_PIT_HIDDEN: Mapping[str, Any] = {"heads": None, "act_layer": "gelu"}
# Arguments that the user has to give before another architecture is read as ours.
_DECIDING = ("num_heads", "act_layer", "norm_eps")
_WORDS = {
    "num_heads": "how many attention heads",
    "heads": "how many attention heads",
    "act_layer": "which activation",
    "rope": "which rotary positions",
    "img_size": "which image size",
    "norm_eps": "which epsilon of norms",
}
_EXAMPLES = {
    "num_heads": "N",
    "heads": "[N,N,N]",
    "act_layer": "gelu|gelu_tanh|quick_gelu",
    "rope": "axial|dinov3",
    "img_size": "N",
    "norm_eps": "X",
    "global_pool": "token|avg",
}


class Architecture(NamedTuple):
    """The model of a set of tensors."""

    name: str
    """The model of this shape, or the nearest one; see `name_of`."""
    args: dict[str, Any]
    """Every argument of its constructor."""
    assumed: tuple[str, ...]
    """A sentence on the arguments that were assumed, if there are any."""


def infer_architecture(
    converted: Converted,
    given: Mapping[str, Any] | None = None,
    fallback: Mapping[str, Any] | None = None,
) -> Architecture:
    """Return the model of these tensors.

    Width, depth, patches, image size, pre-logits and head are read from shapes.  The rest is
    decided by the format or a config file, else by *given*, else by *fallback*.  The number of
    heads is never guessed.

    Args:
        converted: Tensors under our names, and their known arguments.
        given: Arguments that the user gave for these weights.
        fallback: Arguments of the model that will have the weights.

    Raises:
        CheckpointError: They are the weights of no model that vit21k has.
        UsageError: Nothing decides the number of heads, or *given* contradicts what is known.
    """
    tensors = converted.tensors
    pit = "transformers.0.blocks.0.norm1.weight" in tensors
    try:
        shown = (_pit if pit else _vit)(tensors, converted.known)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"the weights lack what every model has: {error}") from error
    _check_given(shown, converted, given or {}, pit=pit)
    decided = {**(given or {}), **converted.known}
    if converted.unknown is not None:
        _check_unknown(converted.unknown, decided)
    customary = {**(_PIT_HIDDEN if pit else _HIDDEN), **converted.customary}
    if not pit:
        customary |= {"rope": "none"} if "pos_embed" in tensors else _WITHOUT_POSITIONS
    hidden, assumed = _hidden(shown, {**(fallback or {}), **decided}, customary)
    try:
        found = _completed(tensors, {**shown, **hidden}, decided)
        name = name_of(found)
        return Architecture(name, model_args(name, **found), assumed)
    except UsageError as error:
        message = f"no model has these weights: {error.message}"
        raise (UsageError if given else CheckpointError)(message) from error


def _check_given(
    shown: Mapping[str, Any], converted: Converted, given: Mapping[str, Any], *, pit: bool
) -> None:
    """Raise a `UsageError` if *given* contradicts the weights, or does not apply to them."""
    hidden = _PIT_HIDDEN if pit else {**_HIDDEN, "rope": None}
    if not pit and "pos_embed" not in converted.tensors:
        hidden = {**hidden, **_WITHOUT_POSITIONS}
    for key, value in given.items():
        known = converted.known.get(key, shown.get(key) if key not in hidden else None)
        if known is not None and known != value:
            raise UsageError(
                f"`--set model.{key}={_text(value)}` contradicts the weights, "
                f"which say {_text(known)}",
                hint="remove the option",
            )
        if known is None and key not in hidden:
            raise UsageError(
                f"`--set model.{key}=` does not apply to these weights",
                hint=f"what can be set: {', '.join(f'model.{name}' for name in hidden)}",
            )


def _check_unknown(name: str, decided: Mapping[str, Any]) -> None:
    """Raise a `UsageError` unless everything that may differ in architecture *name* is decided."""
    if missing := [key for key in _DECIDING if key not in decided]:
        raise UsageError(
            f"the weights are named `{name:.80}`, an architecture that vit21k does not have",
            hint="to read its tensors as a Vision Transformer nevertheless, set what they do not "
            f"show: {_options(missing)}",
        )


def _hidden(
    shown: Mapping[str, Any], decided: Mapping[str, Any], customary: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the arguments that no tensor shows, and a warning on those that are assumed."""
    hidden: dict[str, Any] = {}
    assumed = []
    missing = [key for key, usual in customary.items() if usual is None and key not in decided]
    if missing:
        raise UsageError(
            f"nothing says {' and '.join(_WORDS[key] for key in missing)} these weights have: "
            "no tensor shows it",
            hint=f"set it: {_options(missing)}; `vit21k export` with it writes a folder that "
            "records it",
        )
    for key, usual in customary.items():
        if key == "global_pool" and _shows_pool(shown):
            hidden[key] = shown[key]
        elif key == "stem_eps" and shown.get("resnet_layers") is None:
            continue
        elif key in decided:
            hidden[key] = decided[key]
        elif key == "rope":
            continue  # no checkpoint with both has come without the name of its architecture
        else:
            hidden[key] = shown.get(key, usual)
            assumed.append(key)
    if not assumed:
        return hidden, ()
    values = ", ".join(f"{key} {_text(hidden[key])}" for key in assumed)
    return hidden, (f"assumed, as nothing says it: {values} ({_options(assumed)})",)


def _shows_pool(shown: Mapping[str, Any]) -> bool:
    """Return whether there is but one pooling for such tensors."""
    return shown["global_pool"] == "map" or shown["distilled"] or not shown["class_token"]


def _options(keys: list[str]) -> str:
    return " ".join(f"`--set model.{key}={_EXAMPLES.get(key, '')}`" for key in keys)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)[:60]


def _vit(tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the tensors of a Vision Transformer show."""
    patch = tensors["patch_embed.proj.weight"]
    width, side = int(patch.shape[0]), int(patch.shape[2])
    stem = tensors.get("patch_embed.backbone.stem.conv.weight", patch)
    hidden = int(tensors["blocks.0.mlp.fc1.weight"].shape[0])
    head = tensors.get("head.weight")
    representation = tensors.get("pre_logits.fc.weight")
    class_token = "cls_token" in tensors
    averages = not class_token or "fc_norm.weight" in tensors
    attends = "attn_pool.latent" in tensors
    second = tensors["blocks.0.mlp.fc2.weight"].shape[1]
    registers = tensors.get("reg_token")
    return {
        "patch_size": side,
        "in_chans": int(stem.shape[1]),
        "num_classes": 0 if head is None else int(head.shape[0]),
        "global_pool": "map" if attends else "avg" if averages else "token",
        "class_token": class_token,
        "reg_tokens": 0 if registers is None else int(registers.shape[1]),
        "distilled": "dist_token" in tensors,
        "pre_norm": "norm_pre.weight" in tensors,
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        "mlp_layer": "swiglu" if hidden == 2 * second else "mlp",
        "norm_layer": "layernorm" if "blocks.0.norm1.bias" in tensors else "rmsnorm",
        "embed_dim": width,
        "depth": _count(tensors, r"blocks\.(\d+)\."),
        "mlp_ratio": _ratio(hidden, width),
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        # Its first value, which the trained factors do not show; DeiT III's.
        "init_values": known.get("init_values", 1e-4) if "blocks.0.ls1.gamma" in tensors else None,
        "representation_size": None if representation is None else int(representation.shape[0]),
        "resnet_layers": _resnet_layers(tensors),
    }


def _pit(tensors: Mapping[str, Tensor], _known: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the tensors of a PiT show."""
    patch, head = tensors["patch_embed.conv.weight"], tensors.get("head.weight")
    num_stages = _count(tensors, r"transformers\.(\d+)\.")
    stages = [f"transformers.{stage}.blocks" for stage in range(num_stages)]
    width = int(tensors[f"{stages[0]}.0.norm1.weight"].shape[0])
    hidden = int(tensors[f"{stages[0]}.0.mlp.fc1.weight"].shape[0])
    return {
        "patch_size": int(patch.shape[2]),
        "stride": int(patch.shape[2]) // 2,
        "in_chans": int(patch.shape[1]),
        "num_classes": 0 if head is None else int(head.shape[0]),
        "depth": [_count(tensors, re.escape(stage) + r"\.(\d+)\.") for stage in stages],
        "mlp_ratio": _ratio(hidden, width),
        "distilled": tensors["cls_token"].shape[1] > 1,
    }


def _completed(
    tensors: Mapping[str, Tensor], args: dict[str, Any], decided: Mapping[str, Any]
) -> dict[str, Any]:
    """Return *args* with the image size, and the widths of a PiT."""
    if "heads" in args:
        positions = tensors["pos_embed"]
        grid, stride = int(positions.shape[-1]), args["stride"]
        least = (grid - 1) * stride + args["patch_size"]
        size = decided.get("img_size", least)
        fits = isinstance(size, int) and (size - args["patch_size"]) // max(1, stride) + 1 == grid
        return {**args, "img_size": size if fits else least, "base_dims": _base_dims(tensors, args)}
    if "pos_embed" not in tensors:
        return {**args, "pos_embed": "none", "fc_norm": _fc_norm(tensors, args)}
    grid, no_embed_class = _grid(tensors, args, decided.get("no_embed_class"))
    layers, side = args["resnet_layers"], args["patch_size"]
    stride = side if layers is None else side * 2 ** (1 + len(layers))
    size = decided.get("img_size")
    fits = isinstance(size, int) and size > 0 and -(-size // stride) in (grid, grid + 1)
    return {
        **args,
        "no_embed_class": no_embed_class,
        "fc_norm": _fc_norm(tensors, args),
        "img_size": size if fits else grid * stride,
    }


def _fc_norm(tensors: Mapping[str, Tensor], args: Mapping[str, Any]) -> bool | None:
    after_pool = "fc_norm.weight" in tensors
    return None if after_pool == (args["global_pool"] == "avg") else after_pool


def _grid(
    tensors: Mapping[str, Tensor], args: Mapping[str, Any], no_embed_class: bool | None
) -> tuple[int, bool]:
    """Return the side of the grid of positions, and whether only patches have a position.

    Args:
        tensors: Of a Vision Transformer.
        args: Which tokens there are.
        no_embed_class: What a config file says; None: nothing.
    """
    shape = tuple(tensors["pos_embed"].shape)
    prefix = args["class_token"] + args["distilled"] + args["reg_tokens"]
    possible = {}
    for only_patches in (False, True) if no_embed_class is None else (no_embed_class,):
        num_patches = shape[1] - (0 if only_patches else prefix) if len(shape) == 3 else 0  # noqa: PLR2004 (1, N, D)
        grid = isqrt(max(0, num_patches))
        if grid and grid * grid == num_patches:
            possible[only_patches if prefix else False] = grid
    if len(possible) > 1:
        raise CheckpointError(
            f"`pos_embed` of shape {shape} may or may not have positions for the {prefix} tokens "
            "before the patches",
            hint="a `config.json` of timm with `no_embed_class` in its `model_args` says it",
        )
    if not possible:
        tokens = {0: "", 1: " and a class token"}.get(prefix, f" and {prefix} tokens before it")
        raise CheckpointError(f"`pos_embed` of shape {shape} is not that of a square grid{tokens}")
    ((only_patches, grid),) = possible.items()
    return grid, only_patches


def _base_dims(tensors: Mapping[str, Tensor], args: Mapping[str, Any]) -> list[int]:
    """Return the width of a head in each stage of a PiT."""
    heads = args["heads"]
    widths = [
        int(tensors[f"transformers.{stage}.blocks.0.norm1.weight"].shape[0])
        for stage in range(len(args["depth"]))
    ]
    good = isinstance(heads, list | tuple) and len(heads) == len(widths)
    if not good or any(
        not isinstance(number, int) or number < 1 or width % number
        for number, width in zip(heads, widths, strict=True)
    ):
        raise CheckpointError(f"{heads!s:.60} heads do not fit widths of {widths}")
    return [width // number for width, number in zip(widths, heads, strict=True)]


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many indices *pattern* finds in the names, and check that none is missing."""
    found = {match[1] for name in tensors if (match := re.match(pattern, name))}
    if missing := [number for number in range(len(found)) if str(number) not in found]:
        last = max(found, key=lambda number: (len(number), number))
        raise CheckpointError(f"block {missing[0]} is missing, and there is a block {last:.20}")
    return len(found)


def _ratio(hidden: int, width: int) -> float:
    """Return a ratio r with ``int(width * r) == hidden``."""
    for ratio in (hidden / width, (hidden + 0.5) / width):
        if int(width * ratio) == hidden:
            return ratio
    raise CheckpointError(f"an MLP of {hidden} values for a width of {width}")


def _resnet_layers(tensors: Mapping[str, Tensor]) -> list[int] | None:
    prefix = r"patch_embed\.backbone\.stages\."
    num_stages = _count(tensors, prefix + r"(\d+)\.")
    if not num_stages:
        return None
    return [_count(tensors, rf"{prefix}{stage}\.blocks\.(\d+)\.") for stage in range(num_stages)]
