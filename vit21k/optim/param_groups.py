"""Which parameters share a learning rate and a weight decay.

A rule gives every parameter two factors; parameters with equal factors make a group.  A group
carries ``peak_lr``: the loop sets its ``lr`` to that times the schedule's factor.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from vit21k.errors import UsageError
from vit21k.recipe.schema import OptimSection

Named = Sequence[tuple[str, nn.Parameter]]

# A transformer block of a ViT, or of a stage of a PiT; what leads from one stage to the next.
_BLOCK = re.compile(r"(?:transformers\.(\d+)\.)?blocks\.(\d+)\.")
_POOL = re.compile(r"transformers\.(\d+)\.pool\.")
_EMBEDDINGS = ("cls_token", "pos_embed", "patch_embed.")


def param_groups(model: nn.Module, section: OptimSection) -> dict[str, tuple[float, float]]:
    """Return (factor on the learning rate, weight decay) of every parameter that is trained.

    They depend on the kind, the layer and the name of the parameter; see the fields of *section*
    and `layer_ids`.

    Raises:
        UsageError: A pattern matches no parameter of *model*.
    """
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    for option in ("decay_multipliers", "lr_multipliers"):
        _check_patterns(getattr(section, option), dict(model.named_parameters()), option)
    layers = layer_ids(trained)
    top = max(layers.values(), default=0)
    return {
        name: (
            section.layer_decay ** (top - layers[name]) * _multiplier(section.lr_multipliers, name),
            _base_decay(name, param, section) * _multiplier(section.decay_multipliers, name),
        )
        for name, param in trained.items()
    }


def as_groups(
    named: Named, factors: Mapping[str, tuple[float, float]], *, lr: float
) -> list[dict[str, Any]]:
    """Return torch's parameter groups: fastest first, and of equally fast ones the decayed first.

    Args:
        named: The parameters to group.
        factors: What `param_groups` returned.
        lr: Peak learning rate at a factor of 1.
    """
    members: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, param in named:
        members.setdefault(factors[name], []).append(param)
    return [
        {"params": members[key], "peak_lr": lr * key[0], "weight_decay": key[1]}
        for key in sorted(members, reverse=True)
    ]


def layer_ids(names: Iterable[str]) -> dict[str, int]:
    """Return the layer of every parameter, counted from the image.

    Layer 0 has the embeddings, 1 to n the n blocks, n + 1 all that comes after them: the last
    norm, the representation layer, the head.  A PiT's blocks are counted through its stages; the
    pooling before a stage belongs to the first block of it.

    Source: BEiT, optim_factory.py; MMPretrain's `VisionTransformer.get_layer_depth` is the same.
    timm's `param_groups_layer_decay` differs in one thing: a norm before the pooling belongs to
    the last block there.
    """
    names = list(names)
    places = sorted({_place(match) for name in names if (match := _BLOCK.match(name))})
    number = {place: index + 1 for index, place in enumerate(places)}
    ids = {}
    for name in names:
        if name.startswith(_EMBEDDINGS):
            ids[name] = 0
        elif match := _BLOCK.match(name):
            ids[name] = number[_place(match)]
        elif match := _POOL.match(name):
            ids[name] = number[int(match[1]), 0]
        else:
            ids[name] = len(places) + 1
    return ids


def is_block_matrix(name: str, param: nn.Parameter) -> bool:
    """Return whether this is a matrix inside a transformer block."""
    return _BLOCK.match(name) is not None and name.endswith(".weight") and param.ndim > 1


def _place(match: re.Match[str]) -> tuple[int, int]:
    return int(match[1] or 0), int(match[2])


def _base_decay(name: str, param: nn.Parameter, section: OptimSection) -> float:
    is_kernel = param.ndim > 1 and name.endswith(".weight")
    decays = {"all": True, "not_1d": param.ndim > 1, "kernels": is_kernel, "none": False}
    return section.weight_decay if decays[section.decay_params] else 0.0


def _multiplier(multipliers: Mapping[str, float], name: str) -> float:
    matching = (value for pattern, value in multipliers.items() if fnmatchcase(name, pattern))
    return next(matching, 1.0)


def _check_patterns(patterns: Iterable[str], names: Iterable[str], option: str) -> None:
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(
                f"optim.{option}: `{pattern}` matches no parameter of the model",
                hint=f"its parameters are called like `{names[0]}`, `{names[-1]}`",
            )
