"""Matrix products of the MLPs in 8-bit floats (torchao), on GPUs that have them.

Only the MLPs: they are two thirds of the arithmetic and have the large matrices that gain.  The
head, the patch projection and attention keep their precision.
"""

import torch
from torch import nn

from vit21k.device import device_name
from vit21k.errors import MissingExtraError, UsageError

_FIRST_CAPABILITY = (8, 9)  # Ada; Hopper is (9, 0)
_MULTIPLE = 16  # of both sides of a matrix, for the hardware


def use_float8_mlps(model: nn.Module, device: torch.device, *, emulate: bool = False) -> int:
    """Replace the linear layers of the MLPs by float8 ones; weights stay as they are.

    Args:
        model: Changed in place; names and weights are not.
        device: Where it computes.
        emulate: Compute in float32 what float8 would give, on any device: for tests.

    Returns:
        How many layers were replaced.

    Raises:
        UsageError: The device has no float8.
        MissingExtraError: torchao is not installed.
    """
    if not emulate:
        _require_float8(device)
    try:
        from torchao.float8 import (  # noqa: PLC0415 (optional)
            Float8LinearConfig,
            convert_to_float8_training,
        )
    except ImportError as error:
        raise MissingExtraError(
            "step.float8 needs torchao, which is not installed",
            hint="install it with: pip install 'vit21k[float8]'",
        ) from error
    config = Float8LinearConfig(emulate=emulate)
    convert_to_float8_training(model, module_filter_fn=_is_in_mlp, config=config)
    return sum(type(module).__name__ == "Float8Linear" for module in model.modules())


def _is_in_mlp(module: nn.Module, name: str) -> bool:
    """Return whether the layer *name* is one of an MLP, and of a size that float8 takes."""
    if not isinstance(module, nn.Linear) or ".mlp." not in f".{name}":
        return False
    return module.in_features % _MULTIPLE == 0 and module.out_features % _MULTIPLE == 0


def _require_float8(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FIRST_CAPABILITY:
        return
    raise UsageError(
        f"step.float8 is `mlp`, and {device_name(device)} has no 8-bit matrix products",
        hint="NVIDIA GPUs have them since Ada and Hopper; `--set step.float8=none`",
    )
