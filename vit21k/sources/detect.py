"""Which layout a source has, and where the class of an image comes from.

The folders at the top are listed, and the first members of a few containers read.  What is not
clear is refused, with the options that settle it; `manifest.layout` refuses folders that cannot be
classes while they are walked.
"""

import json
import os
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from typing import Any, Literal, Self, TypeVar, get_args

import xxhash

from vit21k.errors import LayoutError, UsageError
from vit21k.manifest.archive_names import archive_stem, is_zip_name
from vit21k.manifest.classes import CLASSES_OPTION
from vit21k.manifest.layout import (
    LABEL_FILE_OPTION,
    SPLITS_OPTION,
    Layout,
    class_of,
    split_named,
    stem_of,
)
from vit21k.manifest.layout import OPTION as LABEL_OPTION
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.sources.container import (
    NO_OPTIONS,
    ByteSource,
    ContainerItems,
    LabelOptions,
    SourceTree,
    split_of,
)
from vit21k.sources.folders import is_image_name, kind_of_table, kind_of_tar
from vit21k.sources.gzip_tar import DAMAGE
from vit21k.sources.split_folders import SplitFolders, find_splits
from vit21k.sources.tables import detect_columns, hold_images, read_table
from vit21k.sources.tar import read_members
from vit21k.sources.webdataset import (
    IMAGE_FIELDS,
    LABEL_FIELDS,
    NO_FACTS,
    Sample,
    ShardEntry,
    class_in_key,
    detect_labels,
    label_source,
    preview,
    read_webdataset,
    window_of,
)

LayoutName = Literal["folders", "webdataset", "parquet", "arrow"]
LAYOUTS: tuple[LayoutName, ...] = get_args(LayoutName)

LayoutChoice = Literal["folders", "splits", "webdataset", "parquet", "arrow"]
"""What a user may say: splits are folders of class folders."""

LAYOUT_OPTION = "layout"
"""Option of a manifest's header; absent: folders."""

IMAGE_COLUMN_OPTION = "image_column"
"""Option of a manifest's header: `LabelOptions.image_column`; absent: there is only one."""

_TABLES: tuple[LayoutName, ...] = ("parquet", "arrow")

INFO = "_info.json"
_INFOS = (INFO, "info.json")  # as in timm
_CLASS_LIST_FIELDS = ("class_names", "classes", "label_names")

_MAX_FOLDERS = 64
_MAX_DEPTH = 3
_MAX_SUBFOLDERS = 8
_NUM_LOOKED_AT = 8
_NUM_MEMBERS = 64
_HOP_BYTES = 1 << 14
_WNID = re.compile(r"n\d{8}")
_WNID_KEY = re.compile(r"(n\d{8})[_-][^/]*")


