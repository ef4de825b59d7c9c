"""Pickle -> containers, numbers and arrays: an interpreter that calls nothing.

`paddle.save` and `torch.save` write pickles, and a pickle can name any function of any module to be
called.  Here no name is looked up: the few that arrays are built with are answered by functions of
this file, the few that training programs keep beside weights become an `Opaque`, and any other ends
the reading.  Not even NumPy's or torch's own code runs on what the file says.

Time and memory are bounded by the size of the file: operations are counted, the memo is a table,
only text and numbers can be keys, and arrays are built when they are asked for.
"""

import mmap
import pickletools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor

from vit21k.errors import one_line

# A checkpoint of ViT-H/14 with an optimizer has 60 thousand.
_MAX_OPERATIONS = 500_000
_NUMBER = re.compile(r"[<>|=]?([fiub][1248]|V2)")
_BFLOAT16_AS_VOID = np.dtype("V2")
# Numbers beyond are no keys: thousands of them can be made to collide in a table.
_MAX_KEY = 1 << 60
_MAX_DIMENSIONS = 8


class PickleRefusedError(Exception):
    """A pickle asks for something that is not an array."""


class Leaf(Protocol):
    """An array that is not built yet."""

    num_bytes: int
    """Length of its values."""

    def load(self) -> Tensor:
        """Return it.

        Raises:
            ValueError: The file does not hold what it takes.
        """
        ...


class Opaque:
    """What stands for an object that is not read: its name, and its attributes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: object = None


class Storage(NamedTuple):
    """A storage of torch's, by its key in the file."""

    key: str
    dtype: torch.dtype
    num_values: int


class Storages:
    """The storages of a file of torch's: those that its pickle names, and their values.

    Args:
        read: Returns the values of one; it is asked once for each.
    """

    def __init__(self, read: Callable[[Storage], bytearray]) -> None:
        self.named: dict[str, Storage] = {}
        self._read = read
        self._values: dict[str, bytearray] = {}

    def values(self, storage: Storage) -> bytearray:
        """Return the values of *storage*."""
        if storage.key not in self._values:
            self._values[storage.key] = self._read(storage)
        return self._values[storage.key]


class Unreadable(NamedTuple):
    """A tensor of a kind that has no plain values."""

    kind: str
    num_bytes: int = 0

    def load(self) -> Tensor:
        """Raise a `ValueError` that says what it is."""
        raise ValueError(f"it is a {self.kind} tensor, of which vit21k reads no values")


class _Name(NamedTuple):
    module: str
    name: str

    @property
    def full(self) -> str:
        return f"{self.module}.{self.name}"


class _DType:
    """A kind of number of NumPy's, and its byte order."""

    def __init__(self, spelling: object) -> None:
        if not isinstance(spelling, str) or not _NUMBER.fullmatch(spelling):
            raise PickleRefusedError(f"it asks for an array of `{_short(spelling)}`")
        self.dtype = np.dtype(spelling)


class _Array:
    """An array of NumPy's: its bytes, and what they mean."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.raw: bytes | str = b""
        self.dtype: np.dtype[Any] | None = None
        self.is_fortran = False

    @property
    def num_bytes(self) -> int:
        return len(self.raw)

    def fill(self, shape: object, kind: object, is_fortran: object, raw: object) -> None:
        """Take the parts, after a look at each."""
        if not isinstance(kind, _DType) or not isinstance(raw, bytes | bytearray | str):
            raise PickleRefusedError("it holds an array of something other than numbers")
        self.shape, self.dtype = _sizes(shape), kind.dtype
        self.raw, self.is_fortran = (
            bytes(raw) if isinstance(raw, bytearray) else raw,
            bool(is_fortran),
        )

    def load(self) -> Tensor:
        """Return it as a tensor."""
        if self.dtype is None:
            raise ValueError("it is an array that was begun and not filled")
        # Python 2's bytes come as text.
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        flat = np.frombuffer(raw, dtype=self.dtype)
        return tensor_of(flat.reshape(self.shape, order="F" if self.is_fortran else "C"))


class _TorchTensor(NamedTuple):
    """A tensor of torch's: part of a storage."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storages: Storages

    @property
    def num_bytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize

    def load(self) -> Tensor:
        """Return it; part of a storage is a copy."""
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        available = self.storage.num_values * self.storage.dtype.itemsize // self.dtype.itemsize
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        if last >= available:
            raise ValueError("it reaches beyond its storage")
        flat = torch.frombuffer(self.storages.values(self.storage), dtype=self.dtype)
        part = torch.as_strided(flat, self.shape, self.stride, self.offset)
        return part if part.numel() == len(flat) else part.clone()


