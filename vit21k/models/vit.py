"""Images -> logits: the Vision Transformer, under timm's parameter names.

Dimensions: B images, C colours, H W pixels, N tokens, D width, K classes,
M patches of an image that are kept.

Source: Dosovitskiy et al., arXiv:2010.11929; names and defaults from timm's `VisionTransformer`, so
that either loads the weights of the other.  Differences: the tanh representation layer
(`pre_logits`), which timm dropped, a distillation token as in timm's `VisionTransformerDistilled`,
`token_avg` pooling, and a last block that computes only what the head reads.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vit21k.models.attention_pool import AttentionPool
from vit21k.models.cost import resnet_sides
from vit21k.models.layers import (
    ActName,
    Block,
    DropPathShape,
    HybridEmbed,
    MlpName,
    NormName,
    PatchEmbed,
    drop_path_rates,
    make_norm,
)
from vit21k.models.pos_embed import resize_pos_embed
from vit21k.models.resnet_stem import StemEps
from vit21k.models.rope import Rope, RopeName

Activation = Literal["sigmoid", "softmax"]


class ImageClassifier(nn.Module):
    """Square images of one size -> features -> logits.

    Dimensions: B images, C colours, H W pixels, N tokens, D features, K classes.

    Attributes:
        num_classes: Outputs of the head; 0: there is no head and `forward` returns features.
        img_size: Height and width of the images, in pixels.
        num_features: Width of what the head reads.
        num_prefix_tokens: Tokens before those of the patches: class token, distillation token,
            registers.
        grid_size: Patches of an image, (rows, columns).
        pos_embed: Learnt positions; None: there are none.
    """

    num_classes: int
    img_size: int
    num_features: int
    num_prefix_tokens: int
    grid_size: tuple[int, int]
    pos_embed: nn.Parameter | None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits_BK of normalised float images."""
        raise NotImplementedError

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return what the head reads, features_BD."""
        raise NotImplementedError

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """Return tokens_BND after the last block."""
        raise NotImplementedError

    def forward_head(self, tokens_BND: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits_BK of tokens_BND, or what the head would read if *pre_logits*."""
        raise NotImplementedError


def probabilities(logits_BK: Tensor, activation: Activation) -> Tensor:
    """Return the probabilities of *logits_BK*, float32: sigmoid or softmax."""
    logits_BK = logits_BK.float()
    return logits_BK.sigmoid() if activation == "sigmoid" else logits_BK.softmax(dim=1)


