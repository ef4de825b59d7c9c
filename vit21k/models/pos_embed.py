"""Position embedding of one image size -> position embedding of another.

Dimensions: N tokens, D width.
"""

from math import isqrt
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vit21k.errors import CheckpointError


def resize_pos_embed(
    pos_embed_1ND: Tensor,
    grid: tuple[int, int],
    *,
    num_prefix_tokens: int = 1,
    mode: Literal["bicubic", "bilinear_align_corners"] = "bicubic",
) -> Tensor:
    """Resize the positions of a square grid of patches to another grid.

    The positions of prefix tokens stay as they are; so does everything when the grid is the same.

    Args:
        pos_embed_1ND: Prefix tokens first, then the patches row by row.
        grid: Wanted (rows, columns).
        num_prefix_tokens: 1 with a class token, else 0.
        mode: "bicubic" as PLSC does (align_corners False, no antialias);
            "bilinear_align_corners" as Google does (`scipy.ndimage.zoom` of order 1).

    Returns:
        (1, prefix + rows * columns, D), float32.

    Raises:
        CheckpointError: The patches do not form a square.
    """
    pos_embed_1ND = pos_embed_1ND.float()
    prefix_1ND = pos_embed_1ND[:, :num_prefix_tokens]
    patches_1ND = pos_embed_1ND[:, num_prefix_tokens:]
    side = isqrt(patches_1ND.shape[1])
    if side * side != patches_1ND.shape[1]:
        raise CheckpointError(
            f"{patches_1ND.shape[1]} positions of patches do not form a square grid",
            hint="the weights belong to another kind of model",
        )
    if grid == (side, side):
        return pos_embed_1ND
    patches_1DHW = patches_1ND.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    if mode == "bicubic":
        resized_1DHW = F.interpolate(patches_1DHW, grid, mode="bicubic", align_corners=False)
    else:
        resized_1DHW = F.interpolate(patches_1DHW, grid, mode="bilinear", align_corners=True)
    return torch.cat([prefix_1ND, resized_1DHW.flatten(2).transpose(1, 2)], dim=1)
