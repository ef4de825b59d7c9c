"""Images -> logits: the Pooling-based Vision Transformer (PiT), under timm's parameter names.

Dimensions: B images, C colours, H W pixels or map, N tokens, D width, T class tokens, K classes.

Source: Heo et al., arXiv:2103.16302, and naver-ai/pit.  Stages of transformer blocks; between them
a convolution halves the map of patches and a linear layer widens the class tokens.  The positions
are a map, added before the first stage; the head reads class tokens alone.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vit21k.models.layers import LAYER_NORM_EPS, Block, DropPathShape, drop_path_rates
from vit21k.models.vit import ImageClassifier


class PoolingTransformer(ImageClassifier):
    """A PiT for square images of one size.

    Linear layers start with torch's default weights, as the authors'; see `init_vit`.

    Args:
        img_size: Height and width of the images, in pixels.
        patch_size: Height and width of a patch; patches overlap.
        stride: Pixels from one patch to the next.
        in_chans: Colours of an image.
        num_classes: Outputs of the head; with 0 there is no head and `forward` returns features.
        global_pool: The head reads the class "token"; there is no other choice.
        base_dims: Width of an attention head, stage by stage.
        depth: Blocks, stage by stage.
        heads: Attention heads, stage by stage; a token is *heads* times *base_dims* wide.
        mlp_ratio: Width of the MLP's hidden layer, in widths of a token.
        distilled: Whether there is a second class token with a head of its own, for a teacher's
            labels; the logits are the mean of both heads', see `forward`.
        act_layer: "gelu" is exact; "gelu_tanh" its approximation.
        pos_drop_rate: Dropout after the position embedding.
        proj_drop_rate: Dropout after `attn.proj` and after both layers of the MLP.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block.
        drop_path_shape: How it rises from block to block; see `drop_path_rates`.
        head_drop_rate: Dropout of what the heads read.
        recompute: Recompute cheap operations in the backward pass; see `models.layers`.
        both_heads: In train mode a distilled model returns the logits of both heads.
    """

    pos_embed: nn.Parameter

    def __init__(  # noqa: PLR0913 (timm's arguments)
        self,
        *,
        img_size: int,
        patch_size: int,
        stride: int,
        in_chans: int,
        num_classes: int,
        global_pool: Literal["token"],
        base_dims: Sequence[int],
        depth: Sequence[int],
        heads: Sequence[int],
        mlp_ratio: float,
        distilled: bool,
        act_layer: Literal["gelu", "gelu_tanh"],
        pos_drop_rate: float,
        proj_drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
        drop_path_shape: DropPathShape,
        head_drop_rate: float,
        recompute: bool = False,
        both_heads: bool = False,
    ) -> None:
        super().__init__()
        widths = [base * num for base, num in zip(base_dims, heads, strict=True)]
        side = (img_size - patch_size) // stride + 1
        self.num_classes = num_classes
        self.img_size = img_size
        self.patch_size = patch_size
        self.global_pool = global_pool
        self.embed_dim = self.num_features = widths[-1]
        self.num_prefix_tokens = 2 if distilled else 1
        self.grid_size = (side, side)

        self.patch_embed = nn.Sequential()
        self.patch_embed.add_module("conv", nn.Conv2d(in_chans, widths[0], patch_size, stride))
        self.pos_embed = nn.Parameter(_truncated(1, widths[0], side, side))
        self.cls_token = nn.Parameter(_truncated(1, self.num_prefix_tokens, widths[0]))
        self.pos_drop = nn.Dropout(pos_drop_rate)
        rates = iter(drop_path_rates(drop_path_rate, drop_path_shape, sum(depth)))
        self.transformers = nn.Sequential()
        for stage, width in enumerate(widths):
            blocks = [
                Block(
                    width,
                    heads[stage],
                    mlp_ratio=mlp_ratio,
                    qkv_bias=True,
                    act_layer=act_layer,
                    proj_drop_rate=proj_drop_rate,
                    attn_drop_rate=attn_drop_rate,
                    drop_path_rate=next(rates),
                    recompute=recompute,
                )
                for _ in range(depth[stage])
            ]
            self.transformers.append(_Stage(widths[stage - 1] if stage else None, width, blocks))
        self.norm = nn.LayerNorm(self.embed_dim, eps=LAYER_NORM_EPS)
        self.head_drop = nn.Dropout(head_drop_rate)
        self.head = _head(self.embed_dim, num_classes)
        self.head_dist = _head(self.embed_dim, num_classes) if distilled else None
        self._both_heads = both_heads

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits_BK of normalised float images.

        A distilled model with *both_heads* returns (2, B, K) in train mode: logits for the labels,
        logits for the teacher.
        """
        return self.forward_head(self.forward_features(images_BCHW))

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return what the head reads, (B, D); of a distilled model, the mean of both tokens."""
        return self.forward_head(self.forward_features(images_BCHW), pre_logits=True)

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """Return the class tokens after the last stage, normalised, (B, T, D)."""
        if images_BCHW.shape[2:] != (self.img_size, self.img_size):
            raise ValueError(
                f"images of {tuple(images_BCHW.shape[2:])} for a model of {self.img_size} pixels"
            )
        map_BDHW = self.pos_drop(self.patch_embed(images_BCHW) + self.pos_embed)
        tokens_BTD = self.cls_token.expand(map_BDHW.shape[0], -1, -1)
        map_BDHW, tokens_BTD = self.transformers((map_BDHW, tokens_BTD))
        return self.norm(tokens_BTD)

    def forward_head(self, tokens_BND: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits_BK of the class tokens, or what the head would read if *pre_logits*."""
        tokens_BND = self.head_drop(tokens_BND)
        if pre_logits:
            return tokens_BND.mean(dim=1)
        logits_BK = self.head(tokens_BND[:, 0])
        if self.head_dist is None:
            return logits_BK
        distilled_BK = self.head_dist(tokens_BND[:, 1])
        if self.training and self._both_heads:
            return torch.stack([logits_BK, distilled_BK])
        return (logits_BK + distilled_BK) / 2


class _Stage(nn.Module):
    """A pooling, except before the first stage, and blocks over class tokens and map."""

    def __init__(self, in_width: int | None, width: int, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.pool = None if in_width is None else _Pooling(in_width, width)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, maps_and_tokens: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        map_BDHW, tokens_BTD = maps_and_tokens
        if self.pool is not None:
            map_BDHW, tokens_BTD = self.pool(map_BDHW, tokens_BTD)
        num_tokens, side = tokens_BTD.shape[1], map_BDHW.shape[-1]
        x_BND = torch.cat([tokens_BTD, map_BDHW.flatten(2).transpose(1, 2)], dim=1)
        x_BND = self.blocks(x_BND)
        map_BDHW = x_BND[:, num_tokens:].transpose(1, 2).unflatten(2, (side, side))
        return map_BDHW, x_BND[:, :num_tokens]


class _Pooling(nn.Module):
    """Halve the map: a convolution of each channel by itself, into twice as many or so."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_width, width, 3, stride=2, padding=1, groups=in_width)
        self.fc = nn.Linear(in_width, width)

    def forward(self, map_BDHW: Tensor, tokens_BTD: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(map_BDHW), self.fc(tokens_BTD)


def _head(width: int, num_classes: int) -> nn.Module:
    return nn.Linear(width, num_classes) if num_classes else nn.Identity()


def _truncated(*shape: int) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(shape), std=0.02)
