"""CIFAR's published archive, downloaded by torchvision -> PNG files in class folders.

The archive holds Python pickles.  They are read by an unpickler that knows numpy's arrays and
nothing else: a pickle that names any other function is refused, so a local archive need not be
trusted.

Files are called ``train/frog/00000.png``: the number is that of the image in torchvision's
`CIFAR10` and `CIFAR100`, which count through the batches in their order.

Source of the format: A. Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html
"""

import io
import pickle
import pickletools
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vit21k.errors import DataError, MissingExtraError

_SIDE = 32
_MAX_FILE_BYTES = 1 << 30
"""The largest file of the published archives has 155 MB."""
_TRAIN_10 = tuple(f"data_batch_{number}" for number in range(1, 6))


class CifarFiles(NamedTuple):
    """Names of the files of an archive, and the keys in them."""

    splits: Mapping[str, tuple[str, ...]]
    meta: str
    names_key: str
    labels_key: str


LAYOUTS = {
    "cifar10": CifarFiles(
        {"train": _TRAIN_10, "test": ("test_batch",)}, "batches.meta", "label_names", "labels"
    ),
    "cifar100": CifarFiles(
        {"train": ("train",), "test": ("test",)}, "meta", "fine_label_names", "fine_labels"
    ),
}


class NamedImage(NamedTuple):
    """An image to write to the tree: its path there, and the content of the file."""

    path: str
    content: bytes


def read_cifar(archive: Path, name: str) -> Iterator[NamedImage]:
    """Yield the images of *archive* as PNG files, by split and number.

    Args:
        archive: ``cifar-10-python.tar.gz`` or ``cifar-100-python.tar.gz``.
        name: ``cifar10`` or ``cifar100``.

    Raises:
        DataError: It is another archive, damaged, or a pickle in it names what is not allowed.
    """
    layout = LAYOUTS[name]
    files = _members(
        archive, {layout.meta, *(n for names in layout.splits.values() for n in names)}
    )
    class_names = _field(_load(files[layout.meta], archive), layout.names_key, archive)
    for split, batches in layout.splits.items():
        number = 0
        for batch_name in batches:
            batch = _load(files[batch_name], archive)
            labels = _field(batch, layout.labels_key, archive)
            pixels = np.asarray(_field(batch, "data", archive), dtype=np.uint8)
            if pixels.shape != (len(labels), 3 * _SIDE**2):
                raise DataError(f"`{archive}` is damaged: {batch_name} has another shape")
            images = pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
            for image, label in zip(images, labels, strict=True):
                folder = _class_name(class_names, label, archive)
                yield NamedImage(f"{split}/{folder}/{number:05}.png", _as_png(image))
                number += 1


def _members(archive: Path, wanted: set[str]) -> dict[str, bytes]:
    """Return the content of the files *wanted*, by name, whatever folder they are in."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if member.isfile() and name in wanted:
                    if member.size > _MAX_FILE_BYTES:
                        raise DataError(f"`{archive}` is damaged: `{name}` is too large")
                    file = tar.extractfile(member)
                    found[name] = file.read() if file else b""
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise DataError(f"`{archive}` is not a complete tar archive: {error}") from error
    if missing := sorted(wanted - set(found)):
        raise DataError(
            f"`{archive}` has no `{missing[0]}`",
            hint="for the archive of the other CIFAR, give its name: cifar10 or cifar100",
        )
    return found


def _load(content: bytes, archive: Path) -> dict[str, Any]:
    try:
        _refuse_sparse_memo(content)
        loaded = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"`{archive}` cannot be read: {error}") from error
    return loaded if isinstance(loaded, dict) else {}


def _refuse_sparse_memo(content: bytes) -> None:
    """Refuse a pickle that stores an object at a number larger than it has bytes.

    The unpickler allocates all numbers up to the largest: nine bytes would take gigabytes.
    """
    for operation, argument, _ in pickletools.genops(content):
        if operation.name.endswith("PUT") and int(argument or 0) > len(content):
            raise pickle.UnpicklingError("it stores an object at a number that is too large")


def _field(values: Mapping[str, Any], key: str, archive: Path) -> Any:
    if key not in values:
        raise DataError(f"`{archive}` is not CIFAR's: `{key}` is missing")
    return values[key]


def _class_name(names: Any, label: Any, archive: Path) -> str:
    try:
        return str(names[label])
    except (LookupError, TypeError) as error:
        raise DataError(f"`{archive}` is damaged: it has no class {label!r:.40}") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Reads lists, dicts, numbers, text and numpy arrays; refuses all else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a function that pickles may call."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return _ArrayType
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):  # how Python 3 pickles bytes in protocol 2
            return _encode
        raise pickle.UnpicklingError(f"a pickle names `{module}.{name}`, which is not allowed")


class _ArrayType:
    """Stands for `numpy.ndarray`, which could be called with a shape of any size."""


def _empty_array(_kind: type, _shape: object, _code: object) -> np.ndarray[Any, Any]:
    """Return the array that a pickle fills; its state says the shape and has the bytes."""
    return np.empty(0, np.uint8)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"a pickle names the encoding `{encoding}`")
    return text.encode(encoding)


def _as_png(image_HWC: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image_HWC)).save(file, "PNG")
    return file.getvalue()


def download_cifar(name: str, folder: Path) -> Path:
    """Return the published archive in *folder*; it is downloaded if it is missing or incomplete.

    Args:
        name: ``cifar10`` or ``cifar100``.
        folder: Folder of the archive.

    Raises:
        MissingExtraError: torchvision is not installed.
        DataError: The download is not the published file.
        OSError: The server cannot be reached, or the disk is full.
    """
    known = _torchvision()[name]
    from torchvision.datasets.utils import download_url  # noqa: PLC0415

    try:
        download_url(known.url, str(folder), filename=known.filename, md5=known.tgz_md5)
    except RuntimeError as error:
        raise DataError(
            f"the download from {known.url} is not the published file",
            hint="run the command again, or give the archive with --archive FILE",
        ) from error
    return folder / str(known.filename)


def published_md5(name: str) -> str | None:
    """Return the MD5 of the published archive, if torchvision is installed."""
    try:
        return str(_torchvision()[name].tgz_md5)
    except MissingExtraError:
        return None


def _torchvision() -> dict[str, Any]:
    try:
        from torchvision.datasets import CIFAR10, CIFAR100  # noqa: PLC0415 - takes seconds
    except ImportError as error:
        raise MissingExtraError(
            "CIFAR is downloaded by torchvision, which is not installed",
            hint="pip install 'vit21k[train]', or give the archive with --archive FILE",
        ) from error
    return {"cifar10": CIFAR10, "cifar100": CIFAR100}
