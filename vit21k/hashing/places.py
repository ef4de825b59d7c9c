"""Where commands may write: never below the image root."""

import os
from pathlib import Path

from vit21k.archives.names import archive_stem
from vit21k.errors import ImageTreeError, UsageError


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
    if not any(_may_hold_classes(entry) for entry in root.iterdir()):
        raise ImageTreeError(
            f"`{root}` holds no class folders",
            hint="expected folders such as `n01440764/` with images in them, or archives such as "
            "`n01440764.tar`; the class of an image is the name of the folder it lies in",
        )
    return root.resolve(), None


def _may_hold_classes(entry: Path) -> bool:
    is_archive = archive_stem(os.fsencode(entry.name)) is not None
    return not entry.name.startswith(".") and (is_archive or entry.is_dir())


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
