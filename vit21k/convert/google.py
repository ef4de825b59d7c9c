"""Google's ``.npz``: google-research/vision_transformer and big_vision, published and own files.

Kernels are [in, out]; those of attention have separate dimensions for heads and width of a head;
those of convolutions are [rows, columns, in, out].  flax numbers submodules by order of use or, in
newer files, by kind: both are read, the published one is written.

Dimensions: D width, A heads, E width of a head.

big_vision can hold all blocks in one array per kind, and its class token has no position.

Source: vit_jax/checkpoint.py and vit_jax/models_vit.py; big_vision/models/vit.py.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vit21k.convert.naming import Converted, Names, fuse, split_qkv
from vit21k.errors import CheckpointError

_ATTENTION = "MultiHeadDotProductAttention_1/"
_NAMES = Names(
    block="Transformer/encoderblock_{}/",
    outside={
        "embedding/": "patch_embed.proj/",
        "cls": "cls_token",
        "pos_embedding": "pos_embed",
        "MAPHead_0/probe": "attn_pool.latent",
        f"MAPHead_0/{_ATTENTION}query/": "attn_pool.q/",
        f"MAPHead_0/{_ATTENTION}key/": "attn_pool.k/",
        f"MAPHead_0/{_ATTENTION}value/": "attn_pool.v/",
        f"MAPHead_0/{_ATTENTION}out/": "attn_pool.proj/",
        "MAPHead_0/LayerNorm_0/": "attn_pool.norm/",
        "MAPHead_0/MlpBlock_3/Dense_0/": "attn_pool.mlp.fc1/",
        "MAPHead_0/MlpBlock_3/Dense_1/": "attn_pool.mlp.fc2/",
        "Transformer/posembed_input/pos_embedding": "pos_embed",
        "Transformer/encoder_norm/": "norm/",
        "pre_logits/": "pre_logits.fc/",
        "head/": "head/",
    },
    inside={
        "LayerNorm_0/": "norm1/",
        f"{_ATTENTION}query/": "attn.q/",
        f"{_ATTENTION}key/": "attn.k/",
        f"{_ATTENTION}value/": "attn.v/",
        f"{_ATTENTION}out/": "attn.proj/",
        "LayerNorm_2/": "norm2/",
        "MlpBlock_3/Dense_0/": "mlp.fc1/",
        "MlpBlock_3/Dense_1/": "mlp.fc2/",
    },
)
_LINEN = {
    "MultiHeadDotProductAttention_0/": _ATTENTION,
    "LayerNorm_1/": "LayerNorm_2/",
    "MlpBlock_0/": "MlpBlock_3/",
}
_SCANNED = "Transformer/encoderblock/"
_OF_ATTENTION = re.compile(r"(?:\.attn|attn_pool)\.(?:[qkv]|(proj))\.(?:weight|bias)$")
_BARE = ("cls_token", "pos_embed", "attn_pool.latent")
_UNIT = re.compile(r"block(\d+)/unit(\d+)/(?:conv|gn)(\d|_proj)/(.+)")
_OUR_UNIT = re.compile(
    r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.(downsample\.)?(conv|norm)(\d?)\.(\w+)"
)
_STEM = "patch_embed.backbone.stem."
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_MATRIX, _MAP = 2, 4  # number of dimensions


def from_google(
    arrays: Mapping[str, Tensor], _config: Mapping[str, Any] | None = None
) -> Converted:
    """Return the tensors under our names.

    Google's GELU is the tanh approximation, and its mean pooling normalises before it: no array
    shows these.
    """
    arrays = _unstacked(arrays)
    tensors: dict[str, Tensor] = {}
    dropped = []
    for their_name, tensor in arrays.items():
        name = _ours(their_name)
        if name is None:
            dropped.append(their_name)
        else:
            tensors[name] = _tensor_of(name, tensor)
    known: dict[str, Any] = {
        "act_layer": "gelu_tanh",
        "num_heads": _num_heads(arrays),
        "norm_eps": 1e-6,
        "global_pool": "token",
    }
    if "cls_token" not in tensors and "attn_pool.latent" not in tensors:
        known |= {"global_pool": "avg", "class_token": False, "fc_norm": False}
    if any(name.startswith(_STEM) for name in tensors):
        known["stem_eps"] = "google"
    return Converted(fuse(tensors), known, tuple(dropped))


def _unstacked(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return *arrays* with separate arrays of each block."""
    separate: dict[str, Tensor] = {}
    for name, array in arrays.items():
        if not name.startswith(_SCANNED):
            separate[name] = array
            continue
        for index, one in enumerate(array):
            separate[f"Transformer/encoderblock_{index}/{name.removeprefix(_SCANNED)}"] = one
    return separate


