"""Published splits that are folders of a source: `train/` and `val/` with class folders in them.

They are found at the top of a source, or below single folders: `imagenet21k_resized/` holds
`imagenet21k_train/` and `imagenet21k_val/`.  A folder is a split if one word of its name is, and
next to `train` there must be another split.
"""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from vit21k.manifest.archive_names import archive_stem, is_zip_name
from vit21k.manifest.layout import split_named
from vit21k.sources.container import ByteSource, Entry, SourceTree
from vit21k.sources.folders import FolderEntry, is_image_name
from vit21k.sources.zip import read_zip_members

_MAX_DEPTH = 3
_NUM_LOOKED_AT = 64
_RESIZED = b"imagenet21k_resized"  # its .tar.gz, in which `imagenet21k_val` comes late


@dataclass(frozen=True)
class SplitFolders:
    """Which folders are splits.

    Attributes:
        folders: Splits and their siblings, relative to the root, without a slash at the end;
            empty: every topmost folder that is a split by its name.
    """

    folders: tuple[str, ...] = ()

    def split_of(self, folder: str) -> str | None:
        """Return the split that *folder* is or is in, if any."""
        found = self._split_folder(folder)
        return split_named(found.rpartition("/")[2]) if found else None

    def inside(self, folder: str) -> str:
        """Return *folder* relative to its split; "" for that of a split."""
        found = self._split_folder(folder)
        return folder[len(found) :].removeprefix("/") if found else folder

    def _split_folder(self, folder: str) -> str | None:
        if self.folders:
            within = f"{folder}/"
            return next((one for one in self.folders if within.startswith(f"{one}/")), None)
        above = ""
        for part in folder.split("/"):
            if split_named(part):
                return above + part
            above += f"{part}/"
        return None


def find_splits(tree: SourceTree, *, are_flat: bool = False) -> SplitFolders | None:
    """Return the folders, or tars, of *tree* that are published splits; None if there are none.

    Args:
        tree: The source.
        are_flat: Images of a split need not be in class folders.
    """
    above = ""
    for _ in range(_MAX_DEPTH):
        entries = [entry for entry in tree.entries(above) if not entry.name.startswith(".")]
        names = [_folder_name(entry) for entry in entries]
        splits = {split_named(name) for name in names if name} - {None}
        if "train" in splits and len(splits) > 1:
            if not are_flat and not all(_may_be_split(tree, above, entry) for entry in entries):
                return None
            return SplitFolders(tuple(sorted(above + name for name in names if name)))
        named = [entry for entry in entries if _folder_name(entry)]
        if len(named) != 1:
            return None
        if not named[0].is_folder:
            return _splits_inside(tree, above + named[0].name)
        above += f"{named[0].name}/"
    return None


def _splits_inside(tree: SourceTree, archive: str) -> SplitFolders | None:
    """Return the splits in an archive, as far as that is known before it is read."""
    name = archive.rpartition("/")[2].encode(errors="surrogateescape")
    if archive_stem(name) == _RESIZED:
        return SplitFolders()
    if not is_zip_name(name):
        return None
    with closing(tree.open(archive)) as file:
        inside = _ZipTree(member.name for member in read_zip_members(file, lambda _name: False))
    return SplitFolders() if find_splits(inside) else None


class _ZipTree:
    """Folders and files in a zip, by their names, as a `SourceTree`."""

    def __init__(self, names: Iterable[bytes]) -> None:
        self._inside: dict[str, dict[str, bool]] = {"": {}}
        for name in names:
            folder, _, last = name.decode(errors="replace").rpartition("/")
            entries = self._entries_of(folder + "/" if folder else "")
            if len(entries) < _NUM_LOOKED_AT:
                entries.setdefault(last, False)

    def _entries_of(self, folder: str) -> dict[str, bool]:
        if folder not in self._inside:
            self._inside[folder] = {}
            above, _, name = folder[:-1].rpartition("/")
            self._entries_of(above + "/" if above else "")[name] = True
        return self._inside[folder]

    def entries(self, folder: str = "") -> list[Entry]:
        """Return what is in *folder*; of many files only some."""
        return [FolderEntry(name, is_one) for name, is_one in self._inside[folder].items()]

    def open(self, path: str) -> ByteSource:
        """Refuse to open a member."""
        raise FileNotFoundError(path)


def _folder_name(entry: Entry) -> str | None:
    """Return the name of a folder, or of the one that a tar would be unpacked to."""
    if entry.is_folder:
        return entry.name
    stem = archive_stem(entry.name.encode(errors="surrogateescape"))
    return stem.decode(errors="surrogateescape") if stem else None


def _may_be_split(tree: SourceTree, above: str, entry: Entry) -> bool:
    """Return whether an entry next to splits is no class: its images, if any, are in folders.

    Those of a test split need not be, as they may have no classes.
    """
    if not entry.is_folder or split_named(entry.name) == "test":
        return True
    inside: Iterable[Entry] = islice(tree.entries(f"{above}{entry.name}/"), _NUM_LOOKED_AT)
    names = (one.name.encode(errors="surrogateescape") for one in inside if not one.is_folder)
    return not any(map(is_image_name, names))
