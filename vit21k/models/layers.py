"""The parts of a Vision Transformer beside attention.

Dimensions: B images, C colours, H W pixels, N tokens, D width.
"""

from torch import Tensor, nn

_GELU_FORM = {"gelu": "none", "gelu_tanh": "tanh"}


class PatchEmbed(nn.Module):
    """Cut images into square patches and project each one to a token."""

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return tokens_BND, row by row."""
        return self.proj(images_BCHW).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them; dropout after each."""

    def __init__(
        self, embed_dim: int, hidden_dim: int, *, act_layer: str, drop_rate: float
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.act = nn.GELU(approximate=_GELU_FORM[act_layer])
        self.drop = nn.Dropout(drop_rate)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Transform each token by itself: (B, N, D) -> (B, N, D)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x_BND)))))


class DropPath(nn.Module):
    """Stochastic depth: leave a residual branch out, image by image, while training.

    What is kept is scaled up, so that the expectation stays.

    Source: Huang et al., arXiv:1603.09382; timm's `DropPath`.
    """

    def __init__(self, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate

    def forward(self, x_BND: Tensor) -> Tensor:
        """Return *x_BND* with the branches of some images set to 0."""
        if not self.training or self.drop_rate == 0.0:
            return x_BND
        keep_rate = 1.0 - self.drop_rate
        # Drawn in float32: bfloat16 has too few values for small rates.
        kept_B11 = x_BND.new_empty((len(x_BND), 1, 1)).float().bernoulli_(keep_rate)
        return x_BND * (kept_B11 / keep_rate).to(x_BND.dtype)
