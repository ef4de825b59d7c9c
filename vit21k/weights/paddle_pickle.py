"""``.pdparams`` -> arrays: an unpickler that can build arrays of numbers and nothing else.

`paddle.save` writes a pickle, and a pickle can name any function of any module to be called.  Here
no name is ever looked up: the few that paddle needs are answered with stand-ins of this file, and
any other ends the reading.  Not even NumPy's own code runs on what the file says.
"""

import io
import pickle  # what it may call is what `_Unpickler.find_class` returns
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

_NUMBER = re.compile(r"[<>|=]?([fiub][1248]|V2)")
# What paddle keeps beside the arrays: parameters' names inside its engine.
_NAME_TABLE = "StructuredToParameterName@@"


class PickleRefusedError(Exception):
    """A pickle asks for something that is not an array."""


def read_paddle(path: Path) -> dict[str, Array]:
    """Return the arrays of a ``.pdparams`` file by name.

    Raises:
        PickleRefusedError: It asks for anything but arrays.
        ValueError: It is damaged, or holds no arrays.
    """
    try:
        content = _Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except PickleRefusedError:
        raise
    except Exception as error:  # a damaged pickle can end in any exception
        raise ValueError(f"not a pickle of arrays ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise PickleRefusedError(f"it is a {type(content).__name__}, not a table of arrays")
    content.pop(_NAME_TABLE, None)
    if not content:
        raise ValueError("there are no arrays in it")
    return {str(name): _array_of(str(name), value) for name, value in content.items()}


class _Unpickler(pickle.Unpickler):
    """Answers the names that paddle writes with stand-ins, and refuses every other."""

    def find_class(self, module: str, name: str) -> Any:
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise PickleRefusedError(f"it asks for `{module}.{name}`")
        return stand_in

    def persistent_load(self, pid: Any) -> NoReturn:
        raise PickleRefusedError(f"it asks for an outside object `{pid!r:.40}`")


class _DType:
    """Stands in for `numpy.dtype`: a kind of number, and its byte order."""

    def __init__(self, spelling: str, _align: object = False, _copy: object = True) -> None:
        if not _NUMBER.fullmatch(spelling):
            raise PickleRefusedError(f"it asks for an array of `{spelling!r:.40}`")
        self.dtype = np.dtype(spelling)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands in for an array that numpy's `_reconstruct` has begun."""

    array: Array

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, kind, is_fortran, raw = state
        if isinstance(raw, str):
            raw = raw.encode("latin1")
        if not isinstance(kind, _DType) or not isinstance(raw, bytes):
            raise PickleRefusedError("it holds an array of something other than numbers")
        flat = np.frombuffer(raw, dtype=kind.dtype)
        array = flat.reshape(shape, order="F" if is_fortran else "C")
        self.array = array.astype(kind.dtype.newbyteorder("="))


def _begin_array(*_arguments: object) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for `_codecs.encode`, in which pickles of protocol 2 wrap bytes."""
    if encoding != "latin1":
        raise PickleRefusedError(f"it asks for the encoding `{encoding!r:.40}`")
    return text.encode("latin1")


def _array_of(name: str, value: object) -> Array:
    """Return the array behind a name: alone, or with the name paddle gives the parameter."""
    if isinstance(value, tuple) and len(value) == 2:  # noqa: PLR2004 (a name and an array)
        value = value[1]
    if not isinstance(value, _Array):
        raise PickleRefusedError(f"`{name}` is a {type(value).__name__}, not an array")
    return value.array


class _NdarrayName:
    """Stands in for `numpy.ndarray`, which is an argument only, never called."""

    def __init__(self, *_arguments: object) -> None:
        raise PickleRefusedError("it calls `numpy.ndarray`")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _DType,
    ("numpy", "ndarray"): _NdarrayName,
    ("numpy.core.multiarray", "_reconstruct"): _begin_array,
    ("numpy._core.multiarray", "_reconstruct"): _begin_array,
    ("_codecs", "encode"): _encode,
    ("builtins", "tuple"): tuple,
    ("__builtin__", "tuple"): tuple,
    ("collections", "OrderedDict"): OrderedDict,
}
