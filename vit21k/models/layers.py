"""The layers of a Vision Transformer.

Dimensions: B images, C colours, H W pixels, N tokens, D width, A heads, E width of a head,
Q tokens whose output is needed.

Blocks can recompute cheap operations in the backward pass instead of storing their results: norms,
GELU, dropout, additions and type conversions, but not matrix products, convolutions and attention.
Random numbers are the same both times, so gradients are bit-identical.

Source of recomputation: selective activation checkpointing in capi (arXiv:2502.08769).
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from vit21k.models.resnet_stem import ResNetStem, StemEps
from vit21k.models.rope import Rope

_EXPENSIVE_NAMES = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "_scaled_mm",
    "convolution",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)
_EXPENSIVE = frozenset(
    getattr(torch.ops.aten, name).default
    for name in _EXPENSIVE_NAMES
    if hasattr(torch.ops.aten, name)
)
_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def recompute_cheap(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Return ``function(*arguments)``; only results of expensive operations are stored."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(function, *arguments, use_reentrant=False, context_fn=contexts)


def _policy(_context: Any, operation: Any, *inputs: Any, **_: Any) -> CheckpointPolicy:
    if operation in _EXPENSIVE and not _ends_branch(operation, inputs):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _ends_branch(operation: Any, inputs: tuple[Any, ...]) -> bool:
    """Return whether this is the second layer of an MLP, the product that makes rows shorter.

    Its result is only added to something, so the backward pass needs neither it nor a second
    computation of it.
    """
    if operation not in _PRODUCTS:
        return False
    *_, left, right = inputs
    return bool(left.shape[1] > right.shape[1])


LAYER_NORM_EPS = 1e-6  # flax's default, kept by PLSC and timm
ActName = Literal["gelu", "gelu_tanh", "quick_gelu"]
NormName = Literal["layernorm", "rmsnorm"]
MlpName = Literal["mlp", "swiglu"]


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``, OpenAI CLIP's approximation of GELU."""

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return the activations, of the same shape."""
        return x_BND * torch.sigmoid(1.702 * x_BND)


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
}


class RMSNorm(nn.RMSNorm):
    """torch's, computed in the precision of its weight: on a CPU, autocast has no rule for it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised values, of the same shape."""
        return super().forward(x.to(self.weight.dtype))


_NORMS: dict[str, Callable[..., nn.Module]] = {"layernorm": nn.LayerNorm, "rmsnorm": RMSNorm}


def make_norm(name: NormName, width: int, eps: float) -> nn.Module:
    """Return a norm of *width* values; *eps* is added to their variance or mean square."""
    return _NORMS[name](width, eps=eps)


