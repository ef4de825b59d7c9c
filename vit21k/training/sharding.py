"""FSDP2: every process holds a part of each weight, its gradient and its moments.

Weights are put together for a block when it computes, and gradients summed and taken apart as soon
as it is done.  What is saved is always whole (see `training.saving`), so that a checkpoint does not
know how many processes wrote it.
"""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from vit21k.distributed import World
from vit21k.models.precision import DTYPES, Precision


def shard(
    model: nn.Module, world: World, *, device: torch.device, precision: Precision
) -> FSDPModule:
    """Spread *model* over the processes, block by block; all call it with the same weights.

    Activation checkpointing and compilation come before it, the optimizer after it.

    Args:
        model: On *device*; changed in place.
        world: All processes share it.
        device: Of this process.
        precision: Weights are sent in it; they are kept, and gradients summed, in float32.
    """
    mesh = init_device_mesh(device.type, (world.world_size,))
    policy = MixedPrecisionPolicy(
        param_dtype=DTYPES[precision], reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    # The root as well: whoever looks between two steps must find parts everywhere.
    return fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def _blocks(model: nn.Module) -> list[nn.Module]:
    """Return the transformer blocks of a ViT, or of the stages of a PiT."""
    lists = [module for name, module in model.named_modules() if name.split(".")[-1] == "blocks"]
    return [block for blocks in lists for block in blocks.children()]
