"""Rotary position embedding of patches, over rows and columns (axial, 2-D).

Dimensions: B images, A heads, N tokens, E width of a head, P patches.

Sources: Heo et al., arXiv:2403.13298 ("axial", naver-ai/rope-vit; timm's `RotaryEmbeddingCat`);
Simeoni et al., arXiv:2508.10104 ("dinov3"; timm's `RotaryEmbeddingDinoV3`).
"""

import math
from typing import Literal

import torch
from torch import Tensor

RopeName = Literal["none", "axial", "dinov3"]


class Rope:
    """Cosines and sines of the patches of a grid, and how they turn queries and keys.

    Args:
        name: "axial": neighbours in a head form pairs, coordinates are indices of columns and rows;
            "dinov3": the halves of a head form pairs, coordinates of rows and columns are from -1
            to 1.
        head_width: Values of a head; a multiple of 4.
        temperature: The longest period, roughly, in units of the shortest.
    """

    def __init__(self, name: RopeName, head_width: int, temperature: float) -> None:
        self.name = name
        self._head_width = head_width
        self._temperature = temperature

    def _angles(self, grid: tuple[int, int]) -> Tensor:
        """Return the angles (P, E / 2) of the patches of *grid* (rows, columns)."""
        num_bands = self._head_width // 4
        steps = torch.arange(num_bands, dtype=torch.float32, device="cpu") / num_bands
        periods = self._temperature**steps
        sides = []
        for side in grid:
            index = torch.arange(side, dtype=torch.float32, device="cpu")
            sides.append(2 * (index + 0.5) / side - 1 if self.name == "dinov3" else index)
        rows, columns = torch.meshgrid(*sides, indexing="ij")
        first, second = (rows, columns) if self.name == "dinov3" else (columns, rows)
        scale = 2 * math.pi if self.name == "dinov3" else 1.0
        angles = scale * torch.stack([first, second], dim=-1)[..., None] / periods
        return angles.flatten(2).flatten(0, 1)

    def table(self, grid: tuple[int, int]) -> Tensor:
        """Return cosines and sines of the patches of *grid*, (2, P, E), float32, on the CPU."""
        angles_PF = self._angles(grid)
        if self.name == "dinov3":
            angles_PE = torch.cat([angles_PF, angles_PF], dim=-1)
        else:
            angles_PE = angles_PF.repeat_interleave(2, dim=-1)
        return torch.stack([angles_PE.cos(), angles_PE.sin()])

    def rotate(self, x_BANE: Tensor, table: Tensor) -> Tensor:
        """Turn the last tokens of *x_BANE*, those of the patches; the first ones stay.

        Args:
            x_BANE: Queries or keys.
            table: What `table` returned; or (2, B, 1, P, E) of the patches of each image.
        """
        num_prefix = x_BANE.shape[2] - table.shape[-2]
        prefix_BANE, patches_BAPE = x_BANE[:, :, :num_prefix], x_BANE[:, :, num_prefix:]
        cosines, sines = table
        if self.name == "dinov3":
            left, right = patches_BAPE.chunk(2, dim=-1)
            turned_BAPE = torch.cat([-right, left], dim=-1)
        else:
            pairs = torch.stack([-patches_BAPE[..., 1::2], patches_BAPE[..., ::2]], dim=-1)
            turned_BAPE = pairs.flatten(-2)
        rotated_BAPE = (patches_BAPE * cosines + turned_BAPE * sines).to(x_BANE.dtype)
        return torch.cat([prefix_BANE, rotated_BAPE], dim=2)
