"""CIFAR's archives, as torchvision knows and loads them."""

from pathlib import Path
from typing import Any

from vit21k.errors import DataError, MissingExtraError


def download_cifar(name: str, folder: Path) -> Path:
    """Return the published archive in *folder*; it is loaded if it is not there, or not whole.

    Args:
        name: ``cifar10`` or ``cifar100``.
        folder: Where it is kept.

    Raises:
        MissingExtraError: torchvision is not installed.
        DataError: What came is not the published file.
        OSError: The server cannot be reached, or the disk is full.
    """
    known = _torchvision()[name]
    from torchvision.datasets.utils import download_url  # noqa: PLC0415

    try:
        download_url(known.url, str(folder), filename=known.filename, md5=known.tgz_md5)
    except RuntimeError as error:
        raise DataError(
            f"what came from {known.url} is not the published file",
            hint="run the command again, or give the archive with --archive FILE",
        ) from error
    return folder / str(known.filename)


def published_md5(name: str) -> str | None:
    """Return the MD5 of the published archive, if torchvision is there to say it."""
    try:
        return str(_torchvision()[name].tgz_md5)
    except MissingExtraError:
        return None


def _torchvision() -> dict[str, Any]:
    try:
        from torchvision.datasets import CIFAR10, CIFAR100  # noqa: PLC0415 - takes seconds
    except ImportError as error:
        raise MissingExtraError(
            "CIFAR is loaded by torchvision, which is not installed",
            hint="pip install 'vit21k[train]', or give the archive with --archive FILE",
        ) from error
    return {"cifar10": CIFAR10, "cifar100": CIFAR100}
