"""Pickle -> containers, numbers and arrays; nothing that a pickle names is imported or called.

`paddle.save` and `torch.save` write pickles, and a pickle can call any function of any module.
Here the standard library's unpickler, the one in Python, runs with three changes: a name is an
entry of a table below or an error, objects that training programs store next to weights become an
`Opaque`, and time and memory are bounded by the size of the file: operations are counted, only
text and numbers can be keys, and arrays are built on request.  Not even the code of NumPy and torch
runs on what the file says.
"""

import io
import mmap
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vit21k.errors import one_line

# A checkpoint of ViT-H/14 with an optimizer has 60 thousand.
_MAX_OPERATIONS = 500_000
_NUMBER = re.compile(r"[<>|=]?([fiub][1248]|V2)")
_BFLOAT16_AS_VOID = np.dtype("V2")
# Larger numbers are no keys: thousands of them can be made to collide in a table.
_MAX_KEY = 1 << 60
_MAX_DIMENSIONS = 8


class PickleRefusedError(Exception):
    """A pickle asks for something that is not an array."""


def _not_filled() -> Tensor:
    raise ValueError("it is an array without values")


@dataclass
class Leaf:
    """An array that is not built yet.

    Attributes:
        num_bytes: Length of its values.
        load: Build it; raises a `ValueError` if the file does not hold its values.
    """

    num_bytes: int = 0
    load: Callable[[], Tensor] = _not_filled

    def __setstate__(self, state: Any) -> None:
        """Take the parts of a NumPy array: version, shape, dtype, order, values."""
        _, shape, kind, is_fortran, raw = state
        if not isinstance(kind, _DType) or not isinstance(raw, bytes | bytearray | str):
            raise PickleRefusedError("it holds an array of something other than numbers")
        self.num_bytes = len(raw)
        order: Literal["C", "F"] = "F" if is_fortran else "C"
        self.load = partial(numpy_tensor, raw, kind.dtype, _sizes(shape), order)


class Opaque:
    """An object that is not read: its name, and its attributes.  It ignores items."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, *_: object) -> None:
        """Ignore an item."""

    extend = add = append


@dataclass(eq=False)
class Storage:
    """A storage of torch: its key in the file, the type and number of its values."""

    key: str
    dtype: torch.dtype
    num_values: int
    read: Callable[["Storage"], bytearray]

    @property
    def num_bytes(self) -> int:
        """Length of its values."""
        return self.num_values * self.dtype.itemsize

    @cached_property
    def values(self) -> bytearray:
        """Its values, read once."""
        return self.read(self)


@dataclass
class Storages:
    """The storages that the pickle of a torch file names, by key; *read* returns their values."""

    read: Callable[[Storage], bytearray]
    named: dict[str, Storage] = field(default_factory=dict)

    def get(self, key: str, dtype: torch.dtype, num_values: int) -> Storage:
        """Return the storage *key*."""
        found = self.named.setdefault(key, Storage(key, dtype, num_values, self.read))
        if (found.dtype, found.num_values) != (dtype, num_values):
            raise ValueError("a storage of two kinds")
        return found


class _Name(NamedTuple):
    """A name in a pickle; calling it calls what the tables below have for it."""

    module: str
    name: str

    @property
    def full(self) -> str:
        return f"{self.module}.{self.name}"

    def __call__(self, *arguments: Any) -> Any:
        if self.full in _OPAQUE:
            return Opaque(self.full)
        if self.full not in _BUILDERS:
            raise PickleRefusedError(f"it calls `{_short(self.full)}`")
        return _BUILDERS[self.full](*arguments)


class _DType:
    """A NumPy dtype of numbers."""

    def __init__(self, spelling: object, *_: object) -> None:
        if not isinstance(spelling, str) or not _NUMBER.fullmatch(spelling):
            raise PickleRefusedError(f"it asks for an array of `{_short(spelling)}`")
        self.dtype = np.dtype(spelling)

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


def numpy_tensor(
    raw: bytes | bytearray | str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    order: Literal["C", "F"],
) -> Tensor:
    """Return a tensor of the values *raw*; text stands for bytes, as Python 2 pickled them.

    bfloat16, which NumPy stores as two raw bytes, becomes float32; unsigned integers that torch
    lacks become int64.
    """
    content = raw.encode("latin1") if isinstance(raw, str) else raw
    array: np.ndarray[Any, Any] = np.frombuffer(content, dtype).reshape(shape, order=order)
    if dtype == _BFLOAT16_AS_VOID:
        bits = np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16
        array = bits.view(np.float32)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    own = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(own.reshape(array.shape))


def interpret(content: bytes | mmap.mmap, storages: Storages | None = None) -> Any:
    """Return what the pickle at the start of *content* builds.

    Args:
        content: An mmap is read from its position, and left at the end of the pickle.
        storages: Of torch's tensors; None: there are none.

    Raises:
        PickleRefusedError: It asks for anything but containers, numbers and arrays.
        ValueError: It is damaged, or of more operations than weights need.
    """
    file: Any = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        return _Unpickler(file, storages).load()
    except PickleRefusedError:
        raise
    except Exception as error:  # a damaged pickle can end in any exception
        raise ValueError(
            f"not a pickle of arrays ({type(error).__name__}: {_short(error)})"
        ) from error


_InPython: Any = pickle._Unpickler  # noqa: SLF001 (the standard library's other one is in C)


class _Unpickler(_InPython):
    """The standard library's unpickler, for weights."""

    def __init__(self, file: Any, storages: Storages | None) -> None:
        super().__init__(file, encoding="latin1")  # Python 2's bytes
        self._storages = storages
        self.dispatch = _Operations()

    def find_class(self, module: str, name: str) -> object:
        """Return what a name means here."""
        found = _Name(module, name)
        if found.full in _DTYPES:
            return _DTYPES[found.full]
        is_storage = module == "torch" and name in _STORAGES
        if is_storage or any(found.full in names for names in (_BUILDERS, _OPAQUE, _ARGUMENTS)):
            return found
        raise PickleRefusedError(f"it asks for `{_short(found.full)}`")

    def persistent_load(self, pid: object) -> object:
        """Return the storage that torch's persistent id names."""
        match pid:
            case ("storage", _Name(name=kind), str(key), str(), int(count), *rest) if (
                self._storages and kind in _STORAGES and count >= 0 and not any(rest)
            ):
                return self._storages.get(key, _STORAGES[kind], count)
            case ("storage", _Name(name=kind), *_) if kind.startswith("Q"):
                return _unreadable("quantised")
            case ("module", _Name() as name, *_):
                return name
        raise PickleRefusedError(f"it asks for an outside object `{_short(pid)}`")

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Leaf | _DType | Opaque):
            target.__setstate__(state)

    def load_newobj(self) -> None:
        self.load_reduce()

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_reduce()

    def load_empty_set(self) -> None:
        self.append(Opaque("set"))

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.load_empty_set()

    def load_bytearray8(self) -> None:
        self.load_binbytes8()  # as much as the file has, whatever length it declares

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def _set(self, items: list[Any]) -> None:
        """Put pairs into the table on top of the stack; only text and numbers are keys."""
        for key, value in zip(items[::2], items[1::2], strict=True):
            if _is_key(key):
                self.stack[-1][key] = value


