"""What `torch.save` wrote, in today's zip or in the older row of pickles -> its content."""

import mmap
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from vit21k.weights.pickles import PickleRefusedError, Storage, Storages, interpret

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
