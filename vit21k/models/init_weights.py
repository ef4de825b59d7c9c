"""First weights of a Vision Transformer or a PiT, by published schemes.

| | patch_embed | attn.qkv | attn.proj, MLP | MLP biases | positions | class token |
|---|---|---|---|---|---|---|
| plsc | He | Xavier, fused | Xavier | N(1e-6) | N(0.02) | 0 |
| google | LeCun | Xavier, each | Xavier | N(1e-6) | N(0.02) | 0 |
| big_vision | LeCun | Xavier, each | Xavier | N(1e-6) | N(1 / sqrt(width)) | 0 |
| timm | torch's | N(0.02) | N(0.02) | 0 | N(0.02) | N(1e-6) |
| deit | torch's | N(0.02) | N(0.02) | 0 | N(0.02) | N(0.02) |
| mmpretrain | LeCun, not cut | torch's | torch's; MLP Xavier | N(1e-6) | N(0.02) | 0 |
| mmpretrain_mae | torch's | N(0.02) | N(0.02); MLP Xavier | N(1e-6) | N(0.02) | 0 |
| mindcv | Xavier, bias torch's | Xavier, fused | Xavier | 0 | N(0.02), cut | N(0.02), cut |
| mindcv_v02 | N(0.01) | N(0.01) | N(0.01) | 0 | N(1) | N(1) |

N(s) is normal with the standard deviation s, He N(sqrt(2 / fan_in)), LeCun N(sqrt(1 / fan_in));
cuts are at two deviations.  Registers and the distillation token are N(0.02), in timm N(1e-6);
the query of MAP pooling N(1 / sqrt(width)).  torch's default is uniform within 1 / sqrt(fan_in),
biases too.
`pre_logits` is LeCun in google, big_vision and (not cut) mmpretrain, else as `attn.proj`.  All
other biases are 0, layer norms 1 and 0.  The ResNet of a hybrid: LeCun, group norms 1 and 0
(Google; but for the last norm of a block, which Google starts at 0).

A PiT starts as its authors', from torch's defaults, or with `paddle` from Paddle's: linear layers
Xavier, convolutions He, biases 0.  Both: positions and class tokens N(0.02).

Sources: plsc/models/vision_transformer.py; vit_jax/models_vit.py and big_vision/models/vit.py,
where layers that name no initialiser have flax's, LeCun; `init_weights_vit_timm` in
timm/models/vision_transformer.py; deit/models_v2.py; mmpretrain's backbones/vision_transformer.py,
heads/vision_transformer_head.py and the `init_cfg` of its configs; mindcv/models/vit.py at 6cfc6e6
and v0.2.2, with the defaults of MindSpore 2.2 and 1.9; pit.py of naver-ai/pit and of paddle_pit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from vit21k.models.pit import PoolingTransformer
from vit21k.models.resnet_stem import StdConv2d
from vit21k.models.vit import ImageClassifier, VisionTransformer

Scheme = Literal[
    "plsc", "google", "big_vision", "timm", "deit", "mmpretrain", "mmpretrain_mae", "mindcv",
    "mindcv_v02", "paddle",
]  # fmt: skip
HeadInit = Literal["zeros", "xavier", "normal", "torch"]

_TOKEN_STD = 0.02
# Standard deviation of a standard normal distribution cut at -2 and 2.
_TRUNCATED_STD = 0.87962566103423978

Draw = Callable[[Tensor, int, Generator | None], object]
"""Overwrites a tensor, given the fan-in of its layer and a source of randomness."""


def _zeros(tensor: Tensor, _fan_in: int, _generator: Generator | None) -> None:
    nn.init.zeros_(tensor)


def _xavier(tensor: Tensor, _fan_in: int, generator: Generator | None) -> None:
    nn.init.xavier_uniform_(tensor.flatten(1), generator=generator)


def _xavier_of_each(tensor: Tensor, _fan_in: int, generator: Generator | None) -> None:
    """Draw queries, keys and values of a fused matrix as three matrices."""
    for part in tensor.chunk(3):
        nn.init.xavier_uniform_(part, generator=generator)


def _torch(tensor: Tensor, fan_in: int, generator: Generator | None) -> None:
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(tensor, -bound, bound, generator=generator)


def _lecun(tensor: Tensor, fan_in: int, generator: Generator | None) -> None:
    """Draw from a normal distribution cut at two sigma, of variance 1 / fan_in after the cut."""
    std = 1 / math.sqrt(fan_in) / _TRUNCATED_STD
    nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std, generator=generator)


def _by_fan_in(gain: float) -> Draw:
    def draw(tensor: Tensor, fan_in: int, generator: Generator | None) -> None:
        nn.init.normal_(tensor, std=math.sqrt(gain / fan_in), generator=generator)

    return draw


def _normal(std: float) -> Draw:
    def draw(tensor: Tensor, _fan_in: int, generator: Generator | None) -> None:
        nn.init.normal_(tensor, std=std, generator=generator)

    return draw


def _timms_normal(std: float) -> Draw:
    """Return timm's `trunc_normal_`, which cuts at -2 and 2 whatever the deviation."""

    def draw(tensor: Tensor, _fan_in: int, generator: Generator | None) -> None:
        nn.init.trunc_normal_(tensor, std=std, generator=generator)

    return draw


