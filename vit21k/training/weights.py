"""Weights -> a model of its own that computes with them, for an evaluation."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vit21k.distributed import whole
from vit21k.models.registry import build_model


def plain_copy(
    args: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device
) -> nn.Module:
    """Return a model with *tensors* for weights; all processes call it if they are spread.

    Args:
        args: Of the model's constructor.
        tensors: Its `state_dict`; tensors that are whole and on *device* are not copied.
        device: Where it computes.
    """
    with torch.device("meta"):  # no time is lost on first weights
        model = build_model(args)
    here = {name: whole(tensor.detach()).to(device) for name, tensor in tensors.items()}
    model.load_state_dict(here, assign=True)
    return model