def is_leaf(value: object) -> TypeGuard[Leaf]:
    """Return whether *value* is an array."""
    return isinstance(value, _Array | _TorchTensor | Unreadable)


def tensor_of(array: np.ndarray[Any, Any]) -> Tensor:
    """Return *array* as a tensor; bfloat16, which NumPy stores as two raw bytes, as float32.

    Whole numbers that torch lacks become int64.
    """
    if array.dtype == _BFLOAT16_AS_VOID:
        bits = np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16
        array = bits.view(np.float32)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    own = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(own.reshape(array.shape))


def interpret(content: bytes | mmap.mmap, storages: Storages | None = None) -> Any:
    """Return what the pickle that *content* begins with builds; an mmap is left behind its end.

    Args:
        content: A pickle, from where an mmap stands.
        storages: What torch's tensors are parts of; None: there are none.

    Raises:
        PickleRefusedError: It asks for anything but containers, numbers and arrays.
        ValueError: It is damaged, or of more operations than weights need.
    """
    try:
        return _Interpreter(storages).run(pickletools.genops(content))  # type: ignore[arg-type] # it reads
    except PickleRefusedError:
        raise
    except Exception as error:  # a damaged pickle can end in any exception
        raise ValueError(
            f"not a pickle of arrays ({type(error).__name__}: {_short(error)})"
        ) from error


