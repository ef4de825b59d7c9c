"""Names of tensors in other libraries <-> ours, as tables of prefixes."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vit21k.errors import CheckpointError


class Converted(NamedTuple):
    """Weights of another program under our names."""

    tensors: dict[str, Tensor]
    """By our names, in torch's layout."""
    known: Mapping[str, Any]
    """Arguments that no tensor shows, but their layout or a config file does."""
    dropped: tuple[str, ...] = ()
    """Their names of tensors that none of our models has."""
    spare: tuple[str, ...] = ()
    """Their names of tensors that the image model does not need."""
    customary: Mapping[str, Any] = {}
    """Defaults of the library for arguments that nothing names, where they differ from timm's."""
    unknown: str | None = None
    """The architecture that a config file names, if it is not one of ours."""


_OUR_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Names:
    """Names of the tensors of a Vision Transformer in a library.

    Attributes:
        block: Prefix of a block's tensors, with ``{}`` for its index.
        outside: Their prefix -> ours, for tensors outside the blocks.
        inside: The same for the rest of a name in a block.  Where queries, keys and values are
            separate, ours are ``attn.q.``, ``attn.k.`` and ``attn.v.``; see `fuse`.
    """

    block: str
    outside: Mapping[str, str]
    inside: Mapping[str, str]

    def to_ours(self, name: str) -> str | None:
        """Return our name for their *name*; None: we have no such tensor."""
        pattern = re.escape(self.block).replace(r"\{\}", r"(\d+)")
        if match := re.match(pattern, name):
            inner = _replaced(name[match.end() :], self.inside)
            return None if inner is None else f"blocks.{match[1]}.{inner}"
        return _replaced(name, self.outside)

    def to_theirs(self, name: str) -> str | None:
        """Return their name for our *name*; None: they have no such tensor."""
        if match := _OUR_BLOCK.fullmatch(name):
            inner = _replaced(match[2], {ours: theirs for theirs, ours in self.inside.items()})
            return None if inner is None else self.block.format(match[1]) + inner
        return _replaced(name, {ours: theirs for theirs, ours in self.outside.items()})


def renamed(
    tensors: Mapping[str, Tensor], to_ours: Callable[[str], str | None]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return *tensors* under our names, and their names of those that we do not have."""
    ours = {name: to_ours(name) for name in tensors}
    known = {new: tensors[name] for name, new in ours.items() if new is not None}
    return known, tuple(name for name, new in ours.items() if new is None)


def under_their_names(
    tensors: Mapping[str, Tensor], to_theirs: Callable[[str], str | None], library: str
) -> dict[str, Tensor]:
    """Return *tensors* under the names of *library*.

    Raises:
        CheckpointError: It has no such tensor.
    """
    converted = {}
    for name, tensor in tensors.items():
        theirs = to_theirs(name)
        if theirs is None:
            raise CheckpointError(f"{library} has no tensor for `{name}`")
        converted[theirs] = tensor
    return converted


# Tensors that others have separately -> ours, which holds them one after the other.
_FUSED = {
    ".attn.qkv.": (".attn.q.", ".attn.k.", ".attn.v."),
    ".mlp.fc1.": (".mlp.gate.", ".mlp.up."),
    "attn_pool.kv.": ("attn_pool.k.", "attn_pool.v."),
}


def fuse(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return *tensors* with ``attn.q``, ``attn.k`` and ``attn.v`` joined to ``attn.qkv``, ....

    Raises:
        CheckpointError: One of them is missing.
    """
    fused: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        found = ((ours, parts) for ours, parts in _FUSED.items() if any(p in name for p in parts))
        ours, parts = next(found, ("", ()))
        if not parts:
            fused[name] = tensor
        elif parts[0] in name:
            names = [name.replace(parts[0], part) for part in parts]
            if missing := [part for part in names if part not in tensors]:
                raise CheckpointError(f"there is `{name}`, but no `{missing[0]}`")
            fused[name.replace(parts[0], ours)] = torch.cat([tensors[part] for part in names])
    return fused


def without_class_position(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return *tensors* with the first position added to the class token, for DINOv2's registers.

    Their class token has a position, and their registers, which follow it, have none.
    """
    positions = tensors["pos_embed"]
    return {
        **tensors,
        "cls_token": tensors["cls_token"] + positions[:, :1],
        "pos_embed": positions[:, 1:],
    }


def split_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `fuse` for queries, keys and values."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." not in name:
            split[name] = tensor
            continue
        for part, piece in zip("qkv", tensor.chunk(3), strict=True):
            split[name.replace(".attn.qkv.", f".attn.{part}.")] = piece.contiguous()
    return split


def _replaced(name: str, table: Mapping[str, str]) -> str | None:
    for before, after in table.items():
        if name.startswith(before):
            return after + name[len(before) :]
    return None