class VisionTransformer(ImageClassifier):
    """A Vision Transformer for square images of one size.

    Linear layers start with torch's default weights; see `init_vit` for the published ones.

    Args:
        img_size: Height and width of the images, in pixels.  Where it is not a multiple of
            *patch_size*, the model does not see the last rows and columns, as in PLSC and timm.
        patch_size: Height and width of a patch; of the ResNet's map, if there is one.
        in_chans: Colours of an image.
        num_classes: Outputs of the head; with 0 there is no head and `forward` returns features.
        global_pool: What the head reads: the class "token", or the "avg" of all other tokens.
            "map": attention of a learnt query to the others (`AttentionPool`); "token_avg": the
            class token and the average side by side (DINOv2's linear classifier).
        class_token: Whether there is a class token.
        reg_tokens: Number of register tokens (arXiv:2309.16588).
        no_embed_class: Whether only patches have a position (DeiT III).
        distilled: Whether there is a distillation token with a head of its own (DeiT); logits are
            the mean of both heads.
        pre_norm: Normalise the tokens before the first block; patches then have no bias (CLIP).
        fc_norm: Normalise after the pooling instead of before it.  None: with "avg", as timm.
        embed_dim: Width of a token.
        depth: Number of blocks.
        num_heads: Attention heads; *embed_dim* is a multiple of it.
        mlp_ratio: Width of the MLP's hidden layer, in widths of a token.
        qkv_bias: Whether queries, keys and values have a bias.
        representation_size: Width of a tanh layer before the head (`pre_logits`); None: no layer.
        init_values: First value of the learnt factors on both branches of a block (LayerScale);
            None: no factors.
        pos_embed: "learn": positions are added to the tokens; "none": none are.
        rope: Rotary positions of the patches; see `models.rope`.
        rope_temperature: The longest period of the rotations, roughly.
        qk_norm: Normalise queries and keys, each head by itself (arXiv:2302.05442).
        mlp_layer: "mlp", or "swiglu" (arXiv:2002.05202), of whose *mlp_ratio* half is the gate.
        act_layer: "gelu" is exact; "gelu_tanh" is the approximation that Google's weights need,
            "quick_gelu" the one that OpenAI's CLIP needs.
        norm_layer: "layernorm" or "rmsnorm" (arXiv:1910.07467).
        norm_eps: Added to the variance in every norm.
        resnet_layers: Blocks in each stage of a ResNet before the patches (Google's hybrids); None:
            no ResNet.
        stem_eps: Epsilons of the ResNet: "google" or "timm".
        pos_drop_rate: Dropout after the position embedding.
        proj_drop_rate: Dropout after `attn.proj` and after both layers of the MLP.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block.
        drop_path_shape: How it rises from block to block; see `drop_path_rates`.
        head_drop_rate: Dropout of what the head reads.
        recompute: Recompute cheap operations in the backward pass; see `models.layers`.
        any_size: Accept images of another size, with positions that are resized at every call.
        both_heads: Whether a distilled model in train mode returns the logits of each head.
    """

    rope_table: Tensor | None

    def __init__(  # noqa: PLR0913 (timm's arguments)
        self,
        *,
        img_size: int,
        patch_size: int,
        in_chans: int,
        num_classes: int,
        global_pool: Literal["token", "avg", "map", "token_avg"],
        class_token: bool,
        reg_tokens: int,
        no_embed_class: bool,
        distilled: bool,
        pre_norm: bool,
        fc_norm: bool | None,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        representation_size: int | None,
        pos_embed: Literal["learn", "none"],
        rope: RopeName,
        rope_temperature: float,
        qk_norm: bool,
        mlp_layer: MlpName,
        act_layer: ActName,
        norm_layer: NormName,
        norm_eps: float,
        init_values: float | None,
        resnet_layers: Sequence[int] | None,
        stem_eps: StemEps,
        pos_drop_rate: float,
        proj_drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
        drop_path_shape: DropPathShape,
        head_drop_rate: float,
        recompute: bool = False,
        any_size: bool = False,
        both_heads: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.img_size = img_size
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.num_features = representation_size or embed_dim * (1 + (global_pool == "token_avg"))
        self.global_pool = global_pool
        self._any_size = any_size
        self._both_heads = both_heads
        side = img_size if resnet_layers is None else resnet_sides(img_size, resnet_layers)[-1]
        self.grid_size = (side // patch_size, side // patch_size)
        self.patch_embed: nn.Module = (
            PatchEmbed(patch_size, in_chans, embed_dim, bias=not pre_norm)
            if resnet_layers is None
            else HybridEmbed(resnet_layers, patch_size, in_chans, embed_dim, stem_eps)
        )
        has_positions = {"embedded": pos_embed == "learn", "of_prefix": not no_embed_class}
        self._add_tokens(int(class_token), int(distilled), reg_tokens, **has_positions)
        self._add_rope(rope, embed_dim // num_heads, rope_temperature)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        norm = partial(make_norm, norm_layer, embed_dim, norm_eps)
        self.norm_pre = norm() if pre_norm else nn.Identity()
        shared: dict[str, Any] = {"mlp_ratio": mlp_ratio, "act_layer": act_layer}
        shared |= {"norm_layer": norm_layer, "norm_eps": norm_eps}
        block = partial(
            Block,
            embed_dim,
            num_heads,
            **shared,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            rope=self.rope,
            mlp_layer=mlp_layer,
            init_values=init_values,
            proj_drop_rate=proj_drop_rate,
            attn_drop_rate=attn_drop_rate,
            recompute=recompute,
        )
        rates = drop_path_rates(drop_path_rate, drop_path_shape, depth)
        self.blocks = nn.Sequential(*(block(drop_path_rate=rate) for rate in rates))
        norms_after_pool = global_pool == "avg" if fc_norm is None else fc_norm
        self.norm = nn.Identity() if norms_after_pool else norm()
        if global_pool == "map":
            self.attn_pool = AttentionPool(embed_dim, num_heads, **shared)
        self.fc_norm = norm() if norms_after_pool else nn.Identity()
        self.pre_logits = _representation_layer(embed_dim, representation_size)
        self.head_drop = nn.Dropout(head_drop_rate)
        self.head = _head(self.num_features, num_classes)
        self.head_dist = _head(self.num_features, num_classes) if distilled else None

    def _add_rope(self, name: RopeName, head_width: int, temperature: float) -> None:
        self.rope = None if name == "none" else Rope(name, head_width, temperature)
        table = None if self.rope is None else self.rope.table(self.grid_size)
        self.register_buffer("rope_table", table, persistent=False)

    def _add_tokens(
        self,
        num_class: int,
        num_distillation: int,
        num_registers: int,
        *,
        embedded: bool,
        of_prefix: bool,
    ) -> None:
        """Add the tokens before those of the patches, and positions if they are *embedded*."""
        width, num_prefix = self.embed_dim, num_class + num_distillation + num_registers
        self.num_prefix_tokens = num_prefix
        self.num_prefix_positions = num_prefix if embedded and of_prefix else 0
        num_positions = self.num_prefix_positions + self.grid_size[0] * self.grid_size[1]
        self.cls_token = _tokens(num_class, width, std=0.0)
        self.dist_token = _tokens(num_distillation, width)
        self.reg_token = _tokens(num_registers, width)
        positions = torch.empty(1, num_positions, width).normal_(std=0.02)
        self.pos_embed = nn.Parameter(positions) if embedded else None

    def forward(self, images_BCHW: Tensor, kept_BM: Tensor | None = None) -> Tensor:
        """Return logits_BK of normalised float images; of the patches *kept_BM*, if given.

        A distilled model with *both_heads* returns (2, B, K) in train mode: logits for the labels,
        logits for the teacher.
        """
        return self.forward_head(self._tokens_to_pool(images_BCHW, kept_BM))

    def features(self, images_BCHW: Tensor, kept_BM: Tensor | None = None) -> Tensor:
        """Return what the head reads, (B, D): pooled, normalised, through `pre_logits`.

        Of a distilled model it is the mean of what both heads read.

        Args:
            images_BCHW: Normalised float images.
            kept_BM: Which M patches of each image are seen; None: all.
        """
        return self.forward_head(self._tokens_to_pool(images_BCHW, kept_BM), pre_logits=True)

    def forward_features(self, images_BCHW: Tensor, kept_BM: Tensor | None = None) -> Tensor:
        """Return all tokens_BND after the last block (normalised, unless `fc_norm` does it)."""
        x_BND, angles = self._embed(images_BCHW, kept_BM)
        for block in self.blocks:
            x_BND = block(x_BND, angles=angles)
        return self.norm(x_BND)

    def forward_head(self, tokens_BND: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits_BK of tokens_BND, or what the head would read if *pre_logits*."""
        features_BD = self._features_of(self._pooled(tokens_BND))
        if self.head_dist is None:
            return features_BD if pre_logits else self.head(features_BD)
        distilled_BD = self._features_of(tokens_BND[:, 1])
        if pre_logits:
            return (features_BD + distilled_BD) / 2
        logits_2BK = torch.stack([self.head(features_BD), self.head_dist(distilled_BD)])
        return logits_2BK if self.training and self._both_heads else logits_2BK.mean(dim=0)

    def _tokens_to_pool(self, images_BCHW: Tensor, kept_BM: Tensor | None) -> Tensor:
        """Return the tokens after the last block, at least those that are pooled.

        When the heads read only the class token (and the distillation token), the last block
        computes only these: keys and values of all tokens, but one query, one projection and one
        MLP.  The result and its gradients are those of `forward_features`.
        """
        if self.global_pool != "token" or not len(self.blocks):
            return self.forward_features(images_BCHW, kept_BM)
        *blocks, last_block = self.blocks
        x_BND, angles = self._embed(images_BCHW, kept_BM)
        for block in blocks:
            x_BND = block(x_BND, angles=angles)
        num_queries = 1 if self.head_dist is None else 2
        return self.norm(last_block(x_BND, num_queries=num_queries, angles=angles))

    def _pooled(self, tokens_BND: Tensor) -> Tensor:
        """Return the pooled tokens, (B, D), or (B, 2 D) with "token_avg"."""
        if self.global_pool == "token":
            return tokens_BND[:, 0]
        patches_BND = tokens_BND[:, self.num_prefix_tokens :]
        if self.global_pool == "map":
            return self.attn_pool(patches_BND)
        mean_BD = patches_BND.mean(dim=1)
        if self.global_pool == "avg":
            return mean_BD
        return torch.cat([tokens_BND[:, 0], mean_BD], dim=1)

    def _features_of(self, pooled_BD: Tensor) -> Tensor:
        return self.head_drop(self.pre_logits(self.fc_norm(pooled_BD)))

    def _embed(self, images_BCHW: Tensor, kept_BM: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the input of the first block, (B, N, D), and the angles of rotary positions."""
        num_prefix, grid = self.num_prefix_positions, self._grid(images_BCHW)
        x_BND = self.patch_embed(images_BCHW)
        prefix: list[Tensor] = [
            t for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None
        ]
        prefix_1ND = torch.cat(prefix, dim=1) if prefix else None
        if self.pos_embed is not None:
            positions_1ND: Tensor = self.pos_embed
            if grid != self.grid_size:
                positions_1ND = resize_pos_embed(positions_1ND, grid, num_prefix_tokens=num_prefix)
            x_BND = x_BND + positions_1ND[:, num_prefix:]
            if prefix_1ND is not None and num_prefix:
                prefix_1ND = prefix_1ND + positions_1ND[:, :num_prefix]
        angles = self.rope_table
        if self.rope is not None and grid != self.grid_size:
            angles = self.rope.table(grid).to(x_BND.device)
        if kept_BM is not None:
            x_BND = x_BND.gather(1, kept_BM[:, :, None].expand(-1, -1, self.embed_dim))
            angles = None if angles is None else angles[:, kept_BM].unsqueeze(2)
        if prefix_1ND is not None:
            x_BND = torch.cat([prefix_1ND.expand(x_BND.shape[0], -1, -1), x_BND], dim=1)
        return self.norm_pre(self.pos_drop(x_BND)), angles

    def _grid(self, images_BCHW: Tensor) -> tuple[int, int]:
        """Return the patches of *images_BCHW*, (rows, columns)."""
        height, width = images_BCHW.shape[2:]
        if (height, width) == (self.img_size, self.img_size):
            return self.grid_size
        if not self._any_size:
            raise ValueError(f"images of {(height, width)} for a model of {self.img_size} pixels")
        return height // self.patch_size, width // self.patch_size


def _tokens(number: int, width: int, std: float = 0.02) -> nn.Parameter | None:
    """Return *number* learnt tokens, (1, number, width); None if there are none."""
    return nn.Parameter(torch.randn(1, number, width) * std) if number else None


def _head(num_features: int, num_classes: int) -> nn.Module:
    return nn.Linear(num_features, num_classes) if num_classes else nn.Identity()


def _representation_layer(embed_dim: int, representation_size: int | None) -> nn.Module:
    """Return Google's and PLSC's tanh layer; its parameters are `pre_logits.fc.*`, timm's name."""
    if representation_size is None:
        return nn.Identity()
    layer = nn.Sequential()
    layer.add_module("fc", nn.Linear(embed_dim, representation_size))
    layer.add_module("act", nn.Tanh())
    return layer