_REFUSED = ("inst", "obj", "ext1", "ext2", "ext4", "next_buffer", "readonly_buffer")


class _Operations(dict[int, Callable[[Any], None]]):
    """The operations of a pickle, counted; those that weights do not need are refused."""

    def __init__(self) -> None:
        names = {code: method.__name__ for code, method in _InPython.dispatch.items()}
        allowed = {c: name for c, name in names.items() if name[len("load_") :] not in _REFUSED}
        super().__init__({code: getattr(_Unpickler, name) for code, name in allowed.items()})
        self._count = 0

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self._count += 1
        if self._count > _MAX_OPERATIONS:
            raise ValueError(f"more than {_MAX_OPERATIONS:,} operations")
        if code not in self:
            raise PickleRefusedError(f"it uses the operation {code:#x}")
        return super().__getitem__(code)


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_DTYPES = {
    str(dtype): dtype
    for dtype in (*_STORAGES.values(), torch.float8_e4m3fn, torch.float8_e5m2)
}  # fmt: skip
# Classes of objects that training programs store next to weights, and names without effect.
_OPAQUE = frozenset(
    {"argparse.Namespace", "builtins.object", "builtins.set", "builtins.frozenset",
     "builtins.slice", "builtins.complex", "builtins.range", "collections.defaultdict",
     "collections.Counter",
     "datetime.datetime", "datetime.timedelta", "pathlib.Path", "pathlib.PosixPath",
     "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath", "torch.device",
     "torch.Size", "types.SimpleNamespace", "numpy.core.multiarray.scalar",
     "numpy._core.multiarray.scalar", "__builtin__.object", "__builtin__.set"}
)  # fmt: skip
# Names that are arguments and never called.
_ARGUMENTS = frozenset(
    {"numpy.ndarray", "builtins.dict", "builtins.list", "builtins.int", "builtins.float",
     "builtins.str", "builtins.bool", "torch.Tensor", "torch.nn.parameter.Parameter",
     "torch.storage.UntypedStorage", "torch.per_tensor_affine", "torch.per_channel_affine",
     "torch.sparse_coo", "torch.sparse_csr", "torch.sparse_csc", "torch.sparse_bsr",
     "torch.sparse_bsc", "torch.QInt8Storage", "torch.QUInt8Storage", "torch.QInt32Storage",
     "torch.qint8", "torch.quint8", "torch.qint32"}
)  # fmt: skip


