"""Where commands may write: never below the image root."""

import os
from itertools import islice
from pathlib import Path
from typing import NoReturn

from vit21k.archives.names import archive_stem
from vit21k.errors import ImageTreeError, LayoutError, UsageError
from vit21k.hashing.entry_problems import is_image_name
from vit21k.manifest.layout import Layout
from vit21k.one_line import printable

_MAX_LOOKED_INTO, _MAX_LOOKED_AT = 8, 64


def image_root(root: Path) -> tuple[Path, str | None]:
    """Return *root*, absolute and without symbolic links, if there are folders or archives in it.

    Where it is an archive itself, the root is its folder, and the second value its name.

    Raises:
        ImageTreeError: There is no such folder, or it holds neither folders nor archives.
    """
    if root.is_file():
        if archive_stem(os.fsencode(root.name)) is None:
            raise ImageTreeError(
                f"`{root}` is a file, not a folder or an archive",
                hint="give the folder that holds the class folders",
            )
        root = root.resolve()
        return root.parent, root.name
    if not root.is_dir():
        raise ImageTreeError(
            f"no such folder: `{root}`", hint="give the folder that holds the class folders"
        )
    entries = list(root.iterdir())
    if not any(_may_hold_classes(entry) for entry in entries):
        if any(entry.suffix == ".parquet" for entry in entries):
            refuse_parquet(str(root))
        raise LayoutError(
            f"`{root}` holds no class folders",
            hint="expected folders such as `n01440764/` with images in them, or archives such as "
            "`n01440764.tar`; the class of an image is the name of the folder it lies in",
        )
    return root.resolve(), None


def refuse_parquet(root: str) -> NoReturn:
    """Refuse a tree of Parquet files, and say which command reads them."""
    raise LayoutError(
        f"`{root}` holds Parquet files, and no image files",
        hint="`vit21k train --data DIR` reads a Hugging Face dataset whose files are in DIR or "
        "DIR/data, with the split in their names (`train-00000-of-00002.parquet`); copy or link "
        "files of another layout, such as `train/0000.parquet`, to such names",
    )


def look_at(root: Path, layout: Layout) -> None:
    """Refuse at once, before hours of reading, what shows at the top of *root*.

    Raises:
        LayoutError: Its folders cannot be classes.
    """
    entries = [entry for entry in root.iterdir() if _may_hold_classes(entry)]
    folders = [entry for entry in entries if entry.is_dir()]
    for entry in entries:
        name = archive_stem(os.fsencode(entry.name)) or os.fsencode(entry.name)
        if entry not in folders or any(map(_may_hold_images, _first_of(entry, _MAX_LOOKED_AT))):
            layout.add_split(printable(name))
    layout.refuse(is_complete=False)
    if len(folders) == len(entries) <= _MAX_LOOKED_INTO:
        _look_for_flat(folders, layout)


def _look_for_flat(folders: list[Path], layout: Layout) -> None:
    """Refuse a root whose few folders are no classes, and hold images and no folders."""
    for folder in folders:
        inside = _first_of(folder, _MAX_LOOKED_AT)
        images = [entry for entry in inside if is_image_name(os.fsencode(entry.name))]
        if not images or any(map(_may_hold_classes, inside)):
            return
    found = layout.like()
    for folder in folders:
        found.add(printable(os.fsencode(folder.name)))
    found.refuse()


def _may_hold_classes(entry: Path) -> bool:
    is_archive = archive_stem(os.fsencode(entry.name)) is not None
    return not entry.name.startswith(".") and (is_archive or entry.is_dir())


def _may_hold_images(entry: Path) -> bool:
    return is_image_name(os.fsencode(entry.name)) or _may_hold_classes(entry)


def _first_of(folder: Path, count: int) -> list[Path]:
    try:
        return list(islice(folder.iterdir(), count))
    except OSError:  # the walk says what is wrong
        return []


def refuse_inside(folder: Path, root: str, *, option: str = "--manifests") -> None:
    """Refuse to write into *folder* if it lies below the image root.

    Args:
        folder: Where a command would write.
        root: An absolute path, or "" if the image root is not known.
        option: With which the user says where to write.

    Raises:
        UsageError: It does.
    """
    if root and folder.resolve().is_relative_to(Path(root).resolve()):
        raise UsageError(
            f"`{folder}` lies inside the image root `{root}`, where nothing is ever written",
            hint=f"name a folder outside it with `{option} DIR`",
        )