def _cut_normal(std: float) -> Draw:
    def draw(tensor: Tensor, _fan_in: int, generator: Generator | None) -> None:
        nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std, generator=generator)

    return draw


def _by_width(tensor: Tensor, _fan_in: int, generator: Generator | None) -> None:
    nn.init.normal_(tensor, std=1 / math.sqrt(tensor.shape[-1]), generator=generator)


_REGISTERS = _timms_normal(_TOKEN_STD)


@dataclass(frozen=True, kw_only=True)
class _Rules:
    """A scheme: what each kind of tensor starts as."""

    patch: Draw
    patch_bias: Draw = _zeros
    qkv: Draw
    linear: Draw
    """`attn.proj`, and what has no rule of its own."""
    bias: Draw = _zeros
    """Of `attn.qkv` and `attn.proj`."""
    mlp: Draw
    mlp_bias: Draw = _zeros
    pre_logits: Draw
    positions: Draw
    class_token: Draw = _zeros
    registers: Draw = _REGISTERS
    """Of the distillation token too.  Equal registers would stay equal: none is 0."""


_MLP_BIAS = _normal(1e-6)
_PLSC = _Rules(
    patch=_by_fan_in(2),
    qkv=_xavier,
    linear=_xavier,
    mlp=_xavier,
    mlp_bias=_MLP_BIAS,
    pre_logits=_xavier,
    positions=_normal(_TOKEN_STD),
)
_GOOGLE = replace(_PLSC, patch=_lecun, qkv=_xavier_of_each, pre_logits=_lecun)
_TIMM = _Rules(
    patch=_torch,
    patch_bias=_torch,
    qkv=_timms_normal(0.02),
    linear=_timms_normal(0.02),
    mlp=_timms_normal(0.02),
    pre_logits=_timms_normal(0.02),
    positions=_timms_normal(_TOKEN_STD),
    class_token=_normal(1e-6),
    registers=_normal(1e-6),
)
_MMPRETRAIN = _Rules(
    patch=_by_fan_in(1),
    qkv=_torch,
    linear=_torch,
    bias=_torch,
    mlp=_xavier,
    mlp_bias=_MLP_BIAS,
    pre_logits=_by_fan_in(1),
    positions=_timms_normal(_TOKEN_STD),
)
_MINDCV = _Rules(
    patch=_xavier,
    patch_bias=_torch,
    qkv=_xavier,
    linear=_xavier,
    mlp=_xavier,
    pre_logits=_xavier,
    positions=_cut_normal(_TOKEN_STD),
    class_token=_cut_normal(_TOKEN_STD),
)
_MINDCV_V02 = _Rules(
    patch=_normal(0.01),
    qkv=_normal(0.01),
    linear=_normal(0.01),
    mlp=_normal(0.01),
    pre_logits=_normal(0.01),
    positions=_normal(1.0),
    class_token=_normal(1.0),
)
_VIT_RULES: dict[str, _Rules] = {
    "plsc": _PLSC,
    "google": _GOOGLE,
    "big_vision": replace(_GOOGLE, positions=_by_width),
    "timm": _TIMM,
    "deit": replace(_TIMM, class_token=_REGISTERS, registers=_REGISTERS),
    "mmpretrain": _MMPRETRAIN,
    "mmpretrain_mae": replace(
        _TIMM, mlp=_xavier, mlp_bias=_MLP_BIAS, pre_logits=_timms_normal(0.02), class_token=_zeros
    ),
    "mindcv": _MINDCV,
    "mindcv_v02": _MINDCV_V02,
    "paddle": _PLSC,
}


