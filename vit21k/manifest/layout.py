"""Folders with images -> whether their names can be classes.

The class of an image is the name of its folder.  Where that would make a class of a split (`val`),
of a shard of a WebDataset (`train-0001.tar`) or of a folder below a class folder (`dog/2021`),
the tree is refused: labels that are silently wrong cost a training run.

Input: folders as they are met, in any order.  Memory: a few names for each class.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import zip_longest

import numpy as np
import pyarrow as pa

from vit21k.errors import LayoutError
from vit21k.manifest.archive_names import archive_stem

LabelFrom = str
"""Source of the class of an image: `folder`, `top` ... (`sources.container.LabelOptions`)."""

OPTION = "label_from"
"""Option of a manifest's header, if the user has set it."""

LABEL_FILE_OPTION = "label_file"
"""Option of a manifest's header: file with the classes, and its SHA-256."""

_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev", "eval"),
    "test": ("test", "testing"),
}
SPLIT_OF = {alias: split for split, aliases in _ALIASES.items() for alias in aliases}
"""Published splits by names of their folders, in lower case."""

SPLITS_OPTION = "splits"
"""Option of a manifest's header: the folders of published splits."""

_NO_CLASSES = re.compile(
    r"images?|imgs?|images|photos|data|dataset|jpegs?|jpegimages|all", re.IGNORECASE
)
_SHARD = re.compile(r"(.*[-_.])?((shard|part)[-_.]?)?\d{3,}([-_.]of[-_.]\d+)?", re.IGNORECASE)
_WNID = re.compile(r"n\d{8}")
_SYNSET = re.compile(r"n\d+")
_LABELS_BESIDE = frozenset({"cls", "json", "txt"})
_MAX_KEYS = 4096
_KEYS_OF_FOLDER = 8

_BY_FOLDER = "`vit21k hash --label-from folder` takes an image's folder, or tar, for its class"
_CLASS_FOLDERS = "put the images into one folder for each class"


def class_of(folder: str, label_from: LabelFrom | None) -> str:
    """Return the class of the images in *folder*, which ends in ``/``, relative to the root."""
    if label_from == "top":
        return folder.partition("/")[0]
    if label_from == "parent":
        folder = folder[:-1].rpartition("/")[0] + "/"
    return folder[:-1].rpartition("/")[2]


def split_named(name: str) -> str | None:
    """Return the split that a word of *name* is (`imagenet21k_train`), if only one split is."""
    found = _splits_in(name)
    return found.pop() if len(found) == 1 else None


def _splits_in(name: str) -> set[str]:
    return {SPLIT_OF[word] for word in re.findall("[a-z]+", name.lower()) if word in SPLIT_OF}


