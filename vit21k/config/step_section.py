"""The recipe fields of how a device computes a step: time and memory."""

from typing import Literal

from vit21k.config.fields import Section


class StepSection(Section):
    """How a step is computed.  Nothing here changes what is learnt, but for rounding."""

    compile: Literal["auto", "none", "blocks"] = "auto"
    """`blocks`: torch.compile each block; `auto`: on a GPU, if that is measured to be faster."""
    attention: Literal["auto", "flash", "cudnn", "efficient", "math"] = "auto"
    """Which implementation; `auto`: the fastest in a short trial, where attention takes long."""
    recompute: Literal["none", "cheap"] = "none"
    """`cheap`: save memory by computing norms, GELU and dropout again in the backward pass."""
    float8: Literal["none", "mlp"] = "none"
    """`mlp`: matrix products of the MLPs in 8-bit floats; GPUs since Ada and Hopper, torchao."""