class _Interpreter:
    """A stack, marks and a memo, as pickle's own."""

    def __init__(self, storages: Storages | None) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, operations: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
        for count, (operation, argument, _) in enumerate(operations):
            if count > _MAX_OPERATIONS:
                raise ValueError(f"more than {_MAX_OPERATIONS:,} operations")
            name = operation.name
            if name == "STOP":
                return self._stack.pop()
            if name in _VALUES:
                self._stack.append(argument)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name]())
            elif (method := self._METHODS.get(name)) is not None:
                method(self, argument)
            elif name not in ("PROTO", "FRAME"):
                raise PickleRefusedError(f"it uses the operation {name}")
        raise ValueError("it has no end")

    def _pop_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _mark(self, _: object) -> None:
        self._marks.append(len(self._stack))

    def _pop(self, _: object) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def _pop_to_mark(self, _: object) -> None:
        self._pop_mark()

    def _dup(self, _: object) -> None:
        self._stack.append(self._stack[-1])

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def _list(self, _: object) -> None:
        self._stack.append(self._pop_mark())

    def _tuple(self, _: object) -> None:
        self._stack.append(tuple(self._pop_mark()))

    def _tuple1(self, _: object) -> None:
        self._short_tuple(1)

    def _tuple2(self, _: object) -> None:
        self._short_tuple(2)

    def _tuple3(self, _: object) -> None:
        self._short_tuple(3)

    def _short_tuple(self, length: int) -> None:
        if len(self._stack) < length:
            raise ValueError("a tuple of more than there is")
        items = tuple(self._stack[-length:])
        del self._stack[-length:]
        self._stack.append(items)

    def _dict(self, _: object) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._set(items)

    def _set_item(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _set_items(self, _: object) -> None:
        self._set(self._pop_mark())

    def _set(self, items: list[Any]) -> None:
        """Put pairs into the table on top; other keys than text and numbers are skipped."""
        target = self._stack[-1]
        if not isinstance(target, dict):
            return  # an `Opaque`, which is not read
        for key, value in zip(items[::2], items[1::2], strict=True):
            if _is_key(key):
                target[key] = value

    def _append(self, _: object) -> None:
        value = self._stack.pop()
        if isinstance(self._stack[-1], list):
            self._stack[-1].append(value)

    def _appends(self, _: object) -> None:
        items = self._pop_mark()
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)

    def _ignore_items(self, _: object) -> None:
        self._pop_mark()

    def _frozenset(self, _: object) -> None:
        self._pop_mark()
        self._stack.append(Opaque("frozenset"))

    def _global(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self._stack.append(_name(module, name))

    def _stack_global(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(_name(module, name))

    def _reduce(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._called(function, arguments))

    def _newobj_ex(self, _: object) -> None:
        self._stack.pop()
        self._reduce(None)

    def _called(self, function: object, arguments: object) -> Any:
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise PickleRefusedError("it calls what is no function")
        if function.full in _OPAQUE:
            return Opaque(function.full)
        if (build := _BUILDERS.get(function.full)) is None:
            raise PickleRefusedError(f"it calls `{_short(function.full)}`")
        return build(arguments, self._storages)

    def _build(self, _: object) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, _Array):
            _version, shape, kind, is_fortran, raw = state
            target.fill(shape, kind, is_fortran, raw)
        elif isinstance(target, _DType):
            if state[1] in ("<", ">"):
                target.dtype = target.dtype.newbyteorder(state[1])
        elif isinstance(target, Opaque):
            target.state = state

    def _persistent(self, pid: object) -> None:
        raise PickleRefusedError(f"it asks for an outside object `{_short(pid)}`")

    def _binary_persistent(self, _: object) -> None:
        pid = self._stack.pop()
        if self._storages is None:
            raise PickleRefusedError(f"it asks for an outside object `{_short(pid)}`")
        found = _storage(pid)
        if isinstance(found, Storage):
            self._storages.named[found.key] = found
        self._stack.append(found)

    _METHODS: ClassVar[Mapping[str, Callable[[Any, Any], None]]] = {
        "MARK": _mark,
        "POP": _pop,
        "POP_MARK": _pop_to_mark,
        "DUP": _dup,
        "PUT": _put,
        "BINPUT": _put,
        "LONG_BINPUT": _put,
        "MEMOIZE": _memoize,
        "GET": _get,
        "BINGET": _get,
        "LONG_BINGET": _get,
        "LIST": _list,
        "TUPLE": _tuple,
        "TUPLE1": _tuple1,
        "TUPLE2": _tuple2,
        "TUPLE3": _tuple3,
        "DICT": _dict,
        "SETITEM": _set_item,
        "SETITEMS": _set_items,
        "APPEND": _append,
        "APPENDS": _appends,
        "ADDITEMS": _ignore_items,
        "FROZENSET": _frozenset,
        "GLOBAL": _global,
        "STACK_GLOBAL": _stack_global,
        "REDUCE": _reduce,
        "NEWOBJ": _reduce,
        "NEWOBJ_EX": _newobj_ex,
        "BUILD": _build,
        "PERSID": _persistent,
        "BINPERSID": _binary_persistent,
    }


_VALUES = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
     "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
     "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)  # fmt: skip
_CONSTANTS: Mapping[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Opaque("set"),
}

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
# Classes of objects that training programs keep beside weights, and other names without effect.
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
     "torch.sparse_bsc", "torch.serialization._get_layout", "torch.QInt8Storage",
     "torch.QUInt8Storage", "torch.QInt32Storage", "torch.qint8", "torch.quint8", "torch.qint32"}
)  # fmt: skip


def _name(module: object, name: object) -> object:
    """Return what a name means here; names without a meaning end the reading."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise PickleRefusedError("it asks for a name that is no text")
    found = _Name(module, name)
    if found.full in _DTYPES:
        return _DTYPES[found.full]
    is_storage = module == "torch" and name in _STORAGES
    if is_storage or found.full in _BUILDERS or found.full in _OPAQUE or found.full in _ARGUMENTS:
        return found
    raise PickleRefusedError(f"it asks for `{_short(found.full)}`")


def _storage(pid: object) -> object:
    """Return the storage that torch's persistent id names."""
    match pid:
        case ("storage", _Name(name=kind), str(key), str(), int(count), *rest) if (
            kind in _STORAGES and count >= 0 and not any(rest)
        ):
            return Storage(key, _STORAGES[kind], count)
        case ("storage", _Name(name=kind), *_) if kind.startswith("Q"):
            return Unreadable("quantised")
        case ("module", _Name() as name, *_):
            return name
    raise PickleRefusedError(f"it asks for an outside object `{_short(pid)}`")


