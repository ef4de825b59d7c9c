"""A zip of class folders -> the same files in an image tree, byte for byte."""

import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vit21k.errors import DataError
from vit21k.hashing.entry_problems import IMAGE_SUFFIXES
from vit21k.sources.cifar import NamedPicture

_NUM_PARTS = 3  # split, class, file


def read_zip(archive: Path) -> Iterator[NamedPicture]:
    """Yield the pictures of *archive*, which hold ``[...]/train/<class>/<file>`` and ``test``.

    Raises:
        DataError: It is not a zip, is damaged, or has no such folders.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = [(info, path) for info in file.infolist() if (path := _path_of(info))]
            if not {"train/", "test/"} <= {path.partition("/")[0] + "/" for _, path in members}:
                raise DataError(
                    f"`{archive}` has no pictures in `train/<class>/` and `test/<class>/`"
                )
            for info, path in members:
                yield NamedPicture(path, file.read(info))
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise DataError(f"`{archive}` is not a whole zip archive: {error}") from error


def _path_of(info: zipfile.ZipInfo) -> str | None:
    """Return ``split/class/file``; None if the member is no picture in a class folder of a split.

    What is returned has three plain parts, so nothing can be written outside the tree.
    """
    parts = PurePosixPath(info.filename).parts[-_NUM_PARTS:]
    is_image = PurePosixPath(info.filename).suffix.lower().encode() in IMAGE_SUFFIXES
    if (
        info.is_dir()
        or not is_image
        or len(parts) < _NUM_PARTS
        or parts[0] not in ("train", "test")
    ):
        return None
    if any(part in ("..", ".", "/") or "\\" in part or "\0" in part for part in parts):
        return None
    return "/".join(parts)
