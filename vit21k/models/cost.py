"""Sizes, parameters, operations and memory of a model, from its arguments alone; needs no torch.

The arguments are those of the constructor, all of them, as `model_args` returns them.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import ceil
from typing import Any, NamedTuple


def is_pit(args: Mapping[str, Any]) -> bool:
    """Return whether *args* are a PiT's."""
    return "base_dims" in args


def grid_side(args: Mapping[str, Any]) -> int:
    """Return the number of patches along a side of the image, in the first block."""
    if is_pit(args):
        return int((args["img_size"] - args["patch_size"]) // args["stride"]) + 1
    side = args["img_size"]
    if args["resnet_layers"] is not None:
        side = resnet_sides(side, args["resnet_layers"])[-1]
    return int(side // args["patch_size"])


def resnet_sides(img_size: int, layers: Sequence[int]) -> list[int]:
    """Return the sides of a ResNet's maps: after the root, its pooling, and every stage.

    Strides keep a partial last step ("SAME" padding).
    """
    root = ceil(img_size / 2)
    sides = [root, ceil(root / 2)]
    for stage in range(len(layers)):
        sides.append(sides[-1] if stage == 0 else ceil(sides[-1] / 2))
    return sides


def pit_widths(args: Mapping[str, Any]) -> list[int]:
    """Return the width of a token in each stage of a PiT."""
    return [base * heads for base, heads in zip(args["base_dims"], args["heads"], strict=True)]


def pit_sides(args: Mapping[str, Any]) -> list[int]:
    """Return the side of the map in each stage of a PiT: a pooling halves it, rounding up."""
    sides = [grid_side(args)]
    while len(sides) < len(args["depth"]):
        sides.append((sides[-1] - 1) // 2 + 1)
    return sides


FLOPS_PER_MAC = 2
"""A multiply-accumulate is two floating-point operations."""

_TRAIN_PASSES = 3  # the backward pass costs two forward passes
_ROOT_WIDTH = 64  # of a hybrid's ResNet


class _Conv(NamedTuple):
    """A convolution of a hybrid's ResNet, followed by a group norm."""

    weights: int
    width: int
    side: int
    """Of the map it makes."""


def num_tokens(args: Mapping[str, Any]) -> int:
    """Return the length of the sequence in the first block: patches and tokens before them."""
    return grid_side(args) ** 2 + _num_prefix_tokens(args)


def num_params(args: Mapping[str, Any]) -> int:
    """Return the number of parameters, head included."""
    if is_pit(args):
        return _pit_params(args)
    width = args["embed_dim"]
    norm = width if args["norm_layer"] == "rmsnorm" else 2 * width
    num_prefix = _num_prefix_tokens(args)
    positions = grid_side(args) ** 2 + (0 if args["no_embed_class"] else num_prefix)
    positions *= args["pos_embed"] == "learn"
    factors = 0 if args["init_values"] is None else 2 * width
    qk_norms = 2 * norm // args["num_heads"] if args["qk_norm"] else 0
    block = _block_params(width, args["mlp_ratio"], args["qkv_bias"])
    block += factors + qk_norms + 2 * (norm - 2 * width)
    if args["mlp_layer"] == "swiglu":
        block -= width * (int(width * args["mlp_ratio"]) // 2)
    pool = width + _block_params(width, args["mlp_ratio"], qkv_bias=True) - 4 * width + norm
    representation = args["representation_size"] or 0
    head = (_num_features(args) + 1) * args["num_classes"] * (1 + args["distilled"])
    stem = sum(conv.weights + 2 * conv.width for conv in _resnet(args))
    patch = _patch_values(args) * width + (norm if args["pre_norm"] else width)
    return (
        stem
        + patch
        + (num_prefix + positions) * width
        + args["depth"] * block
        + norm
        + pool * (args["global_pool"] == "map")
        + (width + 1) * representation
        + head
    )


def macs_per_image(args: Mapping[str, Any]) -> int:
    """Return the multiplications of one forward pass in matrix products, head included.

    Element-wise operations are not counted.  The last block counts in full, as in published tables,
    although only the class token is needed.

    Source: the count agrees with timm's and MMPretrain's published tables.
    """
    if is_pit(args):
        return _pit_macs(args)
    width = args["embed_dim"]
    stem = sum(conv.weights * conv.side**2 for conv in _resnet(args))
    patch = grid_side(args) ** 2 * _patch_values(args) * width
    blocks = args["depth"] * _block_macs(num_tokens(args), width, args["mlp_ratio"])
    if args["mlp_layer"] == "swiglu":  # the second layer reads one half of the first one's output
        hidden = int(width * args["mlp_ratio"])
        blocks -= args["depth"] * num_tokens(args) * width * (hidden // 2)
    pool = width * (args["representation_size"] or 0)
    if args["global_pool"] == "map":
        patches, hidden = grid_side(args) ** 2, int(width * args["mlp_ratio"])
        pool = 2 * width * (width + hidden) + 2 * patches * width * (width + 1)
    heads = 1 + args["distilled"]
    return stem + patch + blocks + pool + heads * _num_features(args) * args["num_classes"]


def train_flops_per_image(args: Mapping[str, Any]) -> int:
    """Return the floating-point operations of an image in training, forward and backward."""
    return _TRAIN_PASSES * FLOPS_PER_MAC * macs_per_image(args)


def activation_bytes_per_image(
    args: Mapping[str, Any], bytes_per_value: int, *, recompute: bool = False
) -> int:
    """Estimate the bytes that a training step stores for one image until the backward pass.

    A block stores two normalised inputs, queries, keys, values, the output of attention, two
    residuals, and the hidden layer of the MLP before and after the GELU, but no attention weights.
    Dropout stores a mask of one byte per value.  The image, the last tokens before and after their
    norm, and the logits in float32 with their gradient are stored too; of a ResNet, each map before
    and after its norm, before and after its ReLU.

    A block that recomputes cheap operations stores its input, queries, keys, values, the output of
    attention before and after its projection, and the hidden layer of the MLP.

    Args:
        args: Arguments of the model.
        bytes_per_value: 4 in float32, 2 under bfloat16 autocast.
        recompute: Whether blocks compute cheap operations again.
    """
    image = args["in_chans"] * args["img_size"] ** 2 * bytes_per_value
    logits = 2 * 4 * args["num_classes"]
    block_bytes = _recomputed_block_bytes if recompute else _block_bytes
    if is_pit(args):
        stages = zip(args["depth"], pit_sides(args), pit_widths(args), strict=True)
        blocks = sum(
            depth * (side**2 + _num_prefix_tokens(args)) * block_bytes(args, width, bytes_per_value)
            for depth, side, width in stages
        )
        return int(blocks + image + logits)
    width = args["embed_dim"]
    last_tokens = 2 * width * bytes_per_value
    block = block_bytes(args, width, bytes_per_value)
    stem = sum(3 * conv.width * conv.side**2 for conv in _resnet(args)) * bytes_per_value
    return int(stem + num_tokens(args) * (args["depth"] * block + last_tokens) + image + logits)


def _block_bytes(args: Mapping[str, Any], width: int, bytes_per_value: int) -> int:
    """Return the bytes that a block stores of one token."""
    hidden = int(width * args["mlp_ratio"])
    masks = (2 * width + hidden) * bool(args["proj_drop_rate"])
    return (8 * width + 2 * hidden) * bytes_per_value + masks


def _recomputed_block_bytes(args: Mapping[str, Any], width: int, bytes_per_value: int) -> int:
    """Return the bytes that a block stores of one token if it recomputes cheap operations."""
    return (6 * width + int(width * args["mlp_ratio"])) * bytes_per_value


def _num_prefix_tokens(args: Mapping[str, Any]) -> int:
    if is_pit(args):
        return 1 + int(args["distilled"])
    return int(args["class_token"]) + int(args["distilled"]) + int(args["reg_tokens"])


def _num_features(args: Mapping[str, Any]) -> int:
    """Return the width of what the head of a Vision Transformer reads."""
    pooled = args["embed_dim"] * (2 if args["global_pool"] == "token_avg" else 1)
    return int(args["representation_size"] or pooled)


def _block_params(width: int, mlp_ratio: float, qkv_bias: bool) -> int:
    hidden = int(width * mlp_ratio)
    attention = 4 * width**2 + width + (3 * width if qkv_bias else 0)
    return attention + 2 * width * hidden + hidden + width + 4 * width


def _block_macs(num_tokens: int, width: int, mlp_ratio: float) -> int:
    linear = 4 * width**2 + 2 * width * int(width * mlp_ratio)
    return num_tokens * (linear + 2 * num_tokens * width)


def _patch_values(args: Mapping[str, Any]) -> int:
    """Return the number of values of a patch."""
    channels = args["in_chans"]
    if not is_pit(args) and args["resnet_layers"] is not None:
        channels = _ROOT_WIDTH * 2 ** (len(args["resnet_layers"]) + 1)
    return int(channels * args["patch_size"] ** 2)


def _resnet(args: Mapping[str, Any]) -> Iterator[_Conv]:
    """Yield the convolutions of a hybrid's ResNet."""
    layers = args["resnet_layers"]
    if layers is None:
        return
    root, pooled, *sides = resnet_sides(args["img_size"], layers)
    yield _Conv(49 * args["in_chans"] * _ROOT_WIDTH, _ROOT_WIDTH, root)
    before, in_side = _ROOT_WIDTH, pooled
    for stage, (num_blocks, side) in enumerate(zip(layers, sides, strict=True)):
        width = _ROOT_WIDTH * 2**stage
        yield _Conv(before * 4 * width, 4 * width, side)  # the projected shortcut
        for _ in range(num_blocks):
            yield _Conv(before * width, width, in_side)
            yield _Conv(9 * width**2, width, side)
            yield _Conv(4 * width**2, 4 * width, side)
            before, in_side = 4 * width, side


def _pit_params(args: Mapping[str, Any]) -> int:
    widths, num_heads = pit_widths(args), _num_prefix_tokens(args)
    first, last = widths[0], widths[-1]
    tokens = grid_side(args) ** 2 * first + num_heads * first
    patch = _patch_values(args) * first + first
    blocks = sum(
        depth * _block_params(width, args["mlp_ratio"], qkv_bias=True)
        for depth, width in zip(args["depth"], widths, strict=True)
    )
    pools = sum(11 * out + inside * out for inside, out in pairwise(widths))
    return tokens + patch + blocks + pools + 2 * last + num_heads * (last + 1) * args["num_classes"]


def _pit_macs(args: Mapping[str, Any]) -> int:
    widths, sides, num_heads = pit_widths(args), pit_sides(args), _num_prefix_tokens(args)
    patch = sides[0] ** 2 * _patch_values(args) * widths[0]
    blocks = sum(
        depth * _block_macs(side**2 + num_heads, width, args["mlp_ratio"])
        for depth, side, width in zip(args["depth"], sides, widths, strict=True)
    )
    pools = sum(
        9 * out * side**2 + num_heads * inside * out
        for inside, out, side in zip(widths, widths[1:], sides[1:], strict=False)
    )
    return int(patch + blocks + pools + num_heads * widths[-1] * args["num_classes"])