def to_google(tensors: Mapping[str, Tensor], num_heads: int) -> dict[str, Tensor]:
    """Return *tensors* under the published names, in Google's layout."""
    arrays: dict[str, Tensor] = {}
    for name, tensor in split_qkv(tensors).items():
        theirs = _theirs(name)
        if theirs is None:
            raise CheckpointError(f"Google's layout has no array for `{name}`")
        arrays[theirs] = _array_of(theirs, name, tensor, num_heads)
    return arrays


def _ours(name: str) -> str | None:
    for linen, published in _LINEN.items():
        # "LayerNorm_1" is the second norm of a block; the final norm has another name.
        name = name.replace(linen, published)
    if unit := _UNIT.fullmatch(name):
        block, index, which, leaf = unit.groups()
        kind = "norm" if leaf in ("scale", "bias") else "conv"
        part = f"downsample.{kind}" if which == "_proj" else f"{kind}{which}"
        stage = f"patch_embed.backbone.stages.{int(block) - 1}.blocks.{int(index) - 1}"
        return f"{stage}.{part}.{_LEAVES.get(leaf, leaf)}"
    if name.startswith(("conv_root/", "gn_root/")):
        kind = "conv" if name.startswith("conv") else "norm"
        return f"{_STEM}{kind}.{_LEAVES.get(name.partition('/')[2], '?')}"
    ours = _NAMES.to_ours(name)
    if ours is None:
        return None
    module, slash, leaf = ours.rpartition("/")
    return f"{module}.{_LEAVES.get(leaf, leaf)}" if slash else ours


def _theirs(name: str) -> str | None:
    module, _, leaf = name.rpartition(".")
    is_norm = "norm" in module.rpartition(".")[2]
    leaf = {"weight": "scale" if is_norm else "kernel"}.get(leaf, leaf)
    if unit := _OUR_UNIT.fullmatch(name):
        stage, index, projected, kind, number, _ = unit.groups()
        which = "_proj" if projected else number
        module = f"{'conv' if kind == 'conv' else 'gn'}{which}"
        return f"block{int(stage) + 1}/unit{int(index) + 1}/{module}/{leaf}"
    if name.startswith(_STEM):
        return f"{'gn' if is_norm else 'conv'}_root/{leaf}"
    if name in ("cls_token", "pos_embed"):
        return _NAMES.to_theirs(name)
    return _NAMES.to_theirs(f"{module}/{leaf}")


def _tensor_of(name: str, array: Tensor) -> Tensor:
    """Return *array* in torch's layout."""
    if name in _BARE:
        return array
    if (match := _OF_ATTENTION.search(name)) and name.endswith("weight"):
        return array.flatten(0, 1).T if match[1] else array.flatten(1).T
    if "norm" in name or name.endswith("bias"):
        return array.flatten()  # norms of old hybrids have extra dimensions of 1
    return array.permute(3, 2, 0, 1) if array.ndim == _MAP else array.T


def _array_of(theirs: str, name: str, tensor: Tensor, num_heads: int) -> Tensor:
    """Undo `_tensor_of`."""
    if "/out/kernel" in theirs:
        return tensor.T.reshape(num_heads, -1, tensor.shape[0])
    if "MultiHead" in theirs and "/out/" not in theirs:
        matrix = tensor.T if tensor.ndim == _MATRIX else tensor
        return matrix.reshape(*matrix.shape[:-1], num_heads, -1)
    if name in ("cls_token", "pos_embed") or tensor.ndim == 1:
        return tensor
    return tensor.permute(2, 3, 1, 0) if tensor.ndim == _MAP else tensor.T


def _num_heads(arrays: Mapping[str, Tensor]) -> int:
    for name, array in arrays.items():
        if name.endswith("/query/bias") and array.ndim == _MATRIX:
            return int(array.shape[0])
    raise CheckpointError("these arrays have no attention in them")
