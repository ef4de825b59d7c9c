"""Where commands may write: never below the image root."""

from pathlib import Path

from vit21k.errors import ImageTreeError, UsageError


def image_root(root: Path) -> Path:
    """Return *root*, absolute and without symbolic links, if it has folders in it.

    Raises:
        ImageTreeError: There is no such folder, or it holds no folders.
    """
    if root.is_file():
        raise ImageTreeError(
            f"`{root}` is a file, not a folder",
            hint="give the folder that holds the class folders",
        )
    if not root.is_dir():
        raise ImageTreeError(
            f"no such folder: `{root}`", hint="give the folder that holds the class folders"
        )
    if not any(entry.is_dir() and not entry.name.startswith(".") for entry in root.iterdir()):
        raise ImageTreeError(
            f"`{root}` holds no class folders",
            hint="expected folders such as `n01440764/` with images in them; "
            "the class of an image is the name of the folder it lies in",
        )
    return root.resolve()


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
