"""What a model costs, from its arguments alone; needs no torch.

The arguments are those of `VisionTransformer`, all of them, as `model_args` returns them.
"""

from collections.abc import Mapping
from typing import Any


def num_tokens(args: Mapping[str, Any]) -> int:
    """Return the length of the sequence: patches and class token."""
    return _num_patches(args) + int(args["class_token"])


def num_params(args: Mapping[str, Any]) -> int:
    """Return the number of parameters, head included."""
    width = args["embed_dim"]
    hidden = _hidden_dim(args)
    patch = args["in_chans"] * args["patch_size"] ** 2 * width + width
    tokens = (int(args["class_token"]) + num_tokens(args)) * width
    attention = 4 * width**2 + width + (3 * width if args["qkv_bias"] else 0)
    mlp = 2 * width * hidden + hidden + width
    block = attention + mlp + 4 * width
    representation = args["representation_size"] or 0
    features = representation or width
    head = (features + 1) * args["num_classes"]
    return patch + tokens + args["depth"] * block + 2 * width + (width + 1) * representation + head


def macs_per_image(args: Mapping[str, Any]) -> int:
    """Return the multiplications of one forward pass in matrix products, head included.

    A training step takes 6 floating-point operations for each: 2 forward, 4 backward.  Element-wise
    operations are not counted; and the last block counts in full, as everybody does, although it
    need not compute more than the class token.

    Source: the count agrees with timm's and MMPretrain's published tables.
    """
    width = args["embed_dim"]
    tokens = num_tokens(args)
    patch = _num_patches(args) * args["in_chans"] * args["patch_size"] ** 2 * width
    linear = 4 * width**2 + 2 * width * _hidden_dim(args)
    block = tokens * (linear + 2 * tokens * width)
    representation = args["representation_size"] or 0
    features = representation or width
    return patch + args["depth"] * block + width * representation + features * args["num_classes"]


def activation_bytes_per_image(args: Mapping[str, Any], bytes_per_value: int) -> int:
    """Estimate what a training step keeps of one image until the backward pass, in bytes.

    A block keeps two normalised inputs, queries, keys, values, the attention's output, two
    residuals, and the MLP's hidden layer before and after the GELU; attention weights are never
    kept.  Where there is dropout, it keeps a mask of one byte a value.  To this come the image, the
    last tokens before and after their norm, and the logits in float32 with their gradient.

    Args:
        args: Arguments of the model.
        bytes_per_value: 4 in float32, 2 under bfloat16 autocast.
    """
    width = args["embed_dim"]
    hidden = _hidden_dim(args)
    values_in_block = 8 * width + 2 * hidden
    masks_in_block = (2 * width + hidden) * bool(args["proj_drop_rate"])
    block = values_in_block * bytes_per_value + masks_in_block
    image = args["in_chans"] * args["img_size"] ** 2 * bytes_per_value
    last_tokens = 2 * width * bytes_per_value
    logits = 2 * 4 * args["num_classes"]
    return num_tokens(args) * (args["depth"] * block + last_tokens) + image + logits


def _num_patches(args: Mapping[str, Any]) -> int:
    return (args["img_size"] // args["patch_size"]) ** 2


def _hidden_dim(args: Mapping[str, Any]) -> int:
    return int(args["embed_dim"] * args["mlp_ratio"])
