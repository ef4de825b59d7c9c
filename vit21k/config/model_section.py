"""The recipe fields of the network."""

from typing import Literal

from vit21k.config.fields import DropRate, Flag, Number, Positive, PositiveInt, Section


class ModelSection(Section):
    """Which network, and how its weights begin."""

    name: str
    """Architecture by timm's name, as `vit21k models` lists them: `vit_large_patch16_224`."""
    img_size: PositiveInt
    """Side of the square input, in pixels."""
    patch_size: PositiveInt | None = None
    """Side of a patch, in pixels; null: what the name says."""
    embed_dim: PositiveInt | None = None
    """Width of a token; null: what the name says."""
    depth: PositiveInt | None = None
    """Number of blocks; null: what the name says."""
    num_heads: PositiveInt | None = None
    """Attention heads of a block; null: what the name says."""
    global_pool: Literal["token", "avg"] = "token"
    """What the head reads: the class token, or the mean of the patch tokens."""
    class_token: Flag | None = None
    """Whether there is a class token; null: there is."""
    fc_norm: Flag | None = None
    """Normalise after the pooling, not before it; null: with `avg`, as timm, not as Google."""
    mlp_ratio: Positive | None = None
    """Width of the MLP's hidden layer, in widths of a token; null: what the name says."""
    qkv_bias: Flag | None = None
    """Whether queries, keys and values have a bias; null: they have."""
    norm_eps: Positive | None = None
    """Added to the variance in layer norms; null: 1e-6.  transformers' weights need 1e-12."""
    init_values: Positive | None = None
    """First value of learnt factors on both branches of a block (LayerScale); null: none."""
    representation_size: PositiveInt | None = None
    """Width of a tanh layer before the head (pre-logits); null: none."""
    act_layer: Literal["gelu", "gelu_tanh"] = "gelu"
    """Exact GELU, or its tanh approximation (Google's weights)."""
    pos_drop_rate: DropRate = 0.0
    """Dropout after the position embedding is added."""
    proj_drop_rate: DropRate = 0.0
    """Dropout after the attention's output and after both layers of the MLP."""
    attn_drop_rate: DropRate = 0.0
    """Dropout on the attention weights."""
    drop_path_rate: DropRate = 0.0
    """Stochastic depth of the last block."""
    drop_path_shape: Literal["linear", "linear_exclusive", "constant"] = "linear"
    """Stochastic depth of block i of n: `linear`, from 0 to the rate, as timm; `linear_exclusive`,
    the rate times i / n, as PiT's authors; `constant`, the rate, as DeiT III."""
    head_drop_rate: DropRate = 0.0
    """Dropout of what the head reads."""
    init_scheme: Literal[
        "plsc", "google", "big_vision", "timm", "deit", "mmpretrain", "mmpretrain_mae", "mindcv",
        "mindcv_v02", "paddle",
    ] = "timm"  # fmt: skip
    """Whose rules the first weights follow (all but the head).  A PiT starts as its authors' or,
    with `paddle`, from Paddle's defaults."""
    head_init: Literal["zeros", "xavier", "normal", "torch"] = "zeros"
    """First weights of the classifier; `torch`: torch's default, for its bias too."""
    head_init_std: Positive = 0.02
    """`normal`: standard deviation of the first weights of the classifier."""
    head_bias_init: Number = 0.0
    """First bias of the classifier; with `head_init: torch`, 0 leaves torch's.  -10 keeps the first
    multi-label loss near 11."""
    freeze: Literal["backbone"] | None = None
    """`backbone`: train the head alone (a linear probe); null: train everything."""
    pos_embed_resize: Literal["bicubic", "bilinear_align_corners"] = "bicubic"
    """How `--init` fits a position embedding to another grid: PLSC's way, or Google's."""
