"""The ResNet in front of a hybrid Vision Transformer, under timm's parameter names.

Dimensions: B images, C channels, H W pixels, O output channels.

Source: google-research/vision_transformer, `models_resnet.py`: bottleneck blocks whose activation
comes after the sum, group norms of 32 groups, convolutions with standardised weights, and the
padding that TensorFlow calls SAME.  Channels are those of width factor 1.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ROOT_WIDTH = 64
_NUM_GROUPS = 32
_EXPANSION = 4

StemEps = Literal["google", "timm"]


class _Eps(NamedTuple):
    """What keeps divisions finite.  The weights of one library need its own."""

    group_norm: float
    """Added to a variance."""
    std: float
    """Added to a kernel's standard deviation."""
    variance: float
    """Added to a kernel's variance."""


_EPS = {"google": _Eps(1e-6, 1e-5, 0.0), "timm": _Eps(1e-5, 0.0, 1e-8)}


class ResNetStem(nn.Module):
    """Images -> map of features, 2 ** (1 + number of stages) times smaller."""

    def __init__(self, layers: Sequence[int], in_chans: int, eps: StemEps) -> None:
        super().__init__()
        self.stem = nn.Sequential()
        self.stem.add_module("conv", StdConv2d(in_chans, _ROOT_WIDTH, 7, stride=2, eps=eps))
        self.stem.add_module("norm", _group_norm(_ROOT_WIDTH, eps))
        self.stages = nn.Sequential()
        in_width = _ROOT_WIDTH
        for index, num_blocks in enumerate(layers):
            width = _ROOT_WIDTH * 2**index
            stage = _Stage(in_width, width, num_blocks, stride=1 if index == 0 else 2, eps=eps)
            self.stages.append(stage)
            in_width = width * _EXPANSION
        self.num_features = in_width

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the map of the last stage."""
        x_BCHW = F.relu(self.stem(images_BCHW))
        x_BCHW = F.pad(x_BCHW, _same_padding(x_BCHW, 3, 2), value=-torch.inf)
        return self.stages(F.max_pool2d(x_BCHW, 3, 2))


class StdConv2d(nn.Conv2d):
    """Convolution without a bias, of a kernel with mean 0 and deviation 1 per output channel."""

    def __init__(
        self, in_chans: int, out_chans: int, size: int, *, stride: int = 1, eps: StemEps
    ) -> None:
        super().__init__(in_chans, out_chans, size, stride=stride, bias=False)
        self.eps = _EPS[eps]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the map, ``ceil(side / stride)`` large."""
        w_OCHW = self.weight
        variance, mean = torch.var_mean(w_OCHW, dim=(1, 2, 3), correction=0, keepdim=True)
        w_OCHW = (w_OCHW - mean) / ((variance + self.eps.variance).sqrt() + self.eps.std)
        x_BCHW = F.pad(x_BCHW, _same_padding(x_BCHW, self.kernel_size[0], self.stride[0]))
        return F.conv2d(x_BCHW, w_OCHW, stride=self.stride)


class _Stage(nn.Module):
    def __init__(
        self, in_width: int, width: int, num_blocks: int, *, stride: int, eps: StemEps
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(_Bottleneck(in_width, width, stride=stride, eps=eps))
        for _ in range(1, num_blocks):
            self.blocks.append(_Bottleneck(width * _EXPANSION, width, stride=1, eps=eps))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.blocks(x_BCHW)


class _Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1; the shortcut is projected where its shape changes."""

    def __init__(self, in_width: int, width: int, *, stride: int, eps: StemEps) -> None:
        super().__init__()
        out_width = width * _EXPANSION
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_width != out_width:
            self.downsample = nn.Sequential()
            conv = StdConv2d(in_width, out_width, 1, stride=stride, eps=eps)
            self.downsample.add_module("conv", conv)
            self.downsample.add_module("norm", _group_norm(out_width, eps))
        self.conv1 = StdConv2d(in_width, width, 1, eps=eps)
        self.norm1 = _group_norm(width, eps)
        self.conv2 = StdConv2d(width, width, 3, stride=stride, eps=eps)
        self.norm2 = _group_norm(width, eps)
        self.conv3 = StdConv2d(width, out_width, 1, eps=eps)
        self.norm3 = _group_norm(out_width, eps)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        shortcut_BCHW = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        y_BCHW = F.relu(self.norm1(self.conv1(x_BCHW)))
        y_BCHW = F.relu(self.norm2(self.conv2(y_BCHW)))
        return F.relu(shortcut_BCHW + self.norm3(self.conv3(y_BCHW)))


def _group_norm(width: int, eps: StemEps) -> nn.GroupNorm:
    return nn.GroupNorm(_NUM_GROUPS, width, eps=_EPS[eps].group_norm)


def _same_padding(x_BCHW: Tensor, size: int, stride: int) -> tuple[int, int, int, int]:
    """Return TensorFlow's SAME padding: left, right, top, bottom; the larger half comes last."""
    height, width = (
        max((-(-side // stride) - 1) * stride + size - side, 0) for side in x_BCHW.shape[2:]
    )
    return width // 2, width - width // 2, height // 2, height - height // 2
