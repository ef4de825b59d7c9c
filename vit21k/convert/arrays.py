"""A file of weights -> tensors by name.  Nothing in the file is ever executed.

What a file declares is compared with its size before anything is built from it.
"""

import errno
import mmap
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import IO, Any, Literal

from numpy.lib import format as npy
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
    numpy_tensor,
)
from vit21k.errors import CheckpointError, UsageError, one_line

Container = Literal["safetensors", "npz", "torch", "paddle"]
Which = Literal["raw", "ema"]
"""The weights of the last step, or their exponential moving average."""

_PICKLE = b"\x80"
# The older format of `torch.save` begins with a pickled number.
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_OLD_TORCH_VERSION = 1001
_MAX_NPY_HEADER = 4096
_NPY_NUMBERS = re.compile(r"[<>|][fiub][1248]|[<>|]V2")
# Where training programs store weights, next to optimizers and the like.
_NESTS: Mapping[Which, tuple[str, ...]] = {
    "raw": ("state_dict", "model", "model_state_dict", "net", "params", "module", "student",
            "encoder"),
    "ema": ("state_dict_ema", "model_ema", "model_ema_state_dict", "ema_state_dict", "ema",
            "ema_model", "teacher", "target_encoder"),
}  # fmt: skip
_MAX_NESTING = 4
# Prefixes that wrappers add to names: data parallelism, compilation, a trainer's attribute; and
# those that mean the average.
_WRAPPERS = re.compile(r"(?:module|_orig_mod|model|backbone|_fsdp_wrapped_module)\.")
_EMA_WRAPPERS = re.compile(r"(?:model_ema|ema_model|ema)\.")
_INNER_WRAPPERS = re.compile(
    r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_COUNTER = "n_averaged"  # of torch's AveragedModel
# Keys under which training programs store their arguments.
_ARGUMENTS = ("args", "hyper_parameters", "config")


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """The content of a file.

    Attributes:
        container: Kind of the file.
        tensors: By name, without the prefixes of wrappers; on the CPU.
        settings: What the training program recorded about the model, with the keys of timm's
            ``config.json``.
        notes: What the user should know about the choice of tensors, each in a sentence.
    """

    container: Container
    tensors: dict[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_arrays(path: Path, which: Which | None = None) -> Arrays:
    """Return the tensors of a file, whose kind is detected by content.

    Args:
        path: safetensors, NumPy's npz, a file of `torch.save`, or paddle's ``.pdparams``.
        which: The raw weights or their average; None: whichever the file has.

    Raises:
        CheckpointError: It is missing, damaged, of another kind, or holds more than arrays.
        UsageError: It holds raw weights and their average, and *which* is None; or not those that
            *which* names.
    """
    try:
        return _read(path, which)
    except FileNotFoundError:
        raise CheckpointError(f"`{path}` is missing") from None
    except PickleRefusedError as error:
        raise CheckpointError(
            f"`{path}` holds more than arrays: {error}",
            hint="reading stopped there; ask for a file of weights alone (safetensors)",
        ) from error
    except UsageError as error:
        raise UsageError(f"`{path}` {error.message}", hint=error.hint) from error
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        reason = one_line(str(error).partition("\n")[0])
        raise CheckpointError(f"`{path}` is damaged, or holds no weights: {reason:.200}") from error


# An OSError is damage where a file lists parts outside itself (EINVAL).
_DAMAGE = (
    SafetensorError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _read(path: Path, which: Which | None) -> Arrays:
    with path.open("rb") as file:
        start = file.read(16)
    if start[8:9] == b"{":  # safetensors: 8 bytes of length, then JSON
        return _unwrapped("safetensors", load_file(path), which)
    limit = 4 * path.stat().st_size + (1 << 20)  # tied tensors count several times
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            is_npz = all(name.endswith(".npy") for name in archive.namelist())
        if is_npz:
            return _unwrapped("npz", _read_npz(path), which)
        return _chosen("torch", _torch_zip(path), which, limit)
    if start.startswith(_OLD_TORCH):
        return _chosen("torch", _old_torch(path), which, limit)
    if start.startswith(_PICKLE):
        return _chosen("paddle", _pickle(path), which, limit)
    raise CheckpointError(
        f"`{path}` is not a file of weights that vit21k reads",
        hint="it reads safetensors, .npz, .pth and .pdparams; `vit21k models --formats` lists more",
    )


def _check_members(archive: zipfile.ZipFile, num_bytes: int, *, compressed: bool) -> None:
    """Check the declared sizes in an archive of *num_bytes*, before anything of it is read.

    Weights hardly shrink, so an archive that declares many times its own size holds none.
    """
    members = archive.infolist()
    methods = {zipfile.ZIP_STORED} | ({zipfile.ZIP_DEFLATED} if compressed else set())
    if any(member.compress_type not in methods or member.flag_bits & 1 for member in members):
        raise ValueError("its members are compressed or encrypted as weights never are")
    allowed = 16 * num_bytes + (16 << 20) if compressed else num_bytes
    if sum(member.file_size for member in members) > allowed:
        raise ValueError("its members are declared to be far larger than the file")


def _read_npz(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        _check_members(archive, path.stat().st_size, compressed=True)
        tensors = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            with archive.open(member) as file:
                tensors[name] = _read_npy(file, name, member.file_size)
    return tensors


def _read_npy(file: IO[bytes], name: str, num_bytes: int) -> Tensor:
    """Return an array of NumPy; its header is compared with *num_bytes*, the size of the file."""
    try:
        is_first = npy.read_magic(file) == (1, 0)
        read_header = npy.read_array_header_1_0 if is_first else npy.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file, max_header_size=_MAX_NPY_HEADER)
    except (MemoryError, ValueError) as error:  # MemoryError: of Python's parser
        raise ValueError(f"`{name:.60}` is no array: {error}") from error
    if not _NPY_NUMBERS.fullmatch(dtype.str):
        raise ValueError(f"`{name:.60}` is no array of numbers: {dtype!s:.80}")
    rest = num_bytes - file.tell()
    if min(shape, default=0) < 0 or prod(shape) * dtype.itemsize != rest:
        raise ValueError(f"`{name:.60}` is not as long as its header says")
    return numpy_tensor(file.read(rest), dtype, shape, "F" if is_fortran else "C")


@contextmanager
def _torch_zip(path: Path) -> Iterator[object]:
    """Open a file of `torch.save`; a storage is read when a tensor of it is loaded."""
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: record for record in archive.infolist()}
        pickles = [name for name in records if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("an archive without the one `data.pkl` that torch writes")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in records:  # as OpenAI publishes CLIP
            raise CheckpointError(
                f"`{path}` is a TorchScript program, which is not run",
                hint="if you trust it, save its weights with torch and read that file: "
                f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pth')",
            )
        _check_members(archive, path.stat().st_size, compressed=False)
        order = f"{folder}byteorder"
        if order in records and archive.read(order) != b"little":
            raise ValueError("its numbers are big-endian")

        def read(storage: Storage) -> bytearray:
            record = records.get(f"{folder}data/{storage.key}")
            if record is None or record.file_size != storage.num_bytes:
                raise ValueError(f"storage `{storage.key:.20}` is not as long as its tensors")
            return bytearray(archive.read(record))

        yield interpret(archive.read(pickles[0]), Storages(read))


@contextmanager
def _old_torch(path: Path) -> Iterator[object]:
    """Open a file of torch's older format: several pickles, then the values of all storages."""
    offsets: dict[str, int] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:

        def read(storage: Storage) -> bytearray:
            if storage.key not in offsets:
                raise ValueError(f"storage `{storage.key:.20}` is not in the file")
            start = offsets[storage.key]
            return bytearray(content[start : start + storage.num_bytes])

        storages = Storages(read)
        _magic, version, system = (interpret(content) for _ in range(3))
        if version != _OLD_TORCH_VERSION or not isinstance(system, dict):
            raise ValueError("a file of torch of another version")
        if system.get("little_endian") is not True:
            raise ValueError("its numbers are big-endian")
        found = interpret(content, storages)
        offsets |= _offsets_of(content, interpret(content), storages)
        yield found


def _offsets_of(content: mmap.mmap, keys: object, storages: Storages) -> dict[str, int]:
    """Return the offset of each storage: they follow each other, each after its length."""
    if not isinstance(keys, list):
        raise ValueError("it does not list its storages")  # noqa: TRY004 (damage)
    offsets = {}
    for key in keys:
        storage = storages.named.get(key)
        length = content.read(8)
        if (
            storage is None
            or key in offsets
            or int.from_bytes(length, "little") != (storage.num_values)
        ):
            raise ValueError("its storages are not those of its tensors")
        if content.tell() + storage.num_bytes > len(content):
            raise ValueError("it ends within a storage")
        offsets[key] = content.tell()
        content.seek(storage.num_bytes, 1)
    return offsets


@contextmanager
def _pickle(path: Path) -> Iterator[object]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield interpret(content)


def _chosen(
    container: Container,
    opened: AbstractContextManager[object],
    which: Which | None,
    limit: int,
) -> Arrays:
    """Return the tensors of a pickle, from where training programs store them.

    Args:
        container: Kind of the file.
        opened: Its content.
        which: The raw weights or their average.
        limit: Most bytes that tensors of such a file have together.
    """
    with opened as content:
        if isinstance(content, Opaque):
            raise PickleRefusedError(f"it is a pickled `{content.name}`, not a table of arrays")
        if not isinstance(content, Mapping):
            raise ValueError("it is no table of arrays")  # noqa: TRY004 (damage)
        leaves, notes = _leaves_of(content, which)
        if not leaves:
            raise ValueError("there are no tensors in it")
        if sum(leaf.num_bytes for leaf in leaves.values()) > limit:
            raise ValueError("its tensors are declared to be far larger than the file")
        tensors = {name: _loaded(name, leaf) for name, leaf in leaves.items()}
        found = _unwrapped(container, tensors, which if not notes else None)
        return replace(found, settings=_settings_in(content), notes=(*notes, *found.notes))


def _loaded(name: str, leaf: Leaf) -> Tensor:
    try:
        return leaf.load()
    except ValueError as error:
        raise ValueError(f"`{name:.60}`: {error}") from error


def _leaves_of(
    content: Mapping[Any, Any], which: Which | None, depth: int = 0
) -> tuple[dict[str, Leaf], tuple[str, ...]]:
    """Return the arrays in *content* by name, and a note on which were chosen."""
    nests: dict[Which, list[str]] = {
        kind: [key for key in keys if isinstance(content.get(key), Mapping)]
        for kind, keys in _NESTS.items()
    }
    if nests["ema"] and _is_mmengines(content):
        nests = {"raw": nests["ema"], "ema": nests["raw"]}
    if depth < _MAX_NESTING and any(nests.values()):
        kind, notes = _choose({kind for kind, keys in nests.items() if keys}, which)
        if len(nests[kind]) > 1:
            keys = " and ".join(f"`{key}`" for key in nests[kind])
            raise ValueError(f"it has weights under {keys}")
        inner, more = _leaves_of(content[nests[kind][0]], None, depth + 1)
        return inner, (*notes, *more)
    # paddle stores pairs of a parameter's name and its array.
    values = {
        str(name): value[1] if isinstance(value, tuple) and len(value) == 2 else value  # noqa: PLR2004
        for name, value in content.items()
    }
    return {name: value for name, value in values.items() if isinstance(value, Leaf)}, ()


def _is_mmengines(content: Mapping[Any, Any]) -> bool:
    """Return whether MMEngine saved it, whose `EMAHook` swaps the weights and their average.

    Source: mmengine/hooks/ema_hook.py, `before_save_checkpoint`.
    """
    meta = content.get("meta")
    return isinstance(meta, Mapping) and "mmengine_version" in meta


def _choose(available: set[Which], which: Which | None) -> tuple[Which, tuple[str, ...]]:
    """Return which of the *available* weights to take, and a note on it."""
    words = {"raw": "raw weights", "ema": "averaged weights (EMA)"}
    if which is None and len(available) > 1:
        raise UsageError(
            "holds raw weights and their average (EMA)",
            hint="choose: `--weights raw` or `--weights ema`",
        )
    kind: Which = next(iter(available)) if which is None else which
    if kind not in available:
        (other,) = available
        raise UsageError(f"holds no {words[kind]}", hint=f"it has {words[other]} only")
    return kind, ("the weights are averaged ones (EMA)",) if kind == "ema" else ()


def _unwrapped(container: Container, tensors: Mapping[str, Tensor], which: Which | None) -> Arrays:
    """Return *tensors* without the prefixes of wrappers, the raw ones or the average."""
    groups: dict[Which, dict[str, Tensor]] = {"raw": {}, "ema": {}}
    for full, tensor in tensors.items():
        name, kind = _bare(full)
        if name in groups[kind]:
            raise ValueError(f"two tensors are `{name:.60}` without the prefixes of wrappers")
        groups[kind][name] = tensor
    if not tensors:
        raise ValueError("there are no tensors in it")
    if which == "ema" and _COUNTER in groups["raw"]:
        which = None  # torch's own average, under the names of a wrapper
    kind, notes = _choose({kind for kind, group in groups.items() if group}, which)
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
    """Return what a training program recorded about its model, with the keys of timm's config.

    timm's train.py stores ``arch`` and ``args`` (``model``, ``model_kwargs``, ``gp``), those of
    DeiT, MAE and torchvision ``args`` with ``model``, DINO's ``args`` with ``arch``.
    """
    settings: dict[str, Any] = {}
    for found in ({"arch": content.get("arch")}, *map(content.get, _ARGUMENTS)):
        found = found.state if isinstance(found, Opaque) else found  # noqa: PLW2901
        if not isinstance(found, Mapping):
            continue
        for key in ("arch", "model"):
            if isinstance(found.get(key), str):
                settings["architecture"] = found[key]
        if isinstance(found.get("model_kwargs"), Mapping) and found["model_kwargs"]:
            settings["model_args"] = dict(found["model_kwargs"])
        if isinstance(found.get("gp"), str):
            settings["global_pool"] = found["gp"]
    return settings