@dataclass(frozen=True)
class SourceLayout:
    """What was detected of a source, or what the user said.

    Attributes:
        name: Of the layout.
        labels: Where the class of an image comes from; `label_from` is None for the folder.
        num_containers: Archives, shards or Parquet files, as far as they were listed.
        shards: The entry of `_info.json` of each shard, by its path.
        is_said: The user has named the layout or `label_from`.
        label_file: `LabelFile.identity` of where the classes are from; empty: there is none.
            Images need not be in a folder then, and an archive is read as a folder of its name.
        splits: Folders that are published splits; None if there are none.
    """

    name: LayoutName = "folders"
    labels: LabelOptions = NO_OPTIONS
    num_containers: int = 0
    shards: Mapping[str, ShardEntry] = field(default_factory=dict)
    is_said: bool = False
    label_file: Mapping[str, str | int] = field(default_factory=dict)
    splits: SplitFolders | None = None

    @property
    def line(self) -> str:
        """Layout and where the class comes from, in one line."""
        splits = ""
        if self.splits:
            folders = [one for one in self.splits.folders if self.splits.split_of(one)]
            names = ", ".join(f"`{one}`" for one in folders) or "folders of such names"
            splits = f" in published splits ({names})"
        if self.is_flat:
            source = f"`{self.label_file['name']}`" if self.label_file else label_source("key")
            return f"layout: files in any folders{splits}; class from {source}"
        what = {"folders": "class folders", "webdataset": "WebDataset"}.get(
            self.name, self.name.capitalize()
        )
        container = {"folders": "archive", "webdataset": "shard"}.get(self.name, "file")
        plural = "s" if self.num_containers > 1 else ""
        count = f", {self.num_containers:,} {container}{plural}" if self.num_containers else ""
        label_from = self.labels.label_from or "folder"
        classes = ""
        if self.labels.class_names is not None:
            whose = "--classes" if self.labels.are_classes_given else INFO
            classes = f" and the class list of `{whose}`"
            if self.name in _TABLES and not self.labels.are_classes_given:
                classes = f", which has {len(self.labels.class_names):,} classes"
        return f"layout: {what}{splits}{count}; class from {label_source(label_from)}{classes}"

    @property
    def is_flat(self) -> bool:
        """Whether images need not be in a class folder."""
        is_by_name = self.name == "folders" and self.labels.label_from == "key"
        return is_by_name or bool(self.label_file)

    @property
    def class_of_path(self) -> Callable[[str], str | Problem] | None:
        """What returns the class of a file by its path, or why it has none; None: `class_of`."""
        if self.name != "folders":
            return None
        return {"key": class_in_key, "parent": self._class_of_parent}.get(
            self.labels.label_from or ""
        )

    def _class_of_parent(self, path: str) -> str | Problem:
        name = self.class_of(path.rpartition("/")[0] + "/")
        detail = "there is no folder above that of the image"
        return name or Problem(path, ProblemKind.LABEL_MISSING, detail)

    def class_of(self, folder: str) -> str:
        """Return the class of the images in *folder*, which ends in `/`, relative to the root."""
        inside = self.splits.inside(folder) if self.splits else folder
        return class_of(inside or folder, self.labels.label_from)

    def kind_of(self, name: bytes) -> str | None:
        """Return the `ContainerRange.kind` of a file; None if it is not a container."""
        kind = kind_of_tar(name)
        if self.name == "webdataset" and kind is not None and not is_zip_name(name):
            return "webdataset"
        if self.name in _TABLES and kind_of_table(name) == self.name:
            return self.name
        return kind if self.name == "folders" else None

    def read(self, kind: str, source: ByteSource, path: str) -> ContainerItems:
        """Yield the images of a container, and what is wrong with it.

        Args:
            kind: By `kind_of`.
            source: The container.
            path: Relative to the root.

        Raises:
            OSError: It cannot be read.
        """
        if kind == "webdataset":
            return read_webdataset(source, path, self.labels, self.shards.get(path, NO_FACTS))
        if kind in _TABLES:
            return read_table(source, path, self.labels)
        raise ValueError(kind)

    def judge(self, root: str) -> Layout:
        """Return what refuses folders that cannot be classes; it accepts all if none are classes.

        Args:
            root: Of the source, for messages.
        """
        label_from = self.labels.label_from if self.name == "folders" else self.name
        if self.label_file:
            label_from = LABEL_FILE_OPTION
        return Layout(
            root, label_from=label_from, inside=self.splits.inside if self.splits else str
        )

    @property
    def cached_by(self) -> str:
        """Everything that the labels in a container depend on, for the cache."""
        return xxhash.xxh3_64_hexdigest(
            repr((self.name, self.labels, sorted(self.shards.items()))).encode()
        )

    @property
    def options(self) -> dict[str, Any]:
        """What the header of a manifest holds of it: nothing for class folders."""
        options: dict[str, Any] = {}
        if self.name != "folders":
            options[LAYOUT_OPTION] = self.name
        if self.labels.label_from:
            options[LABEL_OPTION] = self.labels.label_from
        if self.labels.class_names is not None:
            options[CLASSES_OPTION] = list(self.labels.class_names)
        if self.labels.image_column:
            options[IMAGE_COLUMN_OPTION] = self.labels.image_column
        if self.label_file:
            options[LABEL_FILE_OPTION] = dict(self.label_file)
        if self.splits:
            options[SPLITS_OPTION] = list(self.splits.folders)
        return options

    @classmethod
    def of_header(cls, options: Mapping[str, Any]) -> Self:
        """Return the layout of the source that was hashed with these `options`."""
        classes = options.get(CLASSES_OPTION)
        labels = LabelOptions(
            options.get(LABEL_OPTION),
            None if classes is None else tuple(classes),
            options.get(IMAGE_COLUMN_OPTION),
        )
        label_file = options.get(LABEL_FILE_OPTION, {})
        splits = options.get(SPLITS_OPTION)
        return cls(
            options.get(LAYOUT_OPTION, "folders"),
            labels,
            label_file=label_file,
            splits=None if splits is None else SplitFolders(tuple(splits)),
        )


CLASS_FOLDERS = SourceLayout()


@dataclass
class _Survey:
    """Files of a source by kind: all of them, or those of some folders."""

    tars: list[str] = field(default_factory=list)
    tables: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in _TABLES})
    images: list[str] = field(default_factory=list)
    infos: list[str] = field(default_factory=list)


