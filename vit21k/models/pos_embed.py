"""Position embedding of one image size -> position embedding of another.

Dimensions: N tokens, D width, H W rows and columns of patches.
"""

from math import isqrt
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vit21k.errors import CheckpointError

ResizeMode = Literal["bicubic", "bilinear_align_corners"]


def resize_pos_embed(
    pos_embed_1ND: Tensor,
    grid: tuple[int, int],
    *,
    num_prefix_tokens: int = 1,
    mode: ResizeMode = "bicubic",
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
    resized_1DHW = resize_pos_map(patches_1DHW, grid, mode=mode)
    return torch.cat([prefix_1ND, resized_1DHW.flatten(2).transpose(1, 2)], dim=1)


def resize_pos_map(
    pos_map_1DHW: Tensor, grid: tuple[int, int], *, mode: ResizeMode = "bicubic"
) -> Tensor:
    """Resize a map of positions, as a PiT has it, to another grid.

    Args:
        pos_map_1DHW: One position a patch.
        grid: Wanted (rows, columns).
        mode: As of `resize_pos_embed`.

    Returns:
        (1, D, rows, columns), float32; *pos_map_1DHW* itself if the grid is the same.
    """
    pos_map_1DHW = pos_map_1DHW.float()
    if tuple(pos_map_1DHW.shape[2:]) == grid:
        return pos_map_1DHW
    if mode == "bicubic":
        return F.interpolate(pos_map_1DHW, grid, mode="bicubic", align_corners=False)
    return F.interpolate(pos_map_1DHW, grid, mode="bilinear", align_corners=True)