def _reconstructed(_arguments: tuple[Any, ...], _: object) -> _Array:
    return _Array()


def _frombuffer(arguments: tuple[Any, ...], _: object) -> _Array:
    raw, kind, shape, order = arguments
    array = _Array()
    array.fill(shape, kind, order == "F", raw)
    return array


def _encoded(arguments: tuple[Any, ...], _: object) -> object:
    """Return the text itself: it stands for bytes, as pickles of protocol 2 wrap them."""
    text, encoding = arguments
    if encoding != "latin1" or not isinstance(text, str):
        raise PickleRefusedError(f"it asks for the encoding `{_short(encoding)}`")
    return text


def _ordered(arguments: tuple[Any, ...], _: object) -> dict[Any, Any]:
    if not arguments:
        return {}
    (pairs,) = arguments
    if not isinstance(pairs, list):
        raise PickleRefusedError("it builds a table of something other than a list")
    table = {key: value for key, value in pairs if _is_key(key)}
    pairs.clear()  # nothing else reads it, and a list that is used twice would cost twice
    return table


def _first(arguments: tuple[Any, ...], _: object) -> Any:
    return arguments[0]


def _reconstructor(arguments: tuple[Any, ...], _: object) -> Opaque:
    kind = arguments[0]
    if not isinstance(kind, _Name) or kind.full not in _OPAQUE:
        raise PickleRefusedError("it builds an object of its own")
    return Opaque(kind.full)


def _dtype(arguments: tuple[Any, ...], _: object) -> _DType:
    return _DType(arguments[0])


def _tensor(arguments: tuple[Any, ...], storages: Storages | None) -> object:
    storage, offset, size, stride = arguments[:4]
    if isinstance(storage, Unreadable):
        return storage
    if not isinstance(storage, Storage) or storages is None:
        raise PickleRefusedError("it builds a tensor of something other than a storage")
    dtype = arguments[6] if len(arguments) > 7 else storage.dtype  # noqa: PLR2004 (_v3's)
    shape, strides = _sizes(size), _sizes(stride)
    (offset,) = _sizes((offset,))
    if not isinstance(dtype, torch.dtype) or len(shape) != len(strides):
        raise ValueError("a tensor of no shape")
    return _TorchTensor(storage, dtype, offset, shape, strides, storages)


def _unreadable(kind: str) -> Callable[[tuple[Any, ...], object], Unreadable]:
    return lambda _arguments, _: Unreadable(kind)


_BUILDERS: Mapping[str, Callable[[tuple[Any, ...], Any], Any]] = {
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _reconstructed,
    "numpy._core.multiarray._reconstruct": _reconstructed,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy._core.numeric._frombuffer": _frombuffer,
    "_codecs.encode": _encoded,
    "builtins.tuple": _first,
    "__builtin__.tuple": _first,
    "collections.OrderedDict": _ordered,
    "copyreg._reconstructor": _reconstructor,
    "copy_reg._reconstructor": _reconstructor,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_sparse_tensor": _unreadable("sparse"),
    "torch._utils._rebuild_qtensor": _unreadable("quantised"),
    "torch._utils._rebuild_nested_tensor": _unreadable("nested"),
    "torch._utils._rebuild_meta_tensor_no_storage": _unreadable("meta"),
    "torch.serialization._get_layout": _first,
}


def _sizes(values: object) -> tuple[int, ...]:
    """Return *values* if they are numbers that a shape, a stride or an offset can have."""
    if not isinstance(values, tuple | list) or len(values) > _MAX_DIMENSIONS:
        raise ValueError("an array of no shape")
    if not all(isinstance(value, int) and 0 <= value < _MAX_KEY for value in values):
        raise ValueError("an array of no shape")
    return tuple(values)


def _is_key(key: object) -> bool:
    return isinstance(key, str | float) or (isinstance(key, int) and -_MAX_KEY < key < _MAX_KEY)


def _short(value: object) -> str:
    """Return the beginning of *value*; of a container, which may be endless, its kind."""
    text = str(value) if isinstance(value, str | int | Exception) else type(value).__name__
    return one_line(text.partition("\n")[0][:60])