def detect(
    tree: SourceTree,
    name: str,
    *,
    layout: LayoutChoice | None = None,
    labels: LabelOptions = NO_OPTIONS,
) -> SourceLayout:
    """Return the layout of *tree*.

    Args:
        tree: The source.
        name: Of the source, for messages.
        layout: What the user says it is.
        labels: The user's options about its classes.

    Raises:
        LayoutError: It is not clear, or not as the user says.
        UsageError: The layout has no labels of that kind.
        OSError: It cannot be listed, or a container cannot be read.
    """
    survey = _survey(tree)
    said = "folders" if layout == "splits" else layout
    found = said or _layout_of(tree, name, survey)
    if found == "webdataset":
        result = _detect_webdataset(tree, name, survey, labels)
    elif found in _TABLES:
        paths = survey.tables[found]
        result = SourceLayout(found, detect_columns(tree, _spread(paths), labels), len(paths))
    else:
        splits = find_splits(tree) if found == "folders" and layout != "folders" else None
        if layout == "splits":
            splits = splits or SplitFolders()
        result = SourceLayout(found, labels, len(survey.tars), splits=splits)
    _refuse_labels(result)
    return replace(result, is_said=layout is not None or labels.label_from is not None)


def _survey(tree: SourceTree) -> _Survey:
    """List the folders at the top, breadth first; those of images are not gone below."""
    survey = _Survey()
    waiting = deque([("", 0)])
    num_folders = 0
    while waiting and num_folders < _MAX_FOLDERS:
        folder, depth = waiting.popleft()
        num_folders += 1
        entries = sorted(tree.entries(folder), key=lambda entry: entry.name)
        for entry in entries:
            if not entry.is_folder and not entry.name.startswith("."):
                _note(survey, folder + entry.name)
        folders = [entry.name for entry in entries if entry.is_folder and entry.name[0] != "."]
        if depth < _MAX_DEPTH:
            waiting.extend((f"{folder}{one}/", depth + 1) for one in folders[:_MAX_SUBFOLDERS])
    return survey


def _note(survey: _Survey, path: str) -> None:
    name = os.fsencode(path.rpartition("/")[2])
    if is_image_name(name):  # first: most files are
        survey.images.append(path)
    elif kind_of_tar(name) and not is_zip_name(name):
        survey.tars.append(path)
    elif kind := kind_of_table(name):
        survey.tables[kind].append(path)
    elif os.fsdecode(name) in _INFOS:
        survey.infos.append(path)


def _layout_of(tree: SourceTree, name: str, survey: _Survey) -> LayoutName:
    if any(_of_readable(_spread(survey.tars), partial(_is_shard, tree))):
        return "webdataset"
    have = {kind: hold_images(tree, _spread(survey.tables[kind])) for kind in _TABLES}
    tables = [kind for kind in _TABLES if have[kind]]
    if not tables and not survey.images and not survey.tars:
        tables = [kind for kind in _TABLES if have[kind] is None]  # what is wrong will be listed
    if len(tables) > 1 or (tables and survey.images):
        other = survey.tables[tables[1]] if len(tables) > 1 else survey.images
        raise LayoutError(
            f"`{name}` holds images in several layouts: `{survey.tables[tables[0]][0]}` and "
            f"`{other[0]}`",
            hint=f"hash each by itself, or select one: `--layout {tables[0]}`, "
            f"`--layout {tables[1] if len(tables) > 1 else 'folders'}`",
        )
    return tables[0] if tables else "folders"


def _spread(paths: Sequence[str]) -> list[str]:
    """Return the first and the last of *paths*, and some between."""
    if len(paths) <= _NUM_LOOKED_AT:
        return list(paths)
    step = (len(paths) - 1) / (_NUM_LOOKED_AT - 1)
    return [paths[round(index * step)] for index in range(_NUM_LOOKED_AT)]


_Found = TypeVar("_Found")


def _of_readable(paths: Sequence[str], look: Callable[[str], _Found]) -> list[_Found]:
    """Return what *look* finds in each of *paths* that can be read; others are listed later.

    Raises:
        OSError: None can be read.
    """
    found, errors = [], []
    for path in paths:
        try:
            found.append(look(path))
        except OSError as error:
            errors.append(error)
    if errors and not found:
        raise errors[0]
    return found


def _is_shard(tree: SourceTree, path: str) -> bool:
    """Return whether a tar is a shard of a WebDataset, and not a class tar or a tree in a tar."""
    stem = (archive_stem(path.rpartition("/")[2].encode()) or b"").decode()
    if _WNID.fullmatch(stem):
        return False
    names = _first_names(tree, path)
    suffixes: dict[str, set[str]] = {}
    for one in names:
        folder, slash, base = one.rpartition("/")
        key, _, suffix = base.partition(".")
        suffixes.setdefault(folder + slash + key, set()).add(suffix.lower())
    if any(found & IMAGE_FIELDS and found & LABEL_FIELDS for found in suffixes.values()):
        return True
    return bool(suffixes) and all(_WNID_KEY.fullmatch(key) for key in suffixes)


