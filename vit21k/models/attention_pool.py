"""Tokens -> one vector: attention of a learnt query (MAP pooling), under timm's parameter names.

Dimensions: B images, N tokens, D width, A heads, E width of a head.

Source: Zhai et al., arXiv:2106.04560 (big_vision's `MAPHead`); timm's `AttentionPoolLatent`.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vit21k.models.layers import Mlp, NormName, make_norm


class AttentionPool(nn.Module):
    """One query attends to all tokens; an MLP with a residual connection follows."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        act_layer: str,
        norm_layer: NormName,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        std = embed_dim**-0.5
        self.latent = nn.Parameter(torch.empty(1, 1, embed_dim).normal_(std=std))
        self.q = nn.Linear(embed_dim, embed_dim)
        self.kv = nn.Linear(embed_dim, 2 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.norm = make_norm(norm_layer, embed_dim, norm_eps)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio), act_layer=act_layer, drop_rate=0.0)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return the pooled tokens, (B, D)."""
        q_B1D = self.q(self.latent).expand(len(x_BND), -1, -1)
        k_BND, v_BND = self.kv(x_BND).chunk(2, dim=-1)
        heads = partial(torch.Tensor.unflatten, dim=-1, sizes=(self.num_heads, -1))
        q_BA1E, k_BANE, v_BANE = (heads(x).transpose(1, 2) for x in (q_B1D, k_BND, v_BND))
        y_BA1E = F.scaled_dot_product_attention(q_BA1E, k_BANE, v_BANE)
        y_BD = self.proj(y_BA1E.flatten(1))
        return y_BD + self.mlp(self.norm(y_BD))
