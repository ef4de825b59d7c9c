"""First weights of a Vision Transformer, by three published schemes, and of a PiT.

| | patch_embed | qkv | other linear layers | MLP biases |
|---|---|---|---|---|
| plsc | N(0, sqrt(2 / fan_in)) | Xavier, of the fused matrix | Xavier | N(0, 1e-6) |
| google | LeCun, truncated | Xavier, of q, k and v each | Xavier; `pre_logits` LeCun | N(0, 1e-6) |
| timm | torch's default | N(0, 0.02), truncated | N(0, 0.02), truncated | 0 |

Everywhere: positions N(0, 0.02) (truncated in timm), class token 0 (N(0, 1e-6) in timm), layer
norms 1 and 0, all other biases 0.  The ResNet of a hybrid: LeCun, group norms 1 and 0 (Google; but
for the last norm of a block, which Google starts at 0).

Sources: plsc/models/vision_transformer.py; vit_jax/models_vit.py, where layers that name no
initialiser have flax's, LeCun; `init_weights_vit_timm` in timm/models/vision_transformer.py.
"""

import math
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from vit21k.models.base import ImageClassifier
from vit21k.models.pit import PoolingTransformer
from vit21k.models.resnet_stem import StdConv2d
from vit21k.models.vit import VisionTransformer

Scheme = Literal["plsc", "google", "timm"]

_MLP_BIAS_STD = 1e-6
_TOKEN_STD = 0.02
# Standard deviation of a standard normal distribution cut at -2 and 2.
_TRUNCATED_STD = 0.87962566103423978


@torch.no_grad()
def init_vit(
    model: ImageClassifier,
    *,
    scheme: Scheme = "plsc",
    head_init: Literal["zeros", "xavier"] = "zeros",
    head_bias_init: float = 0.0,
    generator: Generator | None = None,
) -> None:
    """Draw the weights of *model* anew, in place.

    The same generator state gives the same weights on every machine; *model* lies on the
    generator's device.

    Args:
        model: All its parameters are overwritten.
        scheme: Whose first weights; see the table of this module.
        head_init: PLSC and Google finetune from "zeros"; PLSC pretrains from "xavier".
        head_bias_init: -10 where the loss is a sum of 21,841 sigmoids: at the start every class is
            as good as absent.
        generator: Source of randomness; None: torch's global one.

    A PiT has one published scheme, its authors': torch's defaults for linear layers and
    convolutions, N(0, 0.02) truncated for positions and class tokens; *scheme* is not read.
    """
    if isinstance(model, PoolingTransformer):
        _init_pit(model, generator)
        for head in filter(None, (model.head, model.head_dist)):
            if isinstance(head, nn.Linear):
                init_head(head, head_init=head_init, bias_init=head_bias_init, generator=generator)
        return
    assert isinstance(model, VisionTransformer)  # noqa: S101 (there is no third kind)
    _init_modules(model, scheme, generator)
    _init_tokens(model, scheme, generator)
    if isinstance(model.head, nn.Linear):
        init_head(model.head, head_init=head_init, bias_init=head_bias_init, generator=generator)


@torch.no_grad()
def init_head(
    head: nn.Linear,
    *,
    head_init: Literal["zeros", "xavier"] = "zeros",
    bias_init: float = 0.0,
    generator: Generator | None = None,
) -> None:
    """Draw the weights of a *head* anew, in place; the arguments are those of `init_vit`."""
    if head_init == "zeros":
        nn.init.zeros_(head.weight)
    else:
        nn.init.xavier_uniform_(head.weight, generator=generator)
    nn.init.constant_(head.bias, bias_init)


def _init_modules(model: VisionTransformer, scheme: Scheme, generator: Generator | None) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, StdConv2d):
            _lecun_normal_(module.weight, module.weight[0].numel(), generator)
        elif isinstance(module, nn.GroupNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d):
            _init_patch_embed(module, scheme, generator)
        elif isinstance(module, nn.Linear) and name != "head":
            _init_linear(name, module, scheme, generator)


def _init_pit(model: PoolingTransformer, generator: Generator | None) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.uniform_(_bias(module), -bound, bound, generator=generator)
    for tokens in (model.pos_embed, model.cls_token):
        nn.init.trunc_normal_(tokens, std=_TOKEN_STD, generator=generator)


def _init_patch_embed(conv: nn.Conv2d, scheme: Scheme, generator: Generator | None) -> None:
    fan_in = conv.weight[0].numel()
    if scheme == "timm":
        bound = 1 / math.sqrt(fan_in)  # torch's default, for weights and biases
        nn.init.uniform_(conv.weight, -bound, bound, generator=generator)
        nn.init.uniform_(_bias(conv), -bound, bound, generator=generator)
        return
    if scheme == "plsc":
        nn.init.normal_(conv.weight, std=math.sqrt(2 / fan_in), generator=generator)
    else:
        _lecun_normal_(conv.weight, fan_in, generator)
    nn.init.zeros_(_bias(conv))


def _init_linear(name: str, linear: nn.Linear, scheme: Scheme, generator: Generator | None) -> None:
    if scheme == "timm":
        nn.init.trunc_normal_(linear.weight, std=_TOKEN_STD, generator=generator)
    elif scheme == "google" and name.startswith("pre_logits"):
        _lecun_normal_(linear.weight, linear.in_features, generator)
    elif scheme == "google" and name.endswith("attn.qkv"):
        for weight in linear.weight.chunk(3):
            nn.init.xavier_uniform_(weight, generator=generator)
    else:
        nn.init.xavier_uniform_(linear.weight, generator=generator)
    if linear.bias is None:
        return
    if scheme != "timm" and ".mlp." in name:
        nn.init.normal_(linear.bias, std=_MLP_BIAS_STD, generator=generator)
    else:
        nn.init.zeros_(linear.bias)


def _init_tokens(model: VisionTransformer, scheme: Scheme, generator: Generator | None) -> None:
    if scheme == "timm":
        nn.init.trunc_normal_(model.pos_embed, std=_TOKEN_STD, generator=generator)
    else:
        nn.init.normal_(model.pos_embed, std=_TOKEN_STD, generator=generator)
    if model.cls_token is None:
        return
    if scheme == "timm":
        nn.init.normal_(model.cls_token, std=1e-6, generator=generator)
    else:
        nn.init.zeros_(model.cls_token)


def _lecun_normal_(weight: Tensor, fan_in: int, generator: Generator | None) -> None:
    """Draw from a normal distribution cut at two sigma, of variance 1 / fan_in after the cut."""
    std = 1 / math.sqrt(fan_in) / _TRUNCATED_STD
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    assert layer.bias is not None  # noqa: S101 (every caller's layer has one)
    return layer.bias