@torch.no_grad()
def init_vit(
    model: ImageClassifier,
    *,
    scheme: Scheme = "plsc",
    head_init: HeadInit = "zeros",
    head_init_std: float = 0.02,
    head_bias_init: float = 0.0,
    generator: Generator | None = None,
) -> None:
    """Draw the weights of *model* anew, in place.

    The same generator state gives the same weights on every machine; *model* is on the
    generator's device.

    Args:
        model: All its parameters are overwritten.
        scheme: Whose first weights; see the table of this module.  A PiT has two: "paddle", and
            its authors' for every other name.
        head_init: PLSC and Google finetune from "zeros"; PLSC pretrains from "xavier"; DeiT and MAE
            start from "normal"; "torch" is torch's default, for the bias too.
        head_init_std: Standard deviation of "normal".
        head_bias_init: -10 where the loss is a sum of 21,841 sigmoids: at the start every class is
            as good as absent.
        generator: Source of randomness; None: torch's global one.
    """
    if isinstance(model, PoolingTransformer):
        _init_pit(model, scheme, generator)
    else:
        assert isinstance(model, VisionTransformer)  # noqa: S101 (there is no third kind)
        rules = _VIT_RULES[scheme]
        _init_modules(model, rules, generator)
        _init_tokens(model, rules, generator)
    for head in (model.head, getattr(model, "head_dist", None)):
        if isinstance(head, nn.Linear):
            init_head(
                head,
                head_init=head_init,
                std=head_init_std,
                bias_init=head_bias_init,
                generator=generator,
            )


@torch.no_grad()
def init_head(
    head: nn.Linear,
    *,
    head_init: HeadInit = "zeros",
    std: float = 0.02,
    bias_init: float = 0.0,
    generator: Generator | None = None,
) -> None:
    """Draw the weights of a *head* anew, in place; the arguments are those of `init_vit`."""
    draws: dict[str, Draw] = {
        "zeros": _zeros,
        "xavier": _xavier,
        "normal": _timms_normal(std),
        "torch": _torch,
    }
    draws[head_init](head.weight, head.in_features, generator)
    if head_init == "torch" and not bias_init:
        _torch(head.bias, head.in_features, generator)
    else:
        nn.init.constant_(head.bias, bias_init)


def _init_tokens(model: VisionTransformer, rules: _Rules, generator: Generator | None) -> None:
    draws: list[tuple[Tensor | None, Draw]] = [
        (model.pos_embed, rules.positions),
        (model.cls_token, rules.class_token),
        (model.dist_token, rules.registers),
        (model.reg_token, rules.registers),
    ]
    if model.global_pool == "map":
        draws.append((model.attn_pool.latent, _by_width))
    for tokens, draw in draws:
        if tokens is not None:
            draw(tokens, 1, generator)


def _init_modules(model: VisionTransformer, rules: _Rules, generator: Generator | None) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
            module.reset_parameters()
        elif isinstance(module, StdConv2d):
            _lecun(module.weight, module.weight[0].numel(), generator)
        elif isinstance(module, nn.Conv2d):
            _init_layer(module, rules.patch, rules.patch_bias, generator)
        elif isinstance(module, nn.Linear) and not name.startswith("head"):
            _init_layer(module, *_linear_rules(name, rules), generator)


def _linear_rules(name: str, rules: _Rules) -> tuple[Draw, Draw]:
    if name.startswith("pre_logits"):
        return rules.pre_logits, _zeros
    if ".mlp." in name:
        return rules.mlp, rules.mlp_bias
    return (rules.qkv if name.endswith("attn.qkv") else rules.linear), rules.bias


def _init_pit(model: PoolingTransformer, scheme: Scheme, generator: Generator | None) -> None:
    paddle = scheme == "paddle"
    weight: Draw
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            weight = _xavier if paddle else _torch
            _init_layer(module, weight, _zeros if paddle else _torch, generator)
        elif isinstance(module, nn.Conv2d):
            # Paddle takes all input channels for the fan-in, even where there are groups of them.
            weight = _by_fan_in(2 / module.groups) if paddle else _torch
            _init_layer(module, weight, _zeros if paddle else _torch, generator)
    for tokens in (model.pos_embed, model.cls_token):
        _timms_normal(_TOKEN_STD)(tokens, 1, generator)


def _init_layer(
    layer: nn.Linear | nn.Conv2d, weight: Draw, bias: Draw, generator: Generator | None
) -> None:
    fan_in = layer.weight[0].numel()
    weight(layer.weight, fan_in, generator)
    if layer.bias is not None:
        bias(layer.bias, fan_in, generator)
