"""What a converter hands back: tensors under our names, and what their layout says of the model.

Their names of tensors <-> ours, as tables of prefixes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Converted(NamedTuple):
    """Weights of another program under our names."""

    tensors: dict[str, Tensor]
    """By our names, in torch's layout."""
    known: Mapping[str, Any]
    """Arguments that the arrays do not show, but their layout or a file beside them does."""
    dropped: tuple[str, ...] = ()
    """Tensors that belong to no model of ours, by their own names."""
    customary: Mapping[str, Any] = {}
    """What its library's constructors take for arguments that nothing says, if not timm's."""
    unknown: str | None = None
    """The architecture that a file beside the weights names, if it is not one of ours."""


_OUR_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Names:
    """How a library calls the tensors of a Vision Transformer.

    Attributes:
        block: Prefix of a block's tensors, with ``{}`` for its number.
        outside: Their prefix -> ours, for tensors outside the blocks.
        inside: The same for what follows the prefix of a block.  Where they keep queries, keys and
            values apart, ours are ``attn.q.``, ``attn.k.`` and ``attn.v.``; see `fuse_qkv`.
    """

    block: str
    outside: Mapping[str, str]
    inside: Mapping[str, str]

    def to_ours(self, name: str) -> str | None:
        """Return our name of their *name*; None: we have no such tensor."""
        pattern = re.escape(self.block).replace(r"\{\}", r"(\d+)")
        if match := re.match(pattern, name):
            inner = _replaced(name[match.end() :], self.inside)
            return None if inner is None else f"blocks.{match[1]}.{inner}"
        return _replaced(name, self.outside)

    def to_theirs(self, name: str) -> str | None:
        """Return their name of our *name*; None: they have no such tensor."""
        if match := _OUR_BLOCK.fullmatch(name):
            inner = _replaced(match[2], {ours: theirs for theirs, ours in self.inside.items()})
            return None if inner is None else self.block.format(match[1]) + inner
        return _replaced(name, {ours: theirs for theirs, ours in self.outside.items()})


def renamed(
    tensors: Mapping[str, Tensor], to_ours: Callable[[str], str | None]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return *tensors* under our names, and the names of those that we have not."""
    ours = {name: to_ours(name) for name in tensors}
    known = {new: tensors[name] for name, new in ours.items() if new is not None}
    return known, tuple(name for name, new in ours.items() if new is None)


def fuse_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return *tensors* with ``attn.q``, ``attn.k`` and ``attn.v`` joined to ``attn.qkv``."""
    fused: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".attn.q." in name:
            parts = [tensors[name.replace(".attn.q.", f".attn.{part}.")] for part in "qkv"]
            fused[name.replace(".attn.q.", ".attn.qkv.")] = torch.cat(parts)
        elif ".attn.k." not in name and ".attn.v." not in name:
            fused[name] = tensor
    return fused


def split_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `fuse_qkv`."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".attn.qkv." in name:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                split[name.replace(".attn.qkv.", f".attn.{part}.")] = piece.contiguous()
        else:
            split[name] = tensor
    return split


def _replaced(name: str, table: Mapping[str, str]) -> str | None:
    for before, after in table.items():
        if name.startswith(before):
            return after + name[len(before) :]
    return None
