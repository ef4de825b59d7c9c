"""A head for one class list -> the same head for another: rows are matched by wnid."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vit21k.errors import UsageError
from vit21k.manifest.classes import ClassList


class MappedHead(NamedTuple):
    """Rows of a head in the order of another class list."""

    tensors: dict[str, Tensor]
    """`head.weight` and `head.bias`; of a distilled model, `head_dist.*` as well."""
    missing: tuple[str, ...]
    """Classes that the source does not have: their rows are those of *fresh*."""


def map_head(
    source: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    source_classes: ClassList,
    classes: ClassList,
) -> MappedHead:
    """Return the rows of the heads in *source* that belong to *classes*.

    Args:
        source: Weights with a head for *source_classes*.
        fresh: First weights with a head for *classes*; rows without a match are taken from it.
        source_classes: What the rows of the head in *source* mean.
        classes: What the rows wanted mean.

    Raises:
        UsageError: No class is in both lists.
    """
    row_of = {wnid: row for row, wnid in enumerate(source_classes.wnids)}
    wanted = [row for row, wnid in enumerate(classes.wnids) if wnid in row_of]
    if not wanted:
        raise UsageError(
            "no class of this run is among the classes of the weights "
            f"(theirs begin with `{source_classes.wnids[0]}`, these with `{classes.wnids[0]}`)",
            hint="say what the rows of their head mean: `--init-classes google`, or a file",
        )
    taken = torch.tensor([row_of[classes.wnids[row]] for row in wanted])
    rows = torch.tensor(wanted)
    tensors = {}
    for name, before in source.items():
        if name.startswith(("head.", "head_dist.")):
            tensors[name] = fresh[name].clone()
            tensors[name][rows] = before[taken]
    missing = tuple(wnid for wnid in classes.wnids if wnid not in row_of)
    return MappedHead(tensors, missing)
