"""What every network of this package has in common, whatever happens between image and head."""

from torch import Tensor, nn


class ImageClassifier(nn.Module):
    """Square images of one size -> features -> logits.

    Dimensions: B images, C colours, H W pixels, N tokens, D features, K classes.

    Attributes:
        num_classes: Outputs of the head; 0: there is no head and `forward` returns features.
        img_size: Height and width of the images, in pixels.
        num_features: Width of what the head reads.
        num_prefix_tokens: Tokens before those of the patches: the class token, if there is one.
        grid_size: Patches of an image, (rows, columns).
        pos_embed: Learnt positions.
    """

    num_classes: int
    img_size: int
    num_features: int
    num_prefix_tokens: int
    grid_size: tuple[int, int]
    pos_embed: nn.Parameter

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
