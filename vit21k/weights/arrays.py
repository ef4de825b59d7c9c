"""A file of weights -> tensors by name.  Nothing in the file is ever executed."""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vit21k.errors import CheckpointError
from vit21k.weights.paddle_pickle import PickleRefusedError, read_paddle

Container = Literal["safetensors", "npz", "torch", "paddle"]

# What a file of torch's old format begins with: a pickled number.
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_PICKLE = b"\x80"
_BFLOAT16_AS_VOID = np.dtype("V2")
# Under which training programs keep the weights, beside optimizers and the like.
_NESTS = ("state_dict", "model", "model_state_dict", "net", "params")


class Arrays(NamedTuple):
    """What a file holds."""

    container: Container
    tensors: dict[str, Tensor]
    """By name, as the file spells it; on the CPU."""


def read_arrays(path: Path) -> Arrays:
    """Return the tensors of a file; what kind of file it is, its content says.

    Args:
        path: safetensors, NumPy's npz, a state dict saved by torch, or paddle's ``.pdparams``.

    Raises:
        CheckpointError: It is missing, damaged, of another kind, or holds more than arrays.
    """
    try:
        container = _container_of(path)
        tensors = _READERS[container](path)
    except FileNotFoundError:
        raise CheckpointError(f"`{path}` is missing") from None
    except PickleRefusedError as error:
        raise CheckpointError(
            f"`{path}` holds more than arrays: {error}",
            hint="it was not opened any further; ask for a file of weights alone (safetensors)",
        ) from error
    except (SafetensorError, zipfile.BadZipFile, EOFError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"`{path}` is damaged, or holds no weights: {reason}") from error
    return Arrays(container, tensors)


def _container_of(path: Path) -> Container:
    with path.open("rb") as file:
        start = file.read(16)
    if start[8:9] == b"{":  # safetensors: 8 bytes of length, then JSON
        return "safetensors"
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            is_npz = all(name.endswith(".npy") for name in archive.namelist())
        return "npz" if is_npz else "torch"
    if start.startswith(_OLD_TORCH):
        return "torch"
    if start.startswith(_PICKLE):
        return "paddle"
    raise CheckpointError(
        f"`{path}` is not a file of weights that vit21k reads",
        hint="it reads safetensors, .npz, .pth and .pdparams; `vit21k models --formats` lists more",
    )


def _read_npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: _tensor(archive[name]) for name in archive.files}


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """Return *array* as a tensor; bfloat16, which NumPy stores as two raw bytes, as float32."""
    if not isinstance(array, np.ndarray):
        raise ValueError("a member of the archive is no array")  # noqa: TRY004 (damage)
    if array.dtype == _BFLOAT16_AS_VOID:
        bits = array.view(np.uint16).astype(np.uint32) << 16
        array = bits.view(np.float32)
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise PickleRefusedError(f"torch's loader for weights alone says: {reason}") from error
    tensors = _tensors_in(content)
    if not tensors:
        raise ValueError("there are no tensors in it")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def _tensors_in(content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    for nest in _NESTS:
        if isinstance(content.get(nest), Mapping):
            return _tensors_in(content[nest])
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _read_paddle(path: Path) -> dict[str, Tensor]:
    return {name: _tensor(array) for name, array in read_paddle(path).items()}


_READERS: dict[Container, Callable[[Path], dict[str, Tensor]]] = {
    "safetensors": load_file,
    "npz": _read_npz,
    "torch": _read_torch,
    "paddle": _read_paddle,
}