def _first_names(tree: SourceTree, path: str) -> list[str]:
    """Return the names of the first members of a tar, as far as it can be read."""
    names = []
    with closing(tree.open(path)) as file, suppress(*DAMAGE):
        window = window_of(file, _HOP_BYTES)
        for member in islice(read_members(window), _NUM_MEMBERS):
            if archive_stem(member.name) is not None:
                return []  # class tars
            names += [member.name.decode(errors="replace")] if member.name else []
    return names


def _detect_webdataset(
    tree: SourceTree, name: str, survey: _Survey, labels: LabelOptions
) -> SourceLayout:
    shards = _read_infos(tree, survey.infos)
    if labels.class_names is None:
        labels = replace(labels, class_names=_class_names(tree, survey.infos))
    previews = _of_readable(_spread(survey.tars), partial(_preview, tree))
    samples = list(chain.from_iterable(previews))
    if not samples:
        raise LayoutError(
            f"no shard of `{name}` holds an image",
            hint="expected tars with members such as `00000000.jpg` and `00000000.json`",
        )
    found = detect_labels(samples, labels, name)
    if found.is_detected and found.label_from == "key":
        _refuse_names_of_classes(survey.tars, samples[0])
    return SourceLayout("webdataset", found, len(survey.tars), shards)


def _refuse_names_of_classes(tars: Sequence[str], sample: Sample) -> None:
    """Refuse tars that are named like classes (`dog.tar`), with images that have a WordNet id."""
    stems = [stem_of(path) for path in tars]
    named = [stem for stem in stems if not stem[-1:].isdigit() and split_named(stem) is None]
    if len(stems) > 1 and len(named) == len(stems):
        raise LayoutError(
            f"the class of `{sample.images[0].path}` may be the name of its tar, `{named[0]}`, or "
            "the WordNet id in its own name",
            hint="`--label-from key` takes the WordNet id, `--label-from folder` the name of the "
            "tar",
        )


def _preview(tree: SourceTree, path: str) -> list[Sample]:
    with closing(tree.open(path)) as file:
        return preview(file, path)


def _read_infos(tree: SourceTree, infos: Sequence[str]) -> dict[str, ShardEntry]:
    """Return the entry of timm's `_info.json` of each shard, by its path."""
    facts: dict[str, ShardEntry] = {}
    for path in infos:
        splits = _read_info(tree, path).get("splits")
        for name, split in (splits if isinstance(splits, dict) else {}).items():
            if not isinstance(split, dict) or split.get("alt_label"):
                continue  # timm's `train_12k` counts those images of `train` that have that label
            names, counts = split.get("filenames", []), split.get("shard_lengths", [])
            if not isinstance(names, list) or not isinstance(counts, list):
                continue
            for index, shard in enumerate(names):
                count = counts[index] if index < len(counts) else None
                num_images = count if isinstance(count, int) else None
                where = f"{path[: path.rfind('/') + 1]}{shard}"
                facts[where] = ShardEntry(split_of(f"{name}/"), num_images)
    return facts


def _class_names(tree: SourceTree, infos: Sequence[str]) -> tuple[str, ...] | None:
    """Return the class list of `_info.json`; None if it has none, or several differ."""
    found = set()
    for path in infos:
        info = _read_info(tree, path)
        names = next((info[name] for name in _CLASS_LIST_FIELDS if name in info), None)
        if isinstance(names, list) and names and all(isinstance(one, str) for one in names):
            found.add(tuple(names))
    return found.pop() if len(found) == 1 else None


def _read_info(tree: SourceTree, path: str) -> dict[str, Any]:
    with closing(tree.open(path)) as file:
        try:
            info = json.loads(file.read())
        except (ValueError, RecursionError) as error:
            raise LayoutError(
                f"`{path}` is malformed: {error}", hint="fix it, or hash a copy without it"
            ) from error
    return info if isinstance(info, dict) else {}


_LABELS_OF: dict[LayoutName, tuple[str, ...]] = {
    "folders": ("folder", "parent", "top", "key"),
    "webdataset": ("folder", "parent", "top", "key", "cls", "json"),
    "parquet": ("column", "folder", "parent", "top"),
    "arrow": ("column", "folder", "parent", "top"),
}


def _refuse_labels(found: SourceLayout) -> None:
    """Refuse a `label_from` that images of this layout do not have."""
    label_from = found.labels.label_from
    if label_from is None:
        return
    kinds = _LABELS_OF[found.name]
    if label_from.partition(":")[0] not in kinds:
        words = {"json": "json:FIELD", "column": "column:NAME"}
        raise UsageError(
            f"`--label-from {label_from}`: images in the layout `{found.name}` have no such label",
            hint=f"it has {', '.join(words.get(kind, kind) for kind in kinds)}; `--layout` selects "
            "another layout",
        )