class Layout:
    """The labels of a tree, as far as its folders define them.

    Args:
        root: The image root, for messages.
        label_from: Option of the user; if set, nothing is refused.
        inside: Returns the path of a folder below its published split; "" for its own folder.
    """

    def __init__(
        self,
        root: str,
        *,
        label_from: LabelFrom | None = None,
        inside: Callable[[str], str] = lambda folder: folder,
    ) -> None:
        self._root = root
        self._label_from = label_from
        self._inside = inside
        self._first: tuple[str, str] | None = None
        self._folders: set[str] = set()
        self._classes: set[str] = set()
        self._shards: set[str] = set()
        self._split_of: dict[str, set[str]] = {}
        self._in_split: str | None = None
        self._has_splits = False
        self._nested: tuple[str, str] | None = None
        self._keys: set[str] = set()
        self._label_beside: tuple[str, str] | None = None

    def like(self) -> "Layout":
        """Return an empty one for another tree."""
        return Layout(self._root, label_from=self._label_from, inside=self._inside)

    def add(self, folder: str, stem: str | None = None) -> None:
        """Note a folder with images.

        Args:
            folder: Relative to the root, without a slash at its end.
            stem: Name, without suffix, of the archive that contains them, if any.
        """
        if folder in self._folders or self._label_from:
            return
        above, _, name = self._inside(folder).rpartition("/")
        if not name:
            self._in_split = self._in_split or folder
            return
        self._classes.add(name)
        self._has_splits |= self._inside(folder) != folder
        self._add_splits_above(above)
        if _WNID.fullmatch(name):
            return
        self._folders.add(folder)
        if name == stem:
            self._shards.add(name)
        self.add_split(folder)
        self._find_nested(self._inside(folder), above)

    def add_rows(self, rows: pa.Table) -> None:
        """Note the folders of rows of `digests`: those of the first and last of each run."""
        if not rows.num_rows or self._label_from:
            return
        codes = rows["wnid"].combine_chunks().dictionary_encode()
        codes = codes.combine_chunks() if isinstance(codes, pa.ChunkedArray) else codes
        changes = np.flatnonzero(np.diff(codes.indices.to_numpy())) + 1
        ends = np.unique(np.concatenate([[0], changes, changes - 1, [rows.num_rows - 1]]))
        rows = rows.take(pa.array(ends))
        containers = rows["container"].to_pylist() if "container" in rows.column_names else ()
        for path, container in zip_longest(rows["path"].to_pylist(), containers):
            self.add(path.rpartition("/")[0], stem_of(container) if container else None)

    def add_split(self, folder: str) -> None:
        """Note a folder with folders in it, which may be a split."""
        above = ""
        for part in self._inside(folder).split("/"):
            if part.lower() in SPLIT_OF:
                self._split_of.setdefault(above, set()).add(part)
            above += f"{part}/"

    def _add_splits_above(self, folder: str) -> None:
        """Note the folders above a class that are splits by a word of their names."""
        above = ""
        for part in folder.split("/"):
            if split_named(part):
                self._split_of.setdefault(above, set()).add(part)
            above += f"{part}/"

    def add_files(self, images: Sequence[str], others: Iterable[str], stem: str | None) -> None:
        """Note some of the images of a folder, and the other files next to them.

        Args:
            images: Paths of images of one folder.
            others: Paths of files that are no images.
            stem: As of `add`.
        """
        if self._label_from or self._label_beside:
            return
        is_wnid = images and _WNID.fullmatch(_folder_name(images[0]))
        if not is_wnid and len(self._keys) < _MAX_KEYS:
            self._keys.update(map(_key, images[:_KEYS_OF_FOLDER]))
        for path in others:
            suffix = path.rpartition(".")[2].lower()
            is_label = suffix == "cls" or (suffix in _LABELS_BESIDE and _folder_name(path) == stem)
            if is_label and _key(path) in self._keys:
                self._label_beside = _key(path), suffix
                return

    def refuse(self, *, is_complete: bool = True) -> None:
        """Refuse the tree if its folders cannot be classes.

        Args:
            is_complete: Whether all folders have been noted.

        Raises:
            LayoutError: They cannot; the hint names the option to use.
        """
        if self._label_from:
            return
        self._refuse_in_split()
        self._refuse_splits()
        self._refuse_labels_beside()
        if is_complete and self._classes:
            self._refuse_shards()
            self._refuse_flat()
        if self._nested:
            one, other = self._nested
            raise LayoutError(
                f"the classes of `{self._root}` are not clear: images are in `{one}/` and in "
                f"`{other}/`",
                hint="`vit21k hash --label-from top` takes the first folder below the root for the "
                f"class of an image (`{other.partition('/')[0]}`), `--label-from folder` the one "
                f"it is in (`{other.rpartition('/')[2]}`)",
            )
        if is_complete:
            self._refuse_one_class()

    def _find_nested(self, folder: str, above: str) -> None:
        """Note it if classes are below different folders, or below a wnid."""
        if self._nested is not None:
            return
        if above.rpartition("/")[2] == folder.rpartition("/")[2]:  # a folder in a tar of its name
            above = above.rpartition("/")[0]
        wnid = next((part for part in above.split("/") if _WNID.fullmatch(part)), None)
        self._first = self._first or (above, folder)
        if wnid is not None:
            self._nested = f"{folder.partition(wnid)[0]}{wnid}", folder
        elif self._first[0] != above:
            self._nested = self._first[1], folder

    def _refuse_in_split(self) -> None:
        if self._in_split is not None:
            raise LayoutError(
                f"images are in `{self._in_split}/` of `{self._root}` itself, which is a published "
                "split and no class",
                hint=f"{_CLASS_FOLDERS}; or, if a file has their classes, hash each split by "
                f"itself, `{self._in_split}` with `vit21k hash --labels FILE`",
            )

    def _refuse_splits(self) -> None:
        for above, names in sorted(self._split_of.items()):
            if len({_role(name) for name in names}) > 1:
                a, b = sorted(names, key=lambda name: (_role(name) != "train", name))[:2]
                place = f"{self._root}/{above}"
                raise LayoutError(
                    f"`{place}` holds splits, not classes: `{a}/` and `{b}/`; hashed as one tree, "
                    f"the images of `{b}` would be trained on",
                    hint="`vit21k hash --layout splits` takes them as published splits, for "
                    "`make-val --from-source`; or, if these are classes: "
                    f"{_BY_FOLDER}",
                )

    def _refuse_labels_beside(self) -> None:
        if self._label_beside is not None:
            key, suffix = self._label_beside
            raise LayoutError(
                f"`{self._root}` is a WebDataset: the label of an image is in a file next to it "
                f"(`{key}.{suffix}`), not in the name of its tar or folder",
                hint="`vit21k hash --layout webdataset` reads the labels in tars; or, if they "
                f"are not wanted: {_BY_FOLDER}",
            )

    def _refuse_shards(self) -> None:
        if self._shards and all(_SHARD.fullmatch(name) for name in self._shards):
            raise LayoutError(
                f"`{_some(self._shards)}` in `{self._root}` are shards by their names, not classes",
                hint=f"{_CLASS_FOLDERS}, or one tar for each class; or, if these are classes: "
                f"{_BY_FOLDER}",
            )

    def _refuse_one_class(self) -> None:
        """Refuse a single folder, which usually contains images of all classes."""
        name = min(self._classes, default="n0")
        if len(self._classes) == 1 and not _SYNSET.fullmatch(name) and not self._has_splits:
            raise LayoutError(
                f"all images of `{self._root}` are in one folder, `{name}`: is that a class?",
                hint=f"if it is: {_BY_FOLDER}; else {_CLASS_FOLDERS}, or give a file with the "
                "classes: `vit21k hash --labels FILE`",
            )

    def _refuse_flat(self) -> None:
        is_flat = len(self._classes) == 1 and _NO_CLASSES.fullmatch(next(iter(self._classes)))
        if is_flat or all(map(_splits_in, self._classes)):
            raise LayoutError(
                f"`{self._root}` has no class folders: its images are in `{_some(self._classes)}`, "
                "which is no class",
                hint="`vit21k hash --labels FILE` reads the classes from a file: the ground truth "
                f"of ILSVRC, a CSV of `1.jpg,cat` ...; or {_CLASS_FOLDERS}; or, if these are "
                f"classes: {_BY_FOLDER}",
            )


def stem_of(archive: str) -> str:
    """Return the name of an archive without its suffix: the folder that it would be unpacked to."""
    name = archive.rpartition("/")[2].encode(errors="surrogateescape")
    return (archive_stem(name) or name).decode(errors="surrogateescape")


def _role(name: str) -> str | None:
    return SPLIT_OF.get(name.lower()) or split_named(name)


def _some(names: Collection[str]) -> str:
    shown = sorted(names)[:2]
    return "`, `".join(shown) + ("`, ... `" + max(names) if len(names) > len(shown) else "")


def _key(path: str) -> str:
    """Return the key of a sample of a WebDataset from the name of a file."""
    folder, slash, name = path.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _folder_name(path: str) -> str:
    return path.rpartition("/")[0].rpartition("/")[2]
