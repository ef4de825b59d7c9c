"""Optimizer state <-> flat tensors by parameter name: ``exp_avg/blocks.0.attn.qkv.weight``.

Only tensors are kept (moments, step counts).  Learning rates and the like come from the recipe.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from vit21k.distributed import spread_like
from vit21k.errors import CheckpointError


def optimizers_to_tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Return the state of *optimizers*, keyed ``<slot>/<parameter name>``.

    The tensors are the optimizers' own, not copies.

    Args:
        model: Owns the parameters that the optimizers update.
        optimizers: Together they update a parameter at most once.

    Raises:
        TypeError: A state is neither a tensor nor None; it could not be restored.
    """
    names = {id(param): name for name, param in model.named_parameters()}
    tensors = {}
    for optimizer in optimizers:
        for param, slots in optimizer.state.items():
            for slot, value in slots.items():
                if value is None:
                    continue
                if not isinstance(value, Tensor):
                    raise TypeError(f"{type(optimizer).__name__} keeps `{slot}` as {type(value)}")
                tensors[f"{slot}/{names[id(param)]}"] = value
    return tensors


def tensors_to_optimizers(
    tensors: Mapping[str, Tensor], model: nn.Module, optimizers: Sequence[Optimizer]
) -> None:
    """Put back what `optimizers_to_tensors` returned.

    Args:
        tensors: The state, whole; empty before the first update.
        model: Has the same parameters as then; its parameters are on their device.
        optimizers: Of the same kinds over the same parameters; changed in place.

    Raises:
        CheckpointError: The state is that of other parameters.
    """
    states = _by_parameter(tensors)
    _check(states, model, optimizers)
    names = {id(param): name for name, param in model.named_parameters()}
    for optimizer in optimizers:
        # torch's own loader places a step count and a moment where its kernels expect them.
        saved: dict[str, Any] = optimizer.state_dict()
        params = [param for group in optimizer.param_groups for param in group["params"]]
        saved["state"] = {
            index: _spread(states[names[id(param)]], param)
            for index, param in enumerate(params)
            if names[id(param)] in states
        }
        optimizer.load_state_dict(saved)
        _restore_dtypes(optimizer, saved["state"], params)


def _spread(slots: Mapping[str, Tensor], param: Tensor) -> dict[str, Tensor]:
    return {slot: spread_like(tensor, param) for slot, tensor in slots.items()}


def _restore_dtypes(
    optimizer: Optimizer, states: Mapping[int, Mapping[str, Tensor]], params: Sequence[Tensor]
) -> None:
    """Give moments the type they were saved in: torch's loader casts them to the parameter's."""
    for index, slots in states.items():
        mine = optimizer.state[params[index]]
        for slot, tensor in slots.items():
            if tensor.ndim:
                mine[slot] = mine[slot].to(tensor.dtype)


def _by_parameter(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        slot, _, name = key.partition("/")
        states.setdefault(name, {})[slot] = tensor
    return states


def _check(
    states: Mapping[str, Mapping[str, Tensor]], model: nn.Module, optimizers: Sequence[Optimizer]
) -> None:
    """Raise unless *states* are those of all updated parameters, or of none."""
    names = {id(param): name for name, param in model.named_parameters()}
    updated: set[str] = set()
    for optimizer in optimizers:
        mine = [names[id(param)] for group in optimizer.param_groups for param in group["params"]]
        updated.update(mine)
        if len({frozenset(states[name]) for name in mine if name in states}) > 1:
            raise CheckpointError("the optimizer's state is not of one kind for all parameters")
    if unknown := sorted(states.keys() - updated):
        raise CheckpointError(
            f"the optimizer's state has `{unknown[0]}`, which is not updated here"
        )
    if states and (missing := sorted(updated - states.keys())):
        raise CheckpointError(
            f"the optimizer's state lacks {len(missing)} of {len(updated)} parameters, "
            f"`{missing[0]}` first"
        )
    for name, slots in states.items():
        _check_shapes(name, slots, model.get_parameter(name))


def _check_shapes(name: str, slots: Mapping[str, Tensor], param: Tensor) -> None:
    for slot, tensor in slots.items():
        if tensor.ndim and tensor.shape != param.shape:
            raise CheckpointError(
                f"the optimizer's `{slot}` of `{name}` has shape {tuple(tensor.shape)}, "
                f"the parameter {tuple(param.shape)}"
            )
