"""RGB pixels -> the same picture in another size, antialiased, by threads without the GIL.

Torch's resampling of uint8 is Pillow's algorithm in the processor's wide registers, and far faster.
It differs from Pillow's by 0.03/255 on average over real images.  Bilinear, the largest difference
is 2.  Bicubic, 1 value in 15,000 differs by more than that, up to 30, where a sharp edge
overshoots: Pillow may take columns before rows, and what is clipped between the two then differs.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def resample(pixels_HWC: NDArray[np.uint8], size: tuple[int, int], mode: str) -> Tensor:
    """Return the picture as a tensor (3, height, width), of its own memory.

    Args:
        pixels_HWC: RGB, in any strides.
        size: (height, width) of the result.
        mode: "bilinear" or "bicubic".
    """
    if not (pixels_HWC.flags.c_contiguous and pixels_HWC.flags.writeable):
        pixels_HWC = pixels_HWC.copy()
    image_1CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)[None]
    return F.interpolate(image_1CHW, size, mode=mode, antialias=True)[0]