class PatchEmbed(nn.Module):
    """Cut images into square patches and project each one to a token."""

    def __init__(
        self, patch_size: int, in_chans: int, embed_dim: int, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size, bias=bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return tokens_BND, row by row."""
        return self.proj(images_BCHW).flatten(2).transpose(1, 2)


class HybridEmbed(nn.Module):
    """Apply a ResNet, then project each patch of its map to a token."""

    def __init__(
        self,
        resnet_layers: Sequence[int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        stem_eps: StemEps,
    ) -> None:
        super().__init__()
        self.backbone = ResNetStem(resnet_layers, in_chans, stem_eps)
        self.proj = nn.Conv2d(
            self.backbone.num_features, embed_dim, kernel_size=patch_size, stride=patch_size
        )

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return tokens_BND, row by row."""
        return self.proj(self.backbone(images_BCHW)).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with one linear layer for queries, keys and values.

    Attributes:
        backend: Implementation to use where it is possible, else plain arithmetic; None: torch
            decides.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        qkv_bias: bool,
        attn_drop_rate: float,
        proj_drop_rate: float,
        make_qk_norm: Callable[[int], nn.Module] = lambda _width: nn.Identity(),
        rope: Rope | None = None,
    ) -> None:
        super().__init__()
        self.backend: SDPBackend | None = None
        self._rope = rope
        self.num_heads = num_heads
        self.attn_drop_rate = attn_drop_rate
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=qkv_bias)
        self.q_norm = make_qk_norm(embed_dim // num_heads)
        self.k_norm = make_qk_norm(embed_dim // num_heads)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(proj_drop_rate)

    def forward(
        self, x_BND: Tensor, num_queries: int | None = None, angles: Tensor | None = None
    ) -> Tensor:
        """Mix the tokens: (B, N, D) -> (B, Q, D); Q is *num_queries*, or N if that is None."""
        q_BAQE, k_BANE, v_BANE = self.project(x_BND, num_queries, angles)
        with self._on_backend():
            y_BAQE = F.scaled_dot_product_attention(
                q_BAQE, k_BANE, v_BANE, dropout_p=self.attn_drop_rate if self.training else 0.0
            )
        return self.proj_drop(self.proj(y_BAQE.transpose(1, 2).flatten(2)))

    def _on_backend(self) -> AbstractContextManager[None]:
        if self.backend is None:
            return nullcontext()
        return sdpa_kernel([self.backend, SDPBackend.MATH], set_priority=True)

    def project(
        self, x_BND: Tensor, num_queries: int | None = None, angles: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries of the first *num_queries* tokens, keys and values of all tokens.

        They are (B, A, Q, E) and twice (B, A, N, E), after the norms and the rotations (*angles*,
        see `Rope.table`) of queries and keys.
        """
        if num_queries is None:
            q_BND, k_BND, v_BND = self.qkv(x_BND).chunk(3, dim=-1)
        else:
            D = x_BND.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            q_bias, kv_bias = (None, None) if bias is None else (bias[:D], bias[D:])
            q_BND = F.linear(x_BND[:, :num_queries], weight[:D], q_bias)
            k_BND, v_BND = F.linear(x_BND, weight[D:], kv_bias).chunk(2, dim=-1)
        q_BAQE, k_BANE, v_BANE = map(self._split_heads, (q_BND, k_BND, v_BND))
        q_BAQE, k_BANE = self.q_norm(q_BAQE), self.k_norm(k_BANE)
        if self._rope is None or angles is None:
            return q_BAQE, k_BANE, v_BANE
        if num_queries is None:  # else only tokens that have no position are asked for
            q_BAQE = self._rope.rotate(q_BAQE, angles)
        return q_BAQE, self._rope.rotate(k_BANE, angles), v_BANE

    def _split_heads(self, x_BND: Tensor) -> Tensor:
        """Rearrange (B, N, D) -> (B, A, N, E)."""
        return x_BND.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear layers with an activation between them; dropout after each."""

    def __init__(
        self, embed_dim: int, hidden_dim: int, *, act_layer: str, drop_rate: float
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.act = _ACTIVATIONS[act_layer]()
        self.drop = nn.Dropout(drop_rate)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Transform each token by itself: (B, N, D) -> (B, N, D)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x_BND)))))


