"""What `torch.save` wrote, in today's zip or in the older row of pickles -> its content.

A file of weights -> tensors by name.  Nothing in the file is ever executed.

What a file declares is compared with its size before anything is built from it.
"""

import errno
import mmap
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vit21k.convert.pickles import (
    Leaf,
    Opaque,
    PickleRefusedError,
    Storage,
    Storages,
    interpret,
    is_leaf,
    tensor_of,
)
from vit21k.errors import CheckpointError, UsageError, one_line

OLD_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""What a file of the older format begins with: a pickled number."""
_OLD_VERSION = 1001
_T = TypeVar("_T")


def read_torch_zip(path: Path, take: Callable[[Any], _T]) -> _T:
    """Return what *take* makes of the content; a storage is read when a tensor of it is loaded.

    Raises:
        PickleRefusedError: It asks for more than containers, numbers and tensors.
        ValueError: It is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: record for record in archive.infolist()}
        check_members(archive.infolist(), path.stat().st_size, compressed=False)
        pickles = [name for name in records if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("an archive without the one `data.pkl` that torch writes")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in records:
            raise PickleRefusedError("it is a TorchScript program, not a table of tensors")
        order = f"{folder}byteorder"
        if order in records and archive.read(order) != b"little":
            raise ValueError("its numbers are big-endian")

        def read(storage: Storage) -> bytearray:
            record = records.get(f"{folder}data/{storage.key}")
            num_bytes = storage.num_values * storage.dtype.itemsize
            if record is None or record.file_size != num_bytes:
                raise ValueError(f"storage `{storage.key:.20}` is not as long as its tensors")
            with archive.open(record) as member:
                return _filled(member, num_bytes)

        return take(interpret(archive.read(pickles[0]), Storages(read)))


def check_members(
    members: list[zipfile.ZipInfo], num_bytes: int, *, compressed: bool = True
) -> None:
    """Check what an archive of *num_bytes* declares, before anything of it is read.

    Weights hardly shrink, so an archive that declares many times its own size holds none.

    Raises:
        ValueError: It declares more than such a file can hold, or is of another kind of zip.
    """
    methods = {zipfile.ZIP_STORED} | ({zipfile.ZIP_DEFLATED} if compressed else set())
    if any(member.compress_type not in methods or member.flag_bits & 1 for member in members):
        raise ValueError("its members are compressed or encrypted as weights never are")
    allowed = 16 * num_bytes + (16 << 20) if compressed else num_bytes
    if sum(member.file_size for member in members) > allowed:
        raise ValueError("its members are declared to be far larger than the file")


def read_old_torch(path: Path, take: Callable[[Any], _T]) -> _T:
    """Return what *take* makes of the content of a file of torch's older format.

    Raises:
        PickleRefusedError: It asks for more than containers, numbers and tensors.
        ValueError: It is damaged.
    """
    places: dict[str, int] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:

        def read(storage: Storage) -> bytearray:
            if storage.key not in places:
                raise ValueError(f"storage `{storage.key:.20}` is not in the file")
            start, num_bytes = places[storage.key], storage.num_values * storage.dtype.itemsize
            return bytearray(content[start : start + num_bytes])

        storages = Storages(read)
        interpret(content)  # the magic number, by which the file was recognised
        version, about = interpret(content), interpret(content)
        if version != _OLD_VERSION or not isinstance(about, dict):
            raise ValueError("a file of torch of another version")
        if about.get("little_endian") is not True:
            raise ValueError("its numbers are big-endian")
        found = interpret(content, storages)
        places |= _places_of(content, interpret(content), storages)
        return take(found)


def _places_of(content: mmap.mmap, keys: object, storages: Storages) -> dict[str, int]:
    """Return where the values of each storage begin: they follow each other, each by its length."""
    if not isinstance(keys, list):
        raise ValueError("it does not list its storages")  # noqa: TRY004 (damage)
    places = {}
    for key in keys:
        storage = storages.named.get(key)
        length = content.read(8)
        if storage is None or len(length) < 8 or key in places:  # noqa: PLR2004 (int64)
            raise ValueError("its storages are not those of its tensors")
        num_bytes = storage.num_values * storage.dtype.itemsize
        if struct.unpack("<q", length)[0] != storage.num_values:
            raise ValueError("its storages are not as long as its tensors")
        if content.tell() + num_bytes > len(content):
            raise ValueError("it ends within a storage")
        places[key] = content.tell()
        content.seek(num_bytes, 1)
    return places


def _filled(file: IO[bytes], num_bytes: int) -> bytearray:
    values = bytearray(num_bytes)
    rest = memoryview(values)
    while rest:
        count = file.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise ValueError("it ends within a storage")
        rest = rest[count:]
    return values


Container = Literal["safetensors", "npz", "torch", "paddle"]
Which = Literal["raw", "ema"]
"""The weights of the last step, or their exponential moving average."""

_PICKLE = b"\x80"
_NPY = b"\x93NUMPY"
_MAX_HEADER_BYTES = 4096
_NPY_HEADER = re.compile(
    r"\{'descr': '([<>|=]?[fiub][1248]|[<>|=]?V2)', 'fortran_order': (True|False), "
    r"'shape': \(((?:\d{1,15}, ?)*(?:\d{1,15},?)?)\), ?\}\s*"
)
# Under which training programs keep weights, beside optimizers and the like.
_NESTS: Mapping[Which, tuple[str, ...]] = {
    "raw": ("state_dict", "model", "model_state_dict", "net", "params", "module", "student"),
    "ema": ("state_dict_ema", "model_ema", "model_ema_state_dict", "ema_state_dict", "ema",
            "ema_model", "teacher"),
}  # fmt: skip
# What wrappers put before names: data parallelism, compilation, a trainer's attribute; and those
# that mean the average.
_WRAPPERS = re.compile(r"(?:module|_orig_mod|model|backbone|_fsdp_wrapped_module)\.")
_EMA_WRAPPERS = re.compile(r"(?:model_ema|ema_model|ema)\.")
_INNER_WRAPPERS = re.compile(
    r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_MAX_NESTING = 4
_COUNTER = "n_averaged"  # of torch's AveragedModel
# Keys under which a training program keeps its arguments.
_ARGUMENTS = ("args", "hyper_parameters", "config")


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """What a file holds.

    Attributes:
        container: What kind of file it is.
        tensors: By name, without the prefixes of wrappers; on the CPU.
        settings: What the training program noted of the model, as a timm ``config.json`` says it.
        notes: What the user should know of how they were chosen, each in a sentence.
    """

    container: Container
    tensors: dict[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_arrays(path: Path, which: Which | None = None) -> Arrays:
    """Return the tensors of a file; what kind of file it is, its content says.

    Args:
        path: safetensors, NumPy's npz, what `torch.save` wrote, or paddle's ``.pdparams``.
        which: The raw weights or their average; None: those that are there.

    Raises:
        CheckpointError: It is missing, damaged, of another kind, or holds more than arrays.
        UsageError: It holds raw weights and their average, and *which* does not say which; or not
            those that *which* says.
    """
    try:
        container = _container_of(path)
        return _READERS[container](path, which)
    except FileNotFoundError:
        raise CheckpointError(f"`{path}` is missing") from None
    except PickleRefusedError as error:
        raise CheckpointError(
            f"`{path}` holds more than arrays: {error}",
            hint="it was not opened any further; ask for a file of weights alone (safetensors)",
        ) from error
    except UsageError as error:
        raise UsageError(f"`{path}` {error.message}", hint=error.hint) from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise CheckpointError(
            f"`{path}` is damaged, or holds no weights: its parts lie outside it"
        ) from error
    except _DAMAGE as error:
        reason = one_line(str(error).partition("\n")[0])
        raise CheckpointError(f"`{path}` is damaged, or holds no weights: {reason:.200}") from error


_DAMAGE = (
    SafetensorError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _container_of(path: Path) -> Container:
    with path.open("rb") as file:
        start = file.read(16)
    if start[8:9] == b"{":  # safetensors: 8 bytes of length, then JSON
        return "safetensors"
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            is_npz = all(name.endswith(".npy") for name in archive.namelist())
        return "npz" if is_npz else "torch"
    if start.startswith(OLD_START):
        return "torch"
    if start.startswith(_PICKLE):
        return "paddle"
    raise CheckpointError(
        f"`{path}` is not a file of weights that vit21k reads",
        hint="it reads safetensors, .npz, .pth and .pdparams; `vit21k models --formats` lists more",
    )


def _read_safetensors(path: Path, which: Which | None) -> Arrays:
    return _unwrapped("safetensors", load_file(path), which)


def _read_npz(path: Path, which: Which | None) -> Arrays:
    with zipfile.ZipFile(path) as archive:
        check_members(archive.infolist(), path.stat().st_size)
        tensors = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as file:
                tensors[name] = _read_npy(file, name, member.file_size)
    return _unwrapped("npz", tensors, which)


def _read_npy(file: IO[bytes], name: str, num_bytes: int) -> Tensor:
    """Return an array of NumPy's; its header is compared with *num_bytes*, its size."""
    start = file.read(8)
    if not start.startswith(_NPY):
        raise ValueError(f"`{name:.60}` is no array")
    width = 2 if start[6:7] == b"\x01" else 4
    length = int.from_bytes(file.read(width), "little")
    header = file.read(min(length, _MAX_HEADER_BYTES)).decode("latin1")
    match = _NPY_HEADER.fullmatch(header)
    if match is None:
        raise ValueError(f"`{name:.60}` is no array of numbers: {header.strip():.80}")
    dtype, shape = np.dtype(match[1]), tuple(map(int, re.findall(r"\d+", match[3])))
    count = 1
    for size in shape:
        count *= size
    if count * dtype.itemsize != num_bytes - 8 - width - length:
        raise ValueError(f"`{name:.60}` is not as long as its header says")
    flat = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return tensor_of(flat.reshape(shape, order="F" if match[2] == "True" else "C"))


def _read_torch(path: Path, which: Which | None) -> Arrays:
    with path.open("rb") as file:
        is_old = file.read(len(OLD_START)) == OLD_START
    read = read_old_torch if is_old else read_torch_zip
    limit = _limit(path)
    return read(path, lambda content: _chosen("torch", content, which, limit))


def _read_paddle(path: Path, which: Which | None) -> Arrays:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _chosen("paddle", interpret(content), which, _limit(path))


def _limit(path: Path) -> int:
    """Return how many bytes the tensors of a file can have: tied ones count again."""
    return 4 * path.stat().st_size + (1 << 20)


def _chosen(container: Container, content: object, which: Which | None, limit: int) -> Arrays:
    """Return the tensors of *content*, from where training programs keep them."""
    if isinstance(content, Opaque):
        raise PickleRefusedError(f"it is a pickled `{content.name}`, not a table of arrays")
    if not isinstance(content, Mapping):
        raise ValueError("it is no table of arrays")  # noqa: TRY004 (damage)
    leaves, notes = _leaves_of(content, which)
    if not leaves:
        raise ValueError("there are no tensors in it")
    if sum(leaf.num_bytes for leaf in leaves.values()) > limit:
        raise ValueError("its tensors are declared to be far larger than the file")
    tensors = {}
    for name, leaf in leaves.items():
        try:
            tensors[name] = leaf.load()
        except ValueError as error:
            raise ValueError(f"`{name:.60}`: {error}") from error
    found = _unwrapped(container, tensors, which if not notes else None)
    return Arrays(
        container=container,
        tensors=found.tensors,
        settings=_settings_in(content),
        notes=(*notes, *found.notes),
    )


def _leaves_of(
    content: Mapping[Any, Any], which: Which | None, depth: int = 0
) -> tuple[dict[str, Leaf], tuple[str, ...]]:
    """Return the arrays in *content* by name, and what was chosen."""
    nests: dict[Which, list[str]] = {
        kind: [key for key in keys if isinstance(content.get(key), Mapping)]
        for kind, keys in _NESTS.items()
    }
    if depth < _MAX_NESTING and any(nests.values()):
        kind, notes = _choose({kind for kind, keys in nests.items() if keys}, which)
        if len(nests[kind]) > 1:
            keys = " and ".join(f"`{key}`" for key in nests[kind])
            raise ValueError(f"it has weights under {keys}")
        inner, more = _leaves_of(content[nests[kind][0]], None, depth + 1)
        return inner, (*notes, *more)
    leaves = {str(name): _leaf_of(value) for name, value in content.items()}
    return {name: leaf for name, leaf in leaves.items() if leaf is not None}, ()


def _leaf_of(value: object) -> Leaf | None:
    """Return *value* if it is an array, or paddle's pair of a parameter's name and its array."""
    if is_leaf(value):
        return value
    if isinstance(value, tuple) and len(value) == 2 and is_leaf(value[1]):  # noqa: PLR2004
        return value[1]
    return None


def _choose(there: set[Which], which: Which | None) -> tuple[Which, tuple[str, ...]]:
    """Return which of the weights that are *there* to take, and a note on it."""
    words = {"raw": "raw weights", "ema": "averaged weights (EMA)"}
    if which is not None and which not in there:
        other: Which = "raw" if which == "ema" else "ema"
        raise UsageError(f"holds no {words[which]}", hint=f"it has {words[other]} only")
    if which is None and len(there) > 1:
        raise UsageError(
            "holds raw weights and their average (EMA)",
            hint="choose: `--weights raw` or `--weights ema`",
        )
    kind: Which = which if which is not None else next(iter(there))
    return kind, ("the weights are averaged ones (EMA)",) if kind == "ema" else ()


def _unwrapped(container: Container, tensors: Mapping[str, Tensor], which: Which | None) -> Arrays:
    """Return *tensors* without the prefixes of wrappers, the raw ones or the average."""
    groups: dict[Which, dict[str, Tensor]] = {"raw": {}, "ema": {}}
    for full, tensor in tensors.items():
        name, kind = _bare(full)
        if name in groups[kind]:
            raise ValueError(f"two tensors are `{name:.60}` without the prefixes of wrappers")
        groups[kind][name] = tensor
    there: set[Which] = {kind for kind, group in groups.items() if group}
    if not there:
        raise ValueError("there are no tensors in it")
    if which == "ema" and _COUNTER in groups["raw"]:
        which = None  # torch's own average, under the names of a wrapper
    kind, notes = _choose(there, which)
    return Arrays(container=container, tensors=groups[kind], notes=notes)


def _bare(name: str) -> tuple[str, Which]:
    """Return *name* without the prefixes of wrappers, and whether they mean the average."""
    kind: Which = "raw"
    while match := _WRAPPERS.match(name) or _EMA_WRAPPERS.match(name):
        if _EMA_WRAPPERS.match(name):
            kind = "ema"
        name = name[match.end() :]
    return _INNER_WRAPPERS.sub("", name), kind


def _settings_in(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Return what a training program noted of its model beside it, in the words of timm's config.

    timm's train.py keeps ``arch`` and ``args`` (``model``, ``model_kwargs``, ``gp``), those of
    DeiT, MAE and torchvision ``args`` with ``model``, DINO's ``args`` with ``arch``.
    """
    settings: dict[str, Any] = {}
    for found in _arguments_in(content):
        for theirs, ours in (("arch", "architecture"), ("model", "architecture")):
            if isinstance(found.get(theirs), str):
                settings[ours] = found[theirs]
        if isinstance(found.get("model_kwargs"), Mapping) and found["model_kwargs"]:
            settings["model_args"] = dict(found["model_kwargs"])
        if isinstance(found.get("gp"), str):
            settings["global_pool"] = found["gp"]
    return settings


def _arguments_in(content: Mapping[Any, Any]) -> Iterator[Mapping[Any, Any]]:
    yield {"arch": content.get("arch")}
    for key in _ARGUMENTS:
        value = content.get(key)
        state = value.state if isinstance(value, Opaque) else value
        if isinstance(state, Mapping):
            yield state


_READERS: dict[Container, Callable[[Path, Which | None], Arrays]] = {
    "safetensors": _read_safetensors,
    "npz": _read_npz,
    "torch": _read_torch,
    "paddle": _read_paddle,
}