def _frombuffer(raw: object, kind: object, shape: object, order: object) -> Leaf:
    array = Leaf()
    array.__setstate__((None, shape, kind, order == "F", raw))
    return array


def _encoded(text: object, encoding: object) -> object:
    """Return the text itself: it stands for bytes, as pickles of protocol 2 wrap them."""
    if encoding != "latin1" or not isinstance(text, str):
        raise PickleRefusedError(f"it asks for the encoding `{_short(encoding)}`")
    return text


def _ordered(pairs: object = None) -> dict[Any, Any]:
    if pairs is None:
        return {}
    if not isinstance(pairs, list):
        raise PickleRefusedError("it builds a table of something other than a list")
    table = {key: value for key, value in pairs if _is_key(key)}
    pairs.clear()  # nothing else reads it, and a list that is used twice would cost twice
    return table


def _first(first: Any, *_: object) -> Any:
    return first


def _reconstructor(kind: object, *_: object) -> Opaque:
    if not isinstance(kind, _Name) or kind.full not in _OPAQUE:
        raise PickleRefusedError("it builds an object of its own")
    return Opaque(kind.full)


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, *_: object, dtype: Any = None
) -> Leaf:
    if isinstance(storage, Leaf):
        return storage
    if not isinstance(storage, Storage):
        raise PickleRefusedError("it builds a tensor of something other than a storage")
    dtype = dtype or storage.dtype
    shape, strides = _sizes(size), _sizes(stride)
    if not isinstance(dtype, torch.dtype) or len(shape) != len(strides):
        raise ValueError("a tensor without a shape")
    (start,) = _sizes((offset,))
    build = partial(_strided, storage, dtype, start, shape, strides)
    return Leaf(prod(shape) * dtype.itemsize, build)


def _tensor_v3(*arguments: Any) -> Leaf:
    """Build a tensor of a type without a storage class, such as float8: the type comes seventh."""
    return _tensor(*arguments[:4], dtype=arguments[6])


def _strided(
    storage: Storage,
    dtype: torch.dtype,
    offset: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
) -> Tensor:
    """Return a tensor of torch; part of a storage is a copy."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
    if last >= storage.num_bytes // dtype.itemsize:
        raise ValueError("it reaches beyond its storage")
    flat = torch.frombuffer(storage.values, dtype=dtype)
    part = torch.as_strided(flat, shape, stride, offset)
    return part if part.numel() == len(flat) else part.clone()


def _unreadable(kind: str, *_: object) -> Leaf:
    def load() -> Tensor:
        raise ValueError(f"it is a {kind} tensor, whose values vit21k does not read")

    return Leaf(load=load)


_BUILDERS: Mapping[str, Callable[..., Any]] = {
    "numpy.dtype": _DType,
    **{
        f"numpy.{core}.{name}": build
        for core in ("core", "_core")
        for name, build in (
            ("multiarray._reconstruct", lambda *_: Leaf()),
            ("numeric._frombuffer", _frombuffer),
        )
    },
    "_codecs.encode": _encoded,
    "builtins.tuple": _first,
    "__builtin__.tuple": _first,
    "collections.OrderedDict": _ordered,
    "copyreg._reconstructor": _reconstructor,
    "copy_reg._reconstructor": _reconstructor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_sparse_tensor": partial(_unreadable, "sparse"),
    "torch._utils._rebuild_qtensor": partial(_unreadable, "quantised"),
    "torch._utils._rebuild_nested_tensor": partial(_unreadable, "nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": partial(_unreadable, "meta"),
    "torch.serialization._get_layout": _first,
}


def _sizes(values: object) -> tuple[int, ...]:
    """Return *values* if a shape, a stride or an offset can have these numbers."""
    if not isinstance(values, tuple | list) or len(values) > _MAX_DIMENSIONS:
        raise ValueError("an array without a shape")
    if not all(isinstance(value, int) and 0 <= value < _MAX_KEY for value in values):
        raise ValueError("an array without a shape")
    return tuple(values)


def _is_key(key: object) -> bool:
    return isinstance(key, str | float) or (isinstance(key, int) and -_MAX_KEY < key < _MAX_KEY)


def _short(value: object) -> str:
    """Return the beginning of *value*; of a container, which may be endless, its type."""
    text = str(value) if isinstance(value, str | int | Exception) else type(value).__name__
    return one_line(text.partition("\n")[0][:60])