class SwiGlu(nn.Module):
    """One half of a linear layer's output times the SiLU of the other, then a second layer.

    Source: Shazeer, arXiv:2002.05202; timm's `SwiGLUPacked`, where *hidden_dim* is both halves and
    the first half is the gate.
    """

    def __init__(self, embed_dim: int, hidden_dim: int, *, drop_rate: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.drop = nn.Dropout(drop_rate)
        self.fc2 = nn.Linear(hidden_dim // 2, embed_dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Transform each token by itself: (B, N, D) -> (B, N, D)."""
        gate_BNH, value_BNH = self.fc1(x_BND).chunk(2, dim=-1)
        return self.drop(self.fc2(self.drop(F.silu(gate_BNH) * value_BNH)))


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch for some images of a batch while training.

    The other branches are scaled up, so that the expectation stays.

    Source: Huang et al., arXiv:1603.09382; timm's `DropPath`.
    """

    def __init__(self, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        # A tensor: for a number, torch.compile would compile every block separately.
        self._keep_rate = torch.tensor(1.0 - drop_rate, dtype=torch.float32, device="cpu")
        self._drops = drop_rate > 0

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return *x_BND* with the branches of some images set to 0."""
        if not (self.training and self._drops):
            return x_BND
        # In float32: bfloat16 has too few values for small rates.
        uniforms_B11 = torch.rand((len(x_BND), 1, 1), device=x_BND.device)
        kept_B11 = (uniforms_B11 < self._keep_rate) / self._keep_rate
        return x_BND * kept_B11.to(x_BND.dtype)


DropPathShape = Literal["linear", "linear_exclusive", "constant"]


def drop_path_rates(rate: float, shape: DropPathShape, num_blocks: int) -> list[float]:
    """Return the stochastic depth of every block.

    Args:
        rate: The maximum, or nearly.
        shape: "linear": from 0 to *rate* (timm); "linear_exclusive": *rate* times i / n for block
            i of n, so that the last one stays under it (PiT's authors); "constant": *rate*
            everywhere (DeiT III).
        num_blocks: Of the model.
    """
    if shape == "constant":
        return [rate] * num_blocks
    steps = num_blocks if shape == "linear_exclusive" else max(num_blocks - 1, 1)
    return [rate * index / steps for index in range(num_blocks)]


class LayerScale(nn.Module):
    """A learnt factor for each value of a branch, small at first.

    Source: Touvron et al., arXiv:2103.17239; the name of the factors is timm's.
    """

    def __init__(self, embed_dim: int, init_value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((embed_dim,), init_value))

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return *x_BND* times the factors."""
        return x_BND * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each with a residual connection."""

    def __init__(  # noqa: PLR0913 (each is a plain value)
        self,
        embed_dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        qkv_bias: bool,
        act_layer: str,
        proj_drop_rate: float,
        attn_drop_rate: float,
        drop_path_rate: float,
        norm_layer: NormName = "layernorm",
        norm_eps: float = LAYER_NORM_EPS,
        qk_norm: bool = False,
        mlp_layer: MlpName = "mlp",
        init_values: float | None = None,
        rope: Rope | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self._recompute = recompute
        norm = partial(make_norm, norm_layer, eps=norm_eps)
        hidden_dim = int(embed_dim * mlp_ratio)
        self.norm1 = norm(embed_dim)
        self.attn = Attention(
            embed_dim,
            num_heads,
            qkv_bias=qkv_bias,
            attn_drop_rate=attn_drop_rate,
            proj_drop_rate=proj_drop_rate,
            rope=rope,
            **({"make_qk_norm": norm} if qk_norm else {}),
        )
        self.ls1 = _layer_scale(embed_dim, init_values)
        self.norm2 = norm(embed_dim)
        self.mlp: Mlp | SwiGlu = (
            SwiGlu(embed_dim, hidden_dim, drop_rate=proj_drop_rate)
            if mlp_layer == "swiglu"
            else Mlp(embed_dim, hidden_dim, act_layer=act_layer, drop_rate=proj_drop_rate)
        )
        self.ls2 = _layer_scale(embed_dim, init_values)
        self.drop_path = DropPath(drop_path_rate)

    def forward(
        self, x_BND: Tensor, num_queries: int | None = None, angles: Tensor | None = None
    ) -> Tensor:
        """Return the first *num_queries* tokens after this block (None: all of them).

        Args:
            x_BND: All tokens.
            num_queries: At most the number of tokens before those of the patches.
            angles: Of rotary positions; see `Rope.table`.
        """
        if self._recompute:
            return recompute_cheap(self._forward, x_BND, num_queries, angles)
        return self._forward(x_BND, num_queries, angles)

    def _forward(self, x_BND: Tensor, num_queries: int | None, angles: Tensor | None) -> Tensor:
        attended_BQD = self.ls1(self.attn(self.norm1(x_BND), num_queries, angles))
        x_BQD = x_BND[:, :num_queries] + self.drop_path(attended_BQD)
        return x_BQD + self.drop_path(self.ls2(self.mlp(self.norm2(x_BQD))))


def _layer_scale(embed_dim: int, init_values: float | None) -> nn.Module:
    return nn.Identity() if init_values is None else LayerScale(embed_dim, init_values)
