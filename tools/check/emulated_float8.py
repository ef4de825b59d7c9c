"""MLPs in float32, bfloat16 and emulated float8, and their difference from float64."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vit21k.device import Precision, autocast
from vit21k.training.step import blocks_of, use_float8_mlps

Way = Literal["float32", "bfloat16", "float8"]
PRECISION: Mapping[Way, Precision] = {"float32": "fp32", "bfloat16": "bf16", "float8": "bf16"}
CPU = torch.device("cpu")


def in_float8(model: nn.Module) -> nn.Module:
    """Let *model* compute its MLPs as on a GPU under autocast to bfloat16; return it."""
    use_float8_mlps(model, CPU, emulate=True)
    for block in blocks_of(model):
        for layer in (block.mlp.fc1, block.mlp.fc2):
            # torchao does this itself under a GPU's autocast, and not under a CPU's.
            layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].bfloat16(),))
    return model


class MlpCall(NamedTuple):
    """What an MLP was given in a training step: its input, and the gradient of its output."""

    input_BND: Tensor
    output_grad_BND: Tensor


def mlp_calls(model: nn.Module, loss_of_model: Callable[[nn.Module], Tensor]) -> list[MlpCall]:
    """Return what each MLP of *model* is given on the way to a loss and back; it is not changed."""
    seen: list[tuple[Tensor, Tensor]] = []

    def see(_mlp: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        output.retain_grad()
        seen.append((inputs[0].detach(), output))

    model = deepcopy(model)
    for block in blocks_of(model):
        block.mlp.register_forward_hook(see)
    loss_of_model(model).backward()  # type: ignore[no-untyped-call]
    return [MlpCall(given, output.grad) for given, output in seen if output.grad is not None]


def mlp_errors(model: nn.Module, calls: Sequence[MlpCall], way: Way) -> list[list[float]]:
    """Return the relative errors of each MLP's results; see `mlp_results`."""
    both = zip(mlp_results(model, calls, way), mlp_results(model, calls, None), strict=True)
    return [[relative_error(*pair) for pair in zip(*results, strict=True)] for results in both]


def mlp_results(model: nn.Module, calls: Sequence[MlpCall], way: Way | None) -> list[list[Tensor]]:
    """Return of each MLP its output, the gradient of its input, and those of its weights.

    *way* None is float64.
    """
    model = deepcopy(model).double() if way is None else deepcopy(model)
    if way == "float8":
        model = in_float8(model)
    results = []
    for block, call in zip(blocks_of(model), calls, strict=True):
        dtype = block.mlp.fc1.weight.dtype
        given = call.input_BND.to(dtype, copy=True).requires_grad_()
        block.mlp.zero_grad()
        with autocast(CPU, "fp32" if way is None else PRECISION[way]):
            output = block.mlp(given)
        output.backward(call.output_grad_BND.to(output.dtype))
        weights = (block.mlp.fc1.weight, block.mlp.fc2.weight)
        gradients = [value.grad for value in (given, *weights) if value.grad is not None]
        results.append([output.detach(), *gradients])
    return results


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Return the norm of the difference, of the norm of *exact*."""
    return float((value.double() - exact).norm() / exact.norm())
